"""What a server carries: its speed on files, and its live streams with and without partial results."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import click

from asrserver.audio import SAMPLE_RATE, wav
from asrserver.client import Client
from asrserver.client.rest import open_url
from asrserver.loadtest.host import ServerProcesses, get
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.runner import Capacity, Outcome, find_capacity
from asrserver.loadtest.speech import Sentence, quiet_frames

#: Seconds that one measurement of the speed should take, and seconds of speech of the first one and at most of a file.
SPEED_SECONDS = 6.0
FIRST_FILE = 15.0
LONGEST_FILE = 300.0

#: Frames of quiet (100 ms each) between two sentences of a file.
FILE_PAUSE = 4

#: Length in seconds of the sessions with live streams: many short ones give many final results.
SESSION_SECONDS = 8.0

#: The share of the streams that the speed on files would allow with which the search begins.
FIRST_SHARE = 0.6

#: The search ends when the numbers that pass and fail are this close.
PRECISION = 1.15

#: Seconds that a request of the server's figures may take.
TIMEOUT = 10.0

#: The counters of the engine that are compared: seconds of all decoding, and of decoding that was thrown away.
BUSY, WASTED = "asrserver_engine_busy_seconds_total", "asrserver_wasted_decode_seconds_total"


@dataclass(frozen=True)
class Speed:
    """The speed of a server on files.

    Attributes:
        workers: Its worker processes.
        threads: The threads of each.
        speed: Seconds of speech that all workers together recognise in a second.
        memory: Private resident bytes of the largest worker; 0 if it is not known.
        device: "cpu" or "cuda".
    """

    workers: int
    threads: int
    speed: float
    memory: int
    device: str


@dataclass(frozen=True)
class Streams:
    """The live streams that a server carries.

    Attributes:
        partials: Whether they ask for partial results.
        capacity: The levels that were tried.
        busy: Share of the time in which the engines decoded, at the level that is carried.
        wasted: Share of their decoding that was thrown away then; NaN if the server does not count it.
        memory: As in Speed.
    """

    partials: bool
    capacity: Capacity
    busy: float
    wasted: float
    memory: int

    @property
    def carried(self) -> int:
        return self.capacity.streams


def counters(home: str) -> dict[str, float]:
    """The sums of the server's counters; {} if they cannot be read."""
    try:
        with open_url(f"{home}/metrics", "", TIMEOUT) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(\w+_total)(?:\{.*\})? (\S+)$", text, re.M):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def memory(processes: ServerProcesses) -> int:
    """Private resident bytes of the server's largest worker."""
    return max((cost.memory for name, cost in processes.sample().items() if name.startswith("worker")), default=0)


# -- files -----------------------------------------------------------------------------------------------------------


def measure_speed(home: str, sentences: list[Sentence], threads: int) -> Speed:
    """Measure the speed on files, one per worker at the same time.

    Args:
        home: The server's URL.
        sentences: What is said, over and over.
        threads: The threads of each worker, to be reported.

    Raises:
        RuntimeError: The server has no workers.
        ServerError, OSError: The server fails.
    """
    workers, device = _workers(home)
    first = asyncio.run(_recognise(home, sentences, workers, FIRST_FILE))
    speed = workers * FIRST_FILE / first
    if first < SPEED_SECONDS:  # too short to say, and the first calls of a model are slower
        length = min(LONGEST_FILE, SPEED_SECONDS * speed / workers)
        speed = workers * length / asyncio.run(_recognise(home, sentences, workers, length))
    return Speed(workers, threads, speed, memory(ServerProcesses(home, "", ())), device)


def _workers(home: str) -> tuple[int, str]:
    """The number of the server's workers, and their device.

    A gateway that has just begun to listen may not have heard of all workers yet, or of none.
    """
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        states = get(home, "/api/v1/health", "").get("workers") or []
        devices = [str(state.get("device", "")) for state in states]
        if devices and all(devices):
            return len(devices), devices[0]
        time.sleep(0.1)
    raise RuntimeError("the server has no workers")


