"""Fair queueing: a queue that shares its service among owners, and a thread pool that takes its work from one."""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: Owners without waiting items whose last finish time is kept; most of them are gone.
MAX_IDLE_OWNERS = 1000


class FairQueue(Generic[T]):
    """A priority queue (lowest number first) that is fair among owners within each priority.

    Items come out in the order in which they would finish if all owners were served at the same time. With equal costs
    that is round robin: each round has at most one item of every owner. The method is weighted fair queueing (Demers,
    Keshav, Shenker 1989) with the clock of start-time fair queueing (Goyal, Vin, Cheng 1996): an item's virtual start
    is the virtual finish of its owner's previous item, or the start of the item in service if that is later.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, str, float, T]] = []  # (priority, finish, number, owner, start, item)
        self._number = 0
        self._clock: dict[int, float] = {}  # priority → the latest start of an item taken
        self._last: dict[tuple[int, str], float] = {}  # (priority, owner) → finish of its last item

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[T]:
        return (item for *_, item in self._heap)

    def put(self, item: T, priority: int, owner: str, cost: float = 1.0) -> None:
        """Add an item.

        Args:
            item: The item.
            priority: Its priority; lower numbers are served first.
            owner: Whose item it is.
            cost: Its share of the service, in any unit that all items of the queue use.
        """
        start = max(self._clock.get(priority, 0.0), self._last.get((priority, owner), 0.0))
        self._last[priority, owner] = start + cost
        self._number += 1
        heapq.heappush(self._heap, (priority, start + cost, self._number, owner, start, item))

    def promote(self, owner: str, before: int, after: int) -> list[T]:
        """Move an owner's items from priority `before` to priority `after`, and return them in their order."""
        mine = sorted(entry for entry in self._heap if entry[3] == owner and entry[0] == before)
        if mine:
            self._heap = [entry for entry in self._heap if entry[3] != owner or entry[0] != before]
            heapq.heapify(self._heap)
            for _, finish, _, _, start, item in mine:
                self.put(item, after, owner, finish - start)
        return [entry[-1] for entry in mine]

    def take(self, count: int, together: Callable[[T, T], bool]) -> list[T]:
        """Remove the next item and those that may share its service.

        Args:
            count: Most items to return.
            together: Called with the next item and another one: may they be served together?

        Returns:
            The next item and up to `count - 1` others, in queue order. The queue must not be empty.
        """
        entries = [heapq.heappop(self._heap)]
        passed: list[tuple[int, float, int, str, float, T]] = []
        while self._heap and len(entries) < count:
            entry = heapq.heappop(self._heap)
            (entries if together(entries[0][-1], entry[-1]) else passed).append(entry)
        for entry in passed:
            heapq.heappush(self._heap, entry)
        priority, _, _, _, start, _ = entries[0]
        self._clock[priority] = max(start, self._clock.get(priority, 0.0))
        if len(self._last) > 2 * len(self._heap) + MAX_IDLE_OWNERS:  # an owner with nothing waiting may as well be new
            self._last = {(entry[0], entry[3]): entry[1] for entry in sorted(self._heap)}
        return [entry[-1] for entry in entries]


class FairPool:
    """A thread pool whose work waits in one FairQueue."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._queue = FairQueue[tuple[Future[Any], Callable[[], Any]]]()
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], Any], owner: str, cost: float) -> Any:
        """Run `work` in a thread when it is its owner's turn.

        Args:
            work: Called without arguments; may block.
            owner: Session whose work it is.
            cost: Seconds of audio that it processes.

        Returns:
            What `work` returns.

        Raises:
            Exception: Whatever `work` raises.
        """
        future = Future[Any]()
        with self._lock:
            self._queue.put((future, work), 0, owner, cost)
        self._threads.submit(self._work)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Start no more work; what waits is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        with self._lock:
            ((future, work),) = self._queue.take(1, lambda one, other: False)
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as exc:
                future.set_exception(exc)
