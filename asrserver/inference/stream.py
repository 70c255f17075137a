"""A live stream: its bytes become samples, segments and text while they arrive; each byte is processed once.

The decoding and voice activity detection of a piece block for some milliseconds, so they run in the audio thread, as
generators that yield the frames which the network must score before they go on (audio_thread.py). The rest runs in the
event loop. The stream also knows where another worker could continue it, for whatever sample is the first that is
still needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.decoders import Decoder, resume_decoder
from asrserver.audio.pcm import Samples
from asrserver.errors import AudioError
from asrserver.inference.audio_thread import AudioWork
from asrserver.inference.checkpoint import Checkpoint, StreamState
from asrserver.inference.features import FFT, GrowingLogMel
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.segments import SegmentRecogniser, SpeechSegment
from asrserver.inference.vad import CONTEXT_SAMPLES, Endpointer, Event, SegmentEnded

#: Most bytes of a codec's parameters in a checkpoint, which goes to Redis with every event; no sane stream has more. A
#: stream that has more keeps its beginning in Redis instead.
MAX_CODEC_PARAMETERS = 1 << 16

#: Samples of one entry after which speech is looked for in them before more of it is decoded.
LONG_PIECE = 5 * SAMPLE_RATE


class Piece(NamedTuple):
    """A piece of a stream: the id of the entry before it, and its bytes."""

    before: str
    data: bytes


class PieceOutcome(NamedTuple):
    """What came of a piece: the length of the stream after it, in samples, and what was wrong with it, if anything."""

    position: int
    error: AudioError | None


@dataclass(slots=True)
class _Entry:
    before: str  # the id of the entry before it
    offset: int  # of its first byte in the stream


class LiveStream:
    """One live stream of a session. A session may have several, one after another.

    Attributes:
        kind: Its container; None for headerless PCM.
        segments: Recognises its segments.
        over: Its end has been processed.
        checkpointed: Sample up to which durable events cover it.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        segments: SegmentRecogniser,
        kind: str | None,
        decoder: Decoder,
        *,
        silence: float,
        is_suspect: Callable[[], bool],
        floor: int = 0,
    ) -> None:
        """Begin a stream.

        Args:
            recogniser: What all sessions share.
            segments: Gets the stream's segments.
            kind: Its container; None for headerless PCM.
            decoder: Decodes its bytes.
            silence: Seconds of silence that end a segment.
            is_suspect: Says whether the audio in hand is suspected of killing workers: then it runs alone.
            floor: No segment begins before this sample.
        """
        self.kind = kind
        self.segments = segments
        self.over = False
        self.checkpointed = 0
        self._recogniser = recogniser
        self._decoder = decoder
        self._is_suspect = is_suspect
        self._silence = silence
        self._beginning = decoder.resume_point(0)
        self._growing: SpeechSegment | None = None
        self._paused = False  # the growing segment has been quiet for so long that it may have ended
        self._entries = deque[_Entry]()
        self._received = 0  # bytes
        self._skip = 0  # bytes of the first entry that lie before the resume point
        self._resumed: StreamState | None = None  # the state from which this owner continued
        self._audio = np.zeros(0, np.float32)  # what a segment may still need
        self._audio_start = max(decoder.position, floor - CONTEXT_SAMPLES)  # its first sample
        self._endpointer = self._listen_from(self._audio_start, floor)

    @classmethod
    def resume(
        cls,
        recogniser: Recogniser,
        segments: SegmentRecogniser,
        state: StreamState,
        *,
        silence: float,
        is_suspect: Callable[[], bool],
    ) -> LiveStream:
        """Continue a stream of another worker from the state in its checkpoint."""
        decoder = resume_decoder(state.border)
        stream = cls(
            recogniser,
            segments,
            state.kind,
            decoder,
            silence=silence,
            is_suspect=is_suspect,
            floor=state.sample,
        )
        stream._resumed = state
        stream._received = state.border.offset - state.skip
        stream._skip = state.skip
        return stream

    @property
    def position(self) -> int:
        """Samples decoded so far."""
        return self._decoder.position

    @property
    def seconds(self) -> float:
        """Seconds decoded so far."""
        return self.position / SAMPLE_RATE

    @property
    def tail(self) -> AudioError | None:
        """After its end: what of its last bytes could not be decoded; None: nothing."""
        return self._decoder.tail

    @property
    def needed(self) -> int:
        """The first sample that a segment still to come may contain."""
        return self._endpointer.needed

    async def feed(
        self, pieces: list[Piece], labels: list[str], opening: Piece | None, closing: bool = False, last: bool = False
    ) -> list[PieceOutcome]:
        """Process the next pieces.

        Args:
            pieces: The pieces; a damaged one is lost and costs no other.
            labels: "session entry" of each.
            opening: A file that may be the beginning of the stream.
            closing: The session's end is near: process its audio before others', whose clients do not wait.
            last: The pieces are the last of the stream. For headerless audio its end is processed with them.

        Returns:
            The outcome of each piece.

        Raises:
            AudioError: `opening` is not the beginning of a stream.
        """
        if closing:
            self.segments.expedite()
        self._endpointer.expect_more(self.segments.breaks_off(self._growing))
        async with self._recogniser.isolation.hold(self._is_suspect()):
            outcomes, ended = await self._recogniser.audio_thread.run(
                labels, self._process(pieces, opening, last), urgent=self.segments.closing
            )
            self.segments.add_ended(ended, labels[-1], self._is_suspect())
            if self._is_suspect():
                await self.segments.wait()
            else:
                self.segments.update_growing(self._growing, self._paused, labels[-1])
        return outcomes

    async def finish(self, label: str) -> None:
        """Process the end of the stream.

        Args:
            label: "session entry" of the entry that ends it.

        Raises:
            AudioError: The stream never held audio.
        """
        self.segments.expedite()
        if self.over:
            return
        async with self._recogniser.isolation.hold(self._is_suspect()):
            ended = await self._recogniser.audio_thread.run([label], self._process_end(), urgent=True)
            self.segments.add_ended(ended, label, self._is_suspect())
            if self._is_suspect():
                await self.segments.wait()

    async def flush(self, label: str) -> None:
        """End the growing segment here, as the end of the stream would, and wait for the text of all that have ended.

        What the decoder holds back of the last samples stays there: in headerless audio a few milliseconds at most, in
        a container the last packet.

        Args:
            label: "session entry" of the entry that asks for it.
        """
        async with self._recogniser.isolation.hold(self._is_suspect()):
            ended = await self._recogniser.audio_thread.run([label], self._process_flush(), urgent=True)
            self.segments.add_ended(ended, label, self._is_suspect(), flushed=True)
            self.segments.update_growing(None, False, label)
            if self._is_suspect():
                await self.segments.wait()
        await self.segments.wait()

    def skip(self, before: str, size: int) -> None:
        """Drop the growing segment and pass over an entry that killed its workers.

        In headerless audio silence takes its place, or what follows might begin in the middle of a sample; a
        container's decoder finds the next place where it can continue by itself.

        Args:
            before: The id of the entry before it.
            size: Its bytes.
        """
        if self.kind is None:
            self._entries.append(_Entry(before, self._received))
            self._received += size
            self._decoder.feed(bytes(size - self._skip))
        else:
            self._received += self._skip
        self._skip = 0
        self._listen_anew()

    # -- in the audio thread -------------------------------------------------------------------------------------

    def _process(
        self, pieces: list[Piece], opening: Piece | None, last: bool
    ) -> AudioWork[tuple[list[PieceOutcome], list[SpeechSegment]]]:
        """(outcome of each piece, segments that ended in them); see `feed`."""
        decoded: list[Samples] = []
        ended: list[SpeechSegment] = []
        outcomes: list[PieceOutcome] = []
        if opening is not None:
            decoded += self._decode(opening)
        for piece in pieces:
            error = None
            try:
                for samples in self._decode(piece):
                    decoded.append(samples)
                    if len(samples) > LONG_PIECE:  # more follows: others' work may come between
                        ended += yield from self._detect(decoded)
                        decoded = []
            except AudioError as exc:
                error = exc
            outcomes.append(PieceOutcome(self.position, error))
        ended += yield from self._detect(decoded)
        if last and self.kind is None and self.position:  # the end of a container may be an error of its own
            ended += yield from self._process_end()
        return outcomes, ended

    def _process_end(self) -> AudioWork[list[SpeechSegment]]:
        """The last segments; raises AudioError if there never was any audio."""
        ended = yield from self._detect([self._decoder.flush()])
        ended += self._ended_segments(self._endpointer.flush())
        self._growing = None
        self.over = True
        return ended

    def _process_flush(self) -> AudioWork[list[SpeechSegment]]:
        """The segments up to here."""
        ended = yield from self._detect([])
        ended += self._ended_segments(self._endpointer.flush())
        self._listen_anew()
        return ended

    def _listen_anew(self) -> None:
        """Look for speech from here on, as if nothing had come before."""
        self._growing = None
        self._audio_start = self.position
        self._audio = np.zeros(0, np.float32)
        self._endpointer = self._listen_from(self.position)

    def _listen_from(self, start: int, floor: int = 0) -> Endpointer:
        profile = self._recogniser.profile
        return Endpointer(
            self._silence, start=start, floor=floor, hold=profile.hold_seconds, look_back=profile.look_back
        )

    def _decode(self, piece: Piece) -> Iterator[Samples]:
        """The samples that the bytes of an entry complete, in pieces."""
        self._entries.append(_Entry(piece.before, self._received))
        self._received += len(piece.data)
        data, self._skip = piece.data[self._skip :], 0
        yield from self._decoder.pieces(data)

    def _detect(self, decoded: list[Samples]) -> AudioWork[list[SpeechSegment]]:
        """The segments that end in new samples."""
        samples = decoded[0] if len(decoded) == 1 else np.concatenate([np.zeros(0, np.float32), *decoded])
        known = self._audio_start + len(self._audio)
        first = self.position - len(samples)
        samples = samples[max(0, known - first) :]  # without those that an earlier owner's events cover
        self._audio = np.concatenate([self._audio, samples])
        yield self._endpointer.push(samples)
        ended = self._ended_segments(self._endpointer.pull())
        self._update_growing()
        keep = min(self._endpointer.needed, self.position)
        if keep > self._audio_start:
            self._audio = self._audio[keep - self._audio_start :].copy()
            self._audio_start = keep
        return ended

    def _ended_segments(self, events: list[Event]) -> list[SpeechSegment]:
        ended = []
        for event in events:
            if isinstance(event, SegmentEnded):
                segment = self._segment(event.start, event.end, event.end + FFT, last=True)
                segment.cut = event.cut
                ended.append(segment)
                self._growing = None
        return ended

    def _update_growing(self) -> None:
        segment = self._endpointer.open
        self._growing = None if segment is None else self._segment(segment.start, segment.end, self.position)
        self._paused = segment is not None and segment.paused >= self._recogniser.profile.pause_seconds * SAMPLE_RATE

    def _segment(self, start: int, end: int, upto: int, last: bool = False) -> SpeechSegment:
        """A segment with its features up to sample `upto`; it keeps those of the growing segment if it is the same."""
        if self._growing is not None and self._growing.start == start:
            mel = self._growing.mel
        else:
            mel = GrowingLogMel(self._recogniser.engine.model.n_mels)
        mel.feed(self._audio[start + mel.samples - self._audio_start : max(0, upto - self._audio_start)], last)
        return SpeechSegment(start, end, mel)

    # -- for the next owner --------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Where a next owner continues once everything final is durable."""
        waiting = self.segments.first_waiting
        return self._checkpoint_at(waiting.start if waiting is not None else self.needed)

    def _checkpoint_at(self, sample: int) -> Checkpoint:
        point = self._decoder.resume_point(sample - CONTEXT_SAMPLES)  # the endpointer needs the audio before the sample
        if point.track is not None and len(point.track.extradata) > MAX_CODEC_PARAMETERS:
            point = self._beginning
        while len(self._entries) > 1 and self._entries[1].offset <= point.offset:
            self._entries.popleft()
        if not self._entries and self._resumed is not None:  # nothing has come since this owner continued
            return Checkpoint(self._resumed.after, self._resumed)
        first = self._entries[0]
        state = StreamState(first.before, self.kind, sample, point.offset - first.offset, point)
        return Checkpoint(first.before, state)
