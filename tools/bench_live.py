#!/usr/bin/env python3
"""Increase the number of live streams: partial results must become less frequent before segments become late.

    python tools/bench_live.py [--streams 10,20,40,60,80] [--seconds 30] [--workers 1]

Each step runs a number of streams at once, in real time, with partial results every 0.5 s, and prints: partial results
per second of speech; the interval to which the worker limited them (median over the step); the delays from the end of
speech to its segment (including 0.4 s of silence); the p95 of the slowest stream over that of the fastest; and CPU
milliseconds per second of audio. The last columns are ratios to the first step of the same run. The client of the
streams uses the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import psutil
from live import Heard, Recording, delays, load, make, percentile, server, speak

from asrserver.client import Client
from asrserver.text.wer import word_errors

#: Seconds between two reads of the workers' heartbeats, which are sent as often.
HEARTBEAT_SECONDS = 1.0

#: The kinds of processes of the server that are measured.
PARTS = ("worker", "gateway", "redis")


async def step(url: str, http: str, recordings: list[Recording]) -> tuple[list[Heard], list[float]]:
    """Run the streams; return what each received, and the workers' intervals of partial results."""

    async def one(number: int, recording: Recording) -> Heard:
        await asyncio.sleep(number % 10 / 10)  # so that the streams do not start at the same moment
        async with await Client.connect(url) as client:
            return await speak(client, recording, partials=True)

    async def watch() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            intervals.extend(worker["partial_interval"] for worker in await asyncio.to_thread(workers, http))

    intervals: list[float] = []
    watching = asyncio.create_task(watch())
    try:
        found = await asyncio.gather(*(one(number, recording) for number, recording in enumerate(recordings)))
    finally:
        watching.cancel()
    return found, intervals


def workers(http: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{http}/api/v1/health") as response:
        found: list[dict[str, Any]] = json.load(response)["workers"]
        return found


def processes(server: int, http: str) -> Iterator[tuple[str, psutil.Process]]:
    """The server's processes, each with its kind."""
    of_workers = {worker["pid"] for worker in workers(http)}
    for process in psutil.Process(server).children(recursive=True):
        line = " ".join(process.cmdline())
        if process.pid in of_workers:
            yield "worker", process
        elif "valkey" in line or "redis-server" in line:
            yield "redis", process
        elif "multiprocessing.spawn" in line:
            yield "gateway", process


def spent(server: int, http: str) -> defaultdict[str, float]:
    """CPU seconds that each kind of process has used so far."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for part, process in processes(server, http):
        seconds[part] += sum(process.cpu_times()[:2])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="10,20,40,60,80")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    utterances = load()
    print("                                  final     slowest/   word    CPU, ms per second    ratio to the first")
    print("streams partials/s interval     p50    p95   fastest  errors   worker gateway redis   partials final p50")
    first: tuple[float, float] | None = None
    with server("--workers", str(options.workers)) as running:
        url, http, pid = running.url, running.http, running.process.pid
        for count in map(int, options.streams.split(",")):
            recordings = [make(utterances, options.seconds, (0.5, 2.0), seed) for seed in range(count)]
            seconds = sum(recording.seconds for recording in recordings)
            before = spent(pid, http)
            found, intervals = asyncio.run(step(url, http, recordings))
            cost = {part: 1000 * (after - before[part]) / seconds for part, after in spent(pid, http).items()}
            speech = sum(one.end - one.start for recording in recordings for one in recording.said)
            partials = sum(m["type"] == "partial_result" for heard in found for _, m in heard.messages) / speech
            finals = [delays(recording, heard)[1] for recording, heard in zip(recordings, found, strict=True)]
            every = [delay for each in finals for delay in each]
            each = [percentile(values, 0.95) for values in finals if values]
            wrong = sum(word_errors(r.text, heard.final["text"]) for r, heard in zip(recordings, found, strict=True))
            words = sum(len(recording.text.split()) for recording in recordings)
            p50, p95 = percentile(every, 0.5), percentile(every, 0.95)
            first = first or (partials, p50)
            print(
                f"{count:7} {partials:10.2f} {percentile(intervals, 0.5):6.2f} s {p50:5.2f} s {p95:4.2f} s"
                f" {max(each) / min(each):9.2f} {100 * wrong / words:5.1f} %"
                f" {cost['worker']:8.1f} {cost['gateway']:7.1f} {cost['redis']:5.1f}"
                f" {partials / first[0]:10.2f} {p50 / first[1]:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
