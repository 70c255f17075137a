"""Batches chunks of audio on their way to Redis: under load, consecutive chunks of a session share a stream entry.

An entry costs a gateway, Redis and a worker several times as much as the 100 ms of audio in it. A worker with hundreds
of streams reads each of them about once a second anyway, so chunks that wait here for that long are hardly later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from asrserver.process.coalescing import MIN_TIMER_SECONDS, LingerPolicy

#: Chunks a second, of all sessions, up to which none waits; and those of one session that count. Live audio comes in 10
#: to 50 a second. A session that sends more has several in each read, which share an entry without waiting.
FREE_RATE = 1500
SESSION_RATE = 50

#: Delay in seconds for each further chunk a second, and the longest delay.
DELAY_PER_RATE = 250e-6
MAX_DELAY_SECONDS = 1.0

#: Bytes at which the batch of a session is sent at once: a second of PCM.
MAX_ENTRY_BYTES = 32_000

#: Bytes of all waiting batches above which the oldest ones are sent.
MAX_WAITING_BYTES = 1 << 25

Done = Callable[[Exception | None], None]


class Batch:
    """Consecutive chunks of one session that become one stream entry.

    Attributes:
        index: The index of the last chunk.
        before: The index of the chunk before the first one; None if there is none.
        since: When the first chunk came, by time.monotonic().
        received: The same in seconds since the epoch.
        size: Bytes of all chunks.
        data: The chunks.
        dones: The callbacks of all chunks.
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
        """Add chunks, the first of which has this index, of `size` bytes together."""
        self.index = index + len(pieces) - 1
        self.size += size
        self.data += pieces
        self.dones.append(done)

    def answer(self, error: Exception | None) -> None:
        """Call all callbacks with the error, or with None where Redis has the entry."""
        for done in self.dones:
            done(error)


class ChunkBatcher:
    """Collects chunks that may share an entry, and gives each batch to `send` together with its session's id.

    Attributes:
        bytes: Bytes of all waiting batches.
    """

    def __init__(self, send: Callable[[str, Batch], None]) -> None:
        self.bytes = 0
        self._send = send
        self._waiting: dict[str, Batch] = {}  # by session id, the oldest first
        self._linger = LingerPolicy(FREE_RATE, DELAY_PER_RATE, MAX_DELAY_SECONDS, SESSION_RATE)
        self._timer: asyncio.TimerHandle | None = None

    def add(self, sid: str, index: int, before: int | None, pieces: list[bytes], joins: bool, done: Done) -> None:
        """Take consecutive chunks of a session.

        Args:
            sid: The id of the session.
            index: The index of the first chunk.
            before: The index of the chunk before it; None if there is none.
            pieces: The chunks.
            joins: Whether they may share an entry with their neighbours, and wait for those.
            done: Called with None once Redis has them, or with the exception.
        """
        now = time.monotonic()
        self._linger.record(now, len(pieces), sid)
        size = sum(map(len, pieces))
        batch = self._waiting.get(sid)
        if batch is None:
            batch = Batch(before, now)
            batch.add(index, pieces, size, done)
            # The first chunk of a session never waits: a worker claims the session and starts at once.
            if not joins or before is None or not self._linger.delay or batch.size >= MAX_ENTRY_BYTES:
                self._send(sid, batch)
                return
            self._waiting[sid] = batch
            if self._timer is None:
                self._start_timer(self._linger.delay)
        else:
            batch.add(index, pieces, size, done)
        self.bytes += size
        if batch.size >= MAX_ENTRY_BYTES:
            self.flush(sid)
        while self.bytes > MAX_WAITING_BYTES:
            self.flush(next(iter(self._waiting)))

    def flush(self, sid: str) -> None:
        """Send the batch of a session now: a command that must follow its chunks is about to be issued."""
        batch = self._waiting.pop(sid, None)
        if batch is not None:
            self.bytes -= batch.size
            self._send(sid, batch)

    def flush_all(self) -> None:
        """Send all batches now."""
        for sid in list(self._waiting):
            self.flush(sid)

    def _start_timer(self, delay: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(MIN_TIMER_SECONDS, delay), self._flush_due)

    def _flush_due(self) -> None:
        self._timer = None
        now, due = time.monotonic(), []
        for sid, batch in self._waiting.items():
            left = batch.since + self._linger.delay - now
            if left > 0:
                self._start_timer(left)
                break
            due.append(sid)
        for sid in due:
            self.flush(sid)
