"""One run of a load test with its measurements, and the search for the capacity of a server."""

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

#: Approximate number of samples of a run: longer runs are sampled less often.
SAMPLES = 600

#: A process of the tester is saturated when the 95th percentile of its CPU use is above this many cores, or the 99th
#: percentile of its event loop's lag is above this many seconds.
SATURATED_CORES = 0.9
SATURATED_LAG = 0.1

#: The search ends when the smallest number of streams that fails is at most this many times the largest that passes.
PRECISION = 1.05

#: The search starts with the maximum number of streams divided by this.
FIRST_SHARE = 16


@dataclass
class Sample:
    """Measurements of one interval, which ended `at` seconds after the start of the run."""

    at: float
    open: int
    active: int
    right: int
    failed: int
    audio_rate: float  # seconds of audio sent per second
    finalisation: float  # 95th percentile of the interval in seconds; NaN if there was none
    tester: list[float]  # cores used by each process of the tester
    server: dict[str, Cost]


@dataclass
class Outcome:
    """A run: its plan, measurements and verdict."""

    plan: Plan
    begun: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: float = 0.0
    stats: Stats = field(default_factory=Stats)
    lag: Histogram = field(default_factory=Histogram)
    samples: list[Sample] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    interrupted: bool = False
    unseen: str = ""  # why the server's processes could not be measured
    redis: tuple[dict[str, int], dict[str, int]] = (
        {},
        {},
    )  # contents before the run, and after all sessions were stored

    @property
    def finalisation(self) -> float:
        return self.stats.times["finalisation"].percentile(0.95)

    @property
    def why_not(self) -> list[str]:
        """The reasons why the run failed; empty if it passed."""
        stats, plan = self.stats, self.plan
        reasons = []
        if self.interrupted:
            reasons.append("the test was interrupted")
        if not stats.right:
            reasons.append("no session was correct")
        if stats.failed:
            reasons.append(f"{stats.failed} of {stats.sessions} sessions failed")
        elif stats.failures:
            reasons.append(f"{stats.failures.total()} failures outside sessions")
        if stats.connected < plan.connections:
            reasons.append(f"{stats.connected} of {plan.connections} connections were established")
        if plan.max_finalisation and not self.finalisation <= plan.max_finalisation:
            reasons.append(f"finalisation p95 is {self.finalisation:.2f} s, above {plan.max_finalisation:g} s")
        return reasons

    @property
    def passed(self) -> bool:
        return not self.why_not

    @property
    def tester(self) -> list[tuple[float, ...]]:
        """The cores that each process of the tester used, one number per sample."""
        return list(zip(*(sample.tester for sample in self.samples), strict=True))

    @property
    def busiest(self) -> float:
        """The cores that the busiest process of the tester used (95th percentile of the samples)."""
        return max((sorted(cores)[min(len(cores) - 1, int(0.95 * len(cores)))] for cores in self.tester), default=0.0)

    @property
    def saturated(self) -> str:
        """Why the tester itself was too slow; empty if it was not."""
        if self.busiest > SATURATED_CORES:
            return f"one of its processes used {self.busiest:.2f} cores"
        lag = self.lag.percentile(0.99)
        return f"its event loop was {lag:.2f} s late (p99)" if lag > SATURATED_LAG else ""

    @property
    def throughput(self) -> float:
        """Seconds of audio per second, counting correct sessions only."""
        return self.stats.audio_done / self.seconds if self.seconds else 0.0


class Display(Protocol):
    """Shows the progress of a run."""

    def update(self, outcome: Outcome) -> None:
        """Show a new sample."""


def run(plan: Plan, processes: ServerProcesses, screen: Display) -> Outcome:
    """Run a plan. Ctrl+C ends it early; a second Ctrl+C ends it at once.

    Raises:
        RuntimeError: The run cannot start.
    """
    outcome = Outcome(plan, unseen=processes.why_not)
    with closing(ClientProcesses(plan)) as clients, _interrupts(outcome, clients.stop):
        before = processes.redis()
        clients.begin()
        processes.sample()
        sampler = _Sampler(outcome, clients, processes)
        every = max(1.0, plan.duration / SAMPLES)
        while not clients.done:
            clients.listen(every)
            sampler.sample()
            screen.update(outcome)
        outcome.redis = before, processes.redis_after(before)
        outcome.errors = [told.error for told in clients.told if told.error]
    return outcome


class _Sampler:
    """Turns cumulative counts into samples of intervals."""

    def __init__(self, outcome: Outcome, clients: ClientProcesses, processes: ServerProcesses) -> None:
        self._outcome, self._clients, self._processes = outcome, clients, processes
        self._began = self._then = time.monotonic()
        self._finalisation = Histogram()
        self._audio = 0.0
        self._cpu = clients.cpu

    def sample(self) -> None:
        now, stats, cpu, outcome = time.monotonic(), self._clients.stats, self._clients.cpu, self._outcome
        elapsed = max(now - self._then, 1e-3)
        finalisation = stats.times["finalisation"].copy()
        outcome.stats, outcome.lag, outcome.seconds = stats, self._clients.lag, now - self._began
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
                server=self._processes.sample(),
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
    """The levels that were tried, in order. `streams` is the largest that passed; 0 if none did."""

    levels: list[Outcome] = field(default_factory=list)

    @property
    def streams(self) -> int:
        return max((level.plan.connections for level in self.levels if level.passed), default=0)

    @property
    def limit(self) -> int:
        """The smallest number of streams that failed; 0 if none did."""
        return min((level.plan.connections for level in self.levels if not level.passed), default=0)

    @property
    def shown(self) -> Outcome:
        """The run to report: the largest that passed, or the first that failed."""
        passed = [level for level in self.levels if level.passed]
        return max(passed, key=lambda level: level.plan.connections) if passed else self.levels[0]


def find_capacity(
    plan: Plan,
    processes: ServerProcesses,
    screen: Display,
    first: int = 0,
    precision: float = PRECISION,
    deadline: float = math.inf,
) -> Capacity:
    """Find the largest number of streams that passes: double it until a level fails, then bisect.

    Each level is a run of the plan's duration. A server that keeps up with all but a share x of the audio falls behind
    by x seconds per second, so levels of d seconds distinguish numbers of streams down to x = bound / d.

    Args:
        plan: The plan; its `connections` is the largest number that is tried.
        processes: The server's processes, to measure.
        screen: Where to show the progress.
        first: The number of streams of the first level; 0 for a sixteenth of the largest.
        precision: The search ends when the smallest number that fails is at most this many times the largest that
            passes.
        deadline: time.monotonic() from which no further level begins once one has passed.
    """
    capacity = Capacity()
    level = min(first, plan.connections) or max(1, plan.connections // FIRST_SHARE)
    while level:
        outcome = run(replace(plan, connections=level), processes, screen)
        capacity.levels.append(outcome)
        if outcome.interrupted:
            break
        level = _next_level(capacity, plan.connections, precision)
        if capacity.streams and time.monotonic() >= deadline:
            break
    return capacity


def _next_level(capacity: Capacity, most: int, precision: float) -> int:
    """The number of streams to try next; 0 when the search is over."""
    good, bad = capacity.streams, capacity.limit
    if not bad:
        return min(2 * good, most) if good < most else 0
    if bad <= max(good, 1) * precision or bad - good <= 1:
        return 0
    return math.ceil((good + bad) / 2) if good else bad // 2
