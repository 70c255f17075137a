"""One run of a load test, watched from outside, and the search for how many streams a server bears."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from asrserver.loadtest.host import Cost, ServerProcesses
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.processes import ClientProcesses
from asrserver.loadtest.stats import Histogram, Stats

#: Samples of a run, about: longer runs are looked at less often.
SAMPLES = 600

#: A process of the tester is saturated when it uses more of a core than this (95 % of the time less), or when its event
#: loop comes later than that many seconds to one in a hundred of the things that are due.
SATURATED_CORES = 0.9
SATURATED_LAG = 0.1

#: The search ends when the number of streams that is too many is at most this many times the number that is not.
PRECISION = 1.05

#: The search begins with the most streams divided by this, where nothing else is said.
FIRST_SHARE = 16


@dataclass
class Sample:
    """What was seen in an interval that ended `at` seconds after the beginning."""

    at: float
    open: int
    active: int
    right: int
    failed: int
    audio_rate: float  # seconds of audio sent in a second
    finalisation: float  # 95th percentile of the interval; NaN of none
    tester: list[float]  # cores of each process
    server: dict[str, Cost]


@dataclass
class Outcome:
    """What a run was and what became of it."""

    plan: Plan
    begun: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: float = 0.0
    stats: Stats = field(default_factory=Stats)
    lag: Histogram = field(default_factory=Histogram)
    samples: list[Sample] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    interrupted: bool = False
    unseen: str = ""  # why nothing is known of the server's processes
    redis: tuple[dict[str, int], dict[str, int]] = ({}, {})  # what it held before, and once all sessions were stored

    @property
    def finalisation(self) -> float:
        return self.stats.times["finalisation"].percentile(0.95)

    @property
    def why_not(self) -> list[str]:
        """Why the verdict is not a pass; nothing if it is."""
        stats, plan = self.stats, self.plan
        reasons = []
        if self.interrupted:
            reasons.append("the test was interrupted")
        if not stats.right:
            reasons.append("no session was right")
        if stats.failed:
            reasons.append(f"{stats.failed} of {stats.sessions} sessions failed")
        elif stats.failures:
            reasons.append(f"{stats.failures.total()} failures outside of sessions")
        if stats.connected < plan.connections:
            reasons.append(f"{stats.connected} of {plan.connections} connections were had")
        if plan.max_finalisation and not self.finalisation <= plan.max_finalisation:
            reasons.append(f"finalisation p95 is {self.finalisation:.2f} s, above {plan.max_finalisation:g} s")
        return reasons

    @property
    def passed(self) -> bool:
        return not self.why_not

    @property
    def tester(self) -> list[tuple[float, ...]]:
        """Cores of each process of the tester, a number a sample."""
        return list(zip(*(sample.tester for sample in self.samples), strict=True))

    @property
    def busiest(self) -> float:
        """Cores that the busiest process of the tester used, 95 % of the time less."""
        return max((sorted(cores)[min(len(cores) - 1, int(0.95 * len(cores)))] for cores in self.tester), default=0.0)

    @property
    def saturated(self) -> str:
        """Why the tester itself was too slow; '' if it was not."""
        if self.busiest > SATURATED_CORES:
            return f"one of its processes used {self.busiest:.2f} cores"
        lag = self.lag.percentile(0.99)
        return f"its event loop was {lag:.2f} s late (p99)" if lag > SATURATED_LAG else ""

    @property
    def throughput(self) -> float:
        """Seconds of audio, of sessions that were right, a second."""
        return self.stats.audio_done / self.seconds if self.seconds else 0.0


class Display(Protocol):
    """Where the run is shown."""

    def update(self, outcome: Outcome) -> None:
        """There is a new sample."""


def run(plan: Plan, processes: ServerProcesses, screen: Display) -> Outcome:
    """Do it; raises RuntimeError when it cannot begin. Ctrl+C ends it early, a second time at once."""
    outcome = Outcome(plan, unseen=processes.why_not)
    with closing(ClientProcesses(plan)) as clients, _interrupts(outcome, clients.stop):
        before = processes.redis()
        clients.begin()
        processes.look()
        sampler = _Sampler(outcome, clients, processes)
        every = max(1.0, plan.duration / SAMPLES)
        while not clients.done:
            clients.listen(every)
            sampler.look()
            screen.update(outcome)
        outcome.redis = before, processes.redis_after(before)
        outcome.errors = [told.error for told in clients.told if told.error]
    return outcome


class _Sampler:
    """Turns what adds up into what happened in an interval."""

    def __init__(self, outcome: Outcome, clients: ClientProcesses, processes: ServerProcesses) -> None:
        self._outcome, self._crew, self._processes = outcome, clients, processes
        self._began = self._then = time.monotonic()
        self._finalisation = Histogram()
        self._audio = 0.0
        self._cpu = clients.cpu

    def look(self) -> None:
        now, stats, cpu, outcome = time.monotonic(), self._crew.stats, self._crew.cpu, self._outcome
        elapsed = max(now - self._then, 1e-3)
        finalisation = stats.times["finalisation"].copy()
        outcome.stats, outcome.lag, outcome.seconds = stats, self._crew.lag, now - self._began
        outcome.samples.append(
            Sample(
                at=now - self._began,
                open=stats.open,
                active=stats.active,
                right=stats.right,
                failed=stats.failed,
                audio_rate=(stats.audio_sent - self._audio) / elapsed,
                finalisation=finalisation.since(self._finalisation).percentile(0.95),
                tester=[(after - before) / elapsed for before, after in zip(self._cpu, cpu, strict=True)],
                server=self._processes.look(),
            )
        )
        self._then, self._finalisation, self._audio, self._cpu = now, finalisation, stats.audio_sent, cpu


@contextmanager
def _interrupts(outcome: Outcome, stop: Callable[[], None]) -> Iterator[None]:
    def interrupted(*_: Any) -> None:
        if outcome.interrupted:
            raise KeyboardInterrupt
        outcome.interrupted = True
        stop()

    before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Capacity:
    """The levels that were tried, in order, and the most streams that the server bore (0: not even the fewest)."""

    levels: list[Outcome] = field(default_factory=list)

    @property
    def streams(self) -> int:
        return max((level.plan.connections for level in self.levels if level.passed), default=0)

    @property
    def limit(self) -> int:
        """The fewest that were too many; 0 if none were."""
        return min((level.plan.connections for level in self.levels if not level.passed), default=0)

    @property
    def shown(self) -> Outcome:
        """The run that the number stands on: the best that passed, or the first that did not."""
        passed = [level for level in self.levels if level.passed]
        return max(passed, key=lambda level: level.plan.connections) if passed else self.levels[0]


def find_capacity(plan: Plan, processes: ServerProcesses, screen: Display, first: int = 0) -> Capacity:
    """Double the streams from the `first` level until one fails, then halve the difference; `plan.connections` is the
    most.

    Each level is a run of the plan's duration. A server that bears all but a share x of the audio falls behind by x
    seconds a second, so a level of d seconds tells numbers of streams apart down to x = bound / d.
    """
    capacity = Capacity()
    level = min(first, plan.connections) or max(1, plan.connections // FIRST_SHARE)
    while level:
        outcome = run(replace(plan, connections=level), processes, screen)
        capacity.levels.append(outcome)
        if outcome.interrupted:
            break
        level = _next_level(capacity, plan.connections)
    return capacity


def _next_level(capacity: Capacity, most: int) -> int:
    """How many streams to try next; 0 when it is known."""
    good, bad = capacity.streams, capacity.limit
    if not bad:
        return min(2 * good, most) if good < most else 0
    if bad <= max(good, 1) * PRECISION or bad - good <= 1:
        return 0
    return math.ceil((good + bad) / 2) if good else bad // 2
