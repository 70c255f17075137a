"""The event log of a session: numbered, fenced events, each with the checkpoint where a next owner continues."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from asrserver.audio import SAMPLE_RATE
from asrserver.broker.replies import Claim
from asrserver.errors import AsrError
from asrserver.inference import checkpoint
from asrserver.inference.checkpoint import Checkpoint, SessionState
from asrserver.inference.normalising import Normalising
from asrserver.inference.segments import PartialHypothesis, RecognisedSegment
from asrserver.inference.transcript import Transcript
from asrserver.protocol.events import (
    ChunkResult,
    ErrorEvent,
    Final,
    Flushed,
    Partial,
    Progress,
    Result,
    Segment,
    SegmentResult,
    SpeechStarted,
    Trace,
)
from asrserver.protocol.options import Options
from asrserver.telemetry import worker_traces
from asrserver.text.words import join

#: Seconds between two progress events.
PROGRESS_INTERVAL_SECONDS = 2.0

#: Seconds of audio after which a progress event is published at once. The gateway stops reading a client that is ahead
#: of real time until its audio is taken; without this limit an idle worker held such a client at five times real time.
#: The same in bytes: to the gateway, bytes without audio seem to be audio.
PROGRESS_AUDIO_SECONDS = 4.0
PROGRESS_BYTES = 1 << 18


class Fenced(Exception):
    """Raised when another worker owns the session now."""


class EventSink(Protocol):
    """The broker, as far as a session needs it."""

    name: str

    async def append_event(
        self, claim: Claim, event: Result, after: str, fields: dict[str, str] | None = None
    ) -> bool: ...

    async def checkpoint(self, claim: Claim, after: str, total: float, fields: dict[str, str]) -> bool: ...

    def publish(self, claim: Claim, event: Partial | SpeechStarted | Progress) -> None: ...

    async def dead_letter(self, sid: str, entry: str, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Coverage:
    """The audio that an event covers: it is not needed again.

    Attributes:
        open_seconds: Seconds of the file or live stream that is still open.
        checkpoint: Where a next owner continues.
        further: The same in the other channels together, where channels are recognised separately.
    """

    open_seconds: float
    checkpoint: Checkpoint
    further: float = 0.0


class EventLog:
    """Appends the events of one session.

    Each event is written together with the checkpoint where the next owner continues. So no owner answers a chunk or
    recognises a segment a second time.

    Attributes:
        checkpoint: Where a next owner would continue now.
        transcript: The texts and languages of the segments so far.
        channels: Channels that are recognised separately; 0 where they are mixed.
        closed_seconds: Seconds of the utterances and live streams that are over: where the next one begins.
        closed_further: The same for the channels beside the first.
        answered: Index of the last chunk that was answered.
        taken: Index of the last chunk that was counted.
        chunks: Chunks counted.
        flushed: Number of the last flush that was answered.
        model: Name of the model that recognises the session.
        trace: Takes notes for the spans of the events; None: it is not traced.
    """

    def __init__(self, claim: Claim, broker: EventSink, model: str, options: Options) -> None:
        """Continue where the session's earlier owners stopped.

        Args:
            claim: The session, with its hash and events.
            broker: Takes the events.
            model: The model's name, for the events.
            options: The session's options.
        """
        self._claim = claim
        self._broker = broker
        self.model = model
        self.trace = worker_traces.claim_session(claim.sid, claim.fields, claim.epoch)
        events = claim.events
        state = checkpoint.decode(claim.fields.get("state"))
        self.checkpoint = state.checkpoint
        self.channels = len(state.languages)
        self.closed_seconds = state.total
        self.closed_further = state.further
        self.answered = state.answered
        self.taken = state.taken
        self.chunks = state.chunks
        self.flushed = max((event.number for event in events if isinstance(event, Flushed)), default=0)
        self._damaged = state.damaged
        self._normalising = Normalising(options)
        self._pending: list[RecognisedSegment] = []  # final, and not in an event yet
        self.transcript = Transcript(claim, state, options)
        self._seq = events[-1].seq if events else 0
        self._number = 0  # of this owner's events
        self._progress = 0.0  # seconds of the session's audio that are taken
        self._further = 0.0  # the same for the channels beside the first
        self._reported = 0.0  # what was published of _progress
        self._received = self._reported_bytes = 0  # bytes of the live stream, and what was published of them
        self._timer: asyncio.TimerHandle | None = None

    @property
    def has_pending(self) -> bool:
        """Whether segments are final and not in an event yet."""
        return bool(self._pending)

    @property
    def pending_text(self) -> str:
        """The text of the segments that are final and not in an event yet."""
        return _text(self._pending)

    def count(self, index: int, chunks: int = 1) -> None:
        """Count chunks, the last of which is `index`, as taken, unless an earlier owner did."""
        if index > self.taken:
            self.taken = index
            self.chunks += chunks

    def heard(self, channels: int) -> None:
        """Note the number of channels that are recognised separately."""
        self.channels = max(self.channels, channels)

    def close(self, seconds: float, further: float) -> None:
        """Count the seconds of an utterance or live stream that is over, and those of its further channels."""
        self.closed_seconds += seconds
        self.closed_further += further

    def may_answer(self, index: int) -> bool:
        """Mark a chunk as answered; False if an earlier owner answered it."""
        if index <= self.answered:
            return False
        self.answered = index
        return True

    async def prepare(self) -> None:
        """Load what normalises the texts. To be called before the first segment."""
        if self._normalising.needs_loading:
            await asyncio.to_thread(self._normalising.load)

    def join(self, segments: Sequence[RecognisedSegment]) -> str:
        """Return the text of segments, whose languages are noted."""
        return self._join([self._normalising.segment(segment) for segment in segments])

    def _join(self, segments: Sequence[RecognisedSegment]) -> str:
        self.transcript.detect(segments)
        return _text(segments)

    def add(self, segments: Sequence[RecognisedSegment]) -> str:
        """Add final segments, which the next event will contain.

        Args:
            segments: Their times count from the beginning of their utterance or live stream.

        Returns:
            Their text.
        """
        segments = [self._normalising.segment(segment) for segment in segments]
        self._pending += [segment.shifted(self.closed_seconds) for segment in segments]
        return self._join(segments)

    # -- durable events: each method raises Fenced and Unavailable -----------------------------------------------

    async def append_chunk(
        self, index: int, text: str, seconds: float, received: float | None, coverage: Coverage
    ) -> None:
        """Append the result of a chunk.

        Args:
            index: The chunk.
            text: Its text.
            seconds: Audio in it.
            received: When the gateway got it, in seconds since the Unix epoch.
            coverage: See Coverage.
        """
        common = self._common_fields(coverage)
        await self._append(
            ChunkResult(**common, chunk_index=index, text=text, duration=round(seconds, 3), received=received), coverage
        )

    async def append_segment(self, text: str, language: str, coverage: Coverage, cut: bool = False) -> None:
        """Append the result of a segment of a live stream; the segment must have been added."""
        common = self._common_fields(coverage) | {"language": language}
        await self._append(SegmentResult(**common, text=text, cut=cut), coverage)

    async def append_error(
        self, error: AsrError, coverage: Coverage, index: int | None = None, received: float | None = None
    ) -> None:
        """Append an error of a chunk, or (None) of no single chunk; see `append_chunk`."""
        common = self._common_fields(coverage)
        await self._append(
            ErrorEvent(**common, code=error.code, message=error.message, chunk_index=index, received=received), coverage
        )

    async def append_damage(self, error: AsrError, coverage: Coverage, index: int) -> None:
        """Append the error of a chunk that is damaged in part, unless an earlier owner did; its result must follow."""
        if index > self._damaged:
            self._damaged = index
            await self.append_error(AsrError(error.code, f"chunk {index}: {error.message}"), coverage)

    async def append_flushed(self, number: int, coverage: Coverage) -> None:
        """Append the answer to a flush."""
        self.flushed = number
        await self._append(Flushed(**self._common_fields(coverage), number=number), coverage)

    async def append_final(self, status: str, coverage: Coverage) -> None:
        """Append the end of the session with its whole text."""
        common = self._common_fields(coverage)
        await self._append(Final(**common, status=status, text=self.transcript.text()), coverage)

    async def append_checkpoint(self, coverage: Coverage) -> None:
        """Write a checkpoint without an event, so that audio is released."""
        total = self.closed_seconds + coverage.open_seconds + self.closed_further + coverage.further
        after, state = coverage.checkpoint.after, self._state(coverage.checkpoint)
        if not await self._broker.checkpoint(self._claim, after, total, state):
            raise Fenced(self._claim.sid)

    def _common_fields(self, coverage: Coverage) -> dict[str, Any]:
        """Number a new event and its segments, and return the fields that all kinds of events have."""
        self._seq += 1
        self._number += 1
        segments, self._pending = self._pending, []
        rows = [_row(len(self.transcript) + n, segment) for n, segment in enumerate(segments)]
        self.transcript.add(rows)
        return {
            "session_id": self._claim.sid,
            "seq": self._seq,
            "id": self._claim.event_id(self._number),
            "time": round(time.time(), 3),
            "worker": self._broker.name,
            "model": self.model,
            "chunk_count": self.chunks,
            "total": round(self.closed_seconds + coverage.open_seconds, 3),
            "language": self.transcript.language or self.transcript.last_language,
            "segments": rows,
            "channels": self.channels,
            "further": round(self.closed_further + coverage.further, 3),
        }

    async def _append(self, event: Result, coverage: Coverage) -> None:
        after, state = coverage.checkpoint.after, self._state(coverage.checkpoint)
        result, accepted = None, False
        if self.trace is not None:
            error = event.code if isinstance(event, ErrorEvent) else ""
            result = self.trace.result(type(event).__name__, event.seq, error)
        if result is not None:
            event = msgspec.structs.replace(event, trace=Trace(result.parent, result.entry))
        try:
            accepted = await self._broker.append_event(self._claim, event, after, state)
        finally:
            if result is not None:
                result.end(accepted)
        if not accepted:
            raise Fenced(self._claim.sid)

    def _state(self, now: Checkpoint) -> dict[str, str]:
        self.checkpoint = now
        state = SessionState(
            *now, self.closed_seconds, self.transcript.language, self.answered, self.taken, self.chunks,
            self._damaged, self.closed_further, self.transcript.languages(self.channels),
        )  # fmt: skip
        return {"state": checkpoint.encode(state)}

    # -- events that are published and not kept ------------------------------------------------------------------

    def publish_speech(self, channel: int | None, start: int) -> None:
        """Publish that speech begins on a channel, at sample `start` of the live stream."""
        event = SpeechStarted(
            session_id=self._claim.sid,
            start=round(self.closed_seconds + start / SAMPLE_RATE, 3),
            follows=self._seq,
            channel=channel,
            channels=self.channels,
        )
        self._broker.publish(self._claim, event)

    def publish_partial(self, partial: PartialHypothesis) -> None:
        """Publish the text so far of a growing segment of the live stream."""
        partial = self._normalising.partial(partial)
        event = Partial(
            session_id=self._claim.sid,
            start=round(self.closed_seconds + partial.start / SAMPLE_RATE, 3),
            end=round(self.closed_seconds + partial.end / SAMPLE_RATE, 3),
            text=partial.text,
            stable=partial.stable,
            language=partial.language,
            follows=self._seq,
            channel=partial.channel,
            channels=self.channels,
        )
        self._broker.publish(self._claim, event)

    def report_progress(self, open_seconds: float, further: float, received: int) -> None:
        """Report the chunks taken of a live stream, which have no results of their own; not at every call.

        Args:
            open_seconds: Seconds of the stream.
            further: The same for the channels beside the first.
            received: Bytes of the stream. Many bytes without audio are reported too: the gateway takes them for seconds
                of audio, and would stop reading.
        """
        self._progress = self.closed_seconds + open_seconds
        self._further = self.closed_further + further
        self._received = received
        many = abs(received - self._reported_bytes) >= PROGRESS_BYTES
        if many or self._progress - self._reported >= PROGRESS_AUDIO_SECONDS:
            self._publish_progress()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PROGRESS_INTERVAL_SECONDS, self._publish_progress)

    def _publish_progress(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._reported, self._reported_bytes = self._progress, self._received
        event = Progress(
            session_id=self._claim.sid,
            taken=self.taken,
            total=round(self._progress, 3),
            further=round(self._further, 3),
        )
        self._broker.publish(self._claim, event)


def _text(segments: Sequence[RecognisedSegment]) -> str:
    """The text of segments: of several channels, in the order in which they began."""
    if any(segment.channel is not None for segment in segments):
        segments = sorted(segments, key=lambda segment: segment.start)
    return join([(segment.text, segment.language) for segment in segments])


def _row(number: int, segment: RecognisedSegment) -> Segment:
    return Segment(
        number=number,
        start=round(segment.start, 3),
        end=round(segment.end, 3),
        text=segment.text,
        language=segment.language,
        confidence=segment.confidence,
        chunk_index=segment.chunk_index,
        words=segment.words,
        channel=segment.channel,
    )
