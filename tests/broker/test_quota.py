"""broker/quota.py: charged audio, and what API keys hold."""

from __future__ import annotations

import time

import pytest

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.replies import Claim
from asrserver.broker.worker_side import WorkerBroker
from asrserver.protocol.events import Result
from tests.events import durable
from tests.ws_client import look

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_audio_is_charged_once(redis_url: str) -> None:
    """Audio is not charged again for a repeated event, by a fenced owner, or by the next owner."""
    g, w, v = GatewayBroker(redis_url, "g"), WorkerBroker(redis_url, "w"), WorkerBroker(redis_url, "v")
    await g.open()
    assert await g.open_session("s", "n", {"gateway": "g", "owner": "k", "options": "{}"}, time.time() + 60)
    [(task, sid)] = await w.claim(None, 1, 0)
    first = await w.acquire(task, sid)
    assert first is not None

    def event(claim: Claim, number: int, seq: int, total: float) -> Result:
        return durable("chunk", seq, id=claim.event_id(number), total=total)

    with look(redis_url) as client:

        def charged() -> float:
            return sum(float(client.get(key) or 0) for key in client.scan_iter("asr_quota:k:*"))

        assert await w.append_event(first, event(first, 1, 1, 1.5), "0-1")
        first.charged = 0.0
        assert await w.append_event(first, event(first, 1, 1, 1.5), "0-1")
        assert charged() == 1.5
        second = await v.acquire(task, sid)
        assert second is not None
        assert not await w.append_event(first, event(first, 2, 2, 9.0), "0-1")
        assert await v.append_event(second, event(second, 1, 2, 2.0), "0-1")
        assert charged() == 2.0
        assert await v.append_event(second, event(second, 2, 3, 1.0), "0-1")  # a guess too high is not paid back
        assert charged() == 2.0
        for _ in range(2):
            assert await v.checkpoint(second, "0-1", 12.0, {"state": "{}"})  # quiet, of which there is no event
            assert charged() == 12.0
            second.charged = 2.0  # as if the reply was lost
        third = await w.acquire(task, sid)
        assert third is not None
        assert not await v.checkpoint(second, "0-1", 14.0, {"state": "{}"})
        assert await w.append_event(third, event(third, 1, 4, 13.0), "0-1")
        assert charged() == 13.0
        both = durable("chunk", 5, id=third.event_id(2), total=14.0, channels=2, further=14.0)
        assert await w.append_event(third, both, "0-1")  # two channels, each recognised by itself
        assert charged() == 28.0
        assert all(0 < client.ttl(key) <= 300 for key in client.scan_iter("asr_quota:k:*"))
    for broker in (g, w, v):
        await broker.close()


async def test_what_a_dead_gateway_held_runs_out(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = GatewayBroker(redis_url, "g")
    assert await broker.quota.hold("sessions", "k", "a", 1)
    assert await broker.quota.hold("sessions", "k", "a", 1)
    assert not await broker.quota.hold("sessions", "k", "b", 1)
    later = time.time() + 20
    monkeypatch.setattr(time, "time", lambda: later)
    broker.quota.renew("sessions", "k", ["a"])
    monkeypatch.setattr(time, "time", lambda: later + 20)
    assert not await broker.quota.hold("sessions", "k", "b", 1)
    monkeypatch.setattr(time, "time", lambda: later + 31)
    assert await broker.quota.hold("sessions", "k", "b", 1)
    monkeypatch.undo()
    await broker.close()
