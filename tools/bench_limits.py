#!/usr/bin/env python3
"""Measure what other clients notice, and the memory used, when clients reach a limit and keep trying; for each limit.

    python tools/bench_limits.py [--seconds 4] [--pairs 2] [--rate 100] [WORD …]

A bystander sends a 100 ms chunk every 100 ms and measures the time to its acknowledgement, and a 1 s utterance every
second and measures the time to its text. It alternates SECONDS alone and SECONDS beside the hostile clients (at most
RATE refusals per second each), PAIRS times. Each row shows one limit: the answer that the hostile clients got and how
often; the bystander's latencies beside them over those alone (median and p95 of acknowledgements, median of texts); and
the growth of the gateway's resident memory in MiB. The last row is no attack but as much accepted work as possible,
from clients that keep within the limits, for comparison with the effects of a backlog.

Words select the limits whose names contain all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from hostile import ATTACKS, WORK, Attack, Peer, Target, flags
from live import load, percentile, server

_spawn = multiprocessing.get_context("spawn")

#: Seconds within which the hostile clients must reach the limit.
REACH_TIMEOUT = 30.0

ROWS = [*ATTACKS, WORK]


def run_hostile(target: Target, pipe: Connection) -> None:
    """For each attack number on the pipe: run it, report that its limit is reached, stop on request, send the count."""

    async def attack(one: Attack) -> None:
        target.tally = Counter()
        running = asyncio.ensure_future(one.run(target))
        deadline = time.monotonic() + REACH_TIMEOUT
        while not target.tally[one.code] and not running.done() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        pipe.send(target.tally[one.code] > 0)
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        running.cancel()
        (error,) = await asyncio.gather(running, return_exceptions=True)
        if not isinstance(error, asyncio.CancelledError):
            print(f"{one.limit}: {error!r}", file=sys.stderr)
        pipe.send(target.tally[one.code])

    while True:
        asyncio.run(attack(ROWS[pipe.recv()]))


@dataclass
class Waited:
    """The bystander's latencies in seconds: to acknowledgements and to texts."""

    acks: list[float] = field(default_factory=list)
    texts: list[float] = field(default_factory=list)


class Bystander:
    """Two sessions in real time, one of 100 ms chunks and one of utterances, each on its own connection.

    Attributes:
        memory: The largest resident memory of the gateway that was seen, in bytes.
    """

    def __init__(self, target: Target, gateway: psutil.Process) -> None:
        self.memory = 0
        self._target, self._gateway = target, gateway

    async def start(self) -> None:
        """Start both sessions."""
        self._pieces = await self._target.bystander(mode="stream")
        self._utterances = await self._target.bystander(mode="chunk")
        self._sent = Counter[str]()

    async def finish(self) -> None:
        """Finish both sessions, and wait for their results."""
        for peer, sid in (self._pieces, self._utterances):
            await peer.finish(sid)
            await peer.answer(sid, "final_result")
            await peer.close()

    async def speak(self, seconds: float, waited: Waited | None = None) -> None:
        """Send audio for some seconds, and add its latencies to `waited`."""
        waited = waited or Waited()
        await asyncio.gather(
            self._send(*self._pieces, 0.1, int(seconds * 10), "ack", waited.acks),
            self._send(*self._utterances, 1.0, max(1, int(seconds)), "chunk_result", waited.texts),
        )

    async def _send(self, peer: Peer, sid: str, length: float, count: int, kind: str, waited: list[float]) -> None:
        size, speech, begun = int(length * 32000), self._target.speech, time.monotonic()
        for number in range(count):
            await asyncio.sleep(begun + number * length - time.monotonic())
            at = size * self._sent[sid] % (len(speech) - size)
            sent = time.perf_counter()
            await peer.send(speech[at : at + size])
            answer = await peer.answer(sid, kind, "error")
            waited.append(time.perf_counter() - sent)
            assert answer.get("chunk_index") == self._sent[sid], answer
            self._sent[sid] += 1
            self.memory = max(self.memory, self._gateway.memory_info().rss)


async def measure(
    number: int, options: argparse.Namespace, target: Target, gateway: psutil.Process, pipe: Connection
) -> str:
    """Measure one limit; return its row."""
    loop = asyncio.get_running_loop()
    one = Bystander(target, gateway)
    alone, under = Waited(), Waited()
    heard = before = 0

    for _ in range(options.pairs):
        await one.start()  # a new session each time: the length of one is limited
        await one.speak(1)
        if not before:
            before = one.memory = gateway.memory_info().rss
        await one.speak(options.seconds, alone)
        pipe.send(number)
        reached = loop.run_in_executor(None, pipe.recv)
        while not reached.done():
            await one.speak(0.5)
        await one.speak(options.seconds, under)
        pipe.send(None)
        stopped = loop.run_in_executor(None, pipe.recv)
        while not stopped.done():
            await one.speak(0.5)
        heard += await stopped
        await one.finish()
    pairs = ((under.acks, alone.acks, 0.5), (under.acks, alone.acks, 0.95), (under.texts, alone.texts, 0.5))
    ratios = " ".join(f"{percentile(one, share) / percentile(other, share):7.2f}" for one, other, share in pairs)
    code = ROWS[number].code.partition(":")[0]
    grown = (one.memory - before) / 2**20
    return f"{ROWS[number].limit:42} {code if heard else '-':21} {heard:7} {ratios} {grown:7.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("only", nargs="*", metavar="WORD", help="measure only limits whose names contain all words")
    options = parser.parse_args()
    samples = [samples for _, samples in load()[:20]]
    speech = b"".join((part * 32767).astype("<i2").tobytes() for part in samples)[: 24 * 32000]
    with tempfile.TemporaryDirectory(prefix="asrserver-limits-") as folder:
        arguments, keys = flags(Path(folder))
        with server("--workers", "1", *arguments) as (url, _, pid):
            target = Target(int(url.rpartition(":")[2].partition("/")[0]), keys, speech, 1 / options.rate)
            gateway = listening(pid, target.port)
            pipe, theirs = _spawn.Pipe()
            hostile = _spawn.Process(target=run_hostile, args=(target, theirs), daemon=True)
            hostile.start()
            print(
                f"{'limit reached':42} {'answer':21} {'count':>7} {'ack':>7} {'p95':>7} {'text':>7} {'MiB':>7}",
                flush=True,
            )
            try:
                for number, attack in enumerate(ROWS):
                    if all(word in attack.limit for word in options.only):
                        print(asyncio.run(measure(number, options, target, gateway, pipe)), flush=True)
            finally:
                hostile.kill()
                hostile.join()


def listening(pid: int, port: int) -> psutil.Process:
    """The gateway among a server's processes: the child that listens on the port."""
    for process in psutil.Process(pid).children(recursive=True):
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")):
            return process
    raise SystemExit("no gateway listens on the port")


if __name__ == "__main__":
    main()
