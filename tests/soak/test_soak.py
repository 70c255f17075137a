"""Long live streams: silence, an hour, sixty at once. `make soak` runs them; `make test` does not."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import psutil
import pytest

from asrserver.text.wer import word_errors
from tests.program import System
from tests.recordings import Utterance
from tests.ws_client import WsClient, look

pytestmark = pytest.mark.slow

PIECE = 3200


async def send(
    ws: WsClient, sid: str, pcm: bytes, speed: float, on_second: Callable[[float], None] | None = None
) -> None:
    """Send a recording in pieces of 100 ms, `speed` times faster than real time."""
    begun = time.monotonic()
    for index, at in enumerate(range(0, len(pcm), PIECE)):
        await asyncio.sleep(max(0.0, begun + at / 32000 / speed - time.monotonic()))
        await ws.send(pcm[at : at + PIECE])
        if index % 32 == 31:
            await ws.find(sid, "ack", index)
        if on_second is not None and index % 600 == 599:
            on_second((index + 1) / 10)


@pytest.mark.gen_test(timeout=900)
@pytest.mark.parametrize("sound", ["silence", "noise", "tone"])
async def test_ten_minutes_of_nothing_give_no_words(start: Callable[..., System], sound: str) -> None:
    system = start("run", "--workers", "1").wait_ready()
    t = np.arange(600 * 16000) / 16000
    samples = {
        "silence": np.zeros(len(t)),
        "noise": np.random.default_rng(1).normal(0, 0.05, len(t)),
        "tone": 0.3 * np.sin(2 * np.pi * 440 * t),
    }[sound]
    async with await WsClient.open(system.url) as ws:
        await ws.start("s", mode="stream", partials=True)
        await send(ws, "s", (samples * 32767).astype("<i2").tobytes(), 20)
        final = await ws.finish("s")
        assert final["text"] == ""
        assert final["duration"] == pytest.approx(600, abs=0.1)
        assert {message["type"] for message in ws.messages} == {"ack", "final_result"}


def memory(system: System, redis_url: str) -> dict[str, float]:
    """MiB of each part."""
    with look(redis_url) as client:
        redis = float(client.info("memory")["used_memory"])
    sizes = {kind: float(system.children(kind)[0].memory_info().rss) for kind in ("gateway", "worker")}
    return {name: size / 2**20 for name, size in {**sizes, "redis": redis}.items()}


@pytest.mark.gen_test(timeout=1500)
async def test_an_hour_in_one_session(
    start: Callable[..., System], redis_url: str, utterances: list[Utterance]
) -> None:
    """Memory of worker, gateway and Redis is flat after five minutes of audio, and so is the delay."""
    system = start("run", "--workers", "1").wait_ready()
    block = bytes(32000).join(utterance.pcm for utterance in utterances[:20]) + bytes(3 * 32000)
    pcm = (block * (3600 * 32000 // len(block) + 1))[: 3600 * 32000]
    speed = 10.0
    sizes: list[dict[str, float]] = []
    lags: list[float] = []
    async with await WsClient.open(system.url) as ws:
        await ws.start("s", mode="stream", partials=True)

        def measure(seconds: float) -> None:
            sizes.append(memory(system, redis_url))
            segments = ws.of("s", "segment_result")
            lags.append(seconds - segments[-1]["end"] if segments else 0.0)

        await send(ws, "s", pcm, speed, measure)
        final = await ws.finish("s")
        segments = ws.of("s", "segment_result")
    assert final["duration"] == pytest.approx(3600, abs=0.1)
    assert [segment["number"] for segment in segments] == list(range(len(segments)))
    assert len(segments) >= 20 * (3600 * 32000 // len(block))
    for name in ("worker", "gateway", "redis"):
        early, late = statistics.median(s[name] for s in sizes[5:10]), statistics.median(s[name] for s in sizes[-5:])
        # Redis keeps the transcript itself: some 0.6 KiB a segment.
        assert late <= early * 1.05 + (2 if name == "redis" else 5), (name, early, late)
    assert statistics.median(lags[-10:]) <= statistics.median(lags[5:15]) + 5.0


def owned(process: psutil.Process) -> int:
    """Bytes of memory that only this process uses."""
    return int(process.memory_full_info().uss)


@pytest.mark.gen_test(timeout=1500)
async def test_thousands_of_sessions_leave_nothing(start: Callable[..., System]) -> None:
    """A gateway once grew by 350 bytes per session: by cached keys, and by garbage in cycles."""
    system = start("run", "--workers", "1").wait_ready()
    [gateway], [worker] = system.children("gateway"), system.children("worker")

    async def some(count: int, name: str) -> None:
        async with await WsClient.open(system.url) as ws:
            for number in range(count):
                await ws.start(f"{name}-{number}", mode="stream")
                await ws.chunk(f"{name}-{number}", 0, bytes(6400))
                assert (await ws.finish(f"{name}-{number}"))["duration"] == 0.2

    async def many(rounds: int, name: str) -> tuple[int, int]:
        for number in range(rounds):
            await asyncio.gather(*(some(50, f"{name}-{number}-{peer}") for peer in range(8)))
        return owned(gateway), owned(worker)

    before = await many(6, "first")  # what is remembered of so many is remembered of no more
    after = await many(16, "second")
    assert all(late - early < 64 * 16 * 400 for early, late in zip(before, after, strict=True)), (before, after)


@pytest.mark.gen_test(timeout=900)
async def test_sixty_live_streams(start: Callable[..., System], utterances: list[Utterance]) -> None:
    """Every text is right, and the slowest stream's p95 delay is at most three times the fastest's."""
    system = start("run", "--workers", "1").wait_ready()
    voices = np.random.default_rng(2)

    async def one(ws: WsClient, sid: str) -> tuple[int, int, list[float]]:
        said = [utterances[int(n)] for n in voices.integers(0, len(utterances), 12)]
        await ws.start(sid, mode="stream", partials=True)
        ends, at = [], 0.0
        for utterance in said:
            at += len(utterance.pcm) / 32000
            ends.append(at)
            at += 1.0
        begun = time.monotonic()
        await send(ws, sid, b"".join(utterance.pcm + bytes(32000) for utterance in said), 1)
        final = await ws.finish(sid)
        delays = [came - begun - ends[n] for n, came in enumerate(arrivals[sid][: len(ends)])]
        text = " ".join(utterance.text for utterance in said)
        return word_errors(text, final["text"]), len(text.split()), delays

    arrivals: dict[str, list[float]] = {f"s{n}": [] for n in range(60)}
    clients: list[WsClient] = [await WsClient.open(system.url) for _ in range(60)]

    async def watch(ws: WsClient, sid: str) -> None:
        seen = 0
        while not ws.closed:
            segments = ws.of(sid, "segment_result")
            arrivals[sid] += [time.monotonic()] * (len(segments) - seen)
            seen = len(segments)
            await asyncio.sleep(0.05)

    watchers = [asyncio.ensure_future(watch(ws, sid)) for ws, sid in zip(clients, arrivals, strict=True)]
    results: Sequence[tuple[int, int, list[float]]] = await asyncio.gather(
        *(one(ws, sid) for ws, sid in zip(clients, arrivals, strict=True))
    )
    for ws in clients:
        await ws.close()
    await asyncio.gather(*watchers)
    assert sum(wrong for wrong, _, _ in results) <= 0.05 * sum(words for _, words, _ in results)
    slowest = sorted(sorted(delays)[int(0.95 * len(delays))] for _, _, delays in results)
    assert slowest[-1] <= 3 * max(slowest[0], 0.3), slowest
    assert all(psutil.pid_exists(child.pid) for child in system.children("worker"))
