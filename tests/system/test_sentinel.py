"""The whole program with Redis Sentinel: the primary dies, its replica is promoted, and what was said is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from asrserver.broker.keys import session_key
from asrserver.client import Client
from tests.program import cli
from tests.recordings import Utterance
from tests.sentinels import Watched, watched
from tests.system.support import Start
from tests.system.test_outages import check_once, events_of
from tests.waiting import until
from tests.ws_client import check_stored, stored

COUNT = 4


@pytest.fixture
def failing_over(real_servers: None, tmp_path: Path) -> Iterator[Watched]:
    with watched(tmp_path) as made:
        yield made


@pytest.mark.gen_test(timeout=120)
async def test_the_primary_is_killed(
    start: Start, failing_over: Watched, database_url: str, utterances: list[Utterance]
) -> None:
    """It comes back as a primary, as its own configuration says, while all goes on with the new one."""
    system = start("run", "--workers", "2", env={"REDIS_URL": failing_over.url}).wait_ready()
    said = utterances[:6]
    sids = [f"session-{number}" for number in range(COUNT)]
    async with await Client.connect(system.url) as client:
        sessions = [await client.start(sid) for sid in sids]
        for utterance in said[:3]:
            for session in sessions:
                await session.send(utterance.wav)
        with failing_over.client(1) as replica:
            await until(lambda: all(replica.hget(session_key(sid), "last") == "2" for sid in sids))
        failing_over.kill(0)
        for session in sessions:
            await session.send(said[3].wav)
        await until(lambda: failing_over.role(1) == "master", 30, "the replica is promoted")
        failing_over.start(0)
        for utterance in said[4:]:
            for session in sessions:
                await session.send(utterance.wav)
        for session in sessions:
            await session.end()
        for session in sessions:
            events = await events_of(session)
            check_once(events, len(said))
            assert [event["text"] for event in events[:-1]] == [utterance.text for utterance in said]
    for sid in sids:
        await until(lambda sid=sid: stored(database_url, sid))
        check_stored(database_url, sid, said)
    await until(lambda: failing_over.role(0) == "slave", 30, "the old primary follows the new one")
    shown = await asyncio.to_thread(cli, "doctor", "--for", "worker", env={"REDIS_URL": failing_over.url})
    assert "Redis       version" in shown.stdout
    with redis.Redis(port=failing_over.ports[1], decode_responses=True) as primary:
        assert primary.info("replication")["connected_slaves"] == 1
    assert system.stop() == 0
