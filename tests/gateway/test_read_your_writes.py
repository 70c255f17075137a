"""Who was told a final text finds it in the history, at any gateway."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient

from asrserver.gateway import persistence
from tests.fakes import FakeWorker
from tests.gateway.resuming import AUDIO, unavailable
from tests.gateways import Gateways, GatewayServer
from tests.waiting import until
from tests.ws_client import WsClient

pytestmark = pytest.mark.gen_test(timeout=60)


async def get(server: GatewayServer, path: str) -> tuple[int, Any]:
    address = server.url.replace("ws:", "http:").replace("/ws/asr", path)
    response = await AsyncHTTPClient().fetch(address, raise_error=False)
    return response.code, json.loads(response.body)


async def finished(ws: WsClient, worker: FakeWorker, sid: str, text: str) -> None:
    """Run a session until its client has its final text."""
    await ws.start(sid)
    await ws.chunk(sid, 0, AUDIO)
    await ws.send({"action": "finish", "session_id": sid})
    await worker.take(sid)
    await worker.chunk(sid, 0)
    await worker.final(sid, text)
    assert (await ws.find(sid, "final_result"))["text"] == text


@pytest.mark.parametrize("where", [0, 1])
async def test_the_history_has_a_final_text_that_a_client_was_told(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, where: int
) -> None:
    """Batches are far slower here than clients."""
    monkeypatch.setattr(persistence, "BATCH_INTERVAL_SECONDS", 0.5)
    reader = gateways[where]
    async with await WsClient.open(gateways[0].url) as ws:
        for number in range(3):
            await finished(ws, worker, f"s{number}", f"text {number}")
            status, body = await get(reader, "/api/v1/history")
            assert (status, body["records"][0]["text"], body["total"]) == (200, f"text {number}", number + 1)
        await finished(ws, worker, "last", "the last")
        assert (await get(reader, "/api/v1/session/last"))[1]["text"] == "the last"
        await finished(ws, worker, "sought", "a zeppelin")
        assert [one["session_id"] for one in (await get(reader, "/api/v1/history?q=zeppelin"))[1]["records"]] == [
            "sought"
        ]


async def test_a_reader_does_not_wait_for_the_next_batch(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistence, "BATCH_INTERVAL_SECONDS", 1000.0)
    async with await WsClient.open(gateways[0].url) as ws:
        for number in range(3):
            await finished(ws, worker, f"s{number}", f"text {number}")
            assert (await get(gateways[0], f"/api/v1/session/s{number}"))[1]["text"] == f"text {number}"


async def test_what_postgresql_has_not_answered_for_counts_as_not_stored(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that is being written, for as long as a PostgreSQL that hangs takes: nothing told of its sessions."""
    behind, save, answers = gateways[0].gateway.write_behind, gateways[0].gateway.storage.save, asyncio.Event()
    saving = asyncio.Event()

    async def slow(records: list[Any]) -> Any:
        saving.set()
        await answers.wait()
        return await save(records)

    async with await WsClient.open(gateways[0].url) as ws:
        monkeypatch.setattr(gateways[0].gateway.storage, "save", slow)
        await finished(ws, worker, "s", "text")
        await saving.wait()
        assert behind.waiting == 1
        answers.set()
        await until(lambda: behind.is_flushed() and not behind.waiting)


async def test_nobody_waits_for_what_is_not_stored_anyway(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = gateways[0]
    monkeypatch.setattr(server.gateway.storage, "save", unavailable)
    async with await WsClient.open(server.url) as ws:
        await finished(ws, worker, "s", "text")
        await until(lambda: server.gateway.write_behind._failing)
        began = time.monotonic()
        assert (await get(server, "/api/v1/history"))[1]["records"] == []
        assert time.monotonic() - began < persistence.FINISHED_TIMEOUT / 2


async def test_a_backlog_is_stored_without_pauses(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL was away: ten batches wait."""
    server = gateways[0]
    async with await WsClient.open(server.url) as ws:
        with monkeypatch.context() as away:
            away.setattr(server.gateway.storage, "save", unavailable)
            for number in range(20):
                await finished(ws, worker, f"s{number}", "text")
            await until(lambda: server.gateway.write_behind._failing)
        monkeypatch.setattr(persistence, "BATCH_SESSIONS", 2)
        monkeypatch.setattr(persistence, "BATCH_INTERVAL_SECONDS", 2.0)
        began = time.monotonic()
        await until(server.gateway.write_behind.is_flushed, 30)
        assert time.monotonic() - began < 10.0
        assert (await get(server, "/api/v1/history"))[1]["total"] == 20


async def test_the_wait_has_a_bound(gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway that stores a session may be gone."""
    monkeypatch.setattr(persistence, "FINISHED_TIMEOUT", 0.3)
    one, other = gateways
    monkeypatch.setattr(one.gateway.storage, "save", unavailable)
    async with await WsClient.open(one.url) as ws:
        await finished(ws, worker, "s", "text")
        assert (await get(other, "/api/v1/history"))[0] == 200