async def _recognise(home: str, sentences: list[Sentence], files: int, seconds: float) -> float:
    """Have files of this length recognised at the same time; returns the seconds that all of them took."""

    async def one(client: Client, number: int) -> None:
        session = await client.start()
        await session.send(_file(sentences[number % len(sentences) :] + sentences, seconds))
        await session.finish()

    async with await Client.connect(home.replace("http", "ws", 1) + "/ws/asr") as client:
        began = time.monotonic()
        await asyncio.gather(*(one(client, number) for number in range(files)))
        return time.monotonic() - began


def _file(sentences: list[Sentence], seconds: float) -> bytes:
    """A WAV file of sentences one after another."""

    def frames() -> Iterator[bytes]:
        for sentence in itertools.cycle(sentences):
            yield from sentence.frames
            yield from quiet_frames()[:FILE_PAUSE]

    pcm = b"".join(itertools.islice(frames(), round(seconds * 10)))
    return wav.encode(wav.Format.of("pcm_s16le", 1, SAMPLE_RATE), pcm)


# -- live streams ----------------------------------------------------------------------------------------------------


def first_level(speed: Speed, talk_ratio: float) -> int:
    """The number of streams with which to begin."""
    return max(1, int(FIRST_SHARE * speed.speed / talk_ratio))


def measure_streams(home: str, plan: Plan, workers: int, first: int, deadline: float) -> Streams:
    """Find the number of live streams that a server carries.

    Args:
        home: The server's URL.
        plan: What each level does; its `connections` is the largest number that is tried.
        workers: The server's workers.
        first: The number of streams of the first level.
        deadline: time.monotonic() from which no further level begins once one has passed.

    Raises:
        RuntimeError: A level cannot start.
    """
    watch = _Watch(home)
    processes = ServerProcesses(home, "", ())
    plan = replace(plan, session_seconds=SESSION_SECONDS)
    capacity = find_capacity(plan, processes, watch, first, PRECISION, deadline)
    watch.close()
    busy, wasted, seconds = watch.spent(capacity.shown)
    used = [
        cost.memory
        for level in capacity.levels
        for sample in level.samples
        for name, cost in sample.server.items()
        if name.startswith("worker")
    ]
    return Streams(
        plan.partials,
        capacity,
        busy / (seconds * workers) if seconds else math.nan,
        wasted / busy if busy else math.nan,
        max(used, default=0),
    )


class _Watch:
    """Prints a line for each level, and reads the engines' counters meanwhile."""

    def __init__(self, home: str) -> None:
        self._home = home
        self._levels: list[tuple[Outcome, dict[str, float], dict[str, float]]] = []  # with the counters around it
        self._now = counters(home)

    def update(self, outcome: Outcome) -> None:
        """Called about once a second in each level."""
        before, self._now = self._now, counters(self._home)
        if self._levels and self._levels[-1][0] is outcome:
            self._levels[-1] = (outcome, self._levels[-1][1], self._now)
            return
        self.close()
        self._levels.append((outcome, before, self._now))
        plan = outcome.plan
        what = f"{plan.connections} stream{'s' if plan.connections > 1 else ''}"
        click.echo(f"{what}{' with partial results' if plan.partials else ''} … ", err=True, nl=False)

    def close(self) -> None:
        """Print how the last level ended."""
        if self._levels:
            outcome = self._levels[-1][0]
            click.echo("; ".join(outcome.why_not) or f"finalisation p95 is {outcome.finalisation:.2f} s", err=True)

    def spent(self, outcome: Outcome) -> tuple[float, float, float]:
        """Seconds of decoding in a level, of them thrown away (NaN if not known), and the length of the level."""
        _, before, after = next(level for level in self._levels if level[0] is outcome)
        if not before or not after:
            return 0.0, math.nan, 0.0
        wasted = after[WASTED] - before.get(WASTED, 0.0) if WASTED in after else math.nan
        return after[BUSY] - before[BUSY], wasted, outcome.seconds
