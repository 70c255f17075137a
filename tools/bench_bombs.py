#!/usr/bin/env python3
"""Measure what somebody who speaks notices of bytes made to cost time or memory, sent to the same worker.

    python tools/bench_bombs.py [--seconds 10] [--pairs 1] [NAME …]

A bystander speaks in real time, and each text that comes says up to when it reaches: how late it is, is measured. It
speaks SECONDS alone and SECONDS beside a client that sends a bomb (tests/audio/bombs.py) again and again, PAIRS times,
as a live stream and as a file. Each row shows the bomb, how it was sent, the first answer to it and the seconds until
that came, the longest of them, how often it was sent; and of the bystander's delays beside it over those alone, the
median and p95. The last rows are no bomb but an ordinary file, sent as often: what another client costs in any case.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from live import load, make, percentile, server

from asrserver.client import Client
from tests.audio.bombs import BOMBS

#: Seconds until the answer to a bomb must have come.
TIMEOUT = 30.0

#: Seconds between two bombs.
PAUSE = 0.2


@dataclass
class Attack:
    """What became of the bombs of a kind.

    Attributes:
        code: Of the first answer's error; the type of the answer if it is none; or that none came in time.
        waits: Seconds until the answer to each.
    """

    code: str = ""
    waits: list[float] = field(default_factory=list)

    async def run(self, url: str, data: bytes, mode: str) -> None:
        """Send the bomb until cancelled."""
        async with await Client.connect(url) as client:
            while True:
                try:
                    async with asyncio.timeout(TIMEOUT):
                        await self._send(client, data, mode)
                except TimeoutError:  # it holds half an hour of audio, say
                    self.code = self.code or "none in time"
                await asyncio.sleep(PAUSE)

    async def _send(self, client: Client, data: bytes, mode: str) -> None:
        session = await client.start(mode=mode, format="auto")

        async def send() -> None:
            step = len(data) if mode == "chunk" else 1 << 18
            for at in range(0, len(data), step):
                await session.send(data[at : at + step])
            await session.end()

        begun, answered = time.monotonic(), False
        sending = asyncio.ensure_future(send())
        async for event in session.events():
            if not answered and event["type"] in ("error", "chunk_result", "final_result"):
                answered = True
                self.waits.append(time.monotonic() - begun)
                self.code = self.code or str(event.get("code") or event["type"])
        await sending


async def speak(url: str, seconds: float, seed: int) -> list[float]:
    """Speak for some seconds; return how late each text was."""
    recording = make(load()[:40], seconds, (0.3, 0.6), seed)
    pcm = (recording.samples * 32767).astype("<i2").tobytes()
    late = []
    async with await Client.connect(url) as client:
        session = await client.start(mode="stream", format="pcm_s16le", partials=True)
        begun = time.monotonic()

        async def send() -> None:
            for at in range(0, len(pcm), 3200):
                await asyncio.sleep(begun + (at + 3200) / 32000 - time.monotonic())
                await session.send(pcm[at : at + 3200])
            await session.end()

        sending = asyncio.ensure_future(send())
        async for event in session.events():
            if event["type"] in ("partial_result", "segment_result"):
                late.append(time.monotonic() - begun - event["end"])
        await sending
    return late


async def measure(url: str, data: bytes, mode: str, arguments: argparse.Namespace) -> tuple[Attack, float, float]:
    """(the attack, ratio of the medians, ratio of the p95)."""
    attack, alone, beside = Attack(), list[float](), list[float]()
    for pair in range(arguments.pairs):
        alone += await speak(url, arguments.seconds, pair)
        running = asyncio.ensure_future(attack.run(url, data, mode))
        beside += await speak(url, arguments.seconds, pair)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    median, p95 = (percentile(beside, share) / percentile(alone, share) for share in (0.5, 0.95))
    return attack, median, p95


async def run(url: str, arguments: argparse.Namespace) -> None:
    """Measure the bombs that the command line names, or all."""
    await speak(url, 3.0, 0)
    print(f"{'bomb':22} {'as':7} {'kB':>6} {'answer':20} {'after':>6} {'max':>6} {'sent':>5} {'median':>7} {'p95':>6}")
    ordinary = sorted((Path(__file__).parents[1] / "tests" / "data" / "utterances").glob("*.opus"))[0].read_bytes()
    for name in arguments.names or [*BOMBS, "ordinary"]:
        data = ordinary if name == "ordinary" else BOMBS[name][0]()
        for mode in ("stream", "chunk"):
            attack, median, p95 = await measure(url, data, mode, arguments)
            waits = attack.waits or [float("nan")]
            print(
                f"{name:22} {mode:7} {len(data) / 1000:6.0f} {attack.code:20} {waits[0]:6.2f} {max(waits):6.2f}"
                f" {len(attack.waits):5} {median:7.2f} {p95:6.2f}",
                flush=True,
            )


def main() -> None:
    """Start a server with one worker, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("names", nargs="*", metavar="NAME", help="measure only these bombs")
    arguments = parser.parse_args()
    with server("--workers", "1", "--speed-burst", "100000", "--max-speed", "1000") as (url, _, _):
        asyncio.run(run(url, arguments))


if __name__ == "__main__":
    main()
