"""Load shedding: while too much audio waits to be recognised in the whole system, some of it is held back or refused.

The limit is shared among the keys that have audio waiting, by their weights. A key that is alone may use all of it.
When another comes, that one gets its share at once, and the first is held back until it has no more than its own.

What is shed, in this order, as more waits: first audio that comes faster than it is spoken, then new sessions of keys
of low priority, then those of all keys that have their share. Before all of it, workers make partial results rarer
(inference/partials.py); what is never shed is live audio of a session that runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from asrserver.auth.access import Access
from asrserver.broker.fullness import FULL_FOR_GREEDY
from asrserver.config import Settings
from asrserver.errors import Refused
from asrserver.gateway.backlog import Backlog
from asrserver.gateway.rate_limits import RETRY_AFTER
from asrserver.shares import Share, keys_at_share

#: The steps, as parts of max_queue: from the first on, audio ahead of real time waits; from the second, new sessions of
#: keys of low priority are refused; from the third, those of all keys that have their share.
SHEDDING = (0.5, 0.75, 1.0)


class LoadShedder:
    """Decides by the audio that waits, here and on other gateways, which keys must leave room for others.

    Attributes:
        elsewhere: Seconds of audio that wait on other gateways, by key; set at every heartbeat.
        step: How many of the steps of SHEDDING are taken, as of the last review.
    """

    def __init__(self, settings: Settings, access: Access, backlog: Backlog) -> None:
        self.elsewhere: Mapping[str, float] = {}
        self.step = 0
        self._limit = settings.max_queue
        self._access = access
        self._backlog = backlog
        self._held_back: frozenset[str] = frozenset()

    def share(self, owner: str) -> Share:
        """The share of an API key; `owner` is empty for clients without one, who have one share together."""
        key = self._access.key(owner) if owner else None
        return Share(owner, key.limits.weight if key is not None else 1.0)

    def check_start(self, owner: str) -> None:
        """Check whether a session of this key may start.

        Raises:
            Refused: `overloaded`: max_queue is reached, and this key has its share of it; or it is nearly reached, and
                the key is of low priority.
        """
        used = self._used()
        if self._step(used) >= 2 and self._is_low(owner):
            message = f"{sum(used.values()):.0f} s of audio wait to be recognised, and this API key is of low priority"
            raise Refused(503, "overloaded", message, retry_after=RETRY_AFTER)
        if self._limit and owner in keys_at_share(used, self._limit):
            message = f"{sum(used.values()):.0f} s of audio wait to be recognised (max_queue={self._limit:g})"
            if len(used) > 1:
                message = (
                    f"{message}, of which {used[self.share(owner)]:.0f} s are of this API key: more than its share"
                )
            raise Refused(503, "overloaded", message, retry_after=RETRY_AFTER)

    def review(self, fullness: float) -> None:
        """Find the keys that are held back; to be called every few seconds.

        Args:
            fullness: Used memory of Redis over its maxmemory.
        """
        used = self._used()
        self.step = self._step(used)
        total = sum(used.values())
        too_much = self._limit and total >= self._limit
        greedy = (
            keys_at_share(used, self._limit if too_much else total) if too_much or fullness >= FULL_FOR_GREEDY else ()
        )
        self._held_back = frozenset(greedy if len(used) > 1 else ())

    def holds_back(self, owner: str) -> bool:
        """Whether no audio of a key should be read: more than its share is waiting, and others need room."""
        return owner in self._held_back

    @property
    def holds_batches(self) -> bool:
        """Whether no audio should be read faster than it is spoken."""
        return self.step >= 1

    def _step(self, used: Mapping[Share, float]) -> int:
        total = sum(used.values())
        return sum(total >= part * self._limit for part in SHEDDING) if self._limit else 0

    def _is_low(self, owner: str) -> bool:
        key = self._access.key(owner) if owner else None
        return key is not None and key.limits.priority == "low"

    def _used(self) -> dict[Share, float]:
        used = Counter(self._backlog.by_owner())
        used.update(self.elsewhere)
        return {self.share(owner): seconds for owner, seconds in used.items() if seconds > 0}
