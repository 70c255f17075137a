"""A queue in which nobody waits while another is served twice, and threads that take their work from one."""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: Owners that are remembered beyond those that wait: most of them are gone.
REMEMBERED = 1000


class FairQueue(Generic[T]):
    """Items by priority (the lowest first), then as if all owners were served at once: who were done first is first.

    Items of one cost go round by round: in each, every owner has at most one. Weighted fair queueing (Demers, Keshav,
    Shenker 1989) with the clock of start-time fair queueing (Goyal, Vin, Cheng 1996): an item would begin when its
    owner's last would end, or when the one did that is being served. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, str, float, T]] = []  # with the ends and the beginnings of the items
        self._number = 0
        self._clock: dict[int, float] = {}  # priority → the latest beginning of an item that was taken
        self._last: dict[tuple[int, str], float] = {}  # priority and owner → the end of its last item

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[T]:
        return (item for *_, item in self._heap)

    def put(self, item: T, priority: int, owner: str, cost: float = 1.0) -> None:
        """Add an item."""
        begin = max(self._clock.get(priority, 0.0), self._last.get((priority, owner), 0.0))
        self._last[priority, owner] = begin + cost
        self._number += 1
        heapq.heappush(self._heap, (priority, begin + cost, self._number, owner, begin, item))

    def promote(self, owner: str, before: int, after: int) -> list[T]:
        """Give an owner's items of one priority another; those items."""
        mine = sorted(entry for entry in self._heap if entry[3] == owner and entry[0] == before)
        if mine:
            self._heap = [entry for entry in self._heap if entry[3] != owner or entry[0] != before]
            heapq.heapify(self._heap)
            for _, end, _, _, begin, item in mine:
                self.put(item, after, owner, end - begin)
        return [entry[-1] for entry in mine]

    def take(self, count: int, together: Callable[[T, T], bool]) -> list[T]:
        """The item whose turn it is, and up to `count` in all that go `together` with it, in their order."""
        entries = [heapq.heappop(self._heap)]
        passed: list[tuple[int, float, int, str, float, T]] = []
        while self._heap and len(entries) < count:
            entry = heapq.heappop(self._heap)
            (entries if together(entries[0][-1], entry[-1]) else passed).append(entry)
        for entry in passed:
            heapq.heappush(self._heap, entry)
        priority, _, _, _, begin, _ = entries[0]
        self._clock[priority] = max(begin, self._clock.get(priority, 0.0))
        if len(self._last) > 2 * len(self._heap) + REMEMBERED:  # who waits for nothing may as well be new
            self._last = {(entry[0], entry[3]): entry[1] for entry in sorted(self._heap)}
        return [entry[-1] for entry in entries]


class FairPool:
    """Threads that share one FairQueue of work; its costs are seconds of audio."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._queue = FairQueue[tuple[Future[Any], Callable[[], Any]]]()
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], Any], owner: str, cost: float) -> Any:
        """What the work returns, once it was its owner's turn; raises what it raised."""
        future = Future[Any]()
        with self._lock:
            self._queue.put((future, work), 0, owner, cost)
        self._threads.submit(self._work)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Begin no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        with self._lock:
            ((future, work),) = self._queue.take(1, lambda one, other: False)
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as exc:
                future.set_exception(exc)
