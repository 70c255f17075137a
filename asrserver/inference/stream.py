"""A recording that goes on: its entries' bytes to samples to segments, each byte, frame and sample dealt with once.

What runs here blocks for some milliseconds, so it runs in a thread (listener.py): as generators, which yield what the
network must hear before they can go on. It also knows from where another worker could go on, for whatever sample is
the first that still matters.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.decoders import Decoder, resume_decoder
from asrserver.audio.pcm import Samples
from asrserver.audio.stream import Border
from asrserver.errors import AudioError
from asrserver.inference.audio_thread import AudioWork
from asrserver.inference.features import FFT, GrowingLogMel
from asrserver.inference.vad import CONTEXT_SAMPLES, PAD_SECONDS, Endpointer, Event, SegmentEnded

#: A piece of a recording: the id of the entry before it, and its bytes.
Piece = tuple[str, bytes]

#: The samples of the recording after a piece, and what was wrong with the piece.
Outcome = tuple[int, AudioError | None]

#: Bytes of a codec's parameters: they go to Redis with every place, and none that is sane has more. A recording that
#: has keeps its beginning in Redis instead.
MAX_HEAD = 1 << 16


@dataclass(slots=True)
class Speech:
    """A segment, growing or ended: from sample to sample of the recording, and its features, which begin there."""

    start: int
    end: int
    mel: GrowingLogMel

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / SAMPLE_RATE


@dataclass(slots=True)
class _Entry:
    before: str  # the id of the entry before it
    offset: int  # of its first byte in the recording


class Recording:
    """One recording of a session. `kind` is its container, or None for headerless audio."""

    def __init__(self, kind: str | None, decoder: Decoder, silence: float, n_mels: int, floor: int = 0) -> None:
        self.kind = kind
        self.over = False  # nothing is left of it to be heard
        self.growing: Speech | None = None  # as it would be if it ended now
        self.paused = (
            False  # it has been quiet for as long as is kept of a pause: what would end now has all it can have
        )
        self._decoder = decoder
        self._origin = decoder.border(0)
        self._silence = silence
        self._n_mels = n_mels
        self._entries = deque[_Entry]()
        self._fed = 0  # bytes
        self._skip = 0  # of the first entry, that are before the border
        self._resumed: dict[str, Any] | None = None  # the place where this owner went on
        self._audio = np.zeros(0, np.float32)  # what a segment may still need
        self._from = max(decoder.position, floor - CONTEXT_SAMPLES)  # its first sample
        self._endpointer = Endpointer(silence, start=self._from, floor=floor)

    @classmethod
    def resume(cls, place: dict[str, Any], silence: float, n_mels: int) -> Recording:
        """One that goes on where another worker's was: at a `place`."""
        border = Border.fromdict(place["border"])
        recording = cls(place["kind"], resume_decoder(border), silence, n_mels, place["sample"])
        recording._resumed = place
        recording._fed = border.offset - place["skip"]
        recording._skip = place["skip"]
        return recording

    @property
    def heard(self) -> int:
        """Samples so far."""
        return self._decoder.position

    @property
    def needed(self) -> int:
        """The first sample that may be a part of a segment still to come."""
        return self._endpointer.needed

    # -- in a thread ---------------------------------------------------------------------------------------------

    def take(
        self, pieces: list[Piece], opening: Piece | None = None, last: bool = False
    ) -> AudioWork[tuple[list[Outcome], list[Speech]]]:
        """What came of each of some pieces, and the segments that end in them. One that is wrong is lost, no other.

        `opening` is a file that may be the recording's beginning; raises AudioError if it is none. The `last` pieces
        of headerless audio are its end too.
        """
        decoded: list[Samples] = []
        outcomes: list[Outcome] = []
        if opening is not None:
            decoded.append(self._decode(*opening))
        for piece in pieces:
            error = None
            try:
                decoded.append(self._decode(*piece))
            except AudioError as exc:
                error = exc
            outcomes.append((self.heard, error))
        speeches = yield from self._hear(decoded)
        if last and self.kind is None and self.heard:  # a container's end may be wrong by itself
            speeches += yield from self.finish()
        return outcomes, speeches

    def finish(self) -> AudioWork[list[Speech]]:
        """The last segments; raises AudioError if there never was any audio."""
        ended = yield from self._hear([self._decoder.flush()])
        ended += self._ended(self._endpointer.flush())
        self.growing = None
        self.over = True
        return ended

    def _decode(self, before: str, data: bytes) -> Samples:
        """The samples that the bytes of an entry complete."""
        self._entries.append(_Entry(before, self._fed))
        self._fed += len(data)
        data, self._skip = data[self._skip :], 0
        return self._decoder.feed(data)

    def let_go(self, before: str, size: int) -> None:
        """Forget what grows, and pass over an entry of so many bytes: one of them kills its workers.

        Of headerless audio, silence takes its place, or what follows might begin in the middle of a sample; a
        container's decoder finds the next place to go on at by itself.
        """
        if self.kind is None:
            self._entries.append(_Entry(before, self._fed))
            self._fed += size
            self._decoder.feed(bytes(size - self._skip))
        else:
            self._fed += self._skip
        self._skip = 0
        self.growing = None
        self._from = self.heard
        self._audio = np.zeros(0, np.float32)
        self._endpointer = Endpointer(self._silence, start=self.heard)

    def _hear(self, decoded: list[Samples]) -> AudioWork[list[Speech]]:
        samples = decoded[0] if len(decoded) == 1 else np.concatenate([np.zeros(0, np.float32), *decoded])
        known = self._from + len(self._audio)
        first = self.heard - len(samples)
        samples = samples[max(0, known - first) :]  # of an earlier owner's, told already
        self._audio = np.concatenate([self._audio, samples])
        yield self._endpointer.push(samples)
        ended = self._ended(self._endpointer.pull())
        self._grow()
        keep = min(self._endpointer.needed, self.heard)
        if keep > self._from:
            self._audio = self._audio[keep - self._from :].copy()
            self._from = keep
        return ended

    def _ended(self, events: list[Event]) -> list[Speech]:
        speeches = []
        for event in events:
            if isinstance(event, SegmentEnded):
                speeches.append(self._speech(event.start, event.end, event.end + FFT, last=True))
                self.growing = None
        return speeches

    def _grow(self) -> None:
        segment = self._endpointer.open
        self.growing = None if segment is None else self._speech(segment.start, segment.end, self.heard)
        self.paused = segment is not None and segment.paused >= PAD_SECONDS * SAMPLE_RATE

    def _speech(self, start: int, end: int, upto: int, last: bool = False) -> Speech:
        """The features go on from those of the growing segment, if this is the one."""
        if self.growing is not None and self.growing.start == start:
            mel = self.growing.mel
        else:
            mel = GrowingLogMel(self._n_mels)
        mel.feed(self._audio[start + mel.samples - self._from : max(0, upto - self._from)], last)
        return Speech(start, end, mel)

    # -- for whoever comes next ----------------------------------------------------------------------------------

    def place(self, sample: int) -> tuple[str, dict[str, Any]]:
        """(the entry after which to read, what `resume` wants) to go on at a sample."""
        border = self._decoder.border(sample - CONTEXT_SAMPLES)  # the endpointer wants to hear what was before
        if border.track is not None and len(border.track.extradata) > MAX_HEAD:
            border = self._origin
        while len(self._entries) > 1 and self._entries[1].offset <= border.offset:
            self._entries.popleft()
        if not self._entries and self._resumed is not None:  # nothing has come since
            return self._resumed["after"], self._resumed
        first = self._entries[0]
        place = {
            "after": first.before,
            "kind": self.kind,
            "sample": sample,
            "skip": border.offset - first.offset,
            "border": border.asdict(),
        }
        return first.before, place
