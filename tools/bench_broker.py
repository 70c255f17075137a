#!/usr/bin/env python3
"""Measure the CPU and time of the broker's operations, against raw redis-py pipelines in the same run.

    python tools/bench_broker.py [--sessions 200] [--turns 400] [--together 50] [--rounds 3]

Each turn sends TOGETHER commands together, for different sessions; both sides send the same bytes:

    append  a gateway's 100 ms chunk (3,200 bytes): a script that refuses chunks that are out of order or belong to
            another gateway's session, against XADD
    emit    a worker's result: a script that fences off former owners, publishes, and trims the audio, against XADD,
            PUBLISH and XTRIM
    read    a worker's read of the audio of TOGETHER sessions: XREAD and decoding of its reply, against XREAD

CPU is user and system time of this process and of Redis; ratios are broker to raw, medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import psutil
import uvloop
from bench_storage import event
from benching import add_json, cpu, server_process, servers, write_ratios

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.keys import audio_key, events_key, results_channel
from asrserver.broker.pipeline import connect
from asrserver.broker.replies import Claim
from asrserver.broker.worker_side import WorkerBroker
from asrserver.protocol import codec
from asrserver.protocol.options import Options

CHUNK = bytes(range(256)) * 12 + bytes(128)

Used = tuple[float, float, float]


class Bench:
    """The broker and raw pipelines, on one Redis."""

    def __init__(self, url: str, redis: psutil.Process, options: argparse.Namespace) -> None:
        self._options = options
        self._redis = redis
        self._gateway = GatewayBroker(url, "bench")
        self._worker = WorkerBroker(url, "bench")
        self._raw = connect(url, timeout=10.0)

    async def run(self) -> dict[str, list[tuple[Used, Used]]]:
        """Measure (broker, raw) in each round for each operation; each is (client, Redis, wall) in seconds."""
        await self._gateway.open()
        found: dict[str, list[tuple[Used, Used]]] = {"append": [], "emit": [], "read": []}
        for number in range(-1, self._options.rounds):  # the first warms up
            ours, theirs = await self._ours(f"b{number}"), await self._bare(f"r{number}")
            if number >= 0:
                for what, both in found.items():
                    both.append((ours[what], theirs[what]))
            await self._raw.flushdb()
            await self._gateway.open()
        await self._raw.aclose()
        await self._gateway.close()
        await self._worker.close()
        return found

    async def _ours(self, name: str) -> dict[str, Used]:
        gateway, worker, count = self._gateway, self._worker, self._options.together
        sids = [f"{name}-{n}" for n in range(self._options.sessions)]
        fields = {"gateway": "bench", "options": codec.encode_options(Options(mode="chunk"))}
        claims = {}
        for sid in sids:
            await gateway.open_session(sid, sid, fields, time.time() + 600)
        for task, sid in await worker.claim(None, len(sids), 0.0):
            claim = await worker.acquire(task, sid)
            assert claim is not None
            claims[sid] = claim
        failed: list[Exception] = []

        async def append(turn: int) -> None:
            done = asyncio.Event()
            left = count

            def answered(error: Exception | None) -> None:
                nonlocal left
                left -= 1
                if error is not None:
                    failed.append(error)
                if not left:
                    done.set()

            for sid, index in self._turn(sids, turn):
                gateway.append(sid, index, index - 1 if index else None, [CHUNK], False, answered)
            await done.wait()

        async def emit(turn: int) -> None:
            def one(sid: str, index: int) -> Awaitable[bool]:
                claim: Claim = claims[sid]
                return worker.append_event(claim, event(sid, index, claim.epoch), f"{index}-0")

            assert all(await asyncio.gather(*(one(sid, index) for sid, index in self._turn(sids, turn))))

        cursors = dict.fromkeys(sids, "0-1")

        async def read(turn: int) -> None:
            some = {sid: cursors[sid] for sid, _ in self._turn(sids, turn)}
            for sid, entries in (await worker.read_audio(some, 4)).items():
                cursors[sid] = entries[-1].id

        used = await self._measure(append, read, emit)
        if failed:
            raise SystemExit(f"the broker refused a chunk: {failed[0]}")
        return used

    async def _bare(self, name: str) -> dict[str, Used]:
        raw = self._raw
        sids = [f"{name}-{n}" for n in range(self._options.sessions)]
        channel = results_channel("bench")

        async def append(turn: int) -> None:
            pipe = raw.pipeline(transaction=False)
            for sid, index in self._turn(sids, turn):
                pipe.execute_command("XADD", audio_key(sid), f"{index + 1}-0", "d", CHUNK, "at", time.time())
            await pipe.execute()

        async def emit(turn: int) -> None:
            pipe = raw.pipeline(transaction=False)
            for sid, index in self._turn(sids, turn):
                data = codec.encode(event(sid, index))
                pipe.execute_command("XADD", events_key(sid), f"1-{index + 1}", "seq", index + 1, "data", data)
                pipe.execute_command("PUBLISH", channel, data)
                pipe.execute_command("XTRIM", audio_key(sid), "MINID", f"{index}-1")
            await pipe.execute()

        cursors = dict.fromkeys(sids, "0-1")

        async def read(turn: int) -> None:
            some = {audio_key(sid): cursors[sid] for sid, _ in self._turn(sids, turn)}
            reply = await raw.execute_command("XREAD", "COUNT", 4, "STREAMS", *some, *some.values())
            for key, entries in reply or ():
                cursors[key.decode().partition("{")[2][:-1]] = entries[-1][0].decode()

        return await self._measure(append, read, emit)

    def _turn(self, sids: list[str], turn: int) -> list[tuple[str, int]]:
        """The (session, chunk index) of a turn's commands; the indexes of a session are in order."""
        begin = turn * self._options.together
        return [(sids[n % len(sids)], n // len(sids)) for n in range(begin, begin + self._options.together)]

    async def _measure(self, *works: Callable[[int], Awaitable[None]]) -> dict[str, Used]:
        found = {}
        for work in works:
            client, redis, wall = time.process_time(), cpu([self._redis]), time.monotonic()
            for turn in range(self._options.turns):
                await work(turn)
            found[work.__name__] = time.process_time() - client, cpu([self._redis]) - redis, time.monotonic() - wall
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--turns", type=int, default=400)
    parser.add_argument("--together", type=int, default=50, help="commands per turn, at most the number of sessions")
    parser.add_argument("--rounds", type=int, default=3)
    add_json(parser)
    options = parser.parse_args()
    with servers() as own:
        found = uvloop.run(Bench(own.redis.url, server_process(own.redis), options).run())
    scale = 1e6 / (options.turns * options.together)
    print(f"{options.turns * options.together} times each operation, {options.together} together")
    print("microseconds per operation, broker / raw")
    print(f"{'':8}{'client CPU':>24}{'Redis CPU':>24}{'both':>7}{'time':>24}")
    ratios = {}
    for what, rounds in found.items():
        figures = []
        for place in range(3):
            a, b = (scale * statistics.median(each[way][place] for each in rounds) for way in (0, 1))
            figures.append(f"{a:8.1f} /{b:6.1f} = {a / b if b else 0:4.2f}")
        both = [(a[0] + a[1]) / (b[0] + b[1]) for a, b in rounds]
        ratios[f"broker's {what} to raw pipelines, client and Redis CPU"] = both
        print(f"{what:8}{figures[0]:>24}{figures[1]:>24}{statistics.median(both):7.2f}{figures[2]:>24}")
    write_ratios(options, ratios)


if __name__ == "__main__":
    main()
