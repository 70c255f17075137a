"""One session as its owner sees it: audio entries in, durable events out, in order.

Every event says from where a next owner must read (`after`, and `skip` samples of what follows), what is final by then
(`segments`) and the totals. So a takeover goes on exactly there: nothing is answered twice, nothing recognised twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from asrserver.broker import STRIKES, Claim, Entry
from asrserver.errors import AsrError, AudioError, Unavailable
from asrserver.inference import audio
from asrserver.inference.audio import RATE, Pcm, Samples
from asrserver.inference.models import Request
from asrserver.inference.recognise import Recogniser, Segment, join

log = logging.getLogger("asrserver.transcriber")

#: Headerless PCM of so many seconds is an utterance; less is a piece of a continuing recording.
UTTERANCE = 1.0

#: Seconds of a continuing recording after which its finished segments are recognised, and every further so many.
PROGRESS = 30.0
PROGRESS_STEP = 10.0

#: Bytes of one continued container: compressed, many hours of speech.
MAX_CONTAINER = 64 * 2**20

#: Bytes of unread chunks at which a session's stream is read no further until some are done.
MAX_UNREAD = 8 * 2**20

#: Bytes a second of a container, for guessing how long the work on it will take: 64 kbit/s.
CONTAINER_RATE = 8000

#: Language probability from which a session keeps a detected language.
SURE = 0.8

Emit = Callable[[Claim, int, dict[str, Any], str], Awaitable[bool]]
Bury = Callable[[str, str, str], Awaitable[None]]


class Fenced(Exception):
    """Raised when another worker owns the session now."""


@dataclass(slots=True)
class _Open:
    """A recording that may go on. `after` is the entry before its first."""

    after: str
    kind: str | None  # the container; None is PCM
    index: int  # of its first chunk
    data: bytearray = field(default_factory=bytearray)
    continued: bool = False
    pieces: list[tuple[str, bytes, Samples]] = field(default_factory=list)  # (entry before it, its bytes of this one)
    skip: int = 0  # samples of the first piece that are done with
    checked: float = 0.0
    seconds: float = 0.0  # that are not yet in the session's total
    segments: list[Segment] = field(default_factory=list)  # provisional: of a container as far as its first chunk


class Transcriber:
    """Turns the entries of one session into events. Made by the feed, which also hands it its entries."""

    def __init__(self, claim: Claim, recogniser: Recogniser, emit: Emit, bury: Bury, worker: str) -> None:
        self.claim = claim
        self.over = False
        self._recogniser = recogniser
        self._emit = emit
        self._bury = bury
        self._worker = worker
        self._options = orjson.loads(claim.fields["options"])
        self._pcm = Pcm(self._options["format"], self._options["sample_rate"], self._options["channels"])
        self._strikes = {key[7:]: int(n) for key, n in claim.fields.items() if key.startswith("strike:")}
        self._entries: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self.unread = 0  # bytes of the entries that wait
        self.largest = MAX_UNREAD  # of its chunks so far, in bytes; unknown is as large as may be
        self._number = 0  # of this owner's events
        self._waiting_segments: list[Segment] = []  # final, but their chunk was answered by an earlier owner
        self._open: _Open | None = None
        self._restore()
        self.cursor = self._after  # the last entry that the feed has read

    def _restore(self) -> None:
        """The state after the events of earlier owners."""
        events = self.claim.events
        last = events[-1] if events else {}
        self._seq = last.get("seq", 0)
        self._total = last.get("closed", 0.0)
        self._after = last.get("after", "0-1")
        self._skip = last.get("skip", 0)
        self._pcm.rest = bytes.fromhex(last.get("rest", ""))
        self._language = last.get("sure") or self._options["language"]
        self._segments = [segment for event in events for segment in event["segments"]]
        answered = [event["chunk_index"] for event in events if event.get("chunk_index") is not None]
        self._answered = max(answered, default=-1)
        self._chunks = last.get("chunk_count", 0)

    # -- for the feed --------------------------------------------------------------------------------------------

    @property
    def sid(self) -> str:
        return self.claim.sid

    @property
    def hungry(self) -> bool:
        """Whether more entries may be read for it."""
        return not self.over and self.unread < MAX_UNREAD

    @property
    def busy(self) -> bool:
        return bool(self._entries)

    @property
    def backlog(self) -> float:
        """Seconds of audio that wait, guessed from their bytes."""
        rate = CONTAINER_RATE if self._open is not None and self._open.kind else self._pcm.bytes_per_second
        return self.unread / rate

    def feed(self, entries: list[Entry]) -> None:
        """Entries that follow those fed before."""
        self.cursor = entries[-1].id
        self._entries.extend(entries)
        sizes = [len(entry.data or b"") for entry in entries]
        self.unread += sum(sizes)
        self.largest = max(sizes) if self.largest == MAX_UNREAD else max(self.largest, *sizes)
        self._wake.set()

    async def run(self) -> None:
        """Work until the session is over; raises Fenced when it is another's."""
        before = self._after
        while not self.over:
            while not self._entries:
                self._wake.clear()
                await self._wake.wait()
            entry = self._entries[0]
            if entry.data is None:
                await self._end(entry, before)
            else:
                await self._chunk(entry, before, entry.data)
            before = entry.id
            self._entries.popleft()
            self.unread -= len(entry.data or b"")

    # -- chunks --------------------------------------------------------------------------------------------------

    async def _chunk(self, entry: Entry, before: str, data: bytes) -> None:
        index = int(entry.id.partition("-")[0]) - 1
        if index > self._answered:
            self._chunks += 1
        closed: list[Segment] = []
        try:
            await self._check_strikes(entry)
            kind = self._container(data, before)
            if kind is None and self._options["format"] == "auto":
                audio.refuse_what_is_no_audio(data, first=self._open is None)
            if self._open is not None and self._open.kind and kind is None:
                self._continue_container(data)
                await self._answer(entry, index, [], "", 0.0)
                return
            if kind is None and self._is_piece(data):
                await self._piece(entry, before, index, data)
                return
            closed = await self._close(entry, before)
            await self._utterance(entry, before, index, data, kind, closed)
        except (Fenced, Unavailable):
            raise
        except AsrError as exc:
            await self._error(entry, index, exc, closed)
        except Exception as exc:
            log.exception("session=%s chunk=%d failed", self.sid, index)
            error = AsrError("recognition_failed", f"the chunk could not be recognised: {type(exc).__name__}")
            await self._error(entry, index, error, closed)

    def _container(self, data: bytes, before: str) -> str | None:
        if self._options["format"] != "auto":
            return None
        return audio.container(data, first=before == "0-1" or self._options["mode"] == "chunk")

    def _is_piece(self, data: bytes) -> bool:
        return self._options["mode"] == "auto" and len(data) < UTTERANCE * self._pcm.bytes_per_second

    async def _utterance(
        self, entry: Entry, before: str, index: int, data: bytes, kind: str | None, closed: list[Segment]
    ) -> None:
        """A chunk that can be recognised as it is. In auto mode a container may go on with the next chunk."""
        goes_on = kind is not None and self._options["mode"] == "auto"
        if goes_on and index <= self._answered:  # an earlier owner answered it; only what follows is missing
            self._open = _Open(before, kind, index, bytearray(data))
            return
        if kind is not None:
            seconds, segments = await self._recogniser.file(
                data, kind, self._request(), self._label(entry), self._alone
            )
        else:
            samples = np.concatenate([self._pcm.feed(data), self._pcm.flush()])
            seconds = len(samples) / RATE
            _, segments = await self._recogniser.samples(samples, self._request(), self._label(entry), self._alone)
        text = self._join(segments)
        for segment in segments:
            segment.chunk_index = index
        if goes_on:
            self._open = _Open(before, kind, index, bytearray(data), seconds=seconds, segments=segments)
        else:
            closed = closed + _moved(segments, self._total)
            self._total += seconds
        await self._answer(entry, index, closed, text, seconds)

    def _continue_container(self, data: bytes) -> None:
        assert self._open is not None
        if len(self._open.data) + len(data) > MAX_CONTAINER:
            raise AudioError("utterance_too_long", f"the recording is over {MAX_CONTAINER} bytes")
        self._open.data += data
        self._open.continued = True

    async def _piece(self, entry: Entry, before: str, index: int, data: bytes) -> None:
        """A piece of a continuing PCM recording: kept; now and then, what is finished of it is recognised."""
        if self._open is None:
            self._open = _Open(before, None, index, skip=self._skip)
            self._skip = 0
        rest = self._pcm.rest
        samples = self._pcm.feed(data)
        opened = self._open
        opened.pieces.append((before, rest, samples))
        opened.seconds = (sum(len(piece) for _, _, piece in opened.pieces) - opened.skip) / RATE
        closed: list[Segment] = []
        if opened.seconds >= max(PROGRESS, opened.checked + PROGRESS_STEP):
            waiting = np.concatenate([piece for _, _, piece in opened.pieces])[opened.skip :]
            done, segments = await self._recogniser.samples(
                waiting, self._request(), self._label(entry), self._alone, growing=True
            )
            closed = _moved(segments, self._total)
            self._advance(opened, done)
        if index > self._answered:
            await self._answer(entry, index, closed, self._join(closed), len(samples) / RATE)
        else:
            self._pending_segments(closed)

    def _advance(self, opened: _Open, done: int) -> None:
        """Let go of the first `done` samples of a continuing recording."""
        self._total += done / RATE
        opened.skip += done
        while opened.pieces and opened.skip >= len(opened.pieces[0][2]):
            opened.skip -= len(opened.pieces.pop(0)[2])
        opened.after = opened.pieces[0][0] if opened.pieces else opened.after
        opened.seconds -= done / RATE
        opened.checked = opened.seconds

    def _pending_segments(self, closed: list[Segment]) -> None:
        """Segments that became final at a chunk that an earlier owner answered: they go out with the next event."""
        self._waiting_segments += closed

    async def _close(self, entry: Entry, before: str) -> list[Segment]:
        """End the open recording: its final segments. What cannot be recognised is reported and let go."""
        opened, self._open = self._open, None
        if opened is None:
            return []
        segments, seconds = opened.segments, opened.seconds
        failure: AudioError | None = None
        try:
            if opened.kind is None:
                tail = self._pcm.flush()
                samples = np.concatenate([*(piece for _, _, piece in opened.pieces), tail])[opened.skip :]
                seconds = len(samples) / RATE
                _, segments = await self._recogniser.samples(samples, self._request(), self._label(entry), self._alone)
            elif opened.continued or not opened.seconds:
                seconds, segments = await self._recogniser.file(
                    bytes(opened.data), opened.kind, self._request(), self._label(entry), self._alone
                )
                for segment in segments:
                    segment.chunk_index = None if opened.continued else opened.index
        except AudioError as exc:
            failure = exc
        except Exception as exc:
            log.exception("session=%s recording up to entry %s failed", self.sid, before)
            failure = AudioError("recognition_failed", f"a recording could not be recognised: {type(exc).__name__}")
        moved = _moved(segments, self._total)
        self._total += seconds
        if failure is None:
            return moved
        # With what was final before, and done with: a next owner must not come upon the same failure.
        await self._send(failure.event(), self._numbered(moved), before, 0)
        return []

    async def _end(self, entry: Entry, before: str) -> None:
        """The session's last word."""
        closed: list[Segment] = []
        try:
            await self._check_strikes(entry)
            closed = await self._close(entry, before)
        except AudioError as exc:
            self._open = None
            await self._send(exc.event(), [], before, 0)
        except (Fenced, Unavailable):
            raise
        except Exception as exc:
            log.exception("session=%s end failed", self.sid)
            lost = AsrError("recognition_failed", f"the end was lost: {type(exc).__name__}")
            await self._send(lost.event(), [], before, 0)
        segments = self._numbered(closed)
        everything = self._segments + segments
        text = join([(segment["text"], segment["language"]) for segment in everything])
        self.over = True
        await self._send({"type": "final", "text": text, "status": entry.status}, segments, entry.id, 0)

    # -- events --------------------------------------------------------------------------------------------------

    async def _answer(self, entry: Entry, index: int, closed: list[Segment], text: str, seconds: float) -> None:
        """The result of a chunk, unless an earlier owner gave it."""
        if index <= self._answered:
            self._pending_segments(closed)
            return
        event = {"type": "chunk", "chunk_index": index, "text": text, "duration": round(seconds, 3)}
        await self._durable(entry, index, event, closed)

    async def _error(self, entry: Entry, index: int, error: AsrError, closed: list[Segment]) -> None:
        if index <= self._answered:
            self._pending_segments(closed)
            return
        log.info("session=%s chunk=%d error=%s", self.sid, index, error.code)
        await self._durable(entry, index, {**error.event(), "chunk_index": index}, closed)

    async def _durable(self, entry: Entry, index: int, event: dict[str, Any], closed: list[Segment]) -> None:
        self._answered = index
        segments = self._numbered(closed)
        opened = self._open
        after, skip = (entry.id, 0) if opened is None else (opened.after, opened.skip)
        await self._send({**event, "received": entry.received}, segments, after, skip)

    async def _send(self, event: dict[str, Any], segments: list[dict[str, Any]], after: str, skip: int) -> None:
        self._seq += 1
        self._number += 1
        self._segments += segments
        opened = self._open.seconds if self._open is not None else 0.0
        pieces = self._open.pieces if self._open is not None else []
        event |= {
            "seq": self._seq,
            "time": round(time.time(), 3),
            "worker": self._worker,
            "model": self._recogniser.model_name,
            "chunk_count": self._chunks,
            "total": round(self._total + opened, 3),
            "closed": self._total,
            "language": self._spoken(),
            "sure": self._language,
            "segments": segments,
            "after": after,
            "skip": skip,
            "rest": pieces[0][1].hex() if pieces else "",
        }
        if not await self._emit(self.claim, self._number, event, after):
            raise Fenced(self.sid)

    def _numbered(self, closed: list[Segment]) -> list[dict[str, Any]]:
        closed, self._waiting_segments = self._waiting_segments + closed, []
        start = len(self._segments)
        return [
            {
                "number": start + n,
                "start": round(segment.start, 3),
                "end": round(segment.end, 3),
                "text": segment.text,
                "language": segment.language,
                "confidence": segment.confidence,
                "chunk_index": segment.chunk_index,
            }
            for n, segment in enumerate(closed)
        ]

    def _spoken(self) -> str | None:
        return self._language or (self._segments[-1]["language"] if self._segments else None)

    def _join(self, segments: list[Segment]) -> str:
        for segment in segments:
            if self._language is None and segment.language_probability >= SURE:
                self._language = segment.language
        return join([(segment.text, segment.language) for segment in segments])

    # -- small things --------------------------------------------------------------------------------------------

    def _request(self) -> Request:
        options = self._options
        return Request(self._language, options["task"], options["prompt"], options["hotwords"])

    def _label(self, entry: Entry) -> str:
        return f"{self.sid} {entry.id}"

    @property
    def _alone(self) -> bool:
        return bool(self._strikes)

    async def _check_strikes(self, entry: Entry) -> None:
        if self._strikes.get(entry.id, 0) >= STRIKES:
            await self._bury(self.sid, entry.id, f"a worker died {STRIKES} times with it in hand")
            opened = self._open
            if opened is not None and (opened.kind is None or opened.continued):
                # Perhaps it is the recording so far that kills: with it, every further piece would take three workers.
                self._total += opened.seconds
                self._pcm.flush()
                self._open = None
            raise AudioError("audio_rejected", f"this audio stopped {STRIKES} workers and is not tried again")


def _moved(segments: list[Segment], offset: float) -> list[Segment]:
    for segment in segments:
        segment.start += offset
        segment.end += offset
    return segments
