"""What a run costs as it goes on: memory of each part, results and their delays, in ten parts of its time."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from tests.faults.account import Account
from tests.faults.book import Book
from tests.faults.cluster import Cluster

#: Seconds between two looks at memory.
LOOK_SECONDS = 10.0

#: Parts of a run's time.
TENTHS = 10

#: Seconds of a run in which memory must be flat: in a shorter one, all processes are young.
LONG = 1800.0

#: The parts whose memory must be flat. PostgreSQL's and Redis' are shown: they hold the history, and what has a TTL.
FLAT = ("gateway", "worker", "supervisor")

#: By how much a part may be larger in the last three tenths than in the second to fourth: a factor, and MiB.
MORE, MIB_MORE = 1.15, 4.0


@dataclass(frozen=True)
class Tenth:
    """A tenth of a run.

    Attributes:
        began: Seconds from the start of the clients.
        mib: Memory of one process of each part that only it uses (USS), the largest of that part, as a median.
        results: Chunks that were answered of those that were sent in it.
        p50: Seconds from chunk to result.
        p95: The same.
    """

    began: float
    mib: dict[str, float]
    results: int
    p50: float
    p95: float


class Scales:
    """Weighs the processes while a run goes on."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._weights: list[tuple[float, dict[str, float]]] = []

    async def weigh(self) -> None:
        """Weigh until cancelled."""
        while True:
            self._weights.append((time.monotonic(), await self._cluster.in_thread(self._look)))
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for part in (*FLAT, "redis", "postgres"):
            sizes = []
            for process in self._cluster.processes(part):
                with contextlib.suppress(psutil.Error):
                    sizes.append(process.memory_full_info().uss / 2**20)
            if sizes:
                found[part] = max(sizes)
        return found

    def tenths(self, book: Book, begin: float, seconds: float) -> list[Tenth]:
        """What each tenth was like, of a run that began at `begin` (time.monotonic()) and took so many seconds."""
        made = []
        for number in range(TENTHS):
            since, until = (begin + seconds * edge / TENTHS for edge in (number, number + 1))
            looks = [weights for at, weights in self._weights if since <= at < until]
            mib = {
                part: round(statistics.median(look[part] for look in looks if part in look), 1)
                for part in sorted({part for look in looks for part in look})
            }
            delays = sorted(
                chunk.answers[0][0] - chunk.sent
                for talk in book.talks.values()
                for chunk in talk.chunks
                if chunk.answers and since <= chunk.sent < until
            )
            p50, p95 = (round(delays[int(len(delays) * part)], 2) if delays else 0.0 for part in (0.5, 0.95))
            made.append(Tenth(round(since - begin, 1), mib, len(delays), p50, p95))
        return made


def check_flat(account: Account, tenths: Sequence[Tenth], seconds: float) -> None:
    """No part may be larger at the end of a long run than it was after its beginning."""
    if seconds < LONG:
        return
    for part in FLAT:
        early = statistics.median(tenth.mib.get(part, 0.0) for tenth in tenths[1:4])
        late = statistics.median(tenth.mib.get(part, 0.0) for tenth in tenths[-3:])
        if late > early * MORE + MIB_MORE:
            account.problem("left over", f"a {part} grew from {early:.0f} to {late:.0f} MiB")


def lines(tenths: Sequence[Tenth]) -> list[str]:
    """A table for the report."""
    parts = sorted({part for tenth in tenths for part in tenth.mib})
    rows = ["from s  results   p50    p95 s" + "".join(f"{part + ' MiB':>16}" for part in parts)]
    for one in tenths:
        sizes = "".join(f"{one.mib.get(part, 0.0):16.1f}" for part in parts)
        rows.append(f"{one.began:6.0f} {one.results:8d} {one.p50:5.2f} {one.p95:8.2f}{sizes}")
    return rows


def as_rows(tenths: Sequence[Tenth]) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [asdict(one) for one in tenths]
