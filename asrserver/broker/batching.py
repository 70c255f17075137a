"""Chunks on their way to their session's audio stream: where there are many, those of one session wait for each other.

Each entry costs a gateway, Redis and a worker several times what the 100 ms of audio in it do. A worker with hundreds
of streams reads each of them about once a second anyway: what waits here for that long comes little later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from asrserver.process.coalescing import MIN_TIMER_SECONDS, LingerPolicy

#: Chunks a second, of all sessions, up to which none waits; seconds that a chunk waits for each one more; and the most.
FREE_RATE = 1000
DELAY_PER_RATE = 250e-6
MAX_DELAY_SECONDS = 1.0

#: Bytes of a session with which its entry goes at once: a second of PCM.
MAX_ENTRY_BYTES = 32_000

#: Bytes of all sessions that wait; with more, those go that have waited longest.
MAX_WAITING_BYTES = 1 << 25

Done = Callable[[Exception | None], None]


class Batch:
    """Chunks in a row of one session, which become one entry: the index of the last, and of the one before the first.

    `received` is when the first came, in seconds of the epoch.
    """

    __slots__ = ("before", "data", "dones", "index", "received", "since", "size")

    def __init__(self, before: int | None, since: float) -> None:
        self.before = before
        self.since = since
        self.received = time.time()
        self.index = -1
        self.size = 0
        self.data: list[bytes] = []
        self.dones: list[Done] = []

    def add(self, index: int, pieces: list[bytes], size: int, done: Done) -> None:
        self.index = index + len(pieces) - 1
        self.size += size
        self.data += pieces
        self.dones.append(done)

    def answer(self, error: Exception | None) -> None:
        for done in self.dones:
            done(error)


class ChunkBatcher:
    """Gathers what may be joined, and hands each entry to `send`, with the session that it is of."""

    def __init__(self, send: Callable[[str, Batch], None]) -> None:
        self.bytes = 0  # that wait
        self._send = send
        self._waiting: dict[str, Batch] = {}  # those that began first come first
        self._linger = LingerPolicy(FREE_RATE, DELAY_PER_RATE, MAX_DELAY_SECONDS)
        self._timer: asyncio.TimerHandle | None = None

    def add(self, sid: str, index: int, before: int | None, pieces: list[bytes], joins: bool, done: Done) -> None:
        """Chunks of a session from the index on; `joins`: they may share an entry with those around them."""
        now = time.monotonic()
        self._linger.record(now, len(pieces))
        size = sum(map(len, pieces))
        batch = self._waiting.get(sid)
        if batch is None:
            batch = Batch(before, now)
            batch.add(index, pieces, size, done)
            # A session's first chunk never waits: what begins is claimed and seen at once.
            if not joins or before is None or not self._linger.delay or batch.size >= MAX_ENTRY_BYTES:
                self._send(sid, batch)
                return
            self._waiting[sid] = batch
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(
                    max(MIN_TIMER_SECONDS, self._linger.delay), self._tick
                )
        else:
            batch.add(index, pieces, size, done)
        self.bytes += size
        if batch.size >= MAX_ENTRY_BYTES:
            self.flush(sid)
        while self.bytes > MAX_WAITING_BYTES:
            self.flush(next(iter(self._waiting)))

    def flush(self, sid: str) -> None:
        """What waits of a session goes now: another command is to follow it."""
        batch = self._waiting.pop(sid, None)
        if batch is not None:
            self.bytes -= batch.size
            self._send(sid, batch)

    def flush_all(self) -> None:
        """Nothing is to wait any more."""
        for sid in list(self._waiting):
            self.flush(sid)

    def _tick(self) -> None:
        self._timer = None
        now, due = time.monotonic(), []
        for sid, batch in self._waiting.items():
            left = batch.since + self._linger.delay - now
            if left > 0:
                self._timer = asyncio.get_running_loop().call_later(max(MIN_TIMER_SECONDS, left), self._tick)
                break
            due.append(sid)
        for sid in due:
            self.flush(sid)
