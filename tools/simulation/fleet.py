"""Streams and workers as events in simulated time: when each result would come."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from asrserver.inference.consumer import read_interval
from asrserver.inference.engine import CPU_BATCH, GPU_BATCH
from asrserver.inference.features import FRAMES_PER_SECOND
from asrserver.inference.partials import DELAY_FACTOR, MIN_DRAFT_SHARE, SPAN_SECONDS
from asrserver.inference.profiles import Profile
from asrserver.inference.windows import window_for
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.speech import Scripts
from simulation.costs import CallCost

#: Seconds between the drafts of a segment that clients ask for, by default.
DRAFT_INTERVAL = 0.5


@dataclass(frozen=True)
class Machine:
    """A machine with workers.

    Attributes:
        workers: Its workers.
        cost: The time of an engine's call where the worker has a core for itself.
        profile: The model's.
        cores: The cores that workers and what runs beside them share; infinite on a GPU.
        beside: The cores that a live stream takes beside the engine: finding speech, reading, and all of the gateway,
            Redis, PostgreSQL and the tester that runs on this machine.
        gpu: Whether workers compute on GPUs, in larger batches.
    """

    workers: int
    cost: CallCost
    profile: Profile
    cores: float
    beside: float
    gpu: bool = False

    def slowness(self, streams: int) -> float:
        """How much longer an engine's call takes with so many streams, which take CPU too; infinite if none is left."""
        left = (self.cores - self.beside * streams) / self.workers
        return 1 / min(1.0, left) if left > 0 else math.inf


@dataclass(frozen=True, order=True)
class Segment:
    """Speech that becomes a text.

    Attributes:
        ready: When its end is known, in seconds: at the end of the session, or after silence.
        begin: When it began.
        end: When it ended.
        last: Whether the session ends with it.
    """

    ready: float
    begin: float
    end: float
    last: bool


@dataclass
class Outcome:
    """What came of some streams.

    Attributes:
        delays: Seconds from the end of each session to its final result.
        late: Sessions whose result had not come at the end of the simulation.
        busy: Share of the time in which the engines computed.
        drafts: Drafts that were decoded.
    """

    delays: list[float] = field(default_factory=list)
    late: int = 0
    busy: float = 0.0
    drafts: int = 0

    @property
    def p95(self) -> float:
        """The 95th percentile of all delays in seconds; those that did not end are infinite."""
        every = sorted(self.delays) + [math.inf] * self.late
        return every[min(len(every) - 1, int(0.95 * len(every)))] if every else math.nan


def sessions(plan: Plan, scripts: Scripts, connection: int, silence: float) -> Iterator[list[Segment]]:
    """The sessions of a connection, one after another, as the load tester speaks them."""
    begun = plan.starts(connection)
    for number in range(10**9):
        if begun >= plan.duration:
            return
        spoken: list[tuple[float, float]] = []
        now = begun
        for part in scripts.script(connection, number):
            now += part.quiet * 0.1
            end = now + part.sentence.seconds
            if spoken and now - spoken[-1][1] < silence:
                spoken[-1] = (spoken[-1][0], end)
            else:
                spoken.append((now, end))
            now = end
        yield [
            Segment(end + (silence if index < len(spoken) - 1 else 0.0), begin, end, index == len(spoken) - 1)
            for index, (begin, end) in enumerate(spoken)
        ]
        begun = now


