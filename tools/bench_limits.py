#!/usr/bin/env python3
"""What it costs others, and in memory, that a limit is reached: each in turn, by clients that go on hammering at it.

    python tools/bench_limits.py [--seconds 4] [--pairs 2] [--rate 100] [only these limits, by words of their names]

A bystander sends a chunk of 100 ms each 100 ms and times it until it is acknowledged: alone, with the hostile clients
(at most RATE refusals a second each), alone again, and so on; PAIRS times SECONDS of both. It prints of each limit what
the hostile clients heard and how often, the bystander's latency with them over that alone, and how far the gateway's
resident memory rose over what it was before them.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from hostile import ATTACKS, Attack, Peer, Target, flags
from live import load, percentile, server

_spawn = multiprocessing.get_context("spawn")

#: Seconds within which a limit is reached.
REACHED = 30.0


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
        asyncio.run(attack(ATTACKS[pipe.recv()]))


class Bystander:
    """A session in real time. `latencies` are those of the chunks sent so far, in seconds."""

    def __init__(self, peer: Peer, sid: str, speech: bytes, gateway: psutil.Process) -> None:
        self.latencies: list[float] = []
        self._peer, self._sid, self._speech, self._gateway = peer, sid, speech, gateway
        self.memory = 0  # the most that the gateway had

    async def speak(self, seconds: float) -> list[float]:
        """For so long; the latencies of its chunks."""
        since = len(self.latencies)
        begun = time.monotonic()
        for number in range(int(seconds * 10)):
            await asyncio.sleep(begun + number / 10 - time.monotonic())
            at = 3200 * len(self.latencies) % (len(self._speech) - 3200)
            sent = time.perf_counter()
            await self._peer.send(self._speech[at : at + 3200])
            answer = await self._peer.answer(self._sid, "ack", "error")
            self.latencies.append(time.perf_counter() - sent)
            assert answer.get("chunk_index") == len(self.latencies) - 1, answer
            self.memory = max(self.memory, self._gateway.memory_info().rss)
        return self.latencies[since:]

    async def leave(self) -> None:
        await self._peer.finish(self._sid)
        await self._peer.answer(self._sid, "final_result")
        await self._peer.close()


async def measure(
    number: int, options: argparse.Namespace, target: Target, gateway: psutil.Process, pipe: Connection
) -> str:
    """One limit's row."""
    loop = asyncio.get_running_loop()
    one = Bystander(*await target.bystander(), target.speech, gateway)
    alone, under, heard = [], [], 0
    await one.speak(1)
    before = one.memory = gateway.memory_info().rss
    for _ in range(options.pairs):
        alone += await one.speak(options.seconds)
        pipe.send(number)
        reached = loop.run_in_executor(None, pipe.recv)
        while not reached.done():
            await one.speak(0.5)
        under += await one.speak(options.seconds)
        pipe.send(None)
        stopped = loop.run_in_executor(None, pipe.recv)
        while not stopped.done():
            await one.speak(0.5)
        heard += await stopped
        await one.speak(1)  # what was begun is done
    await one.leave()
    median, late = (percentile(under, share) / percentile(alone, share) for share in (0.5, 0.95))
    code = ATTACKS[number].code.partition(":")[0]
    grown = (one.memory - before) / 2**20
    return f"{ATTACKS[number].limit:42} {code if heard else '-':21} {heard:7} {median:7.2f} {late:7.2f} {grown:7.1f}"


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
            print(f"{'limit reached':42} {'answer':21} {'count':>7} {'median':>7} {'p95':>7} {'MiB':>7}", flush=True)
            try:
                for number, attack in enumerate(ATTACKS):
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
