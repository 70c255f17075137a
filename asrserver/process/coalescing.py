"""Adaptive delay before a batch is flushed, as Kafka's `linger.ms`, but in proportion to the load."""

from __future__ import annotations

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

    Attributes:
        delay: Seconds to wait now.
    """

    __slots__ = ("_count", "_each", "_free", "_longest", "_since", "delay")

    def __init__(self, free: float, each: float, longest: float) -> None:
        self._free, self._each, self._longest = free, each, longest
        self._count = 0  # items since _since
        self._since = 0.0
        self.delay = 0.0

    def record(self, now: float, count: int = 1) -> None:
        """Count `count` items that came at the time `now` (time.monotonic())."""
        self._count += count
        span = now - self._since
        if span >= RATE_WINDOW_SECONDS:
            self.delay = min(self._longest, max(0.0, self._each * (self._count / span - self._free)))
            self._count, self._since = 0, now