def simulate(machine: Machine, plan: Plan, scripts: Scripts, seed: int = 0) -> Outcome:
    """Simulate the plan's streams on a machine.

    A session goes to any of the workers by chance: to the one that happens to ask for one. A worker decodes the ends of
    finished sessions first, then the ends of segments, then drafts, which are as rare as its PartialScheduler makes
    them; a call is never interrupted.
    """
    dice = random.Random(seed)
    given: list[list[Segment]] = [[] for _ in range(machine.workers)]
    for connection in range(plan.connections):
        for session in sessions(plan, scripts, connection, machine.profile.silence):
            given[dice.randrange(machine.workers)] += session
    outcome = Outcome()
    streams = plan.connections
    slowness = machine.slowness(streams)
    for segments in given:
        worker = Worker(machine, sorted(segments), plan, slowness, read_interval(streams // machine.workers), outcome)
        if not math.isinf(slowness):
            worker.run()
        outcome.late += sum(segment.last for segment in worker.unfinished())
    outcome.busy /= plan.duration * machine.workers
    return outcome


class Worker:
    """One worker in simulated time."""

    def __init__(
        self, machine: Machine, segments: Sequence[Segment], plan: Plan, slowness: float, read: float, outcome: Outcome
    ) -> None:
        """`read` is the time between two reads of a stream: audio waits for half of it, twice at the end."""
        self._machine = machine
        self._plan = plan
        self._slowness = slowness
        self._read = read
        self._outcome = outcome
        self._coming = deque(segments)  # by when they are ready
        self._growing = deque(sorted(segments, key=lambda segment: segment.begin) if plan.partials else ())
        self._ended: list[tuple[bool, Segment]] = []  # a heap: last ones first
        self._drafts: list[tuple[float, Segment]] = []  # a heap: (when due, segment)
        self._finals: deque[tuple[float, float, float]] = deque()  # (when, seconds, waited) of calls
        self._draft_seconds = 0.0
        self._row_seconds = machine.profile.cpu_call_seconds
        self._now = 0.0

    def unfinished(self) -> list[Segment]:
        """The segments that were not decoded."""
        return [*self._coming, *(segment for _, segment in self._ended)]

    def run(self) -> None:
        """Until all is decoded, or the time that the tester waits for a result is over."""
        while self._now < self._plan.duration + self._plan.timeout:
            self._arrive()
            if self._ended:
                self._decode_finals()
            elif self._drafts and self._drafts[0][0] <= self._now:
                self._decode_drafts()
            else:
                soon = [self._coming[0].ready] if self._coming else []
                soon += [self._growing[0].begin] if self._growing else []
                soon += [self._drafts[0][0]] if self._drafts else []
                if not soon:
                    return
                self._now = max(self._now, min(soon))

    def _arrive(self) -> None:
        while self._coming and self._coming[0].ready <= self._now:
            segment = self._coming.popleft()
            heapq.heappush(self._ended, (not segment.last, segment))
        while self._growing and self._growing[0].begin <= self._now:
            segment = self._growing.popleft()
            heapq.heappush(self._drafts, (segment.begin + self._machine.profile.first_draft, segment))

    def _batch(self) -> int:
        if self._machine.gpu:
            return GPU_BATCH
        return min(CPU_BATCH, max(1, int(self._machine.profile.cpu_call_seconds / self._row_seconds)))

    def _window(self, seconds: float) -> float:
        return window_for(seconds, "fit", self._machine.profile.margin) / FRAMES_PER_SECOND

    def _call(self, seconds: list[float]) -> float:
        """Decode rows with so many seconds of speech each; returns the time that it takes."""
        longest = max(seconds)
        took = self._slowness * self._machine.cost(len(seconds), self._window(longest), longest)
        self._row_seconds += 0.1 * (took / len(seconds) - self._row_seconds)
        self._outcome.busy += min(took, max(0.0, self._plan.duration - self._now))
        self._now += took
        return took

    def _decode_finals(self) -> None:
        batch: list[Segment] = []
        passed = []
        least = 0.0
        while self._ended and len(batch) < self._batch():
            entry = heapq.heappop(self._ended)
            window = self._window(entry[1].end - entry[1].begin)
            if not batch:
                least, most = self._machine.profile.shared_window * window, window
            if least <= window <= most:
                batch.append(entry[1])
            else:
                passed.append(entry)
        for entry in passed:
            heapq.heappush(self._ended, entry)
        waited = max(self._now - segment.ready for segment in batch)
        took = self._call([segment.end - segment.begin for segment in batch])
        self._finals.append((self._now, took, waited))
        self._outcome.delays += [self._now - segment.ready + self._read for segment in batch if segment.last]

    def _decode_drafts(self) -> None:
        began = self._now
        batch: list[Segment] = []
        while self._drafts and self._drafts[0][0] <= began and len(batch) < self._batch():
            _, segment = heapq.heappop(self._drafts)
            if segment.end > began:
                batch.append(segment)
        if not batch:
            return
        took = self._call([began - segment.begin for segment in batch])
        each = took / len(batch)
        self._draft_seconds += (0.1 if self._draft_seconds else 1.0) * (each - self._draft_seconds)
        self._outcome.drafts += len(batch)
        for segment in batch:
            heapq.heappush(self._drafts, (began + self._draft_interval(), segment))

    def _draft_interval(self) -> float:
        """As PartialScheduler.interval."""
        while self._finals and self._finals[0][0] < self._now - SPAN_SECONDS:
            self._finals.popleft()
        share = sum(seconds for _, seconds, _ in self._finals) / SPAN_SECONDS
        waited = sum(waited for _, _, waited in self._finals) / max(1, len(self._finals))
        left = max(MIN_DRAFT_SHARE, self._machine.profile.draft_share - share)
        return max(DRAFT_INTERVAL, len(self._drafts) * self._draft_seconds / left, DELAY_FACTOR * waited)
