"""The events that one session's owner appends: numbered, fenced, and each with the place where a next owner goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from asrserver.broker.replies import Claim
from asrserver.errors import AsrError
from asrserver.inference.recognise import RecognisedSegment
from asrserver.protocol.events import (
    ChunkResult,
    ErrorEvent,
    Final,
    Partial,
    Progress,
    Result,
    Segment,
    SegmentResult,
)
from asrserver.protocol.options import Options
from asrserver.text.words import join

#: Language probability from which a session keeps a detected language.
SURE = 0.8

#: Seconds between two notices of what is taken; and of audio after which one goes at once: a client ahead of time is
#: not read until what it sent is taken, and was held at five times real time by a worker that had nothing to do.
PROGRESS_EVERY = 2.0
PROGRESS_SECONDS = 4.0

#: Where a session is: the entry after which to read, and the recording that goes on there, if one does.
Place = tuple[str, dict[str, Any] | None]


class Fenced(Exception):
    """Raised when another worker owns the session now."""


class EventSink(Protocol):
    """The broker, as far as a session needs it."""

    name: str

    async def append_event(
        self, claim: Claim, event: Result, after: str, fields: dict[str, str] | None = None
    ) -> bool: ...

    async def checkpoint(self, claim: Claim, after: str, total: float, fields: dict[str, str]) -> bool: ...

    def publish(self, claim: Claim, event: Partial | Progress) -> None: ...

    async def dead_letter(self, sid: str, entry: str, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Coverage:
    """What is done with by an event, beside what it says.

    Attributes:
        segments: The segments that are final by it.
        open_seconds: Seconds of the file or recording that is still open.
        place: Where a next owner goes on.
    """

    segments: Sequence[RecognisedSegment]
    open_seconds: float
    place: Place


class EventLog:
    """A session's events. After each, the session's hash says where the next owner goes on: nothing is answered twice,
    nothing recognised twice."""

    def __init__(self, claim: Claim, broker: EventSink, model: str, options: Options) -> None:
        self._claim = claim
        self._broker = broker
        self._model = model
        events = claim.events
        state = orjson.loads(claim.fields.get("state", "{}"))
        self._progress = 0.0  # seconds of audio that are taken
        self._told = 0.0  # and of which that was told
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0  # of this owner's events
        self._seq = events[-1].seq if events else 0
        self._transcript = list(claim.transcript)
        self.spoken_until = max((segment.end for event in events for segment in event.segments), default=0.0)
        self.place: Place = (state.get("after", "0-1"), state.get("recording"))
        self.total = state.get("total", 0.0)  # seconds of the utterances and recordings that are over
        self.language: str | None = state.get("language") or options.language
        self.answered = state.get("answered", -1)  # index of the last chunk that was answered
        self.taken = state.get("taken", -1)  # index of the last chunk that was counted
        self.chunks = state.get("chunks", 0)

    @property
    def last(self) -> str:
        """The text of the last segment, if it is in the session's language."""
        text, language = self._transcript[-1] if self._transcript else ("", None)
        return text if language == self.language else ""

    def count(self, index: int, chunks: int = 1) -> None:
        """So many chunks are taken, the last with this index."""
        if index > self.taken:
            self.taken = index
            self.chunks += chunks

    def join(self, segments: Sequence[RecognisedSegment]) -> str:
        """The text of segments, and a chance to be sure of the session's language."""
        for segment in segments:
            if self.language is None and segment.language_probability >= SURE:
                self.language = segment.language
        return join([(segment.text, segment.language) for segment in segments])

    async def append_chunk(
        self, index: int, text: str, seconds: float, received: float | None, coverage: Coverage
    ) -> None:
        """Append the result of a chunk of so many seconds; raises Fenced, Unavailable."""
        stamp = self._stamp(coverage)
        await self._append(
            ChunkResult(**stamp, chunk_index=index, text=text, duration=round(seconds, 3), received=received), coverage
        )

    async def append_segment(self, text: str, language: str, coverage: Coverage) -> None:
        """Append the result of a segment of a stream; raises Fenced, Unavailable."""
        stamp = self._stamp(coverage) | {"language": language}
        await self._append(SegmentResult(**stamp, text=text), coverage)

    async def append_error(
        self, error: AsrError, coverage: Coverage, index: int | None = None, received: float | None = None
    ) -> None:
        """Append an error, of a chunk or (None) of no single one; raises Fenced, Unavailable."""
        stamp = self._stamp(coverage)
        await self._append(
            ErrorEvent(**stamp, code=error.code, message=error.message, chunk_index=index, received=received), coverage
        )

    async def append_final(self, status: str, coverage: Coverage) -> None:
        """Append the session's end, with its whole text; raises Fenced, Unavailable."""
        stamp = self._stamp(coverage)
        await self._append(Final(**stamp, status=status, text=join(self._transcript)), coverage)

    def _stamp(self, coverage: Coverage) -> dict[str, Any]:
        """Count one more event, and its segments: what all kinds of events have."""
        self._seq += 1
        self._number += 1
        rows = [_row(len(self._transcript) + n, segment) for n, segment in enumerate(coverage.segments)]
        self._transcript += [(segment.text, segment.language) for segment in coverage.segments]
        self.spoken_until = max([self.spoken_until, *(segment.end for segment in coverage.segments)])
        return {
            "session_id": self._claim.sid,
            "seq": self._seq,
            "id": self._claim.event_id(self._number),
            "time": round(time.time(), 3),
            "worker": self._broker.name,
            "model": self._model,
            "chunk_count": self.chunks,
            "total": round(self.total + coverage.open_seconds, 3),
            "language": self.language or (self._transcript[-1][1] if self._transcript else None),
            "segments": rows,
        }

    async def _append(self, event: Result, coverage: Coverage) -> None:
        place = coverage.place
        if not await self._broker.append_event(self._claim, event, place[0], self._state(place)):
            raise Fenced(self._claim.sid)

    async def checkpoint(self, place: Place, open_seconds: float) -> None:
        """Let go of audio that gave nothing to say, of a recording of so many seconds; raises Fenced, Unavailable."""
        total = self.total + open_seconds
        if not await self._broker.checkpoint(self._claim, place[0], total, self._state(place)):
            raise Fenced(self._claim.sid)

    def publish_partial(self, start: float, end: float, text: str, stable: str, language: str) -> None:
        """Publish the text so far of a growing segment, from second to second of the session's audio."""
        event = Partial(
            session_id=self._claim.sid,
            start=round(start, 3),
            end=round(end, 3),
            text=text,
            stable=stable,
            language=language,
            follows=self._seq,
        )
        self._broker.publish(self._claim, event)

    def progress(self, open_seconds: float) -> None:
        """What is taken of a recording has no result of its own: say at times that it is taken."""
        self._progress = self.total + open_seconds
        if self._progress - self._told >= PROGRESS_SECONDS:
            self._tell_progress()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PROGRESS_EVERY, self._tell_progress)

    def _tell_progress(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._told = self._progress
        event = Progress(session_id=self._claim.sid, taken=self.taken, total=round(self._progress, 3))
        self._broker.publish(self._claim, event)

    def _state(self, place: Place) -> dict[str, str]:
        after, recording = place
        self.place = place
        state = {
            "after": after,
            "recording": recording,
            "total": self.total,
            "language": self.language,
            "answered": self.answered,
            "taken": self.taken,
            "chunks": self.chunks,
        }
        return {"state": orjson.dumps(state).decode()}


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
    )
