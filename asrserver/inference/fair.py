"""Fair queueing: first among API keys, by their weight, then among the sessions of a key.

A client with forty sessions gets as much of a busy worker as one with a single session, unless its key weighs more.
Sessions without a key are served as those of one key.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from asrserver.shares import COMMON, Share

T = TypeVar("T")

#: Number of owners without waiting items whose last finish time is kept; most of them are gone.
MAX_IDLE_OWNERS = 1000


class Shares:
    """The shares of a worker's sessions. May be read from any thread."""

    def __init__(self) -> None:
        self._shares: dict[str, Share] = {}

    def enter(self, session: str, share: Share) -> None:
        """Note the share of a session until it leaves."""
        self._shares[session] = share

    def leave(self, session: str) -> None:
        """Forget a session."""
        self._shares.pop(session, None)

    def of(self, session: str) -> Share:
        """The share of a session."""
        return self._shares.get(session, COMMON)


class _Entry(NamedTuple, Generic[T]):
    """An item that waits. Entries are served in their order."""

    priority: int
    finish: float
    number: int
    owner: str
    start: float
    item: T


class FairQueue(Generic[T]):
    """A priority queue (lowest number first) that is fair among owners within each priority.

    Items come out in the order in which they would finish if all owners were served at the same time. With equal costs
    that is round robin: each round has at most one item of every owner. The method is weighted fair queueing (Demers,
    Keshav, Shenker 1989) with the clock of start-time fair queueing (Goyal, Vin, Cheng 1996): an item's virtual start
    is the virtual finish of its owner's previous item, or the start of the item in service if that is later.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._heap: list[_Entry[T]] = []
        self._number = 0
        self._clock: dict[int, float] = {}  # priority → the latest start of an item taken
        self._last: dict[tuple[int, str], float] = {}  # (priority, owner) → finish of its last item

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[T]:
        return (entry.item for entry in self._heap)

    @property
    def priority(self) -> int:
        """The priority of the next item. The queue must not be empty."""
        return self._heap[0].priority

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
        heapq.heappush(self._heap, _Entry(priority, start + cost, self._number, owner, start, item))

    def promote(self, owner: str, before: int, after: int) -> list[T]:
        """Move an owner's items from priority `before` to priority `after`, and return them in their order."""
        mine = sorted(entry for entry in self._heap if entry.owner == owner and entry.priority == before)
        if mine:
            self._heap = [entry for entry in self._heap if entry.owner != owner or entry.priority != before]
            heapq.heapify(self._heap)
            for entry in mine:
                self.put(entry.item, after, owner, entry.finish - entry.start)
        return [entry.item for entry in mine]

    def take(self, count: int, together: Callable[[T, T], bool], first: T | None = None) -> tuple[list[T], float]:
        """Remove the next item and those that may share its service.

        Args:
            count: Most items to return.
            together: Called with the next item and another one; whether they may be served together.
            first: Only items that may share the service of this one, which is not of this queue.

        Returns:
            The next item and up to `count - 1` others, in queue order, and the sum of their costs. Without `first`, the
            queue must not be empty.
        """
        entries: list[_Entry[T]] = []
        passed: list[_Entry[T]] = []
        while self._heap and len(entries) < count:
            entry = heapq.heappop(self._heap)
            lead = entries[0].item if first is None and entries else first
            (entries if lead is None or together(lead, entry.item) else passed).append(entry)
        for entry in passed:
            heapq.heappush(self._heap, entry)
        if entries:
            priority, start = entries[0].priority, entries[0].start
            self._clock[priority] = max(start, self._clock.get(priority, 0.0))
        if len(self._last) > 2 * len(self._heap) + MAX_IDLE_OWNERS:  # an owner with nothing waiting may as well be new
            self._last = {(entry.priority, entry.owner): entry.finish for entry in sorted(self._heap)}
        return [entry.item for entry in entries], sum(entry.finish - entry.start for entry in entries)


@dataclass(slots=True)
class _Line(Generic[T]):
    """The waiting items of one key.

    Attributes:
        weight: The key's part of the service.
        due: Virtual time at which its next item starts: that of the queue grows with the service of every key, divided
            by its weight.
        queue: Its items.
    """

    weight: float
    due: float = 0.0
    queue: FairQueue[T] = field(default_factory=FairQueue)


class KeyQueue(Generic[T]):
    """A FairQueue of sessions for each API key, served in weighted turn.

    The method is start-time fair queueing among keys as FairQueue's is among sessions; priorities hold within a key. A
    key that had nothing waiting is served next, whatever the others have waiting.

    Not thread-safe.
    """

    def __init__(self, shares: Shares, handicap: Callable[[int], float] = lambda priority: 0.0) -> None:
        """Be empty.

        Args:
            shares: Tells the key of a session.
            handicap: The service of other keys behind which an item of this priority is held back.
        """
        self._shares = shares
        self._handicap = handicap
        self._lines: dict[str, _Line[T]] = {}
        self._clock = 0.0  # the latest start of an item taken

    def __len__(self) -> int:
        return sum(len(line.queue) for line in self._lines.values())

    def __iter__(self) -> Iterator[T]:
        return (item for line in self._lines.values() for item in line.queue)

    def put(self, item: T, priority: int, session: str, cost: float = 1.0) -> None:
        """Add an item of a session; see FairQueue.put."""
        share = self._shares.of(session)
        line = self._lines.setdefault(share.key, _Line(share.weight))
        line.weight = share.weight
        if not line.queue:
            line.due = max(line.due, self._clock)
        line.queue.put(item, priority, session, cost)

    def promote(self, session: str, before: int, after: int) -> list[T]:
        """Move a session's items from one priority to another; see FairQueue.promote."""
        line = self._lines.get(self._shares.of(session).key)
        return line.queue.promote(session, before, after) if line is not None else []

    def take(self, count: int, together: Callable[[T, T], bool]) -> list[T]:
        """Remove the next item and up to `count - 1` that may share its service; see FairQueue.take."""
        waiting = [line for line in self._lines.values() if line.queue]
        waiting.sort(key=lambda line: line.due + self._handicap(line.queue.priority))
        self._clock = max(self._clock, waiting[0].due)
        taken: list[T] = []
        for line in waiting:
            items, cost = line.queue.take(count - len(taken), together, taken[0] if taken else None)
            taken += items
            line.due += cost / line.weight
            if len(taken) == count:
                break
        if len(self._lines) > 2 * len(waiting) + MAX_IDLE_OWNERS:  # a key with nothing waiting may as well be new
            self._lines = {key: line for key, line in self._lines.items() if line.queue}
        return taken


class FairPool:
    """A thread pool whose work waits in one KeyQueue."""

    def __init__(self, threads: int, name: str, shares: Shares) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._queue = KeyQueue[tuple[Future[Any], Callable[[], Any]]](shares)
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], Any], session: str, cost: float) -> Any:
        """Run `work` in a thread when it is its session's turn.

        Args:
            work: Called without arguments; may block.
            session: Whose work it is.
            cost: Seconds of audio that it processes.

        Returns:
            What `work` returns.

        Raises:
            Exception: Whatever `work` raises.
        """
        future = Future[Any]()
        with self._lock:
            self._queue.put((future, work), 0, session, cost)
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
