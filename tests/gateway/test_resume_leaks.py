"""A resume that is refused leaves the session as it was, and nothing behind when it is over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asrserver.gateway.gateway import Gateway
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO
from tests.waiting import until
from tests.ws_client import WsClient, finish

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.mark.parametrize("same_connection", [True, False])
async def test_a_resume_past_the_end_leaves_no_backlog(
    url: str, worker: FakeWorker, gateway: Gateway, same_connection: bool
) -> None:
    """Sent while the session is finishing: its audio counted as waiting for ever, until every start was refused."""
    async with await WsClient.open(url) as ws, await WsClient.open(url) as other:
        await ws.start("s")
        await ws.chunk("s", 0, AUDIO)
        await ws.send(finish())
        asking = ws if same_connection else other
        await asking.send({"action": "resume", "session_id": "s", "last_seq": 99})
        await until(lambda: [m["code"] for m in asking.messages if m["type"] == "error"] == ["bad_seq"])
        await worker.take("s")
        await worker.chunk("s", 0)
        await worker.final("s", "word", 1)
        await ws.find("s", "final_result")
        await until(lambda: not gateway.sessions.values())
        assert gateway.sessions.backlog.seconds == 0
        assert not gateway.sessions.backlog._accounts
        assert not gateway.sessions.backlog._heard


@pytest.mark.parametrize("attempts", [1, 2])
async def test_a_client_that_leaves_while_others_are_refused_its_session(
    url: str, worker: FakeWorker, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    """The session is ended when its client does not come back; it stayed open for ever."""
    object.__setattr__(gateway.settings, "resume_timeout", 0.1)
    monkeypatch.setattr("asrserver.gateway.sessions.REPAIR_EVERY", 0.1)
    resume, left, asked = gateway.broker.resume_session, asyncio.Event(), 0

    async def resume_session(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        await left.wait()
        return await resume(*args, **kwargs)

    monkeypatch.setattr(gateway.broker, "resume_session", resume_session)
    ws = await WsClient.open(url)
    await ws.start("s")
    await worker.take("s")
    others = [await WsClient.open(url) for _ in range(attempts)]
    for other in others:
        await other.send({"action": "resume", "session_id": "s", "last_seq": 99})
    await until(lambda: asked == attempts)
    ws.drop()
    await ws.close()
    await until(lambda: gateway.sessions["s"].send is None)
    left.set()
    for other in others:
        assert (await other.find("s", "error"))["code"] == "bad_seq"
        await other.close()
    assert await worker.ended("s") == "interrupted"
