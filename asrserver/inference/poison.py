"""Poison messages: which audio kills workers, and how the innocent are kept apart from it.

Native code (decoders, the model) may crash on a client's audio and take the whole worker with it. `InFlight` writes
what native code works on into memory that outlives the process; when the worker dies, the supervisor gives a strike to
those entries alone. `PoisonTracker` knows a session's strikes: suspected audio runs with nothing else in flight, and
after MAX_STRIKES strikes an entry is not tried again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from asrserver.broker.worker_side import MAX_STRIKES


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

    @property
    def longest(self) -> float:
        """Duration in seconds of the longest native call under way; 0 if there is none."""
        with self._lock:
            return max((time.monotonic() - since for since in self._since.values()), default=0.0)

    def hold(self, thread: str, labels: list[str]) -> None:
        """Note what a thread's native code works on. Call it before each native call, and without labels after it.

        Args:
            thread: Name of the thread.
            labels: "session entry" each.
        """
        with self._lock:
            self._labels[thread] = labels
            if labels:
                self._since[thread] = time.monotonic()
            else:
                self._since.pop(thread, None)
            held = [label for labels in self._labels.values() for label in labels]
            self._write("\n".join(held).encode())


class Suspicion:
    """The strikes of a session's entries, as the `fields` of its hash have them; `heard` is kept by who hears them."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._strikes = {key[7:]: int(number) for key, number in fields.items() if key.startswith("strike:")}
        self.heard = 0  # samples of the recording up to which it is under suspicion

    def __contains__(self, entry: str) -> bool:
        """Whether the entry with this id has a strike."""
        return entry in self._strikes

    def convicts(self, entry: str) -> bool:
        """Whether the entry is not to be tried again."""
        return self._strikes.get(entry, 0) >= MAX_STRIKES

    def ahead(self, before: str) -> bool:
        """Whether an entry after that one has a strike."""
        return any(_place(entry) > _place(before) for entry in self._strikes)


def _place(entry: str) -> tuple[int, int]:
    ms, _, n = entry.partition("-")
    return int(ms), int(n)
