"""Limits of API keys, counted over all gateways."""

from __future__ import annotations

import asyncio

import pytest

from asrserver.auth.keys import KeyLimits
from asrserver.broker import keys, quota
from asrserver.gateway.gateway import Gateway
from tests.fakes import FakeWorker
from tests.gateway.limits.support import PIECE, Keyed, bystander, connect, error, refusal
from tests.waiting import until
from tests.ws_client import chunk, look

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.mark.parametrize("shares", [KeyLimits(connections=2)])
async def test_a_key_s_connections_are_counted_over_all_gateways(
    url: str, other: str, keyed: Keyed, redis_url: str
) -> None:
    async with await connect(url, keyed.text) as first, await connect(other, keyed.text):
        for address in (url, other):
            status, body = await refusal(address, keyed.text)
            assert (status, body["code"]) == (429, "too_many_connections")
            async with await connect(address, keyed.free_text):
                pass
        await first.close()
        with look(redis_url) as client:
            await until(lambda: client.zcard(keys.held_key("connections", keyed.limited.id)) == 1)
        async with await connect(other, keyed.text):
            pass


@pytest.mark.parametrize("shares", [KeyLimits(sessions=2, starts_per_minute=4)])
async def test_a_key_s_sessions_and_starts_are_counted_over_all_gateways(
    url: str, other: str, keyed: Keyed, worker: FakeWorker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "minute", lambda now=None: 7)  # the test must not cross a minute

    async def held(*sids: str) -> None:
        """Wait until these sessions hold a share: Redis learns later than the client that a session is over."""
        with look(redis_url) as client:
            await until(lambda: client.zrange(keys.held_key("sessions", keyed.limited.id), 0, -1) == list(sids))

    async with (
        await connect(url, keyed.text) as here,
        await connect(other, keyed.text) as there,
        await connect(url, keyed.free_text) as free,
    ):
        await here.start("a")
        await there.start("b")
        await here.send({"action": "start", "session_id": "c"})
        assert "key" in (await error(here, "too_many_sessions"))["message"]
        await free.start("free")
        await here.send({"action": "finish", "session_id": "a"})
        await worker.take("a")
        await worker.final("a", "", 0)
        await here.find("a", "final_result")
        await held("b")
        await there.start("c")
        await there.send({"action": "finish", "session_id": "b"})
        await worker.take("b")
        await worker.final("b", "", 0)
        await there.find("b", "final_result")
        await held("c")
        await here.start("d")
        await there.send({"action": "finish", "session_id": "c"})
        await worker.take("c")
        await worker.final("c", "", 0)
        await there.find("c", "final_result")
        await held("d")
        await there.send({"action": "start", "session_id": "e"})
        refused = await error(there, "rate_limited")
        assert 0 < refused["retry_after"] <= 60
        await free.start("free2")
        await held("d")  # what was refused holds nothing


@pytest.mark.parametrize("shares", [KeyLimits(audio_per_minute=2.0)])
async def test_a_key_s_audio_is_charged_by_the_workers(
    url: str, other: str, keyed: Keyed, worker: FakeWorker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks, sessions and connections are refused until the minute is over; other keys are not affected."""
    monkeypatch.setattr("asrserver.gateway.admission.minute", lambda now=None: 7)
    monkeypatch.setattr(quota, "minute", lambda now=None: 7)
    monkeypatch.setattr("asrserver.broker.worker_side.minute", lambda now=None: 7)
    async with bystander(url, keyed.free_text), await connect(url, keyed.text) as client:
        await client.start("s", format="pcm_s16le")
        for index in range(3):
            await client.chunk("s", index, PIECE)
        await worker.take("s")
        for index, total in enumerate((0.8, 0.8, 2.0)):
            await worker.say("s", "chunk", f"{index + 1}-0", chunk_index=index, text="", duration=0.5, total=total)
        with look(redis_url) as redis:
            assert float(redis.get(keys.quota_key(keyed.limited.id, 7)) or 0) == 2.0
        while not any(message.get("code") == "quota_exceeded" for message in client.messages):
            index += 1
            await client.send(chunk("s", index, PIECE))
            await until(lambda i=index: any(m["chunk_index"] == i for m in client.messages[1:]))
        refused = await error(client, "quota_exceeded")
        assert (refused["session_id"], refused["chunk_index"]) == ("s", index)
        assert 0 < refused["retry_after"] <= 60
        client.messages.clear()
        await client.send({"action": "start", "session_id": "t"})
        await error(client, "quota_exceeded")
        assert (await refusal(other, keyed.text))[1]["code"] == "quota_exceeded"
        for name in ("asrserver.gateway.admission.minute", "asrserver.broker.worker_side.minute"):
            monkeypatch.setattr(name, lambda now=None: 8)
        monkeypatch.setattr(quota, "minute", lambda now=None: 8)
        await client.send(chunk("s", index, PIECE))  # the refused one, in the next minute
        await client.find("s", "ack", index)


@pytest.mark.parametrize("shares", [KeyLimits()])
@pytest.mark.parametrize("given", [{"max_queue": 20.0, "max_ahead": 0.0}])
async def test_one_key_cannot_take_the_queue_from_another(
    url: str, gateway: Gateway, worker: FakeWorker, keyed: Keyed
) -> None:
    """A key that is alone may use all of it. When another comes, it gets its share at once, and what the first has
    beyond its own is held back."""
    async with await connect(url, keyed.text) as greedy, await connect(url, keyed.free_text) as other:
        await greedy.start("g", format="pcm_s16le")
        for index in range(30):
            await greedy.chunk("g", index, bytes(32000))
        await greedy.send({"action": "start", "session_id": "g2"})
        assert (await error(greedy, "overloaded"))["retry_after"] > 0
        await other.start("o", format="pcm_s16le")
        for index in range(9):
            await other.chunk("o", index, bytes(32000))
        await other.start("o2", format="pcm_s16le")
        await until(lambda: gateway.sessions.shedder.holds_back(keyed.limited.id))
        assert not gateway.sessions.shedder.holds_back(keyed.free.id)
        assert gateway.room_for(gateway.sessions["o2"]) is None
        wait = gateway.room_for(gateway.sessions["g"])
        assert wait is not None
        held = asyncio.ensure_future(wait)
        for index in range(9, 12):
            await other.chunk("o", index, bytes(32000))
        await other.send({"action": "start", "session_id": "o3"})
        assert "more than its share" in (await error(other, "overloaded"))["message"]
        await worker.take("g")
        for index in range(25):
            await worker.chunk("g", index)
        assert await asyncio.wait_for(held, 5)
        await greedy.start("g3", format="pcm_s16le")
