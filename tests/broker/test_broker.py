"""broker/ against a real Redis: leases, fence, order, lost replies, lost connections."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
import redis
import tornado.ioloop

from asrserver.broker import batching, keys
from asrserver.broker import pipeline as lane_module
from asrserver.broker.broker import HEARTBEAT_TTL, Broker
from asrserver.broker.lease import Lease, Steward
from asrserver.broker.replies import Claim
from asrserver.broker.subscription import QUIET
from asrserver.errors import Unavailable
from asrserver.process.coalescing import LingerPolicy
from tests.conftest import Servers, until

FIELDS = {"gateway": "g", "user_id": "", "created": "1.0", "options": "{}"}

Make = Callable[[str], Broker]


@pytest.fixture
def db(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client, to look and to disturb."""
    client = redis.Redis.from_url(redis_url, decode_responses=True, protocol=2)
    yield client
    client.close()


@pytest.fixture
def make(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[Make]:
    """make("name"): a broker that is open."""
    made: list[Broker] = []

    def maker(name: str) -> Broker:
        async def opened() -> Broker:
            broker = Broker(redis_url, name)
            await broker.open()
            return broker

        made.append(io_loop.run_sync(opened))
        return made[-1]

    yield maker
    for broker in made:
        io_loop.run_sync(broker.close)


@pytest.fixture
def g(make: Make) -> Broker:
    """A gateway's."""
    return make("g")


@pytest.fixture
def w(make: Make) -> Broker:
    """A worker's."""
    return make("w")


@pytest.fixture
def v(make: Make) -> Broker:
    """Another worker's."""
    return make("v")


async def opened(gateway: Broker, sid: str = "s", nonce: str = "n") -> bool:
    return await gateway.open_session(sid, nonce, {**FIELDS, "gateway": gateway.name}, time.time() + 60)


async def append(gateway: Broker, index: int, data: bytes = b"x", sid: str = "s", first: int = 0) -> Exception | None:
    """What `done` was told; the chunk follows the one before it, unless it is the `first`."""
    future: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    gateway.append(sid, index, index - 1 if index > first else None, [data], False, future.set_result)
    return await future


async def taken(worker: Broker, lease: float | None = None) -> Claim:
    """The one session that can be claimed."""
    [(task, sid)] = await worker.claim(lease, 10, 0)
    claim = await worker.acquire(task, sid)
    assert claim is not None
    return claim


def event(seq: int, kind: str = "chunk") -> dict[str, Any]:
    return {"type": kind, "seq": seq, "text": f"word{seq}"}


def ids(db: redis.Redis, key: str) -> list[str]:
    return [entry for entry, _ in db.xrange(key)]


@contextmanager
def nobody_listens(servers: Servers) -> Iterator[None]:
    """New connections to Redis are refused meanwhile."""
    path = servers.redis.socket_path
    away = path.rename(f"{path}.away")
    try:
        yield
    finally:
        away.rename(path)


def drop_connections(db: redis.Redis, kind: str = "normal") -> None:
    db.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


# -- sessions and audio


@pytest.mark.gen_test
async def test_a_session_is_opened_once_whatever_replies_are_lost(g: Broker, db: redis.Redis) -> None:
    """The same nonce is the same try again; another is another client."""
    assert await opened(g, nonce="1")
    assert await opened(g, nonce="1")
    assert not await opened(g, nonce="2")
    assert db.xlen(keys.TASKS) == 1
    assert db.zrange(keys.OPEN, 0, -1) == ["s"]


@pytest.mark.gen_test
async def test_a_chunk_twice_is_one_entry_and_two_acknowledgements(g: Broker, db: redis.Redis) -> None:
    await opened(g)
    assert await append(g, 0) is None
    assert await append(g, 0) is None
    assert ids(db, keys.audio_key("s")) == ["0-1", "1-0"]


@pytest.mark.gen_test
async def test_a_chunk_of_a_session_that_is_gone_is_refused_and_makes_no_key(g: Broker, db: redis.Redis) -> None:
    error = await append(g, 0, sid="gone")
    assert isinstance(error, Unavailable)
    assert error.code == "session_gone"
    assert not db.exists(keys.audio_key("gone"))


@pytest.mark.gen_test
async def test_the_end_follows_the_last_chunk(g: Broker, w: Broker, db: redis.Redis) -> None:
    """Also when all chunks are trimmed, and one end only, however often it is said."""
    await opened(g)
    await append(g, 6, first=6)
    await append(g, 7, first=6)
    claim = await taken(w)
    assert await w.append_event(claim, 1, event(1), "8-0")
    assert await g.end_session("s", "done", time.time() + 60)
    assert await g.end_session("s", "interrupted", time.time() + 60)
    assert ids(db, keys.audio_key("s")) == ["8-1"]
    [entry] = (await w.read_audio({"s": "8-0"}, 10))["s"]
    assert (entry.id, entry.data, entry.status) == ("8-1", None, "done")


@pytest.mark.gen_test
async def test_the_end_of_a_session_without_audio(g: Broker, w: Broker) -> None:
    await opened(g)
    assert await g.end_session("s", "done", time.time() + 60)
    [entry] = (await w.read_audio({"s": "0-1"}, 10))["s"]
    assert (entry.id, entry.status) == ("0-2", "done")


@pytest.mark.gen_test
async def test_another_gateway_ends_a_session_only_of_the_gateway_it_saw(g: Broker, make_late: Make) -> None:
    """And its try after a lost reply says again that it has it."""
    other = make_late("other")
    await opened(g)
    assert not await other.end_session("s", "interrupted", time.time() + 60, seen="somebody")
    later = time.time() + 120
    assert not await other.end_session("s", "interrupted", later, seen="g", overdue=time.time())  # it answers for it
    for _ in range(2):
        assert await other.end_session("s", "interrupted", later, seen="g", overdue=time.time() + 61)
    assert not await g.end_session("s", "done", time.time() + 60)
    assert not await g.end_session("gone", "done", time.time() + 60)


@pytest.mark.gen_test
async def test_a_gateway_that_slept_cannot_append_to_an_adopted_session(g: Broker, make_late: Make) -> None:
    """Its chunk would come after the end: acknowledged, and never heard."""
    await opened(g)
    assert await append(g, 0) is None
    other = make_late("other")
    assert await other.end_session("s", "interrupted", time.time() + 60, seen="g", overdue=time.time() + 61)
    error = await append(g, 1)
    assert isinstance(error, Unavailable)
    assert error.code == "session_moved"


@pytest.mark.gen_test
async def test_a_resumed_session_is_the_new_gateway_s_alone(g: Broker, make_late: Make, db: redis.Redis) -> None:
    """Whatever the old one still has under way is refused, and it hears that the session moved."""
    await opened(g)
    assert await append(g, 0) is None
    listener = db.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(keys.results_channel("g"))
    listener.get_message(timeout=5)  # the subscription's own
    other = make_late("other")
    fields = await other.resume_session("s", time.time() + 90, "")
    assert fields is not None
    assert (fields["gateway"], fields["first"], fields["last"], fields["moves"]) == ("other", "0", "0", "1")
    news = orjson.loads(listener.get_message(timeout=5)["data"])
    assert news == {"type": "moved", "session_id": "s", "move": 1, "ended": False}
    listener.close()
    error = await append(g, 1, b"old")
    assert isinstance(error, Unavailable)
    assert error.code == "session_moved"
    assert await append(other, 1, b"new") is None
    assert db.xrange(keys.audio_key("s"))[-1][1]["d"] == "new"
    assert not await g.end_session("s", "done", time.time() + 60)
    assert await g.refresh({"s": 1.0, "gone": 1.0}) == {"s": "moved", "gone": "gone"}
    assert db.zscore(keys.OPEN, "s") > time.time() + 60
    assert await other.end_session("s", "done", time.time() + 60)
    assert await g.refresh({"s": 1.0}) == {"s": "ended"}


@pytest.mark.gen_test
async def test_only_the_owner_of_a_session_resumes_it(g: Broker, make_late: Make) -> None:
    fields = {**FIELDS, "gateway": "g", "owner": "one"}
    assert await g.open_session("s", "n", fields, time.time() + 60)
    other = make_late("other")
    assert await other.resume_session("s", time.time() + 60, "two") is None
    assert await other.resume_session("s", time.time() + 60, "") is None
    assert await other.resume_session("gone", time.time() + 60, "one") is None
    assert await append(g, 0) is None  # it lost nothing
    assert await other.resume_session("s", time.time() + 60, "one") is not None


@pytest.mark.gen_test
async def test_a_resume_and_the_end_of_the_overdue_exclude_each_other(g: Broker, make_late: Make) -> None:
    """On the same gateway too: whoever comes second sees what the first did."""
    sweeper = make_late("sweeper")
    for sid in ("resumed", "ended"):
        await opened(g, sid)
        await g.refresh({sid: time.time() - 1})
    assert await g.resume_session("resumed", time.time() + 60, "") is not None
    assert not await sweeper.end_session("resumed", "interrupted", time.time() + 60, seen="g", overdue=time.time())
    assert not await g.end_session("resumed", "interrupted", time.time() + 60, overdue=time.time())
    assert await append(g, 0, sid="resumed") is None
    assert await sweeper.end_session("ended", "interrupted", time.time() + 60, seen="g", overdue=time.time())
    fields = await g.resume_session("ended", time.time() + 60, "")
    assert fields is not None
    assert fields["end"] == "interrupted"


@pytest.mark.gen_test
async def test_no_chunk_follows_one_that_could_not_be_written(g: Broker, db: redis.Redis) -> None:
    """The rest of its pipeline is refused, or the hole would be acknowledged."""
    await opened(g)
    assert await append(g, 0) is None
    error = await append(g, 2)
    assert isinstance(error, Unavailable)
    assert error.code == "broker_error"
    assert ids(db, keys.audio_key("s")) == ["0-1", "1-0"]
    assert await append(g, 1) is None


@pytest.mark.gen_test
async def test_chunks_that_travel_together_are_answered_one_by_one(g: Broker, db: redis.Redis) -> None:
    """By one script call; what is refused, or fails, costs no neighbour."""
    for sid in ("a", "moved", "broken", "b"):
        await opened(g, sid)
    db.hset(keys.session_key("moved"), "gateway", "another")
    db.delete(keys.audio_key("broken"))
    db.set(keys.audio_key("broken"), "no stream")
    before = db.info("commandstats")["cmdstat_eval"]["calls"]
    answers: dict[tuple[str, int], Any] = {}
    for sid, index in (("a", 0), ("moved", 0), ("a", 1), ("broken", 0), ("gone", 0), ("b", 0), ("b", 2), ("a", 0)):
        last = None if index == 0 else index - 1
        g.append(sid, index, last, [b"x"], False, lambda error, of=(sid, index): answers.setdefault(of, error))  # type: ignore[misc]
    await until(lambda: len(answers) == 7)
    assert db.info("commandstats")["cmdstat_eval"]["calls"] == before + 1
    assert [answers.pop(of) for of in (("a", 0), ("a", 1), ("b", 0))] == [None] * 3
    assert isinstance(answers.pop(("broken", 0)), redis.ResponseError)
    assert {of: error.code for of, error in answers.items()} == {
        ("moved", 0): "session_moved",
        ("gone", 0): "session_gone",
        ("b", 2): "broker_error",
    }
    assert ids(db, keys.audio_key("a")) == ["0-1", "1-0", "2-0"]
    assert ids(db, keys.audio_key("b")) == ["0-1", "1-0"]


@pytest.fixture
def make_late(io_loop: tornado.ioloop.IOLoop, redis_url: str) -> Iterator[Make]:
    """Brokers made inside a test, whose loop already runs."""
    made: list[Broker] = []

    def maker(name: str) -> Broker:
        made.append(Broker(redis_url, name))
        return made[-1]

    yield maker
    for broker in made:
        io_loop.run_sync(broker.close)


@pytest.mark.gen_test
async def test_deadlines_are_put_off_only_for_what_is_open(g: Broker, db: redis.Redis) -> None:
    await opened(g)
    await g.refresh({"s": 5.0, "closed": 5.0})
    assert await g.overdue(6.0, 10) == ["s"]
    await g.refresh({"s": 7.0})
    assert await g.overdue(6.0, 10) == []


@pytest.mark.gen_test
async def test_a_closed_session_leaves_no_key_without_an_end(g: Broker, w: Broker, db: redis.Redis) -> None:
    """Whatever happened to it: every key of the session has a TTL, and only the two lists of all are left."""
    await opened(g)
    await append(g, 0)
    claim = await taken(w)
    await w.append_event(claim, 1, event(1), "1-0")
    await g.end_session("s", "done", time.time() + 60)
    await w.append_event(claim, 2, event(2, "final"), "1-1")
    await g.close_session("s", 50)
    every = set(db.scan_iter())
    left = {key for key in every if db.pttl(key) < 0}
    assert left <= {keys.TASKS}
    assert all(0 < db.pttl(key) <= 50_000 for key in every - left)
    assert db.xlen(keys.TASKS) == 0
    assert db.xpending(keys.TASKS, keys.GROUP)["pending"] == 0


# -- leases and the fence


@pytest.mark.gen_test
async def test_what_gave_no_event_is_covered_too(g: Broker, w: Broker, v: Broker, db: redis.Redis) -> None:
    """Audio is trimmed, the next owner is told from where it goes on, and nothing is added to the events."""
    await opened(g)
    for index in range(4):
        await append(g, index)
    claim = await taken(w)
    assert await w.append_event(claim, 1, event(1), "1-0", {"state": "one"})
    assert ids(db, keys.audio_key("s")) == ["2-0", "3-0", "4-0"]
    assert await w.checkpoint(claim, "3-0", 0.0, {"state": "two"})
    assert ids(db, keys.audio_key("s")) == ["4-0"]
    assert await w.checkpoint(claim, "3-0", 0.0, {"state": "two"})  # the reply was lost
    new = await taken(v, lease=0)
    assert new.fields["state"] == "two"
    assert [found["seq"] for found in new.events] == [1]


@pytest.mark.gen_test
async def test_a_guess_is_published_and_stored_nowhere(g: Broker, w: Broker, db: redis.Redis) -> None:
    await opened(g)
    claim = await taken(w)
    listener = db.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(keys.results_channel("g"))
    listener.get_message(timeout=5)  # the subscription's own
    before = db.xlen(keys.events_key("s"))
    w.publish(claim, {"type": "partial", "text": "a"})
    await w.pipeline.drain()
    published = listener.get_message(timeout=5)
    assert published is not None
    assert orjson.loads(published["data"]) == {"type": "partial", "text": "a", "session_id": "s"}
    assert db.xlen(keys.events_key("s")) == before
    listener.close()


@pytest.mark.gen_test
async def test_an_owner_that_was_replaced_can_do_nothing(g: Broker, w: Broker, v: Broker, db: redis.Redis) -> None:
    """Its events are refused, nothing is published or trimmed, and the task stays the new owner's."""
    await opened(g)
    await append(g, 0)
    old = await taken(w)
    assert await w.append_event(old, 1, event(1), "0-1")
    new = await taken(v, lease=0)
    assert new.epoch > old.epoch
    assert [found["seq"] for found in new.events] == [1]
    listener = db.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(keys.results_channel("g"))
    listener.get_message(timeout=5)  # the subscription's own
    assert not await w.append_event(old, 2, event(2, "final"), "1-0", {"state": "old"})
    assert not await w.checkpoint(old, "1-0", 0.0, {"state": "old"})
    w.publish(old, {"type": "partial", "text": "old"})
    await w.pipeline.drain()
    assert not db.hexists(keys.session_key("s"), "state")
    assert ids(db, keys.audio_key("s")) == ["1-0"]
    assert db.xlen(keys.TASKS) == 1
    assert await v.append_event(new, 1, event(2, "final"), "1-0")
    published = listener.get_message(timeout=5)
    assert published is not None
    assert orjson.loads(published["data"])["id"] == f"{new.epoch}-1"
    listener.close()
    assert ids(db, keys.audio_key("s")) == []
    assert db.xlen(keys.TASKS) == 0


@pytest.mark.gen_test
async def test_an_event_sent_again_after_a_lost_reply_is_accepted_once(g: Broker, w: Broker, v: Broker) -> None:
    """And no longer once a new owner stands between."""
    await opened(g)
    claim = await taken(w)
    assert await w.append_event(claim, 1, event(1), "0-1")
    assert await w.append_event(claim, 1, event(1), "0-1")
    assert [found["seq"] for found in await g.read_events("s")] == [1]
    await taken(v, lease=0)
    assert not await w.append_event(claim, 1, event(1), "0-1")


@pytest.mark.gen_test
async def test_the_next_owner_knows_what_was_said_though_its_events_are_forgotten(
    g: Broker, w: Broker, v: Broker, db: redis.Redis
) -> None:
    """The texts are kept apart, each once, and go with the session."""
    await opened(g)
    claim = await taken(w)
    for seq in range(1, 6):
        segments = [{"text": f"{seq}{letter}", "language": "en"} for letter in "ab"[: seq % 3]]
        assert await w.append_event(claim, seq, {**event(seq), "segments": segments}, "0-1")
    assert await w.append_event(claim, 5, {**event(5), "segments": segments}, "0-1")  # the reply was lost
    events = await g.read_events("s")
    await g.forget_events("s", events[2]["id"])
    new = await taken(v, lease=0)
    assert [found["seq"] for found in new.events] == [4, 5]
    assert new.transcript == [(text, "en") for text in ("1a", "2a", "2b", "4a", "5a", "5b")]
    assert new.epoch == claim.epoch + 1
    assert await v.append_event(new, 1, event(6, "final"), "0-1")
    await g.close_session("s", 100)
    assert {key for key in db.scan_iter("asr_*{s}") if db.ttl(key) > 0} == {
        keys.session_key("s"), keys.events_key("s"), keys.transcript_key("s"), keys.audio_key("s")
    }  # fmt: skip


@pytest.mark.gen_test
async def test_events_past_an_id(g: Broker, w: Broker) -> None:
    await opened(g)
    claim = await taken(w)
    for seq in (1, 2, 3):
        await w.append_event(claim, seq, event(seq), "0-1")
    events = await g.read_events("s")
    assert [found["seq"] for found in await g.read_events("s", events[0]["id"])] == [2, 3]
    fields, later = (await g.read_sessions({"s": events[1]["id"], "gone": "0-1"}))["s"]
    assert fields["gateway"] == "g"
    assert [found["seq"] for found in later] == [3]


@pytest.mark.gen_test
async def test_a_worker_that_slept_does_not_steal_its_session_back(
    g: Broker, w: Broker, v: Broker, redis_url: str, db: redis.Redis
) -> None:
    await opened(g)
    task = (await taken(w)).task
    lease = Lease(redis_url, "w")
    assert lease.renew([task]) == {task}
    await taken(v, lease=0)
    assert lease.renew([task]) == set()
    assert lease.renew([]) == set()
    lease.close()
    [pending] = db.xpending_range(keys.TASKS, keys.GROUP, "-", "+", 10)
    assert pending["consumer"] == "v"


@pytest.mark.gen_test
async def test_a_session_that_is_given_up_can_be_claimed_at_once(g: Broker, w: Broker, v: Broker) -> None:
    """One by its task, or all; others stay."""
    await opened(g, "one")
    await opened(g, "two")
    tasks = {sid: task for task, sid in await w.claim(None, 10, 0)}
    assert await v.claim(30.0, 10, 0) == []
    assert await w.release([tasks["one"]]) == 1
    assert await v.claim(30.0, 10, 0) == [(tasks["one"], "one")]
    assert await w.release() == 1
    assert await v.claim(30.0, 10, 0) == [(tasks["two"], "two")]


@pytest.mark.gen_test
async def test_a_dead_worker_s_sessions_are_found_behind_any_number_of_living_ones(
    g: Broker, w: Broker, v: Broker, redis_url: str
) -> None:
    """XAUTOCLAIM from the start looks at ten times its count and would never come to them."""
    for number in range(60):
        await opened(g, f"living{number}")
    assert len(await v.claim(None, 100, 0)) == 60
    await opened(g, "orphan")
    assert len(await w.claim(None, 10, 0)) == 1
    steward = Steward(redis_url)
    assert steward.release("w") == 1
    steward.close()
    assert [sid for _, sid in await v.claim(30.0, 4, 0)] == ["orphan"]


@pytest.mark.gen_test
@pytest.mark.parametrize("how", ["finished", "vanished"])
async def test_there_is_nothing_to_do_for_a_session_that_is_over(
    g: Broker, w: Broker, v: Broker, db: redis.Redis, how: str
) -> None:
    """Its task is acknowledged and gone, and no key comes back to life."""
    await opened(g)
    claim = await taken(w)
    if how == "vanished":
        db.delete(*(key("s") for key in (keys.session_key, keys.audio_key, keys.events_key)))
    else:
        entry = {"seq": "1", "data": orjson.dumps({**event(1, "final"), "id": f"{claim.epoch}-1"})}
        db.xadd(keys.events_key("s"), entry, id=f"{claim.epoch}-1")  # final, but the worker died before its XACK
    [(task, sid)] = await v.claim(0.0, 10, 0)
    assert await v.acquire(task, sid) is None
    assert db.xlen(keys.TASKS) == 0
    assert db.xpending(keys.TASKS, keys.GROUP)["pending"] == 0
    assert db.exists(keys.session_key("s")) == (how == "finished")


@pytest.mark.gen_test
async def test_a_worker_waits_in_redis_for_a_session(g: Broker, w: Broker) -> None:
    """Without holding up its other commands."""
    waiting = asyncio.ensure_future(w.claim(1.0, 4, 8))
    await until(lambda: not waiting.done())
    assert await w.ping() < 8
    await opened(g)
    assert [sid for _, sid in await asyncio.wait_for(waiting, 5)] == ["s"]


@pytest.mark.gen_test
async def test_strikes_and_retirement(g: Broker, w: Broker, redis_url: str, db: redis.Redis) -> None:
    """A strike is on the session's entry; a name is forgotten only when no entry hangs on it."""
    await opened(g)
    claim = await taken(w)
    steward = Steward(redis_url)
    assert [steward.strike("s", "1-0") for _ in range(2)] == [1, 2]
    assert steward.strike("gone", "1-0") == 0
    steward.retire("w")
    assert db.xpending(keys.TASKS, keys.GROUP)["pending"] == 1
    again = await w.acquire(claim.task, "s")
    assert again is not None
    assert again.fields["strike:1-0"] == "2"
    await w.append_event(again, 1, event(1, "final"), "0-1")
    steward.retire("w")
    assert db.xinfo_consumers(keys.TASKS, keys.GROUP) == []
    steward.close()


# -- Redis comes and goes


@pytest.mark.gen_test(timeout=30)
async def test_order_holds_while_connections_are_killed(g: Broker, w: Broker, db: redis.Redis) -> None:
    """Mid-flight, again and again: every chunk is acknowledged, in order, and is there once."""
    await opened(g)
    answers: list[Any] = []
    for index in range(2000):
        before = index - 1 if index else None
        g.append("s", index, before, [b"x" * 2000], False, lambda error, index=index: answers.append((index, error)))
        if index % 200 == 50:
            await asyncio.sleep(0)
            drop_connections(db)
    await until(lambda: len(answers) == 2000)
    assert answers == [(index, None) for index in range(2000)]
    assert ids(db, keys.audio_key("s")) == ["0-1", *(f"{index + 1}-0" for index in range(2000))]


@pytest.mark.gen_test(timeout=60)
async def test_order_holds_over_a_restart_of_redis(g: Broker, servers: Servers, db: redis.Redis) -> None:
    """Killed without warning; what was issued before, while it was away and after is there, in order."""
    await opened(g)
    assert await append(g, 0) is None
    pid = servers.redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    waits = [asyncio.ensure_future(append(g, index)) for index in range(1, 50)]
    await until(lambda: servers.redis.poll() is not None and g.pipeline._away_since is not None)
    servers.redis.start()  # here and not in a thread: the kernel would end it with the thread
    waits += [asyncio.ensure_future(append(g, index)) for index in range(50, 100)]
    assert await asyncio.gather(*waits) == [None] * 99
    assert ids(db, keys.audio_key("s")) == ["0-1", *(f"{index + 1}-0" for index in range(100))]


@pytest.mark.gen_test(timeout=30)
async def test_callers_are_told_when_redis_stays_away(
    g: Broker, servers: Servers, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After PATIENCE, those that waited behind others too; and when Redis is back, it works again."""
    monkeypatch.setattr(lane_module, "PATIENCE", 0.3)
    monkeypatch.setattr(lane_module, "BATCH", 10)
    await opened(g)
    db.ping()  # connects while it can
    with nobody_listens(servers):
        drop_connections(db)
        started = time.monotonic()
        errors = await asyncio.gather(*(append(g, index, b"x" * 1000) for index in range(100)))
        with pytest.raises(Unavailable):
            await g.ping()
    assert {getattr(error, "code", error) for error in errors} == {"broker_unavailable"}
    assert time.monotonic() - started < 3.0  # ten batches: not each its own 0.3 s and more
    assert g.pipeline.bytes == 0
    assert await append(g, 0) is None


@pytest.mark.gen_test
async def test_a_reply_s_callback_that_fails_harms_nobody_else(g: Broker) -> None:
    await opened(g)
    g.append("s", 0, None, [b"x"], False, lambda error: 1 / 0)  # type: ignore[arg-type, func-returns-value]
    assert await append(g, 1) is None


@pytest.mark.gen_test
async def test_a_full_redis_is_unavailable_and_no_lost_event(g: Broker, w: Broker, db: redis.Redis) -> None:
    """The worker drops the session, and its next owner makes the event."""
    await opened(g)
    claim = await taken(w)
    limit = db.config_get("maxmemory")["maxmemory"]
    db.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable):
            await w.append_event(claim, 1, event(1), "0-1")
        assert isinstance(await append(g, 0), Exception)
        with pytest.raises(Unavailable):
            await g.end_session("s", "done", time.time())
    finally:
        db.config_set("maxmemory", limit)
    assert await w.append_event(claim, 1, event(1), "0-1")


@pytest.mark.gen_test(timeout=30)
async def test_the_subscription_comes_back_and_says_so(g: Broker, w: Broker, db: redis.Redis) -> None:
    """What is published by anyone else and is no result is passed over."""
    events: list[dict[str, Any]] = []
    subscribed: list[bool] = []
    task = asyncio.ensure_future(g.subscribe(events.append, lambda: subscribed.append(True)))
    await until(lambda: subscribed)
    await opened(g)
    claim = await taken(w)
    db.publish(keys.results_channel("g"), "no JSON")
    await w.append_event(claim, 1, event(1), "0-1")
    await until(lambda: len(events) == 1)
    drop_connections(db, "pubsub")
    await until(lambda: len(subscribed) == 2)
    await w.append_event(claim, 2, event(2), "0-1")
    await until(lambda: len(events) == 2)
    assert [found["seq"] for found in events] == [1, 2]
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.gen_test(timeout=30)
async def test_a_silent_subscription_is_asked(g: Broker, db: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answered, it goes on: no second subscription."""
    assert QUIET > 1
    monkeypatch.setattr("asrserver.broker.subscription.QUIET", 0.05)
    subscribed: list[bool] = []
    task = asyncio.ensure_future(g.subscribe(lambda event: None, lambda: subscribed.append(True)))
    await until(lambda: subscribed)
    db.config_resetstat()
    await until(lambda: db.info("commandstats").get("cmdstat_ping", {}).get("calls", 0) >= 3)
    assert len(subscribed) == 1
    task.cancel()
    await asyncio.wait([task])


# -- heartbeats and numbers


@pytest.mark.gen_test
async def test_heartbeats_come_by_name_and_go_with_their_writer(
    g: Broker, w: Broker, v: Broker, db: redis.Redis
) -> None:
    for broker in (w, v):
        broker.heartbeat("worker", {"backlog": 1.5})
    g.heartbeat("gateway", {})
    await asyncio.gather(w.pipeline.drain(), v.pipeline.drain(), g.pipeline.drain())
    found = await g.heartbeats("worker")
    assert [(state["name"], state["backlog"]) for state in found] == [("v", 1.5), ("w", 1.5)]
    assert [state["name"] for state in await w.heartbeats("gateway")] == ["g"]
    assert 0 < db.pttl("worker:w:heartbeat") <= HEARTBEAT_TTL * 1000
    await w.deregister("worker")
    assert [state["name"] for state in await g.heartbeats("worker")] == ["v"]
    assert await g.memory() > 0


@pytest.mark.gen_test
async def test_the_queue_in_numbers(g: Broker, w: Broker) -> None:
    assert await g.queue() == {"waiting": 0, "processing": 0, "dead": 0}
    await opened(g, "one")
    await opened(g, "two")
    await w.claim(None, 1, 0)
    await w.dead_letter("one", "1-0", "because")
    assert await g.queue() == {"waiting": 1, "processing": 1, "dead": 1}


@pytest.mark.gen_test
async def test_workers_hear_of_a_session_that_ends_and_once(g: Broker, w: Broker, db: redis.Redis) -> None:
    heard: list[str] = []
    listening = asyncio.ensure_future(w.listen_for_ends(heard.append))
    await until(lambda: db.pubsub_numsub(keys.ENDED) == [(keys.ENDED, 1)])
    await opened(g)
    for _ in range(2):  # its reply was lost
        assert await g.end_session("s", "done", time.time() + 60)
    db.publish(keys.ENDED, '{"session_id": "the last"}')
    await until(lambda: heard[-1:] == ["the last"])
    assert heard == ["s", "the last"]
    listening.cancel()


@pytest.fixture
def busy(g: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many chunks come that those of one session wait for each other."""
    monkeypatch.setattr(g._gathering, "_linger", LingerPolicy(-1e9, batching.EACH, batching.LONGEST))


async def gathered(g: Broker, sid: str, chunks: dict[int, bytes], joins: bool = True) -> dict[int, Any]:
    """Append chunks, each after the one before; the answers, which come later."""
    answers: dict[int, Any] = {}
    before = None
    for index, data in chunks.items():
        g.append(sid, index, before, [data], joins, lambda error, index=index: answers.setdefault(index, error))  # type: ignore[misc]
        before = index
    return answers


@pytest.mark.gen_test
async def test_where_many_chunks_come_those_of_a_session_share_an_entry(
    g: Broker, w: Broker, db: redis.Redis, busy: None
) -> None:
    """But for its first, which waits for nobody. Each is acknowledged, and none before Redis has it."""
    await opened(g)
    answers = await gathered(g, "s", {4: b"a", 5: b"bc", 7: b"d", 8: b"e"})
    await until(lambda: len(answers) == 4)
    assert answers == dict.fromkeys((4, 5, 7, 8))
    found = (await w.read_audio({"s": "0-1"}, 10))["s"]
    assert [(entry.id, entry.data, entry.chunks) for entry in found] == [("5-0", b"a", 1), ("9-0", b"bcde", 3)]
    assert (db.hget(keys.session_key("s"), "first"), db.hget(keys.session_key("s"), "last")) == ("4", "8")
    assert g.bytes_on_their_way == 0


@pytest.mark.gen_test
async def test_chunks_with_borders_share_no_entry(g: Broker, db: redis.Redis, busy: None) -> None:
    await opened(g)
    answers = await gathered(g, "s", {0: b"a", 1: b"b", 2: b"c"}, joins=False)
    await until(lambda: len(answers) == 3)
    assert ids(db, keys.audio_key("s")) == ["0-1", "1-0", "2-0", "3-0"]


@pytest.mark.gen_test
@pytest.mark.parametrize("then", ["end", "resume", "close", "fill"])
async def test_what_waits_goes_before_what_follows_it(g: Broker, w: Broker, busy: None, then: str) -> None:
    """A session's end, its resumption elsewhere, the gateway's own end; and it goes when there is a second of it."""
    await opened(g)
    answers = await gathered(g, "s", {0: b"a", 1: b"b", 2: b"c" * (batching.FULL if then == "fill" else 1)})
    if then == "end":
        assert await g.end_session("s", "done", time.time() + 60)
    elif then == "resume":
        assert await g.resume_session("s", time.time() + 60, "") is not None
    elif then == "close":
        await g.close()
    else:
        assert g.bytes_on_their_way == g.pipeline.bytes > batching.FULL
        await until(lambda: len(answers) == 3)
    assert answers == dict.fromkeys((0, 1, 2))
    found = (await w.read_audio({"s": "0-1"}, 10))["s"]
    assert [entry.chunks for entry in found if entry.data is not None] == [1, 2]


@pytest.mark.gen_test
async def test_what_waits_to_be_joined_is_bounded(g: Broker, busy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has waited longest goes; nobody is kept from being read for what waits by choice."""
    monkeypatch.setattr(batching, "MOST", 10)
    for sid in ("a", "b"):
        await opened(g, sid)
        await gathered(g, sid, {0: b"first"})
    answers: dict[str, Exception | None] = {}
    for sid, before, data in (("a", 0, b"12345"), ("b", 0, b"123456"), ("b", 1, b"78901")):
        g.append(sid, before + 1, before, [data], True, lambda error, sid=sid: answers.setdefault(sid, error))  # type: ignore[misc]
        assert g._gathering.bytes <= 10
    assert g.bytes_on_their_way > 0
    await until(lambda: len(answers) == 2)
    assert answers == {"a": None, "b": None}
    assert g.bytes_on_their_way == g._gathering.bytes == 0


@pytest.mark.gen_test
async def test_a_shared_entry_that_is_refused_is_refused_for_each(g: Broker, db: redis.Redis, busy: None) -> None:
    await opened(g)
    db.hset(keys.session_key("s"), "gateway", "another")
    answers = await gathered(g, "s", {0: b"a", 1: b"b", 2: b"c"})
    await until(lambda: len(answers) == 3)
    assert [error.code for error in answers.values()] == ["session_moved"] * 3


@pytest.mark.gen_test
async def test_a_shared_entry_sent_again_is_there_once(g: Broker, w: Broker, db: redis.Redis, busy: None) -> None:
    """Its reply was lost with the connection."""
    await opened(g)
    answers: dict[int, Any] = {}
    for index in range(1000):
        before = index - 1 if index else None
        g.append("s", index, before, [b"x" * 900], True, lambda error, index=index: answers.setdefault(index, error))  # type: ignore[misc]
        if index % 200 == 50:
            await asyncio.sleep(0)
            drop_connections(db)
    await until(lambda: len(answers) == 1000)
    assert set(answers.values()) == {None}
    entries = (await w.read_audio({"s": "0-1"}, 1000))["s"]
    assert sum(entry.chunks for entry in entries) == 1000
    assert sum(len(entry.data or b"") for entry in entries) == 900_000
    assert len(entries) < 100
