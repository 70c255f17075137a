"""Redis came back empty: what was only there is lost, and the history says so."""

from __future__ import annotations

import psycopg2
import pytest
import redis

from tests.fakes import FakeWorker
from tests.gateway.resuming import AUDIO, drop, resume
from tests.gateways import Gateways
from tests.waiting import until
from tests.ws_client import WsClient, finish

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_a_session_that_redis_lost_is_given_up_with_what_is_stored(
    gateways: Gateways, worker: FakeWorker, redis_url: str, database_url: str
) -> None:
    """Its client is told at once, its row says so after a while; one that only waits is left alone."""
    gateway = gateways[0].gateway
    async with await WsClient.open(gateways[0].url) as ws:
        await ws.start("lost")
        await worker.take("lost")
        await ws.chunk("lost", 0, AUDIO)
        await worker.chunk("lost", 0)
        await ws.find("lost", "chunk_result", 0)
        await until(gateway.write_behind.is_flushed)
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        assert (await ws.find("lost", "error"))["code"] == "session_gone"
        await ws.start("waits")
        await until(gateway.write_behind.is_flushed)
        await gateway._tidy()
        assert (await gateway.storage.session("lost") or {})["status"] == "recording"  # it is too early to say
        connection = psycopg2.connect(database_url)
        with connection, connection.cursor() as cursor:
            cursor.execute("UPDATE asr_sessions SET updated_at = now() - interval '11 minutes'")
        connection.close()
        await gateway._tidy()
        found = await gateway.storage.session("lost") or {}
        assert (found["status"], found["error_code"], len(found["chunks"])) == ("error", "session_gone", 1)
        assert (await gateway.storage.session("waits") or {})["status"] == "recording"


@pytest.mark.parametrize("resumes", [False, True])
async def test_an_event_that_redis_lost_ends_no_session(gateways: Gateways, worker: FakeWorker, resumes: bool) -> None:
    """A replica without the last writes took over, and their gateway had not heard of them: the session goes on."""
    gateway = gateways[0].gateway
    async with await WsClient.open(gateways[0].url) as ws, await WsClient.open(gateways[1].url) as other:
        await ws.start("s")
        await worker.take("s")
        for index in range(3):
            await ws.chunk("s", index, AUDIO)
        await worker.chunk("s", 0)
        await ws.find("s", "chunk_result", 0)
        worker.event("s", "chunk", chunk_index=1)  # which nobody has any more
        await worker.chunk("s", 2)
        if resumes:
            await drop(ws)
            await other.send(resume("s", last_seq=1))
        listener = other if resumes else ws
        assert (await listener.find("s", "chunk_result", 2))["seq"] == 3
        await listener.send(finish())
        await worker.final("s", "all", 3)
        assert (await listener.find("s", "final_result"))["text"] == "all"
        await until(lambda: not any(server.gateway.sessions for server in gateways))
    await until(lambda: all(server.gateway.write_behind.is_flushed() for server in gateways))
    assert (await gateway.storage.session("s") or {})["status"] == "done"
