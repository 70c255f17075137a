#!/usr/bin/env python3
"""Live streams, ramped: partial results thin out before segments become late.

    python tools/bench_live.py [--streams 5,10,20,40,60] [--seconds 30] [--workers 1]

Each step runs so many streams at once, in real time, with partial results every 0.5 s, and prints what they got; the
last columns are against the first step of the same run. Delays are from the end of speech to its segment, silence of
0.4 s included. `slowest` is the p95 of the stream that waited longest, over that of the one that waited least.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import urllib.request
from typing import Any

from live import Heard, Recording, delays, load, make, percentile, server, speak, word_errors

from asrserver.client import Client


async def step(url: str, recordings: list[Recording]) -> list[Heard]:
    async def one(number: int, recording: Recording) -> Heard:
        await asyncio.sleep(number % 10 / 10)  # nobody starts at the same moment
        async with await Client.connect(url) as client:
            return await speak(client, recording, partials=True)

    return await asyncio.gather(*(one(number, recording) for number, recording in enumerate(recordings)))


def workers(http: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{http}/api/v1/health") as response:
        found: list[dict[str, Any]] = json.load(response)["workers"]
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="5,10,20,40,60")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    utterances = load()
    print("streams  partials/s of speech  final p50  p95  slowest/fastest  word errors   partials  final p50 of first")
    first: tuple[float, float] | None = None
    with server("--workers", str(options.workers)) as (url, http, _):
        for count in map(int, options.streams.split(",")):
            recordings = [make(utterances, options.seconds, (0.5, 2.0), seed) for seed in range(count)]
            found = asyncio.run(step(url, recordings))
            speech = sum(one.end - one.start for recording in recordings for one in recording.said)
            partials = sum(m["type"] == "partial_result" for heard in found for _, m in heard.messages) / speech
            finals = [delays(recording, heard)[1] for recording, heard in zip(recordings, found, strict=True)]
            every = [delay for each in finals for delay in each]
            each = [percentile(values, 0.95) for values in finals if values]
            wrong = sum(word_errors(r.text, heard.final["text"]) for r, heard in zip(recordings, found, strict=True))
            words = sum(len(recording.text.split()) for recording in recordings)
            p50 = percentile(every, 0.5)
            first = first or (partials, p50)
            print(
                f"{count:7} {partials:21.2f} {p50:10.2f} {percentile(every, 0.95):4.2f} {max(each) / min(each):16.2f}"
                f" {100 * wrong / words:10.1f} % {partials / first[0]:10.2f} {p50 / first[1]:10.2f}",
                flush=True,
            )
        for worker in workers(http):
            print(f"  real-time factor {worker['real_time_factor']}, partial interval {worker['partial_interval']}")


if __name__ == "__main__":
    main()
