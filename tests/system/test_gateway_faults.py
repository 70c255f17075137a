"""Gateways are killed, connections are cut, clients leave: nothing is lost or doubled."""

from __future__ import annotations

import pytest

from tests.recordings import Utterance
from tests.system.support import (
    Start,
    acknowledgements,
    check_interrupted,
    check_rows,
    connections,
    everything,
    overdue,
    results,
    script,
    until_killed,
)
from tests.waiting import until
from tests.ws_client import check_stored, look, stored


@pytest.mark.gen_test(timeout=170)
async def test_the_subscription_is_cut_again_and_again(
    start: Start, redis_url: str, database_url: str, utterances: list[Utterance]
) -> None:
    """Results that were published meanwhile are read from the events: none is lost, none comes twice."""
    system = start("run", "--workers", "1").wait_ready()
    said = script(utterances, 10, 5)
    cuts = 0

    async def fault() -> None:
        nonlocal cuts
        with look(redis_url) as client:
            for count in range(1, 45, 4):
                await until(lambda count=count: results(talks) >= count, 60)
                # A gateway that is still subscribing again has nothing to cut.
                cuts += await until(lambda: int(client.client_kill_filter(_type="pubsub")), 30, "it is subscribed")

    async with connections(system.url, 3) as talks:
        await everything(talks, said, fault)
    assert cuts >= 5
    assert "subscribing again" in system.output()
    await check_rows(database_url, said)


@pytest.mark.gen_test(timeout=120)
async def test_a_gateway_is_killed(
    start: Start, redis_url: str, database_url: str, utterances: list[Utterance]
) -> None:
    """Its clients lose their connections; another gateway finishes its sessions with all acknowledged audio."""
    system = start("run", "--workers", "1", "--resume-timeout", "1").wait_ready()  # a new gateway ends none before
    said = script(utterances, 6, 4)
    (gateway,) = system.children("gateway")
    async with connections(system.url, 2) as talks:
        await until_killed(talks, said, gateway.kill)
    await until(lambda: [p for p in system.children("gateway") if p.pid != gateway.pid], 30)
    overdue(redis_url, list(said))
    await check_interrupted(database_url, said, acknowledgements(talks, said))
    async with connections(system.url, 1) as (ws,):  # the new one serves
        await ws.stream("next", utterances[:2])
        ws.check("next", utterances[:2])
    with look(redis_url) as client:
        await until(lambda: not client.zcard("asr_open") and not client.xlen("asr_tasks"), what="nothing is open")


@pytest.mark.gen_test(timeout=120)
async def test_a_finished_session_of_a_killed_gateway_is_stored(
    start: Start, redis_url: str, database_url: str, utterances: list[Utterance]
) -> None:
    """Its gateway is killed before it stores the rows: the session is stored as done."""
    system = start("run", "--workers", "1").wait_ready()
    (gateway,) = system.children("gateway")
    async with connections(system.url, 1) as (ws,):
        await ws.start("one")
        await ws.chunk("one", 0, utterances[0].wav)
        await ws.find("one", "chunk_result", 0)
        await ws.send({"action": "finish", "session_id": "one"})
        with look(redis_url) as client:
            await until(lambda: client.hget("asr_session:{one}", "end"), what="the end is in Redis")
        gateway.kill()
        await until(lambda: ws.closed)
    overdue(redis_url, ["one"])
    await until(lambda: stored(database_url, "one"), 40, "stored")
    check_stored(database_url, "one", utterances[:1])


@pytest.mark.gen_test(timeout=120)
async def test_a_client_drops(start: Start, redis_url: str, database_url: str, utterances: list[Utterance]) -> None:
    """It leaves without a closing handshake and does not return: interrupted; other sessions continue."""
    system = start("run", "--workers", "1", "--resume-timeout", "1").wait_ready()
    said = script(utterances, 3, 4)
    other = utterances[20:23]
    async with connections(system.url, 2) as (lost, kept):
        await kept.start("kept")
        await kept.chunk("kept", 0, other[0].wav)
        await until_killed([lost], said, lost.drop)
        await kept.chunk("kept", 1, other[1].wav)
        await kept.chunk("kept", 2, other[2].wav)
        await kept.finish("kept")
        kept.check("kept", other)
    await check_interrupted(database_url, said, acknowledgements([lost], said))
    with look(redis_url) as client:
        await until(lambda: not client.zcard("asr_open") and not client.xlen("asr_tasks"), what="nothing is open")
