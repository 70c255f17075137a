"""How many live streams a server carries in real time, beside the number that faster-whisper's offline speed allows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from live import percentile

from evaluation.conditions import LONG_GAPS, joined
from evaluation.corpus import Take
from evaluation.delays import delays_of, speech_of, total_delays
from evaluation.limits import POINTS
from evaluation.offline import Offline
from evaluation.recognition import judge
from evaluation.report import total
from evaluation.scoring import Score
from evaluation.served import Served

#: Seconds after the end of speech at which a segment is late, at the 95th percentile.
LATE_SECONDS = 2.0


@dataclass
class Load:
    """What became of some live streams at the same time.

    Attributes:
        streams: How many.
        partials: Whether they asked for partial results.
        final_p50: Seconds from the end of speech to its segment, median.
        final_p95: The 95th percentile.
        first_p50: Seconds from the beginning of speech to the first partial result, median; NaN without any.
        rate: Word errors in per cent.
        offline_rate: Those of faster-whisper offline on the same recordings.
        dropped: Stretches of speech without text.
    """

    streams: int
    partials: bool
    final_p50: float
    final_p95: float
    first_p50: float
    rate: float
    offline_rate: float
    dropped: int

    @property
    def carried(self) -> bool:
        """Whether the segments came in time, with the texts that an idle machine would have given."""
        return self.final_p95 <= LATE_SECONDS and self.rate <= self.offline_rate + POINTS

    def asdict(self) -> dict[str, Any]:
        """The figures as JSON has them."""
        return {**asdict(self), "carried": self.carried}


def recordings(takes: Sequence[Take], count: int, seconds: float) -> list[Take]:
    """Recordings of people who read with pauses, joined of takes, each in another order."""
    return [joined(takes, seconds / 60, LONG_GAPS, np.random.default_rng(number)) for number in range(count)]


async def load_of(server: Served, spoken: Sequence[Take], offline: Sequence[Score], partials: bool) -> Load:
    """Stream recordings in real time, all at the same time; `offline` are the scores of faster-whisper on them."""
    found = await asyncio.gather(*(server.live(take, partials) for take in spoken))
    both = list(zip(spoken, found, strict=True))
    score = total(judge(take, one) for take, one in both)
    delays = total_delays(delays_of(one.messages, speech_of(take)) for take, one in both)
    return Load(
        len(spoken),
        partials,
        percentile(delays.final, 0.5),
        percentile(delays.final, 0.95),
        percentile(delays.first, 0.5),
        score.rate,
        total(offline).rate,
        score.dropped,
    )


async def offline_scores(offline: Offline, spoken: Sequence[Take]) -> tuple[float, list[Score]]:
    """(how many times real time faster-whisper is on these recordings, its score of each)."""
    began = time.monotonic()
    found = [await offline.plain(take) for take in spoken]
    took = time.monotonic() - began
    return sum(take.seconds for take in spoken) / took, [
        judge(take, one) for take, one in zip(spoken, found, strict=True)
    ]


def capacity_table(loads: Sequence[Load], speed: float) -> list[str]:
    """The table; `speed` is that of faster-whisper offline."""
    lines = [
        f"faster-whisper offline: {speed:.1f} times real time on all cores, room for that many streams",
        f"{'streams':>8}{'partials':>10}{'final p50 s':>13}{'p95 s':>8}{'first p50 s':>13}{'WER %':>8}"
        f"{'offline %':>11}{'dropped':>9}{'carried':>9}",
    ]
    for load in loads:
        lines.append(
            f"{load.streams:>8}{'yes' if load.partials else 'no':>10}{load.final_p50:>13.2f}{load.final_p95:>8.2f}"
            f"{load.first_p50:>13.2f}{load.rate:>8.2f}{load.offline_rate:>11.2f}{load.dropped:>9}"
            f"{'yes' if load.carried else 'no':>9}"
        )
    for partials in (False, True):
        most = max((load.streams for load in loads if load.carried and load.partials == partials), default=0)
        kind = "with" if partials else "without"
        lines.append(f"carried {kind} partials: {most} streams, {most / speed:.2f} of what offline speed allows")
    return lines
