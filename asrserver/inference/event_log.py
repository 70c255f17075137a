"""What one session has said: its events numbered and fenced, its segments, and from where a next owner goes on."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

import orjson

from asrserver.broker.replies import Claim
from asrserver.inference.recognise import Segment
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


class Voice(Protocol):
    """The broker, as far as a session needs it."""

    name: str

    async def append_event(
        self, claim: Claim, number: int, event: dict[str, Any], after: str, fields: dict[str, str] | None = None
    ) -> bool: ...

    async def checkpoint(self, claim: Claim, after: str, total: float, fields: dict[str, str]) -> bool: ...

    def publish(self, claim: Claim, event: dict[str, Any]) -> None: ...

    def progress(self, claim: Claim, taken: int, total: float) -> None: ...

    async def dead_letter(self, sid: str, entry: str, reason: str) -> None: ...


class Ledger:
    """A session's events. After each, the session's hash says where the next owner goes on: nothing is answered twice,
    nothing recognised twice."""

    def __init__(self, claim: Claim, broker: Voice, model: str) -> None:
        self._claim = claim
        self._broker = broker
        self._model = model
        events = claim.events
        state = orjson.loads(claim.fields.get("state", "{}"))
        options = orjson.loads(claim.fields["options"])
        self._progress = 0.0  # seconds of audio that are taken
        self._told = 0.0  # and of which that was told
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0  # of this owner's events
        self._seq = events[-1]["seq"] if events else 0
        self._said = list(claim.transcript)
        self.spoken_until = max((segment["end"] for event in events for segment in event["segments"]), default=0.0)
        self.place: Place = (state.get("after", "0-1"), state.get("recording"))
        self.total = state.get("total", 0.0)  # seconds of the utterances and recordings that are over
        self.language: str | None = state.get("language") or options["language"]
        self.answered = state.get("answered", -1)  # index of the last chunk that was answered
        self.taken = state.get("taken", -1)  # index of the last chunk that was counted
        self.chunks = state.get("chunks", 0)

    @property
    def last(self) -> str:
        """The text of the last segment, if it is in the session's language."""
        text, language = self._said[-1] if self._said else ("", None)
        return text if language == self.language else ""

    def count(self, index: int, chunks: int = 1) -> None:
        """So many chunks are taken, the last with this index."""
        if index > self.taken:
            self.taken = index
            self.chunks += chunks

    def join(self, segments: list[Segment]) -> str:
        """The text of segments, and a chance to be sure of the session's language."""
        for segment in segments:
            if self.language is None and segment.language_probability >= SURE:
                self.language = segment.language
        return join([(segment.text, segment.language) for segment in segments])

    async def say(self, event: dict[str, Any], segments: list[Segment], open_seconds: float, place: Place) -> None:
        """Make an event durable, with the segments that are final by it; raises Fenced, Unavailable."""
        self._seq += 1
        self._number += 1
        rows = [_row(len(self._said) + n, segment) for n, segment in enumerate(segments)]
        self._said += [(segment.text, segment.language) for segment in segments]
        self.spoken_until = max([self.spoken_until, *(segment.end for segment in segments)])
        if event["type"] == "final":
            event["text"] = join(self._said)
        spoken = self.language or (self._said[-1][1] if self._said else None)
        event = {
            "language": spoken,
            **event,
            "seq": self._seq,
            "time": round(time.time(), 3),
            "worker": self._broker.name,
            "model": self._model,
            "chunk_count": self.chunks,
            "total": round(self.total + open_seconds, 3),
            "segments": rows,
        }
        if not await self._broker.append_event(self._claim, self._number, event, place[0], self._state(place)):
            raise Fenced(self._claim.sid)

    async def cover(self, place: Place, open_seconds: float) -> None:
        """Let go of audio that gave nothing to say, of a recording of so many seconds; raises Fenced, Unavailable."""
        total = self.total + open_seconds
        if not await self._broker.checkpoint(self._claim, place[0], total, self._state(place)):
            raise Fenced(self._claim.sid)

    def guess(self, event: dict[str, Any]) -> None:
        """Publish what is not durable. It names the durable event that it follows."""
        self._broker.publish(self._claim, {**event, "type": "partial", "follows": self._seq})

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
        self._broker.progress(self._claim, self.taken, self._progress)

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


def _row(number: int, segment: Segment) -> dict[str, Any]:
    row = {
        "number": number,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "language": segment.language,
        "confidence": segment.confidence,
        "chunk_index": segment.chunk_index,
    }
    return row | ({"words": segment.words} if segment.words else {})
