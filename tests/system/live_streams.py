"""Live streams while something happens to the system: every sentence is in exactly one segment, whatever it is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence

from asrserver.text.wer import word_errors
from tests.program import System
from tests.recordings import Utterance
from tests.system.support import connections
from tests.waiting import until
from tests.worker_harness import LIVE, encode
from tests.ws_client import WsClient, query, stored


def live_streams(utterances: Sequence[Utterance], count: int, length: int) -> dict[str, tuple[list[Utterance], bytes]]:
    """The utterances and the bytes of live streams of `length` utterances; half of them are PCM."""
    voices = itertools.cycle(sorted(utterances, key=lambda one: -len(one.pcm))[:30])
    streams = {}
    for number in range(count):
        said = [next(voices) for _ in range(length)]
        pcm = bytes(32000).join(one.pcm for one in said)
        kind = [None, *LIVE][(number // 2) % 3 + 1] if number % 2 else None
        streams[f"live-{number}"] = (said, pcm if kind is None else encode(pcm, *LIVE[kind]))
    return streams


async def check_live_streams(
    system: System,
    database_url: str,
    utterances: list[Utterance],
    count: int,
    length: int,
    fault: Callable[[Callable[[], int]], Awaitable[None]],
    pause: float = 0.05,
) -> None:
    """Send live streams while `fault` runs; every sentence must be in one segment, also in the rows.

    Args:
        system: The running system.
        database_url: Its PostgreSQL.
        utterances: What is said.
        count: Streams.
        length: Utterances in each.
        fault: What happens meanwhile; called with a function that counts the segments so far. No stream says its last
            utterance before it is over.
        pause: Seconds between two pieces of some 300 ms: a live source is as slow as time, here a few times faster.
    """
    streams = live_streams(utterances, count, length)
    over = asyncio.Event()

    async def disturb() -> None:
        try:
            await fault(lambda: sum(len(found(ws, sid)) for ws, sid in pairs))
        finally:
            over.set()

    async def stream(ws: WsClient, sid: str, data: bytes) -> None:
        await ws.start(sid, mode="stream", partials=True)
        step = -(-len(data) // (length * 12))
        for index, begin in enumerate(range(0, len(data), step)):
            if index == (length - 1) * 12:
                await over.wait()
            await ws.chunk(sid, index, data[begin : begin + step])
            await asyncio.sleep(pause)
        await ws.finish(sid)

    def found(ws: WsClient, sid: str) -> list[dict[str, object]]:
        return ws.of(sid, "segment_result")

    async with connections(system.url, 4) as clients:
        pairs = list(zip(itertools.cycle(clients), streams, strict=False))
        sending = (stream(ws, sid, streams[sid][1]) for ws, sid in pairs)
        await asyncio.gather(*sending, disturb())
        wrong = words = 0
        for ws, sid in pairs:
            segments = found(ws, sid)
            (final,) = ws.of(sid, "final_result")
            assert not ws.of(sid, "error")
            assert [segment["number"] for segment in segments] == list(range(length)), segments
            assert final["text"] == " ".join(str(segment["text"]) for segment in segments)
            wrong += word_errors(" ".join(one.text for one in streams[sid][0]), final["text"])
            words += len(final["text"].split())
            await until(lambda sid=sid: stored(database_url, sid), 60, "stored")
            rows = query(database_url, "SELECT number, text FROM asr_segments WHERE session_id = %s ORDER BY 1", sid)
            assert rows == [(segment["number"], segment["text"]) for segment in segments]
        assert wrong <= 0.05 * words
