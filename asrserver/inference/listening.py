"""A channel of a live stream: its samples become segments while they arrive.

A stream whose channels are mixed has one. Otherwise each of its channels is recognised separately, like a stream of its
own: when two parties of a call talk at once, the result is not one text that neither of them said.
"""

from __future__ import annotations

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.pcm import Samples
from asrserver.inference.features import FFT, GrowingLogMel
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.segment_recogniser import SegmentRecogniser
from asrserver.inference.segments import SpeechSegment
from asrserver.inference.silero import FrameRun
from asrserver.inference.vad import CONTEXT_SAMPLES, Endpointer, Event, SegmentEnded


class Channel:
    """Finds the segments of one channel. `push` and what follows it run in the audio thread, the rest in the loop.

    Attributes:
        segments: Recognises the segments.
        growing: The growing segment, if there is one.
        paused: The growing segment has been quiet for so long that it may have ended.
    """

    def __init__(
        self, recogniser: Recogniser, segments: SegmentRecogniser, silence: float, position: int, floor: int = 0
    ) -> None:
        """Listen from a sample on.

        Args:
            recogniser: What all sessions share.
            segments: See the attributes.
            silence: Seconds of silence that end a segment.
            position: The first sample that comes.
            floor: No segment begins before this sample.
        """
        self.segments = segments
        self.growing: SpeechSegment | None = None
        self.paused = False
        self._recogniser = recogniser
        self._silence = silence
        self._audio = np.zeros(0, np.float32)  # what a segment may still need
        self._audio_start = max(position, floor - CONTEXT_SAMPLES)  # its first sample
        self._endpointer = self._listen_from(self._audio_start, floor)

    @property
    def needed(self) -> int:
        """The first sample that a segment still to come may contain."""
        return self._endpointer.needed

    @property
    def floor(self) -> int:
        """The first sample that a next owner needs once everything final is durable."""
        waiting = self.segments.first_waiting
        return waiting.start if waiting is not None else self.needed

    def expect_more(self) -> None:
        """Wait longer for the end of the growing segment where its text, decoded in a pause, breaks off."""
        self._endpointer.expect_more(self.segments.breaks_off(self.growing))

    def push(self, samples: Samples, first: int) -> list[FrameRun]:
        """Take samples, of which `first` is the first, and return the frames that the network must score."""
        known = self._audio_start + len(self._audio)
        samples = samples[max(0, known - first) :]  # without those that an earlier owner's events cover
        self._audio = np.concatenate([self._audio, samples])
        return self._endpointer.push(samples)

    def pull(self, position: int) -> list[SpeechSegment]:
        """The segments that ended in the samples pushed, up to `position`, once their frames are scored."""
        ended = self._ended_segments(self._endpointer.pull())
        segment = self._endpointer.open
        self.growing = None if segment is None else self._segment(segment.start, segment.end, position)
        self.paused = segment is not None and segment.paused >= self._recogniser.profile.pause_seconds * SAMPLE_RATE
        keep = min(self._endpointer.needed, position)
        if keep > self._audio_start:
            self._audio = self._audio[keep - self._audio_start :].copy()
            self._audio_start = keep
        return ended

    def end(self) -> list[SpeechSegment]:
        """The last segments: nothing follows."""
        ended = self._ended_segments(self._endpointer.flush())
        self.growing = None
        return ended

    def restart(self, position: int) -> None:
        """Begin anew at this sample, as if nothing had come before."""
        self.growing = None
        self._audio_start = position
        self._audio = np.zeros(0, np.float32)
        self._endpointer = self._listen_from(position)

    def _listen_from(self, start: int, floor: int = 0) -> Endpointer:
        profile = self._recogniser.profile
        return Endpointer(
            self._silence, start=start, floor=floor, hold=profile.hold_seconds, look_back=profile.look_back
        )

    def _ended_segments(self, events: list[Event]) -> list[SpeechSegment]:
        ended = []
        for event in events:
            if isinstance(event, SegmentEnded):
                segment = self._segment(event.start, event.end, event.end + FFT, last=True)
                segment.cut = event.cut
                ended.append(segment)
                self.growing = None
        return ended

    def _segment(self, start: int, end: int, upto: int, last: bool = False) -> SpeechSegment:
        """A segment with its features up to sample `upto`; it keeps those of the growing segment if it is the same."""
        if self.growing is not None and self.growing.start == start:
            mel = self.growing.mel
        else:
            mel = GrowingLogMel(self._recogniser.engine.model.n_mels)
        mel.feed(self._audio[start + mel.samples - self._audio_start : max(0, upto - self._audio_start)], last)
        return SpeechSegment(start, end, mel)
