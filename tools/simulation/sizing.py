"""From what a machine carries to what so many streams need."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from asrserver.audio import SAMPLE_RATE
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.speech import Scripts, load
from simulation.fleet import Machine, Outcome, simulate

#: The bound in seconds of the 95th percentile of the delays of final results.
BOUND = 2.0

#: The part of what is carried, or of a core, that is planned for: the rest is for restarts and busy minutes.
PLANNED = 0.75
BUSY = 0.6

#: Bits per second of a stream of 16-bit PCM at 16 kHz, and the times that it enters or leaves Redis: from the gateway,
#: to the worker, to a replica.
STREAM_BITS = SAMPLE_RATE * 16
REDIS_COPIES = 3

#: MiB of a session in Redis, at most.
SESSION_MIB = 0.3

#: Bytes of a segment in PostgreSQL, with its indexes.
ROW_BYTES = 1024

#: A number of streams is simulated so often, and until so many sessions have ended: a percentile of few is chance.
LEAST_REPEATS, MOST_REPEATS = 3, 20
ENOUGH_SESSIONS = 300

#: The search for the streams that a machine carries ends when its bounds are so close.
PRECISION = 1.03


def carried(machine: Machine, plan: Plan) -> int:
    """The largest number of streams whose results come in time."""

    def passes(streams: int) -> bool:
        return repeated(machine, replace(plan, connections=streams)).p95 <= BOUND

    return largest(passes)


def repeated(machine: Machine, plan: Plan) -> Outcome:
    """What comes of a plan in several simulations together, with other sentences and other chance in each."""
    every, sentences = Outcome(), load(())
    for seed in range(MOST_REPEATS):
        level = replace(plan, seed=plan.seed + seed)
        one = simulate(machine, level, Scripts(sentences, level), seed)
        every.delays += one.delays
        every.late += one.late
        every.busy += one.busy
        every.drafts += one.drafts
        if seed + 1 >= LEAST_REPEATS and len(every.delays) + every.late >= ENOUGH_SESSIONS:
            break
    return replace(every, busy=every.busy / (seed + 1))


def largest(passes: Callable[[int], bool]) -> int:
    """The largest number that passes, to PRECISION; 0 if not even 1 does."""
    low, high = 0, 1
    while passes(high):
        low, high = high, 2 * high
    while high - low > 1 and high / max(1, low) > PRECISION:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Need:
    """What so many streams need.

    Attributes:
        streams: Live streams at the same time.
        workers: Machines (or GPUs) that recognise.
        gateway_cores: Cores of gateways, one process for each.
        shards: Redis servers, each of which has one core.
        redis_gib: Memory of all Redis servers.
        postgres_cores: Cores of PostgreSQL.
        client_gbit: Network to the gateways, in Gbit/s.
        redis_gbit: Network of all Redis servers.
        rows: Rows a second.
        history_gib: Growth of PostgreSQL in a day.
    """

    streams: int
    workers: int
    gateway_cores: int
    shards: int
    redis_gib: float
    postgres_cores: int
    client_gbit: float
    redis_gbit: float
    rows: float
    history_gib: float


def need(streams: int, machine_carries: int, parts: Mapping[str, float], segment: float, talk_ratio: float) -> Need:
    """What so many streams need.

    Args:
        streams: Live streams at the same time.
        machine_carries: What one machine for workers carries.
        parts: Cores per stream of gateway, Redis and PostgreSQL.
        segment: Seconds of speech in a segment, on average.
        talk_ratio: The share of the time with speech.
    """
    rows = streams * talk_ratio / segment
    return Need(
        streams=streams,
        workers=math.ceil(streams / (PLANNED * machine_carries)),
        gateway_cores=math.ceil(streams * parts["gateway"] / BUSY),
        shards=math.ceil(streams * parts["Redis"] / BUSY),
        redis_gib=streams * SESSION_MIB / 1024,
        postgres_cores=math.ceil(streams * parts["PostgreSQL"] / BUSY),
        client_gbit=streams * STREAM_BITS / 1e9,
        redis_gbit=REDIS_COPIES * streams * STREAM_BITS / 1e9,
        rows=rows,
        history_gib=rows * ROW_BYTES * 86400 / 2**30,
    )
