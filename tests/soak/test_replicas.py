"""Six Redis servers: three shards, each with a replica. A primary is killed, and its replica takes its address over.

Replication is asynchronous: what the primary acknowledged and had not sent yet is lost. The test counts it, and checks
that a client is told of it, and that one which still has the audio loses nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from asrserver.broker.keys import session_key
from tests.program import System, free_port
from tests.recordings import Utterance
from tests.shards import ShardServers, running
from tests.waiting import until, wait_until
from tests.ws_client import WsClient, check_stored, chunk, stored

pytestmark = pytest.mark.slow

SHARDS = 3
SESSIONS = 18
CHUNKS = 6


class Replicated:
    """Three primaries and their replicas. Each shard has an address of its own, which moves to the replica."""

    def __init__(self, servers: ShardServers, directory: Path) -> None:
        self.servers = servers
        self.addresses = [directory / f"shard-{number}.sock" for number in range(SHARDS)]
        for number in range(SHARDS):
            self._point(number, number)
            self._replicate(number)

    @property
    def url(self) -> str:
        return ",".join(f"unix://{address}" for address in self.addresses)

    def client(self, number: int) -> redis.Redis:
        """A client of one of the six: primaries first."""
        return redis.Redis.from_url(self.servers.servers[number].url, decode_responses=True)

    def _replicate(self, number: int) -> None:
        port = free_port()
        with self.client(number) as primary, self.client(number + SHARDS) as replica:
            primary.config_set("port", port)
            replica.replicaof("127.0.0.1", port)
            wait_until(lambda: replica.info("replication")["master_link_status"] == "up", 30, "the replica has all")

    def _point(self, shard: int, server: int) -> None:
        address = self.addresses[shard]
        fresh = address.with_suffix(".new")
        os.symlink(self.servers.servers[server].socket_path, fresh)
        fresh.rename(address)

    def fail_over(self, shard: int) -> None:
        """Kill a primary, promote its replica, and announce it."""
        self.servers.kill(shard)
        with self.client(shard + SHARDS) as replica:
            replica.replicaof("NO", "ONE")
        self._point(shard, shard + SHARDS)

    def homes(self, sids: Sequence[str]) -> dict[str, int]:
        """The shard of each session."""
        return {sid: self.servers.of(sid)[0] for sid in sids}


@pytest.fixture
def replicated(real_servers: None, tmp_path: Path) -> Iterator[Replicated]:
    with ExitStack() as stack:
        yield Replicated(stack.enter_context(running(2 * SHARDS)), tmp_path)


async def sent(ws: WsClient, sid: str, said: Sequence[Utterance], first: int) -> None:
    """Send the rest of a session from a chunk on; resume where that is refused, and send again what Redis lacks."""
    for index in range(first, len(said)):
        await ws.send(chunk(sid, index, said[index].wav))
    wanted = len(said) - 1

    def refused() -> bool:
        return any(message.get("resumable") for message in ws.of(sid, "error"))

    def acknowledged() -> bool:
        return any(message.get("chunk_index") == wanted for message in ws.of(sid, "ack"))

    await until(lambda: refused() or acknowledged(), 60)
    if refused():
        # It may have results that the replica has not (bad_seq), and then gets them once more.
        again = await resumed(ws, sid, len(ws.of(sid, "chunk_result"))) or await resumed(ws, sid, 0)
        assert again is not None
        for index in range(again, len(said)):
            await ws.send(chunk(sid, index, said[index].wav))
        await until(acknowledged, 60)
    await ws.send({"action": "finish", "session_id": sid})


async def resumed(ws: WsClient, sid: str, last_seq: int) -> int | None:
    """Resume a session; return the chunk to go on with, or None if it has no such results."""
    resumes, refusals = len(answers(ws, sid, "ack")), len(answers(ws, sid, "error"))
    await ws.send({"action": "resume", "session_id": sid, "last_seq": last_seq})
    await until(lambda: len(answers(ws, sid, "ack")) > resumes or len(answers(ws, sid, "error")) > refusals, 60)
    if len(answers(ws, sid, "error")) > refusals:
        return None
    return int(answers(ws, sid, "ack")[resumes]["next_chunk_index"])


def answers(ws: WsClient, sid: str, kind: str) -> list[dict[str, Any]]:
    """What answers `resume`. Of chunks that were on their way, errors and acknowledgements come later."""
    return [m for m in ws.of(sid, kind) if "next_chunk_index" in m or m.get("code") == "bad_seq"]


@pytest.mark.gen_test(timeout=300)
@pytest.mark.parametrize("lag", [False, True], ids=["replica in step", "replica behind"])
async def test_a_primary_is_killed_and_its_replica_promoted(
    start: Callable[..., System], replicated: Replicated, database_url: str, utterances: list[Utterance], lag: bool
) -> None:
    system = start("run", "--workers", "2", env={"REDIS_URL": replicated.url}).wait_ready()
    said, dead = utterances[:CHUNKS], 1
    sids = [f"session-{number}" for number in range(SESSIONS)]
    async with await WsClient.open(system.url) as ws:
        for sid in sids:
            await ws.start(sid)
            for index in range(2):
                await ws.chunk(sid, index, said[index].wav)
        homes = replicated.homes(sids)
        with replicated.client(dead + SHARDS) as replica:
            await until(
                lambda: all(replica.hget(session_key(sid), "last") == "1" for sid in sids if homes[sid] == dead)
            )
            if lag:  # what comes now, the replica does not get
                replica.replicaof("127.0.0.1", free_port())
        for sid in sids:
            await ws.chunk(sid, 2, said[2].wav)
        replicated.fail_over(dead)
        with replicated.client(dead + SHARDS) as promoted:
            last = {sid: int(promoted.hget(session_key(sid), "last") or -1) for sid in sids if homes[sid] == dead}
        lost = sum(2 - index for index in last.values())
        print(f"\n{len(last)} sessions of the killed primary, {lost} acknowledged chunks were not in its replica")
        assert lost == (len(last) if lag else lost)
        await asyncio.gather(*(sent(ws, sid, said, 3) for sid in sids))
        for sid in sids:
            final = await ws.find(sid, "final_result")
            assert final["text"] == " ".join(utterance.text for utterance in said)
            assert bool(ws.of(sid, "error")) == (last.get(sid, 2) < 2), "who lost a chunk was told, and nobody else"
            await until(lambda sid=sid: stored(database_url, sid))
            check_stored(database_url, sid, said)
