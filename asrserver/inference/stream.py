"""A live stream: its bytes become samples, segments and text while they arrive; each byte is processed once.

Decoding and voice activity detection of a piece block for some milliseconds. So they run in the audio thread, as
generators that yield the frames which the network must score before they can go on (audio_thread.py). The rest runs in
the event loop. The stream also knows where another worker could continue it, given the first sample that is still
needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.decoders import Decoder, resume_decoder
from asrserver.audio.pcm import Samples, joined
from asrserver.audio.selection import Selection
from asrserver.errors import AudioError
from asrserver.inference.audio_thread import AudioWork
from asrserver.inference.checkpoint import Checkpoint, StreamState
from asrserver.inference.listening import Channel
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.segment_recogniser import SegmentRecogniser
from asrserver.inference.segments import SegmentOutcome, SpeechSegment
from asrserver.inference.vad import CONTEXT_SAMPLES

#: Maximum size in bytes of a codec's parameters in a checkpoint, which goes to Redis with every event. No sane stream
#: has more; one that does keeps its beginning in Redis instead.
MAX_CODEC_PARAMETERS = 1 << 16

#: Samples of one entry after which voice activity detection follows, before more of the entry is decoded.
LONG_PIECE = 5 * SAMPLE_RATE


class Piece(NamedTuple):
    """A piece of a stream: the id of the entry before it, and its bytes."""

    before: str
    data: bytes


class PieceOutcome(NamedTuple):
    """The result for a piece: the length of the stream after it, in samples, and the error, if there was one."""

    position: int
    error: AudioError | None


#: Segments that ended, each with its channel.
Ended = list[tuple[Channel, SpeechSegment]]


@dataclass(slots=True)
class _Entry:
    before: str  # the id of the entry before it
    offset: int  # of its first byte in the stream


class LiveStream:
    """One live stream of a session. A session may have several, one after another.

    Attributes:
        kind: Its container; None for headerless PCM.
        channels: Its channels: one where they are mixed; else those heard so far, which are recognised separately.
        over: Whether its end has been processed.
        checkpointed: Sample up to which durable events cover it.
        bytes_since_checkpoint: Bytes received since the last such event.
        ended_by: "session entry" of the last entry with which a segment ended.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        segments: Callable[[int | None], SegmentRecogniser],
        kind: str | None,
        decoder: Decoder,
        selection: Selection,
        *,
        silence: float,
        is_suspect: Callable[[], bool],
        floors: Sequence[int] = (),
    ) -> None:
        """Begin a stream.

        Args:
            recogniser: What all sessions share.
            segments: Makes the recogniser for the segments of a channel; None: of all channels, mixed.
            kind: Its container; None for headerless PCM.
            decoder: Decodes its bytes.
            selection: What of them it decodes.
            silence: Seconds of silence that end a segment.
            is_suspect: Whether the audio in hand is suspected of killing workers: then it is processed alone.
            floors: For each channel, the sample before which no segment begins.
        """
        self.kind = kind
        self.channels: list[Channel] = []
        self.over = False
        self.checkpointed = 0
        self.bytes_since_checkpoint = 0
        self.ended_by = ""
        self._recogniser = recogniser
        self._segments = segments
        self._decoder = decoder
        self._separate = selection.separate
        self._is_suspect = is_suspect
        self._silence = silence
        self._closing = False
        self._beginning = decoder.resume_point(0)
        self._entries = deque[_Entry]()
        self._received = 0  # bytes
        self._skip = 0  # bytes of the first entry that lie before the resume point
        self._resumed: StreamState | None = None  # the state from which this owner continued
        for floor in floors if self._separate else (floors or (0,))[:1]:
            self._add_channel(decoder.position, floor)

    @classmethod
    def resume(
        cls,
        recogniser: Recogniser,
        segments: Callable[[int | None], SegmentRecogniser],
        state: StreamState,
        selection: Selection,
        *,
        silence: float,
        is_suspect: Callable[[], bool],
    ) -> LiveStream:
        """Continue a stream of another worker from the state in its checkpoint."""
        stream = cls(
            recogniser,
            segments,
            state.kind,
            resume_decoder(state.border, selection),
            selection,
            silence=silence,
            is_suspect=is_suspect,
            floors=state.floors if selection.separate else [state.sample],
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
    def received(self) -> int:
        """Bytes received so far."""
        return self._received

    @property
    def seconds(self) -> float:
        """Seconds decoded so far."""
        return self.position / SAMPLE_RATE

    @property
    def further(self) -> float:
        """Seconds decoded so far in the channels beside the first."""
        return self.seconds * max(0, len(self.channels) - 1)

    @property
    def tail(self) -> AudioError | None:
        """After its end: the error of bytes at the end that could not be decoded; None: all could."""
        return self._decoder.tail

    @property
    def needed(self) -> int:
        """The first sample that a segment still to come may contain."""
        return min((channel.needed for channel in self.channels), default=self.position)

    # -- segments ------------------------------------------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """Whether there are ended segments whose outcome has not been taken."""
        return any(channel.segments.first_waiting is not None for channel in self.channels)

    @property
    def is_full(self) -> bool:
        """Whether too many segments wait for more audio to be processed."""
        return any(channel.segments.is_full for channel in self.channels)

    @property
    def backlog(self) -> float:
        """Seconds of speech in ended segments that wait for their text."""
        return sum(channel.segments.backlog for channel in self.channels)

    def take_outcome(self) -> SegmentOutcome | None:
        """Take the outcome of the earliest ended segment that has one; those of a channel come in order."""
        ready = [(start, channel) for channel in self.channels if (start := channel.segments.next_start) is not None]
        return min(ready, key=lambda one: one[0])[1].segments.take_outcome() if ready else None

    async def outcomes(self) -> AsyncIterator[SegmentOutcome]:
        """Yield the outcomes of all ended segments, once they are available, in the order of their starts."""
        while self.is_waiting:
            await self._wait()
            while (outcome := self.take_outcome()) is not None:
                yield outcome

    def expedite(self) -> None:
        """The session is finished: move its audio and segments forward, because its client waits for them."""
        self._closing = True
        for channel in self.channels:
            channel.segments.expedite()

    def close(self) -> None:
        """Cancel everything under way."""
        for channel in self.channels:
            channel.segments.close()

    async def _wait(self) -> None:
        for channel in self.channels:
            await channel.segments.wait()

    def _add_ended(self, ended: Ended, label: str, flushed: bool = False) -> None:
        for channel, speech in ended:
            self.ended_by = label
            channel.segments.add_ended([speech], label, self._is_suspect(), flushed)

    def _add_channel(self, position: int, floor: int) -> None:
        number = len(self.channels) if self._separate else None
        segments = self._segments(number)
        if self._closing:
            segments.expedite()
        self.channels.append(Channel(self._recogniser, segments, self._silence, position, floor))

    # -- audio ---------------------------------------------------------------------------------------------------

    async def feed(
        self, pieces: list[Piece], labels: list[str], opening: Piece | None, closing: bool = False, last: bool = False
    ) -> list[PieceOutcome]:
        """Process the next pieces.

        Args:
            pieces: The pieces; a damaged one is lost and costs no other.
            labels: "session entry" of each.
            opening: A file that may be the beginning of the stream.
            closing: The end of the session has come: process its audio before that of others, whose clients do not
                wait.
            last: The pieces are the last of the stream. The end of headerless audio is processed with them.

        Returns:
            The outcome of each piece.

        Raises:
            AudioError: `opening` is not the beginning of a stream.
        """
        if closing:
            self.expedite()
        for channel in self.channels:
            channel.expect_more()
        async with self._recogniser.isolation.hold(self._is_suspect()):
            outcomes, ended = await self._recogniser.audio_thread.run(
                labels, self._process(pieces, opening, last), urgent=self._closing
            )
            self._add_ended(ended, labels[-1])
            if self._is_suspect():
                await self._wait()
            else:
                for channel in self.channels:
                    channel.segments.update_growing(channel.growing, channel.paused, labels[-1])
        return outcomes

    async def finish(self, label: str) -> None:
        """Process the end of the stream.

        Args:
            label: "session entry" of the entry that ends it.

        Raises:
            AudioError: The stream never held audio.
        """
        self.expedite()
        if self.over:
            return
        async with self._recogniser.isolation.hold(self._is_suspect()):
            self._add_ended(await self._recogniser.audio_thread.run([label], self._process_end(), urgent=True), label)
            if self._is_suspect():
                await self._wait()

    async def flush(self, label: str) -> None:
        """End the growing segments here, as the end of the stream would, and wait for the text of all ended ones.

        Samples that the decoder holds back stay there: a few milliseconds of headerless audio at most, or the last
        packet of a container.

        Args:
            label: "session entry" of the entry that asks for it.
        """
        async with self._recogniser.isolation.hold(self._is_suspect()):
            ended = await self._recogniser.audio_thread.run([label], self._process_flush(), urgent=True)
            self._add_ended(ended, label, flushed=True)
            for channel in self.channels:
                channel.segments.update_growing(None, False, label)
            if self._is_suspect():
                await self._wait()
        await self._wait()

    def skip(self, before: str, size: int) -> None:
        """Drop the growing segments, and skip an entry that killed its workers.

        In headerless audio silence takes its place: what follows might begin in the middle of a sample otherwise. The
        decoder of a container finds by itself where it can continue.

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
        self._restart_channels()

    # -- in the audio thread -------------------------------------------------------------------------------------

    def _process(
        self, pieces: list[Piece], opening: Piece | None, last: bool
    ) -> AudioWork[tuple[list[PieceOutcome], Ended]]:
        """(outcome of each piece, segments that ended in them); see `feed`."""
        decoded: list[Samples] = []
        ended: Ended = []
        outcomes: list[PieceOutcome] = []
        if opening is not None:
            yield from self._hear(opening, decoded, ended)
        for piece in pieces:
            error = None
            try:
                yield from self._hear(piece, decoded, ended)
            except AudioError as exc:
                error = exc
            outcomes.append(PieceOutcome(self.position, error))
        ended += yield from self._detect(decoded)
        if last and self.kind is None and self.position:  # the end of a container may be an error of its own
            ended += yield from self._process_end()
        return outcomes, ended

    def _hear(self, piece: Piece | None, decoded: list[Samples], ended: Ended) -> AudioWork[None]:
        """Decode an entry, and add its samples to `decoded`; every LONG_PIECE of them, find the segments that ended.

        In between, other sessions have their turn: a few bytes can hold hours, or cost much time and give no audio.

        Args:
            piece: The entry; None: what is left at the end of the stream.
            decoded: Samples before voice activity detection.
            ended: Segments that have ended are added to it.
        """
        if piece is None:
            found = self._decoder.ending()
        else:
            self._entries.append(_Entry(piece.before, self._received))
            self._received += len(piece.data)
            self.bytes_since_checkpoint += len(piece.data)
            found, self._skip = self._decoder.pieces(piece.data[self._skip :]), 0
        count = sum(map(len, decoded))
        for samples in found:
            if not len(samples):
                yield []
            decoded.append(samples)
            count += len(samples)
            if count > LONG_PIECE:
                ended += yield from self._detect(decoded)
                decoded.clear()
                count = 0

    def _process_end(self) -> AudioWork[Ended]:
        """The last segments; raises AudioError if there never was any audio."""
        decoded: list[Samples] = []
        ended: Ended = []
        yield from self._hear(None, decoded, ended)
        ended += yield from self._detect(decoded)
        ended += [(channel, speech) for channel in self.channels for speech in channel.end()]
        self.over = True
        return ended

    def _process_flush(self) -> AudioWork[Ended]:
        """The segments up to here."""
        ended = yield from self._detect([])
        ended += [(channel, speech) for channel in self.channels for speech in channel.end()]
        self._restart_channels()
        return ended

    def _restart_channels(self) -> None:
        for channel in self.channels:
            channel.restart(self.position)

    def _detect(self, decoded: list[Samples]) -> AudioWork[Ended]:
        """The segments that end in new samples."""
        samples = joined(decoded)
        first = self.position - len(samples)
        columns = self._columns(samples, first)
        runs = [channel.push(column, first) for channel, column in zip(self.channels, columns, strict=True)]
        yield [run for channel in runs for run in channel]
        return [(channel, speech) for channel in self.channels for speech in channel.pull(self.position)]

    def _columns(self, samples: Samples, first: int) -> list[Samples]:
        """The samples of each channel. A new channel begins here; one that is missing is silent."""
        if not self._separate:
            return [samples]
        columns = list(np.ascontiguousarray(samples.T)) if samples.ndim == 2 else []
        while len(self.channels) < len(columns):
            floor = self._resumed.sample if self._resumed is not None and not self._resumed.floors else 0
            self._add_channel(first, floor)
        return columns + [np.zeros(len(samples), np.float32)] * (len(self.channels) - len(columns))

    # -- for the next owner --------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Where a next owner continues once all results so far are durable."""
        floors = [channel.floor for channel in self.channels]
        sample = min(floors, default=self.position)
        point = self._decoder.resume_point(sample - CONTEXT_SAMPLES)  # the endpointer needs the audio before the sample
        if point.track is not None and len(point.track.extradata) > MAX_CODEC_PARAMETERS:
            point = self._beginning
        while len(self._entries) > 1 and self._entries[1].offset <= point.offset:
            self._entries.popleft()
        if not self._entries and self._resumed is not None:  # nothing has come since this owner continued
            return Checkpoint(self._resumed.after, self._resumed)
        first = self._entries[0]
        skip = point.offset - first.offset
        state = StreamState(first.before, self.kind, sample, skip, point, floors if self._separate else [])
        return Checkpoint(first.before, state)
