"""The time by the clock of Redis, the one clock that all processes have in common."""

from __future__ import annotations

import time


class BrokerClock:
    """Tells the time by the clock of Redis, as it was read last.

    Times that several processes compare must not depend on the clock of one machine: if that were stepped forward by a
    minute, its processes would believe that the deadlines of all others' sessions had passed.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()  # until it was read

    def now(self) -> float:
        """The time in epoch seconds."""
        return time.monotonic() + self._offset

    def read(self, reply: tuple[int, int]) -> None:
        """Take the reply to TIME that came just now: seconds and microseconds."""
        seconds, microseconds = reply
        self._offset = seconds + microseconds / 1e6 - time.monotonic()
