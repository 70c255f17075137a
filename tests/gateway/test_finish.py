"""`finish`: a session is done only with all its chunks, and even if its client left at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from asrserver.gateway.gateway import Gateway
from asrserver.handlers.app import AsrApplication
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO
from tests.handlers.test_keepalive import UPGRADE
from tests.waiting import until
from tests.ws_client import WsClient, chunk, finish, frame, said, start

pytestmark = pytest.mark.gen_test(timeout=30)


async def test_a_session_is_not_done_without_a_chunk_that_was_refused(
    url: str, gateway: Gateway, worker: FakeWorker, redis_url: str
) -> None:
    """Redis is full for the chunk, and has room again for the end: the client may resume, and send the rest."""
    client = redis.Redis.from_url(redis_url)
    try:
        async with await WsClient.open(url) as ws:
            await ws.start("s")
            await ws.chunk("s", 0, AUDIO)
            client.config_set("maxmemory", "1")
            await ws.write(said(chunk("s", 1, AUDIO)) + said(finish()))
            await until(lambda: [m["code"] for m in ws.of("s", "error")] == ["broker_full"])
            client.config_set("maxmemory", "0")
            await until(lambda: gateway.sessions["s"].state == "recording")
            await ws.send({"action": "resume", "session_id": "s", "last_seq": 0})
            await until(lambda: any("next_chunk_index" in m for m in ws.of("s", "ack")))
            resumed = next(m for m in ws.of("s", "ack") if "next_chunk_index" in m)
            assert resumed["next_chunk_index"] == 1
            await ws.chunk("s", 1, AUDIO)
            await ws.send(finish())
            await worker.take("s")
            assert await worker.ended("s") == "done"
            assert list(await worker.audio("s", 2)) == ["1-0", "2-0"]
    finally:
        client.config_set("maxmemory", "0")
        client.close()


@pytest.mark.parametrize("count", [1, 20])
async def test_a_session_that_came_in_one_go_is_served(
    http_server: Any, http_port: int, app: AsrApplication, gateway: Gateway, worker: FakeWorker, count: int
) -> None:
    """With the close frame: its client waits for nothing but the end."""
    chunks = b"".join(said(chunk("s", index, AUDIO[:640])) for index in range(count))
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(UPGRADE)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(said(start("s")) + chunks + said(finish()) + frame(8, b"\x03\xe8"))
    assert (await reader.read()).endswith(b"\x88\x02\x03\xe8")
    writer.close()
    await writer.wait_closed()
    await worker.take("s")
    assert len(await worker.audio("s", count)) == count
    await worker.final("s", "words", count)
    assert await worker.ended("s") == "done"
    await until(lambda: not gateway.sessions.values() and not gateway.connections)
    assert not gateway.sessions.backlog._accounts
