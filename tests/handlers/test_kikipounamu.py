"""handlers/kikipounamu.py: a file is handed in, asked for, and heard again, as kikipounamu's clients do it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer

from asrserver.broker.batching import Batch
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.config import Settings
from asrserver.errors import Unavailable
from asrserver.gateway.gateway import Gateway
from tests.fakes import FakeWorker
from tests.gateways import Gateways
from tests.handlers.uploads import FILE, Http, form
from tests.waiting import until

pytestmark = pytest.mark.gen_test(timeout=60)

SUBMIT = "/api/v1/asr/submit"
UNKNOWN = dict.fromkeys(("text", "duration", "audio_url", "error", "retry_url", "progress"))


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        redis_url=redis_url,
        database_url=database_url,
        kikipounamu=True,
        save_audio=str(tmp_path),
        max_chunk=1 << 20,
    )


@pytest.fixture
def http(http_client: AsyncHTTPClient, base_url: str, http_server: HTTPServer) -> Http:
    return Http(http_client, base_url)


async def submitted(http: Http, data: bytes = FILE, query: str = "") -> str:
    response = await http.call(SUBMIT + query, form(("batch_size", "500"), ("audio", data)))
    assert response.code == 200, response.body
    body = orjson.loads(response.body)
    assert body == {"task_id": body["task_id"], "status": "queued", "position": 0, "estimated_wait": 0}
    return str(body["task_id"])


async def result(http: Http, task: str) -> dict[str, Any]:
    response = await http.call(f"/api/v1/asr/result/{task}")
    assert response.code == 200, response.body
    found: dict[str, Any] = orjson.loads(response.body)
    return found


async def recognised(worker: FakeWorker, task: str, text: str) -> None:
    await worker.say(task, "chunk", "1-0", chunk_index=0, text=text, duration=2.5)
    await worker.final(task, text)


async def test_a_file_from_its_submission_to_its_text(http: Http, gateway: Gateway, worker: FakeWorker) -> None:
    """It is answered for when all of it is in Redis, with its end."""
    task = await submitted(http, query="?language=zh&batch_size=500")
    assert gateway.sessions[task].options.language == "zh"
    assert gateway.sessions[task].send is None
    assert await result(http, task) == {
        "task_id": task,
        "status": "queued",
        "created_at": (await result(http, task))["created_at"],
        **UNKNOWN,
    }
    await worker.take(task)
    assert (await result(http, task))["status"] == "processing"
    assert await worker.audio(task, 1) == {"1-0": FILE}
    assert await worker.ended(task) == "done"
    await recognised(worker, task, "ni hao")
    await until(lambda: task not in gateway.sessions)
    found = await result(http, task)
    assert found.pop("created_at")
    assert found == {
        **UNKNOWN,
        "task_id": task,
        "status": "done",
        "text": "ni hao",
        "duration": 1.5,
        "audio_url": f"/api/v1/asr/audio/{task}",
    }
    recording = await http.call(found["audio_url"])
    assert (recording.code, recording.body) == (200, FILE)
    assert (await http.call("/asr/result/" + task)).code == 200


async def test_a_file_that_cannot_be_recognised(http: Http, gateway: Gateway, worker: FakeWorker) -> None:
    task = await submitted(http)
    await worker.take(task)
    await worker.say(task, "error", "1-0", chunk_index=0, code="undecodable_audio", message="it is damaged")
    await worker.final(task, "")
    await until(lambda: task not in gateway.sessions)
    found = await result(http, task)
    assert (found["status"], found["error"], found["text"], found["audio_url"]) == (
        "failed",
        "it is damaged",
        None,
        None,
    )


async def test_what_is_refused(http: Http, gateway: Gateway) -> None:
    for status, body in (
        (400, form(("file", FILE))),
        (400, form(("audio", b""))),
        (400, form(("audio", b"<html>" * 100))),
        (400, form(("language", "klingon"), ("audio", FILE))),
        (413, form(("audio", FILE * 20))),
    ):
        response = await http.call(SUBMIT, body)
        assert (response.code, orjson.loads(response.body).keys()) == (status, {"detail"}), response.body
    for path in ("result", "audio"):
        response = await http.call(f"/api/v1/asr/{path}/unknown")
        assert (response.code, orjson.loads(response.body).keys()) == (404, {"detail"})
    assert not gateway.sessions


async def test_no_answer_before_redis_has_it(http: Http, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that Redis does not take is not accepted."""

    def append(_broker: GatewayBroker, *arguments: Any) -> None:
        arguments[-1](Unavailable("broker_full", "Redis is full", 10.0))

    with monkeypatch.context() as patch:
        patch.setattr(GatewayBroker, "append", append)
        response = await http.call(SUBMIT, form(("audio", FILE)))
    assert (response.code, response.headers["Retry-After"]) == (503, "10")
    waiting: list[Callable[[], None]] = []

    def held(sid: str, batch: Batch) -> None:
        waiting.append(partial(send, sid, batch))

    send = gateway.broker._batcher._send
    monkeypatch.setattr(gateway.broker._batcher, "_send", held)
    monkeypatch.setattr(gateway, "finish", lambda session: waiting.append(partial(Gateway.finish, gateway, session)))
    request = asyncio.ensure_future(http.call(SUBMIT, form(("audio", FILE))))
    await until(lambda: len(waiting) == 2)
    assert not request.done()
    for go_on in waiting:
        go_on()
    assert (await request).code == 200


async def test_pages_of_all_origins_may_use_it(http: Http) -> None:
    """And no other route."""
    task = await submitted(http)
    origin = "https://any.example"
    for path in (SUBMIT, f"/api/v1/asr/result/{task}", f"/api/v1/asr/audio/{task}"):
        response = await http.call(path, method="OPTIONS", Origin=origin, Access_Control_Request_Method="POST")
        assert (response.code, response.headers["Access-Control-Allow-Origin"]) == (204, origin)
    response = await http.call(f"/api/v1/asr/result/{task}", Origin=origin)
    assert response.code == 200
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert (await http.call("/api/v1/history", Origin=origin)).code == 403


async def test_the_text_outlives_the_gateway_that_took_the_file(gateways: Gateways, worker: FakeWorker) -> None:
    one, other = (
        Http(AsyncHTTPClient(), server.url.replace("ws:", "http:").replace("/ws/asr", "")) for server in gateways
    )
    task = await submitted(one)
    assert (await result(other, task))["status"] == "queued"
    await gateways[0].gateway.sessions.hand_over(10)
    await worker.take(task)
    await recognised(worker, task, "hello")
    await until(lambda: task not in gateways[1].gateway.sessions)
    while (found := await result(other, task))["status"] != "done":
        await asyncio.sleep(0.02)
    assert found["text"] == "hello"
