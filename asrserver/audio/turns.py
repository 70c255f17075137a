"""When a decoder gives way to others: bytes can be crafted to cost much CPU and give no sample."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

#: Steps, of about 20 µs each, after which the clock is read. Reading it takes a microsecond, and a message of a live
#: stream is only a few packets.
STEPS = 64

#: Seconds of CPU after which others have their turn, whether there is audio or not.
TURN = 0.02


class Turns:
    """Measures, roughly, the CPU time of the thread since a decoder's turn began."""

    def __init__(self) -> None:
        self._steps = 0
        self._since: float | None = None  # None: there were too few steps to ask

    def begin(self) -> None:
        """Begin a turn."""
        self._steps, self._since = 0, None

    def step(self, weight: int = 1) -> bool:
        """Count `weight` steps; return whether the turn is over."""
        self._steps += weight
        if self._steps < STEPS:
            return False
        self._steps, now = 0, time.thread_time()
        if self._since is None:
            self._since = now
        return now - self._since >= TURN


def take_turn(work: Generator[object, None, T]) -> list[T]:
    """Go on with work until the turn is over; return its result, or nothing while there is none yet.

    Others wait for the thread, not for its CPU: a file that is decoded in another process takes none.
    """
    begun = time.monotonic()
    try:
        next(work)
        while time.monotonic() - begun < TURN:
            next(work)
    except StopIteration as stop:
        return [stop.value]
    return []


def finished(work: Generator[object, None, T]) -> T:
    """Do all of some work at once; return its result."""
    while not (found := take_turn(work)):
        pass
    return found[0]
