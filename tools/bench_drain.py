#!/usr/bin/env python3
"""Move live streams from one worker to another, and measure for how long nothing comes of them.

    python tools/bench_drain.py [--streams 8] [--model demo] [--how drain|stop|kill]

Two workers; streams of speech with short pauses, in real time, with partial results every 0.5 s. After a while one
worker is drained (`asrserver drain`), stopped (SIGTTOU to the supervisor, as in a rolling restart), or killed. Printed
of the streams that it had: the most speech that came between two results, around the move and in as long a time of the
same stream before it; the delay from the end of speech to its segment, of segments around the move and of the others;
and word errors. The client of the streams uses the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import psutil
import redis
from bench_live import workers
from live import Heard, Recording, delays, load, make, percentile, server, speak

from asrserver.broker.keys import GROUP, TASKS
from asrserver.client import Client
from asrserver.text.wer import word_errors

#: Seconds of speech before the move, for which the move is looked at, and after it.
BEFORE = 12.0
WINDOW = 6.0
AFTER = 12.0


@dataclass
class Move:
    """When the move began, by time.monotonic(), and the ids of the sessions that the worker had."""

    began: float
    sessions: set[str]


def move(how: str, http: str, supervisor: int) -> Move:
    """Take all sessions from a worker: SIGTTOU ends the last one, else from that with the most."""
    victim = max(workers(http), key=lambda worker: worker["name"] if how == "stop" else worker["sessions"])
    arguments = psutil.Process(supervisor).cmdline()
    url = f"unix://{arguments[arguments.index('--data-dir') + 1]}/redis/redis.sock"
    with redis.Redis.from_url(url, decode_responses=True) as client:
        held = client.xpending_range(TASKS, GROUP, "-", "+", 1000, consumername=victim["name"])
        entries = [client.xrange(TASKS, one["message_id"], one["message_id"]) for one in held]
    began = time.monotonic()
    if how == "drain":
        command = [sys.executable, "-m", "asrserver", "drain", victim["name"]]
        subprocess.run(command, check=True, timeout=60, env={**os.environ, "REDIS_URL": url})
    elif how == "stop":
        os.kill(supervisor, signal.SIGTTOU)
    else:
        os.kill(victim["pid"], signal.SIGKILL)
    print(f"done after {time.monotonic() - began:.1f} s")
    return Move(began, {fields["sid"] for found in entries for _, fields in found})


async def streams(
    url: str, http: str, pid: int, how: str, recordings: list[Recording]
) -> tuple[list[tuple[Recording, Heard]], float]:
    """Run all streams and the move; what those received that moved, and when, in seconds of the streams."""

    async def one(recording: Recording) -> Heard:
        async with await Client.connect(url) as client:
            return await speak(client, recording, partials=True)

    begun = time.monotonic()
    running = [asyncio.create_task(one(recording)) for recording in recordings]
    await asyncio.sleep(BEFORE)
    moved = await asyncio.to_thread(move, how, http, pid)
    pairs = zip(recordings, await asyncio.gather(*running), strict=True)
    return [pair for pair in pairs if pair[1].final["session_id"] in moved.sessions], moved.began - begun


def gap(recording: Recording, heard: Heard, begin: float, end: float) -> float:
    """The most seconds of speech between two results, of those that overlap a time."""
    times = [when for when, m in heard.messages if m["type"] in ("partial_result", "segment_result")]
    gaps = [
        sum(max(0.0, min(later, one.end) - max(earlier, one.start)) for one in recording.said)
        for earlier, later in itertools.pairwise(times)
        if later > begin and earlier < end
    ]
    return max(gaps, default=float("nan"))


def show(what: str, values: list[float]) -> None:
    print(f"{what:<42} p50 {percentile(values, 0.5):5.2f} s   p95 {percentile(values, 0.95):5.2f} s   "
          f"longest {max(values, default=float('nan')):5.2f} s   of {len(values)}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--how", choices=("drain", "stop", "kill"), default="drain")
    options = parser.parse_args()
    said = load()
    recordings = [make(said, BEFORE + WINDOW + AFTER, (0.5, 0.8), seed) for seed in range(options.streams)]
    with server("--workers", "2", "--model", options.model) as running:
        url, http, pid = running.url, running.http, running.process.pid
        found, at = asyncio.run(streams(url, http, pid, options.how, recordings))
    show("speech between two results, before", [gap(*one, at - WINDOW, at) for one in found])
    show(f"speech between two results, {options.how}", [gap(*one, at, at + WINDOW) for one in found])
    around, others = list[float](), list[float]()
    for recording, heard in found:
        for when, message in heard.messages:
            if message["type"] == "segment_result":
                one = Heard([(when, message)], heard.final)
                (around if at < when < at + WINDOW else others).extend(delays(recording, one)[1])
    show("end of speech to its segment, else", others)
    show(f"end of speech to its segment, {options.how}", around)
    wrong = sum(word_errors(r.text, heard.final["text"]) for r, heard in found)
    print(f"word errors {wrong} of {sum(len(r.text.split()) for r, _ in found)}")


if __name__ == "__main__":
    main()
