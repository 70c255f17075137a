"""The thread in which recordings that go on are heard: all that wait, in one go.

A stream's piece is little work, and what surrounds it is not: a wake-up of the thread and one of the loop, and a call
of the network that costs as much as five of its frames. The more streams there are, the more of them share these.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from asrserver.inference import silero
from asrserver.inference.partials import Pace
from asrserver.inference.silero import Stretch

T = TypeVar("T")

#: Work in steps: what it yields, the network must hear before it goes on.
Work = Generator[list[Stretch], None, T]

#: Recordings that are heard in one go at most, so that the first of many does not wait for the last: 32 or 160 of them
#: take no less CPU each.
TOGETHER = 16


@dataclass(slots=True)
class _Job:
    labels: Sequence[str]
    work: Work[Any]
    future: asyncio.Future[Any]
    first: bool
    asked: float = field(default_factory=time.monotonic)
    stretches: list[Stretch] = field(default_factory=list)
    result: Any = None
    error: BaseException | None = None
    over: bool = False

    @property
    def session(self) -> str:
        return self.labels[0].partition(" ")[0] if self.labels else ""


class Listener:
    """Does work in its thread: what is to be first, then the rest, in the order in which it comes. `hold` is told what
    is in hand before native calls."""

    def __init__(self, hold: Callable[[str, list[str]], None], pace: Pace) -> None:
        self._hold = hold
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._asked: list[_Job] = []  # in this turn of the loop
        self._first = deque[_Job]()
        self._waiting = deque[_Job]()
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._thread.start()

    async def run(self, labels: Sequence[str], work: Work[T], first: bool = False) -> T:
        """What the work returns; raises what it raises. `labels` ("session entry" each) are what it works on."""
        job = _Job(labels, work, self._loop.create_future(), first)
        if not self._asked:  # at the end of this turn of the loop: what one read of the feed brings comes together
            self._loop.call_soon(self._send)
        self._asked.append(job)
        result: T = await job.future
        return result

    def _send(self) -> None:
        with self._condition:
            self._first.extend(job for job in self._asked if job.first)
            self._waiting.extend(job for job in self._asked if not job.first)
            self._condition.notify()
        self._asked.clear()

    def hurry(self, session: str) -> None:
        """What waits of a session is first: its client waits for its last word."""
        for job in self._asked:
            job.first = job.first or job.session == session
        with self._condition:
            self._first.extend(job for job in self._waiting if job.session == session)
            self._waiting = deque(job for job in self._waiting if job.session != session)

    def close(self) -> None:
        """Begin no more work."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._first and not self._waiting and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                jobs = self._take()
            jobs = [job for job in jobs if not job.future.cancelled()]
            for job in jobs:
                self._pace.waited("heard", time.monotonic() - job.asked)
            self._work(jobs)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_settle, jobs)

    def _take(self) -> list[_Job]:
        jobs: list[_Job] = []
        for queue in (self._first, self._waiting):
            while queue and len(jobs) < TOGETHER:
                jobs.append(queue.popleft())
        return jobs

    def _work(self, jobs: list[_Job]) -> None:
        """Step by step, those that are not done yet together."""
        under_way = jobs
        while under_way:
            for job in under_way:
                self._step(job)
            under_way = [job for job in under_way if not job.over]
            stretches = [stretch for job in under_way for stretch in job.stretches]
            if stretches:
                self._hold("live", [label for job in under_way for label in job.labels])
                silero.hear(stretches)
        self._hold("live", [])

    def _step(self, job: _Job) -> None:
        """One job's next step, alone in hand: what decodes a stranger's bytes may be the end of this process."""
        self._hold("live", list(job.labels))
        try:
            job.stretches = next(job.work)
        except StopIteration as stop:
            job.result, job.over = stop.value, True
        except Exception as exc:
            job.error, job.over = exc, True


def _settle(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue  # its session was dropped
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
