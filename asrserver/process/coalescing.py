"""How long one of many waits for others to come along, with whom it can be dealt with for little more."""

from __future__ import annotations

#: Seconds over which those who come are counted.
SPAN = 0.5

#: Seconds between looks at who has waited for long enough, at least.
TICK = 0.02


class Crowd:
    """None waits while no more than `free` come in a second; then `each` seconds for each one more, `longest` at most.

    `pause` are the seconds to wait now.
    """

    __slots__ = ("_count", "_each", "_free", "_longest", "_since", "pause")

    def __init__(self, free: float, each: float, longest: float) -> None:
        self._free, self._each, self._longest = free, each, longest
        self._count = 0
        self._since = 0.0  # counted since then
        self.pause = 0.0

    def come(self, now: float, count: int = 1) -> None:
        """So many came, at a time (time.monotonic())."""
        self._count += count
        span = now - self._since
        if span >= SPAN:
            self.pause = min(self._longest, max(0.0, self._each * (self._count / span - self._free)))
            self._count, self._since = 0, now
