"""How often growing segments are decoded again: as asked, or as often as the device can beside its other work."""

from __future__ import annotations

import time
from collections import deque

#: Share of the engine's time that drafts and finals may take together; what is above it is for bursts of finals.
SHARE = 0.6

#: Share that drafts keep, however much the finals take.
LEAST = 0.05

#: Drafts are at least so many times as far apart as what is said waits on its way to its text: who is late with that
#: has no time to guess.
LATE = 10.0

#: Seconds over which the share of the finals and their waits are measured, and how much a new cost or wait weighs.
SPAN = 5.0
WEIGHT = 0.1


class Pace:
    """Drafts thin out before finals slow down: all growing segments together get what is left of the engine's time.

    The loop tells and asks; how long audio waits to be heard, the thread that hears it tells.
    """

    def __init__(self) -> None:
        self.growing: set[str] = set()  # sessions with a growing segment that is to be drafted
        self.drafts = 0
        self.cost = 0.0  # seconds that one draft takes
        self.grain = 0.0  # seconds from one read of the live streams to the next
        self._late = {"read": 0.0, "heard": 0.0}  # seconds that audio waits to be read, and then to be listened to
        self._finals = deque[tuple[float, float, float]]()  # (when, seconds, waited) of the calls for finals

    def spent(self, on_drafts: float, drafts: int, in_all: float, waited: float = 0.0) -> None:
        """A call of so many seconds is over, of which a part was for drafts; its finals had waited so long."""
        now = time.monotonic()
        if drafts:
            self.drafts += drafts
            each = on_drafts / drafts
            self.cost = each if not self.cost else self.cost + WEIGHT * (each - self.cost)
        if in_all > on_drafts:
            self._finals.append((now, in_all - on_drafts, waited))
        while self._finals and self._finals[0][0] < now - SPAN:
            self._finals.popleft()

    def waited(self, to_be: str, seconds: float) -> None:
        """Audio has waited so long to be read, or to be heard."""
        self._late[to_be] += WEIGHT * (seconds - self._late[to_be])

    def interval(self, asked: float) -> float:
        """Seconds between drafts of one segment, where `asked` were asked for."""
        since = time.monotonic() - SPAN
        finals = [(seconds, waited) for when, seconds, waited in list(self._finals) if when > since]
        left = max(LEAST, SHARE - sum(seconds for seconds, _ in finals) / SPAN)
        late = sum(self._late.values()) + sum(waited for _, waited in finals) / max(1, len(finals))
        return max(asked, len(self.growing) * self.cost / left, LATE * late)
