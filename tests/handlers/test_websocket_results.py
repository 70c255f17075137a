"""Results over a real WebSocket: their order, and results that were not published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from asrserver.broker import keys
from asrserver.gateway.gateway import Gateway
from asrserver.protocol import codec
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO
from tests.waiting import until
from tests.ws_client import WsClient, chunk, errors, finish

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_an_acknowledgement_comes_before_its_result(
    url: str, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the worker and the final result overtake the reply to the gateway's own command."""
    held: list[Callable[[], object]] = []
    append: Callable[..., None] = gateway.broker.append

    def slow(*args: Any) -> None:
        *chunk, done = args
        append(*chunk, lambda error: held.append(lambda: done(error)))

    monkeypatch.setattr(gateway.broker, "append", slow)
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await ws.send(chunk("s", 0, AUDIO))
        await ws.send(finish())
        await worker.take("s")
        await worker.audio("s", 1)
        await worker.chunk("s", 0)
        await worker.final("s")
        await until(lambda: "s" not in gateway.sessions)  # the gateway has all of it
        assert len(ws.messages) == 1
        held.pop()()
        await ws.find("s", "final_result")
        assert [message["type"] for message in ws.messages] == ["ack", "ack", "chunk_result", "final_result"]


async def test_results_that_were_never_published_are_found(url: str, worker: FakeWorker, redis_url: str) -> None:
    """Pub/Sub may lose messages: durable events are read every REPAIR_EVERY seconds."""
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await ws.chunk("s", 0, AUDIO)
        await worker.take("s")
        unpublished(worker, redis_url, "chunk", chunk_index=0, text="lost", duration=0.5)
        assert (await ws.find("s", "chunk_result"))["text"] == "lost"
        await ws.send(finish())
        await worker.ended("s")
        unpublished(worker, redis_url, "final", text="lost", status="done", chunk_count=1)
        assert (await ws.find("s", "final_result"))["text"] == "lost"


def unpublished(worker: FakeWorker, redis_url: str, kind: str, **fields: Any) -> None:
    """A durable event that was not published."""
    event = worker.event("s", kind, **fields)
    with redis.Redis.from_url(redis_url) as client:
        client.xadd(keys.events_key("s"), {"seq": event.seq, "data": codec.encode(event)}, id=event.id)


async def test_results_out_of_order_are_put_in_order(url: str, worker: FakeWorker, redis_url: str) -> None:
    """The second event is published first: the first one is read from Redis at once."""
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await ws.chunk("s", 0, AUDIO)
        await ws.chunk("s", 1, AUDIO)
        await worker.take("s")
        unpublished(worker, redis_url, "chunk", chunk_index=0, text="first", duration=0.5)
        await worker.chunk("s", 1, "second")
        await ws.find("s", "chunk_result", 1)
        assert [message["text"] for message in ws.of("s", "chunk_result")] == ["first", "second"]


async def test_the_pub_sub_connection_is_cut(url: str, worker: FakeWorker, redis_url: str) -> None:
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await worker.take("s")
        for index in range(10):
            await ws.chunk("s", index, AUDIO)
            with redis.Redis.from_url(redis_url) as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await worker.chunk("s", index, str(index))
        await ws.send(finish())
        await worker.final("s", chunks=10)
        await ws.find("s", "final_result")
        assert [message["text"] for message in ws.of("s", "chunk_result")] == [str(index) for index in range(10)]


async def test_an_error_of_one_chunk_is_told(url: str, worker: FakeWorker) -> None:
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        await ws.chunk("s", 0, AUDIO)
        await worker.take("s")
        await worker.say("s", "error", chunk_index=0, code="not_audio", message="no audio")
        [error] = await errors(ws)
        assert (error["code"], error["session_id"], error["chunk_index"]) == ("not_audio", "s", 0)
        assert not error.keys() & {"segments", "worker", "total"}
