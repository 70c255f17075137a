#!/usr/bin/env python3
"""What it costs others, and in memory, that a limit is reached: each in turn, by clients that go on hammering at it.

    python tools/bench_limits.py [--seconds 4] [--pairs 2] [--rate 100] [only these limits, by words of their names]

A bystander sends a chunk of 100 ms each 100 ms and times it until it is acknowledged, and an utterance of 1 s each
second and times it until its text comes: alone, with the hostile clients (at most RATE refusals a second each), alone
again, and so on; PAIRS times SECONDS of both. It prints of each limit what the hostile clients heard and how often, the
bystander's latencies with them over those alone (of acknowledgements the median and p95, of texts the median), and how
far the gateway's resident memory rose over what it was before them. The last row is no attack: it is as much accepted
work as can be done, of clients that keep within the limits, for comparison with what comes of a backlog.
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

#: Seconds within which a limit is reached.
REACHED = 30.0

ROWS = [*ATTACKS, WORK]


def run_hostile(target: Target, pipe: Connection) -> None:
    """For each number of an attack: run it, tell when its limit is reached, stop at a word, tell what was heard."""

    async def attack(one: Attack) -> None:
        target.tally = Counter()
        running = asyncio.ensure_future(one.run(target))
        deadline = time.monotonic() + REACHED
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
    """For what a bystander's chunks waited how long, in seconds."""

    acks: list[float] = field(default_factory=list)
    texts: list[float] = field(default_factory=list)


class Bystander:
    """Two sessions in real time, of pieces and of utterances, on connections of their own.

    `memory` is the most that the gateway had.
    """

    def __init__(self, target: Target, gateway: psutil.Process) -> None:
        self.memory = 0
        self._target, self._gateway = target, gateway

    async def come(self) -> None:
        """Begin both sessions."""
        self._pieces = await self._target.bystander(mode="stream")
        self._utterances = await self._target.bystander(mode="chunk")
        self._sent = Counter[str]()

    async def leave(self) -> None:
        for peer, sid in (self._pieces, self._utterances):
            await peer.finish(sid)
            await peer.answer(sid, "final_result")
            await peer.close()

    async def speak(self, seconds: float, waited: Waited | None = None) -> None:
        """For so long; note what its chunks waited for."""
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
    """One limit's row."""
    loop = asyncio.get_running_loop()
    one = Bystander(target, gateway)
    alone, under = Waited(), Waited()
    heard = before = 0

    for _ in range(options.pairs):
        await one.come()  # anew: a session may last for less than all pairs
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
        await one.leave()  # what was begun is done
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
    parser.add_argument("only", nargs="*")
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
    """The gateway among a server's processes: the one that uses the port and is not their parent."""
    for process in psutil.Process(pid).children(recursive=True):
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")):
            return process
    raise SystemExit("no gateway listens")


if __name__ == "__main__":
    main()
