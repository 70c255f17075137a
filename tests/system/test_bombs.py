"""Bytes made to cost time or memory, sent to the program: each gets its error, and costs nobody else anything."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.audio.bombs import BOMBS
from tests.recordings import Utterance
from tests.system.support import Start
from tests.ws_client import WsClient

#: Those that once took a worker's memory, or its time for seconds and minutes.
ONCE = ("many_samples", "many_runs", "sample_table", "tracks", "flac_rate", "flac_marks", "wav_rate")

#: Most seconds until the error comes: a second, and as much as a machine may need that runs other tests.
SOON = 8.0

#: Most bytes of a chunk of a live stream.
PIECE = 1 << 18


@pytest.mark.gen_test(timeout=170)
async def test_bombs_get_errors_and_nobody_else_notices(start: Start, utterances: list[Utterance]) -> None:
    system = start("run", "--workers", "1", "--max-speed", "1000", "--speed-burst", "100000").wait_ready()
    spoken = utterances[:6]
    pcm = bytes(32000).join(one.pcm for one in spoken)

    async def attack() -> None:
        async with await WsClient.open(system.url) as ws:
            for name in ONCE:
                data = BOMBS[name][0]()
                for mode in ("chunk", "stream"):
                    sid = f"{name}-{mode}"
                    step = len(data) if mode == "chunk" else PIECE
                    begun = time.monotonic()
                    await ws.start(sid, mode=mode)
                    for index, at in enumerate(range(0, len(data), step)):
                        await ws.chunk(sid, index, data[at : at + step])
                    assert (await ws.finish(sid))["text"] == ""
                    assert time.monotonic() - begun < SOON, sid
                    codes = {error["code"] for error in ws.of(sid, "error")}
                    assert codes
                    assert codes <= {"undecodable_audio", "not_streamable", "not_audio"}, sid

    async def bystander(running: asyncio.Future[None]) -> None:
        async with await WsClient.open(system.url) as ws:
            number = 0
            while not running.done() or not number:
                sid = f"bystander-{number}"
                await ws.start(sid, mode="stream", format="pcm_s16le")
                for index, at in enumerate(range(0, len(pcm), 32000)):
                    await ws.chunk(sid, index, pcm[at : at + 32000])
                assert (await ws.finish(sid))["text"] == " ".join(one.text for one in spoken)
                assert not ws.of(sid, "error")
                number += 1

    running = asyncio.ensure_future(attack())
    await bystander(running)
    await running
    assert "died" not in system.output()
