"""A queue in which nobody waits while another is served twice."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

#: Owners that are remembered beyond those that wait: most of them are gone.
REMEMBERED = 1000


class FairQueue(Generic[T]):
    """Items by priority (the lowest first), then round by round: in each, every owner has at most one item.

    Start-time fair queueing (Goyal, Vin, Cheng 1996) of items that cost the same: an item's round is the one after its
    owner's last, or the one that is being served. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, str, T]] = []
        self._number = 0
        self._served: dict[int, int] = {}  # priority → the round of the item taken last
        self._last: dict[tuple[int, str], int] = {}  # priority and owner → the round of its last item

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[T]:
        return (item for *_, item in self._heap)

    def put(self, item: T, priority: int, owner: str) -> None:
        """Add an item."""
        served = self._served.get(priority, 0)
        turn = max(served, self._last.get((priority, owner), -1) + 1)
        self._last[priority, owner] = turn
        self._number += 1
        heapq.heappush(self._heap, (priority, turn, self._number, owner, item))

    def take(self, count: int, together: Callable[[T, T], bool]) -> list[T]:
        """The item whose turn it is, and up to `count` in all that go `together` with it, in their order."""
        entries = [heapq.heappop(self._heap)]
        passed: list[tuple[int, int, int, str, T]] = []
        while self._heap and len(entries) < count:
            entry = heapq.heappop(self._heap)
            (entries if together(entries[0][-1], entry[-1]) else passed).append(entry)
        for entry in passed:
            heapq.heappush(self._heap, entry)
        priority, turn, *_ = entries[0]
        self._served[priority] = turn
        if len(self._last) > 2 * len(self._heap) + REMEMBERED:  # who waits for nothing may as well be new
            self._last = {(entry[0], entry[3]): entry[1] for entry in sorted(self._heap)}
        return [entry[-1] for entry in entries]
