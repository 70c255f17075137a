"""When a decoder lets others have their turn: bytes can be made to cost any CPU without a sample coming of them."""

from __future__ import annotations

import time

#: Steps, of about 20 µs, after which the time is looked at: asking for it takes a microsecond, and messages of live
#: streams have a few packets each.
STEPS = 64

#: Seconds of CPU after which others have their turn, whether there is audio or not.
TURN = 0.02


class Turns:
    """Counts the CPU that the thread has used since a decoder's turn began, about."""

    def __init__(self) -> None:
        self._steps = 0
        self._since: float | None = None  # None: there were too few steps to ask

    def begin(self) -> None:
        """A turn begins."""
        self._steps, self._since = 0, None

    def step(self, weight: int = 1) -> bool:
        """Count a step, or so many; True if the turn is over."""
        self._steps += weight
        if self._steps < STEPS:
            return False
        self._steps, now = 0, time.thread_time()
        if self._since is None:
            self._since = now
        return now - self._since >= TURN
