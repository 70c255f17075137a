"""The REST interface of the whole system."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import pytest

from tests.recordings import Utterance
from tests.system.support import Running
from tests.waiting import until
from tests.ws_client import WsClient, look, query


def rest(running: Running, method: str, path: str) -> int:
    """The status of a request."""
    url = f"http://127.0.0.1:{running.system.port}/api/v1{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code


@pytest.mark.gen_test(timeout=60)
async def test_a_session_is_read_back_and_deleted(running: Running, utterances: list[Utterance], sid: str) -> None:
    """GET right after the final result is complete; the history lists the session; DELETE is final."""
    loop = asyncio.get_running_loop()
    async with await WsClient.open(running.url) as ws:
        final = await ws.stream(sid, utterances[:3], user_id="someone")
        session = await loop.run_in_executor(None, running.system.get, f"/session/{sid}")
        assert session["status"] == "done"
        assert session["text"] == final["text"]
        assert session["duration"] == final["duration"]
        assert session["user_id"] == "someone"
        assert [c["text"] for c in session["chunks"]] == [utterance.text for utterance in utterances[:3]]
        assert " ".join(s["text"] for s in session["segments"]) == final["text"]
        history = await loop.run_in_executor(None, running.system.get, "/history?limit=1")
        assert history["total"] >= 1
        assert [record["session_id"] for record in history["records"]] == [sid]
        assert history["records"][0]["text"] == final["text"]
        assert history["records"][0]["chunk_count"] == 3
        assert await loop.run_in_executor(None, rest, running, "DELETE", f"/session/{sid}") == 200
        for method in ("GET", "DELETE"):
            assert await loop.run_in_executor(None, rest, running, method, f"/session/{sid}") == 404
    assert query(running.database_url, "SELECT count(*) FROM asr_chunks WHERE session_id = %s", sid) == [(0,)]
    async with await WsClient.open(running.url) as ws:
        assert (await ws.call({"action": "start", "session_id": sid}))["code"] == "session_exists"


@pytest.mark.gen_test(timeout=60)
async def test_deleting_an_open_session_keeps_nothing(running: Running, utterances: list[Utterance], sid: str) -> None:
    """DELETE during the session: the client gets its text, and no row remains."""
    loop = asyncio.get_running_loop()
    async with await WsClient.open(running.url) as ws:
        await ws.start(sid)
        await ws.chunk(sid, 0, utterances[0].wav)
        await ws.find(sid, "chunk_result", 0)
        assert await loop.run_in_executor(None, rest, running, "DELETE", f"/session/{sid}") == 200
        await ws.chunk(sid, 1, utterances[1].wav)
        final = await ws.finish(sid)
        assert final["chunk_count"] == 2
        with look(running.redis_url) as client:
            await until(lambda: client.zscore("asr_open", sid) is None, what="it is closed")
    assert await loop.run_in_executor(None, rest, running, "GET", f"/session/{sid}") == 404
    assert query(running.database_url, "SELECT count(*) FROM asr_segments WHERE session_id = %s", sid) == [(0,)]


def test_health_is_what_is(running: Running) -> None:
    """Every part is probed and named; the old field names are there."""
    health = running.system.get("/health")
    assert health["status"] == "ok"
    assert health["funasr_ready"]
    assert health["redis_ready"]
    assert health["workers_ready"]
    assert health["postgres_ready"]
    assert [gateway["pid"] for gateway in health["gateways"]] == [p.pid for p in running.system.children("gateway")]
    assert [worker["pid"] for worker in health["workers"]] == [p.pid for p in running.system.children("worker")]
