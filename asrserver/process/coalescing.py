"""Adaptive delay before a batch is flushed, as Kafka's `linger.ms`, but in proportion to the load."""

from __future__ import annotations

import math

#: Seconds over which the rate of items is measured.
RATE_WINDOW_SECONDS = 0.5

#: The shortest timer that looks for due batches, in seconds: one timer serves all batches that fall due within it.
MIN_TIMER_SECONDS = 0.02


class LingerPolicy:
    """Computes how long an item waits for others to share its batch, from the rate of items.

    Args:
        free: Items per second up to which the delay is 0.
        each: Seconds by which the delay grows for every further item per second.
        longest: The maximum of the delay, in seconds.
        most: Items per second of one source that count: others do not wait longer because of one that floods.

    Attributes:
        delay: Seconds to wait now.
    """

    __slots__ = ("_counts", "_each", "_free", "_longest", "_most", "_since", "delay")

    def __init__(self, free: float, each: float, longest: float, most: float = math.inf) -> None:
        self._free, self._each, self._longest, self._most = free, each, longest, most
        self._counts: dict[str, int] = {}  # items since _since, by their source
        self._since = 0.0
        self.delay = 0.0

    def record(self, now: float, count: int = 1, source: str = "") -> None:
        """Count `count` items of a source that came at the time `now` (time.monotonic())."""
        self._counts[source] = self._counts.get(source, 0) + count
        span = now - self._since
        if span >= RATE_WINDOW_SECONDS:
            most = self._most * span
            rate = sum(min(one, most) for one in self._counts.values()) / span
            self.delay = min(self._longest, max(0.0, self._each * (rate - self._free)))
            self._counts.clear()
            self._since = now
