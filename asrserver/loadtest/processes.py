"""The processes of virtual users. Over a pipe, each reports its statistics once a second and receives the stop."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from asrserver.loadtest.pacing import Clock
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.speech import Scripts, load
from asrserver.loadtest.stats import Histogram, Stats, total
from asrserver.loadtest.virtual_user import VirtualUser
from asrserver.process.limits import die_with_parent
from asrserver.process.memory import retain_freed_memory, tune_collector

#: Seconds between reports, and between measurements of the event loop's lag.
REPORT_INTERVAL = 1.0
LAG_INTERVAL = 0.05

#: Seconds without a report after which a process counts as hung and is killed.
HANG_TIMEOUT = 60.0

#: Seconds that a process may take to load its sentences.
PREPARE_TIMEOUT = 60.0

#: Freed memory in bytes that a process keeps for reuse.
KEPT_MEMORY = 1 << 25

_spawn = multiprocessing.get_context("spawn")


@dataclass
class ProcessReport:
    """The statistics of a process, the CPU seconds that it used, and the lag of its event loop."""

    stats: Stats = field(default_factory=Stats)
    cpu: float = 0.0
    idle: float = 0.0  # CPU seconds used before the start
    lag: Histogram = field(default_factory=Histogram)
    done: bool = False
    error: str = ""


class ClientProcesses:
    """Processes that share the plan's connections evenly; `told` has the newest report of each."""

    def __init__(self, plan: Plan) -> None:
        self.told = [ProcessReport() for _ in range(plan.clients)]
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._heard: list[float] = []
        for place in range(plan.clients):
            ours, theirs = _spawn.Pipe()
            numbers = range(place, plan.connections, plan.clients)
            process = _spawn.Process(target=_work, args=(plan, numbers, theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def begin(self) -> None:
        """Start all processes at the same time, once all are ready.

        Raises:
            RuntimeError: A process cannot start.
        """
        for pipe in self._pipes:
            try:
                ready = pipe.recv() if pipe.poll(PREPARE_TIMEOUT) else "not ready in time"
            except EOFError:
                ready = "it died"
            if ready != "ready":
                raise RuntimeError(f"a process of the load test cannot start: {ready}")
        begin = time.monotonic() + 0.2
        self._heard = [begin] * len(self._pipes)
        for pipe in self._pipes:
            pipe.send(begin)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes if process.pid is not None]

    @property
    def done(self) -> bool:
        return all(told.done for told in self.told)

    @property
    def stats(self) -> Stats:
        """The sum of the statistics of all processes."""
        return total([told.stats for told in self.told])

    @property
    def lag(self) -> Histogram:
        result = Histogram()
        for told in self.told:
            result += told.lag
        return result

    @property
    def cpu(self) -> list[float]:
        """The CPU seconds used by each process."""
        return [told.cpu for told in self.told]

    def listen(self, timeout: float) -> None:
        """Receive reports for at most `timeout` seconds, or until all processes are done."""
        deadline = time.monotonic() + timeout
        while not self.done and (left := deadline - time.monotonic()) > 0:
            places = {pipe: place for place, pipe in enumerate(self._pipes) if not self.told[place].done}
            for pipe in wait(list(places), left):
                place = places[pipe]  # type: ignore[index]
                try:
                    self.told[place] = self._pipes[place].recv()
                    self._heard[place] = time.monotonic()
                except (EOFError, OSError):
                    self._died(place)
        for place, process in enumerate(self._processes):
            if not self.told[place].done and time.monotonic() - self._heard[place] > HANG_TIMEOUT:
                process.kill()

    def _died(self, place: int) -> None:
        """Count the open sessions of a dead process as failed."""
        told = self.told[place]
        self._processes[place].join(1)
        status = self._processes[place].exitcode
        told.error = told.error or f"a process of the load test died with status {status}"
        told.stats.sessions += told.stats.active
        told.stats.failures["tester"] += max(1, told.stats.active)
        told.stats.open = told.stats.active = 0
        told.done = True

    def stop(self) -> None:
        """Ask all processes to stop: each session ends after the sentence being sent."""
        for place, pipe in enumerate(self._pipes):
            if not self.told[place].done:
                try:
                    pipe.send("stop")
                except OSError:
                    self._died(place)

    def close(self) -> None:
        """Leave no process behind."""
        for process in self._processes:
            if process.is_alive() and not self.done:
                process.kill()
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()


# -- in the process --------------------------------------------------------------------------------------------------


def _work(plan: Plan, numbers: range, pipe: Connection, parent: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole process group; the parent handles it
    logging.getLogger("tornado").setLevel(logging.CRITICAL)  # the verifier reports failures
    retain_freed_memory(KEPT_MEMORY)
    import uvloop

    told = ProcessReport()
    try:
        scripts = Scripts(load(plan.audio, plan.compared), plan)
        tune_collector()
        pipe.send("ready")
        begin = pipe.recv()
        told.idle = time.process_time()
        uvloop.run(work(plan, scripts, numbers, begin, told, pipe))
    except EOFError:
        return
    except BaseException:
        told.error = traceback.format_exc(limit=-3)
        told.stats.failures["tester"] += 1
    told.cpu, told.done = time.process_time() - told.idle, True
    pipe.send(told)


async def work(
    plan: Plan, scripts: Scripts, numbers: range, begin: float, told: ProcessReport, pipe: Connection | None = None
) -> None:
    """Run the virtual users with these numbers from `begin` (time.monotonic()) to their end; count into `told`."""
    loop = asyncio.get_running_loop()
    clock = Clock()
    users = [VirtualUser(number, plan, scripts, told.stats, begin, clock) for number in numbers]
    tasks = [loop.create_task(user.run()) for user in users]

    def stop() -> None:
        assert pipe is not None
        try:
            pipe.recv()
        except EOFError:
            loop.remove_reader(pipe.fileno())
            for task in tasks:
                task.cancel()
        for user in users:
            user.deadline = time.monotonic()

    if pipe is not None:
        loop.add_reader(pipe.fileno(), stop)
    others = [loop.create_task(_measure_lag(told.lag))]
    if pipe is not None:
        others.append(loop.create_task(_report(told, pipe)))
    try:
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):  # a defect of the tester: the session must not count as a success
                told.stats.failures["tester"] += 1
                told.error = "".join(traceback.format_exception(result, limit=-3))
    finally:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if pipe is not None:
            loop.remove_reader(pipe.fileno())


async def _measure_lag(lag: Histogram) -> None:
    while True:
        due = time.monotonic() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        lag.add(max(0.0, time.monotonic() - due))


async def _report(told: ProcessReport, pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(REPORT_INTERVAL)
        # Copies: counting continues while the report is being sent.
        news = ProcessReport(
            total([told.stats]), time.process_time() - told.idle, lag=told.lag.copy(), error=told.error
        )
        sending = loop.run_in_executor(None, pipe.send, news)
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            await sending  # half a report would be unreadable
            raise
