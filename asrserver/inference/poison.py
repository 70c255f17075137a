"""Poison messages: which audio kills workers, and how the innocent are kept apart from it.

Native code (decoders, the model) may crash on a client's audio and take the whole worker with it. `InFlight` writes
what native code works on into memory that outlives the process; when the worker dies, the supervisor gives a strike to
those entries alone. `PoisonTracker` knows a session's strikes; after MAX_STRIKES of them an entry is not tried again.
Until then suspected audio runs with nothing else in flight (`IsolationLock`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from asrserver.broker.worker_side import MAX_STRIKES

#: Seconds after which a step on audio counts as stuck. Decoding and voice activity detection take steps of
#: milliseconds, and the longest that a client's bytes can cause takes a second. Whole files are decoded in turns.
AUDIO_STEP_TIMEOUT = 10.0

#: Prefixes of the names of threads that work on audio; the others call the model.
AUDIO_THREADS = ("audio", "prepare")


class InFlight:
    """What native code works on at the moment, for crash attribution. Thread-safe."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        """Nothing is in flight.

        Args:
            write: Stores the text, which replaces the previous one, in memory that outlives this process.
        """
        self._write = write
        self._lock = threading.Lock()
        self._labels: dict[str, list[str]] = {}  # by thread
        self._since: dict[str, float] = {}
        self._stuck: list[str] = []  # threads that have made no progress for too long
        self._now = 0.0

    def find_stuck(self, call_timeout: float, now: float) -> list[str]:
        """Find the threads that have made no progress for too long. While there are any, only what they hold is stored.

        They are alone to blame when the process is killed for it.

        Args:
            call_timeout: Seconds that a call of the model may take. For work on audio it is AUDIO_STEP_TIMEOUT.
            now: Seconds for which this process could run so far. What begins until the next call counts from here.
        """
        with self._lock:
            self._now = now
            self._stuck = [
                thread
                for thread, since in self._since.items()
                if now - since > (AUDIO_STEP_TIMEOUT if thread.startswith(AUDIO_THREADS) else call_timeout)
            ]
            if self._stuck:
                self._store()
            return self._stuck

    def hold(self, thread: str, labels: list[str]) -> None:
        """Note what a thread's native code works on. Call it before each native call, and without labels after it.

        Args:
            thread: Name of the thread.
            labels: "session entry" each.
        """
        with self._lock:
            self._labels[thread] = labels
            if labels:
                self._since[thread] = self._now
            else:
                self._since.pop(thread, None)
            if thread in self._stuck:
                self._stuck.remove(thread)
            self._store()

    def close(self) -> None:
        """Blame no audio from now on: all sessions were given up, and a native call may still crash this process."""
        with self._lock:
            self._write(b"")
            self._write = lambda _text: None

    def _store(self) -> None:
        threads = self._stuck or self._labels
        self._write("\n".join(label for thread in threads for label in self._labels[thread]).encode())


class PoisonTracker:
    """The suspected audio of one session: its entries that were in flight when a worker died.

    Attributes:
        suspect_until: Sample up to which the open live stream is suspected. Kept by the transcriber.
    """

    def __init__(self, fields: Mapping[str, str]) -> None:
        """Read the strikes from the session's hash: `strike:<entry>` → their number."""
        self._strikes = {key[7:]: int(number) for key, number in fields.items() if key.startswith("strike:")}
        self.suspect_until = 0

    def is_suspect(self, entry: str) -> bool:
        """Whether the entry with this id has a strike."""
        return entry in self._strikes

    def is_poison(self, entry: str) -> bool:
        """Whether the entry with this id has MAX_STRIKES, and is not tried again."""
        return self._strikes.get(entry, 0) >= MAX_STRIKES

    def has_suspect_after(self, entry: str) -> bool:
        """Whether an entry after this one has a strike."""
        return any(_position(suspect) > _position(entry) for suspect in self._strikes)


class IsolationLock:
    """Keeps suspected audio apart: it runs with nothing else in flight, so that no innocent entry gets a strike for it.

    A lock with many ordinary holders or one suspect. Ordinary work waits while a suspect waits, so that the suspect's
    turn comes. Not thread-safe.
    """

    def __init__(self) -> None:
        self._holders = 0
        self._suspects = 0  # that hold the lock or wait for it
        self._released = asyncio.Event()

    @asynccontextmanager
    async def hold(self, alone: bool) -> AsyncIterator[None]:
        """Hold the lock, `alone` or together with others."""
        self._suspects += alone
        try:
            while self._holders if alone else self._suspects:
                await self._released.wait()
            self._holders += 1
            try:
                yield
            finally:
                self._holders -= 1
        finally:
            if self._suspects:  # only then may anybody be waiting
                self._released.set()
                self._released = asyncio.Event()
            self._suspects -= alone


def _position(entry: str) -> tuple[int, int]:
    milliseconds, _, number = entry.partition("-")
    return int(milliseconds), int(number)
