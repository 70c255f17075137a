"""Floods of messages that are small, and cost their sender: a connection is read as fast as what it costs allows."""

from __future__ import annotations

import asyncio
import time

import pytest

from asrserver.gateway import session as session_module
from asrserver.gateway.gateway import Gateway
from asrserver.handlers import flow_control
from asrserver.handlers.flow_control import COST_PER_SECOND, COST_PER_SESSION, SAVED_SECONDS, CostBudget
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO
from tests.waiting import until
from tests.ws_client import WsClient, errors, frame, raw, said, start

pytestmark = pytest.mark.gen_test(timeout=60)

COUNT = 600

#: What a client may flood with, and the frames that end or begin it.
FLOODS = {
    "one byte of audio": frame(2, b"a"),
    "empty fragments": frame(0, b"", final=False),
    "pings": frame(9, b""),
    "pongs": frame(10, b""),
    "texts": said({"action": "chunk", "session_id": "flood", "audio_data": "AA=="}),
}


def test_what_a_connection_may_cost_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it saved up at once, then at that rate; more sessions may cost more."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for sessions in (0, 1, 30):
        budget, rate = CostBudget(), COST_PER_SECOND + COST_PER_SESSION * sessions
        budget.spend(int(SAVED_SECONDS * rate))
        assert budget.debt(sessions) == pytest.approx(0, abs=1e-6)
        budget.spend(10)
        assert budget.debt(sessions) == pytest.approx(10 / rate)
        assert budget.debt(sessions) == pytest.approx(10 / rate)  # asking costs nothing
        now[0] += 3600
        budget.spend(int(SAVED_SECONDS * rate) + 10)
        assert budget.debt(sessions) == pytest.approx(10 / rate)


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_is_read_no_faster_than_it_may_cost(
    url: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """All that was sent is taken in the end, and another client is served meanwhile."""
    monkeypatch.setattr(flow_control, "COST_PER_SECOND", 20)
    monkeypatch.setattr(flow_control, "COST_PER_SESSION", 1)
    spent = 0
    count = flow_control.CostBudget.spend

    def counting(budget: CostBudget, cost: int) -> None:
        nonlocal spent
        spent += cost
        count(budget, cost)

    flood = await raw(url)
    await flood.write(said(start("flood", mode="stream", format="pcm_s16le")))
    await until(lambda: "flood" in gateway.sessions)
    monkeypatch.setattr(flow_control.CostBudget, "spend", counting)
    if kind == "empty fragments":
        await flood.write(frame(2, b"a", final=False))
    sending = asyncio.ensure_future(flood.write(FLOODS[kind] * COUNT))
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        for index in range(20):
            await ws.chunk("s", index, AUDIO)
        assert spent - 50 < COUNT / 2  # also those that came in one read
        monkeypatch.setattr(flow_control, "COST_PER_SECOND", 1e9)
        await until(lambda: spent >= COUNT)
    await sending
    flood.close()


async def test_flushes_that_wait_for_their_answers_are_bounded(
    url: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is an entry in Redis; those that are answered count no more."""
    monkeypatch.setattr(session_module, "MAX_FLUSHES", 3)
    async with await WsClient.open(url) as ws:
        await ws.start("s", mode="stream", format="pcm_s16le")
        await worker.take("s")
        for _ in range(5):
            await ws.send({"action": "flush"})
        refused = await errors(ws, 2)
        assert {(error["code"], error["session_id"]) for error in refused} == {("too_fast", "s")}
        assert refused[0]["retry_after"] > 0
        await worker.say("s", "flushed", number=1)
        await ws.find("s", "flushed")
        for _ in range(2):
            await ws.send({"action": "flush"})
        assert len(await errors(ws, 3)) == 3
