"""How many chunks a second several Redis servers carry, over one: the same sessions, gateway and workers' commands.

Each Redis gets the same small share of a core (a CPU quota of a control group, which needs root), so that Redis is the
bottleneck and not this program, as it is where there are many gateways. One round measures one shard, then several.

    python tools/bench_shards.py --share 0.05 --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop
from benching import about, about_line, add_json, cpu, server_process, write_ratios

from asrserver.broker.gateway_shards import gateway_broker
from asrserver.broker.replies import Claim
from asrserver.broker.worker_side import WorkerBroker
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.protocol import codec
from asrserver.protocol.events import ChunkResult
from asrserver.protocol.options import Options

CHUNK = bytes(range(256)) * 12 + bytes(128)

#: Seconds between a worker's reads, as with many streams.
READ_EVERY = 0.25

#: Microseconds of a period of the quota.
PERIOD = 20_000


class Measured(NamedTuple):
    """Chunks that Redis acknowledged in a second, the share of its quota that the busiest and the idlest Redis used,
    and the cores that this program used."""

    rate: float
    busiest: float
    idlest: float
    client: float


@contextmanager
def limited(share: float, number: int, pid: int) -> Iterator[None]:
    """Give a process this share of a core."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path("/sys/fs/cgroup") / ("" if unified else "cpu") / f"asrserver-bench-{os.getpid()}-{number}"
    quota = int(share * PERIOD)
    try:
        group.mkdir()
        if unified:
            (group / "cpu.max").write_text(f"{quota} {PERIOD}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as exc:
        raise SystemExit(f"{group}: {exc.strerror}; a CPU quota needs root and a writable /sys/fs/cgroup") from None
    try:
        yield
    finally:
        (group.parent / "cgroup.procs").write_text(str(pid))
        group.rmdir()


class Load:
    """Sessions whose chunks are sent as fast as they are acknowledged, and a worker that reads and answers them."""

    def __init__(self, urls: list[str], sessions: int, depth: int) -> None:
        self._gateway = gateway_broker(",".join(urls), "bench")
        self._workers = [WorkerBroker(url, "bench") for url in urls]
        self._sids = [str(uuid.uuid4()) for _ in range(sessions)]
        self._depth = depth
        self._sent = dict.fromkeys(self._sids, 0)
        self._stopping = False
        self.acknowledged = 0
        self.error: Exception | None = None

    async def run(self, seconds: float, redis: list[psutil.Process], share: float) -> Measured:
        """Measure for so long, after a second to warm up."""
        await self._gateway.open()
        fields = {"gateway": "bench", "options": codec.encode_options(Options(mode="chunk"))}
        for sid in self._sids:
            await self._gateway.open_session(sid, sid, fields, time.time() + 600)
        reading = [asyncio.create_task(self._work(worker)) for worker in self._workers]
        for sid in self._sids:
            for _ in range(self._depth):
                self._send(sid)
        await asyncio.sleep(1.0)
        begun, client, before = time.monotonic(), time.process_time(), [cpu([each]) for each in redis]
        count = self.acknowledged
        await asyncio.sleep(seconds)
        took = time.monotonic() - begun
        used = [(cpu([each]) - was) / took / share for each, was in zip(redis, before, strict=True)]
        found = Measured(
            (self.acknowledged - count) / took, max(used), min(used), (time.process_time() - client) / took
        )
        self._stopping = True
        await asyncio.gather(*reading)
        await self._gateway.close()
        if self.error is not None:
            raise SystemExit(f"a chunk was refused: {self.error}")
        return found

    def _send(self, sid: str) -> None:
        index = self._sent[sid]
        self._sent[sid] += 1

        def done(error: Exception | None) -> None:
            self.error = self.error or error
            self.acknowledged += 1
            if not self._stopping and error is None:
                self._send(sid)

        self._gateway.append(sid, index, index - 1 if index else None, [CHUNK], False, done)

    async def _work(self, worker: WorkerBroker) -> None:
        await worker.open()
        claims: dict[str, Claim] = {}
        for task, sid in await worker.claim(None, len(self._sids), 0.0):
            claim = await worker.acquire(task, sid)
            assert claim is not None
            claims[sid] = claim
        cursors, numbers = dict.fromkeys(claims, "0-1"), dict.fromkeys(claims, 0)
        while not self._stopping:
            pause = asyncio.create_task(asyncio.sleep(READ_EVERY))
            answers = []
            for sid, entries in (await worker.read_audio(cursors, 64)).items():
                cursors[sid] = entries[-1].id
                numbers[sid] += 1
                answers.append(worker.append_event(claims[sid], _event(claims[sid], numbers[sid]), cursors[sid]))
            await asyncio.gather(*answers)
            await pause
        await worker.close()


def _event(claim: Claim, number: int) -> ChunkResult:
    return ChunkResult(
        session_id=claim.sid, id=claim.event_id(number), seq=number, time=time.time(), worker="bench", model="bench",
        language="en", total=number / 10, chunk_count=number, segments=[], chunk_index=number, text="some words",
        duration=0.1, received=None,
    )  # fmt: skip


def measured(count: int, options: argparse.Namespace) -> Measured:
    """Measure with so many Redis servers of their own."""
    with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as place, ExitStack() as stack:
        redis = []
        for number in range(count):
            directory = Path(place) / str(number)
            directory.mkdir()
            redis.append(EmbeddedRedis(directory, maxmemory=1 << 30, appendfsync="no"))
            redis[-1].start()
            stack.callback(redis[-1].stop, 10)
        found = [server_process(each) for each in redis]
        for number, process in enumerate(found):
            stack.enter_context(limited(options.share, number, process.pid))
        load = Load([each.url for each in redis], options.sessions, options.depth)
        return uvloop.run(load.run(options.seconds, found, options.share))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.05, help="of a core, for each Redis")
    parser.add_argument("--sessions", type=int, default=120)
    parser.add_argument("--depth", type=int, default=8, help="chunks of a session that wait for their acknowledgement")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    add_json(parser)
    options = parser.parse_args()
    print(about_line(about()))
    print(f"{options.sessions} sessions, {options.share:.0%} of a core for each Redis")
    print(f"{'shards':>6} {'chunks/s':>9} {'of the quota used':>18} {'cores of the client':>20}")
    ratios = []
    for _ in range(options.rounds):
        both = []
        for count in (1, options.shards):
            found = measured(count, options)
            both.append(found.rate)
            used = f"{found.idlest:.0%} to {found.busiest:.0%}"
            print(f"{count:6} {found.rate:9.0f} {used:>18} {found.client:20.2f}", flush=True)
        ratios.append(both[1] / both[0])
    print(f"{options.shards} shards over 1: {', '.join(f'{each:.2f}' for each in ratios)}; median "
          f"{statistics.median(ratios):.2f}")  # fmt: skip
    write_ratios(options, {f"chunks a second of {options.shards} shards to one": ratios})


if __name__ == "__main__":
    main()
