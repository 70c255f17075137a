"""Sessions and their audio in a real Redis: opened, appended to, resumed, ended and closed."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
import redis

from asrserver.broker import keys
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.worker_side import WorkerBroker
from asrserver.errors import BadRequest, Unavailable
from tests.broker.support import FIELDS, Make, append, event, ids, opened, taken
from tests.waiting import until


@pytest.mark.gen_test
async def test_a_session_is_opened_once_whatever_replies_are_lost(g: GatewayBroker, db: redis.Redis) -> None:
    """The same nonce is a repeated attempt; another nonce is another client."""
    assert await opened(g, nonce="1")
    assert await opened(g, nonce="1")
    assert not await opened(g, nonce="2")
    assert db.xlen(keys.TASKS) == 1
    assert db.zrange(keys.OPEN, 0, -1) == ["s"]


@pytest.mark.gen_test
async def test_a_chunk_twice_is_one_entry_and_two_acknowledgements(g: GatewayBroker, db: redis.Redis) -> None:
    await opened(g)
    assert await append(g, 0) is None
    assert await append(g, 0) is None
    assert ids(db, keys.audio_key("s")) == ["0-1", "1-0"]


@pytest.mark.gen_test
async def test_no_chunk_is_accepted_behind_a_first_one_that_was_refused(g: GatewayBroker, db: redis.Redis) -> None:
    """It was, and the session could never be resumed: nobody knew its first chunk."""
    await opened(g)
    db.config_set("maxmemory", "1")
    try:
        error = await append(g, 0)
    finally:
        db.config_set("maxmemory", "0")
    assert isinstance(error, Unavailable)
    assert error.code == "broker_full"
    error = await append(g, 1)
    assert isinstance(error, Unavailable)
    assert error.code == "broker_error"
    assert ids(db, keys.audio_key("s")) == ["0-1"]
    assert await append(g, 0) is None
    assert await append(g, 1) is None


@pytest.mark.gen_test
async def test_a_chunk_of_a_session_that_is_gone_is_refused_and_makes_no_key(g: GatewayBroker, db: redis.Redis) -> None:
    error = await append(g, 0, sid="gone")
    assert isinstance(error, Unavailable)
    assert error.code == "session_gone"
    assert not db.exists(keys.audio_key("gone"))


@pytest.mark.gen_test
async def test_the_end_follows_the_last_chunk(g: GatewayBroker, w: WorkerBroker, db: redis.Redis) -> None:
    """This holds when all chunks are trimmed, and there is one end however often it is written."""
    await opened(g)
    await append(g, 6, first=6)
    await append(g, 7, first=6)
    claim = await taken(w)
    assert await w.append_event(claim, event(claim, 1, 1), "8-0")
    assert await g.end_session("s", "done", time.time() + 60)
    assert await g.end_session("s", "interrupted", time.time() + 60)
    assert ids(db, keys.audio_key("s")) == ["8-1"]
    [entry] = (await w.read_audio({"s": "8-0"}, 10))["s"]
    assert (entry.id, entry.data, entry.status) == ("8-1", None, "done")


@pytest.mark.gen_test
async def test_the_end_of_a_session_without_audio(g: GatewayBroker, w: WorkerBroker) -> None:
    await opened(g)
    assert await g.end_session("s", "done", time.time() + 60)
    [entry] = (await w.read_audio({"s": "0-1"}, 10))["s"]
    assert (entry.id, entry.status) == ("0-2", "done")


@pytest.mark.gen_test
async def test_another_gateway_ends_a_session_only_of_the_gateway_it_saw(g: GatewayBroker, make_late: Make) -> None:
    """A repeated attempt after a lost reply succeeds again."""
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
async def test_a_gateway_that_slept_cannot_append_to_an_adopted_session(g: GatewayBroker, make_late: Make) -> None:
    """Its chunk would come after the end: acknowledged, but never recognised."""
    await opened(g)
    assert await append(g, 0) is None
    other = make_late("other")
    assert await other.end_session("s", "interrupted", time.time() + 60, seen="g", overdue=time.time() + 61)
    error = await append(g, 1)
    assert isinstance(error, Unavailable)
    assert error.code == "session_moved"


@pytest.mark.gen_test
async def test_a_resumed_session_is_the_new_gateway_s_alone(g: GatewayBroker, make_late: Make, db: redis.Redis) -> None:
    """Commands of the old gateway are refused, and it is notified that the session moved."""
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
    [(_, newest)] = db.xrevrange(keys.audio_key("s"), count=1) or []
    assert newest is not None
    assert newest["d"] == "new"
    assert not await g.end_session("s", "done", time.time() + 60)
    assert await g.refresh({"s": 1.0, "gone": 1.0}) == {"s": "moved", "gone": "gone"}
    assert (db.zscore(keys.OPEN, "s") or 0) > time.time() + 60
    assert await other.end_session("s", "done", time.time() + 60)
    assert await g.refresh({"s": 1.0}) == {"s": "ended"}


@pytest.mark.gen_test
async def test_only_the_owner_of_a_session_resumes_it(g: GatewayBroker, make_late: Make) -> None:
    fields = {**FIELDS, "gateway": "g", "owner": "one"}
    assert await g.open_session("s", "n", fields, time.time() + 60)
    other = make_late("other")
    assert await other.resume_session("s", time.time() + 60, "two") is None
    assert await other.resume_session("s", time.time() + 60, "") is None
    assert await other.resume_session("gone", time.time() + 60, "one") is None
    assert await append(g, 0) is None  # it lost nothing
    assert await other.resume_session("s", time.time() + 60, "one") is not None


@pytest.mark.gen_test
async def test_a_resume_behind_an_event_that_is_not_there(
    g: GatewayBroker, w: WorkerBroker, make_late: Make, db: redis.Redis
) -> None:
    """The session stays where it is, however many workers have claimed it since its last event."""
    await opened(g)
    claim = await taken(w)
    other, later = make_late("other"), time.time() + 60
    for seq in (1, 2):
        with pytest.raises(BadRequest, match=f"last_seq {seq} is past"):
            await other.resume_session("s", later, "", last_seq=seq)
        assert await append(g, seq - 1) is None
        assert await w.append_event(claim, event(claim, seq, seq), f"{seq}-0")
    for epoch in range(25):
        db.xadd(keys.events_key("s"), {"t": "claim", "worker": "w"}, id=f"{claim.epoch + 1 + epoch}-0")
    with pytest.raises(BadRequest, match="last_seq 3 is past"):
        await other.resume_session("s", later, "", last_seq=3)
    assert await append(g, 2) is None
    assert await other.resume_session("s", later, "", last_seq=2) is not None


@pytest.mark.gen_test
async def test_a_resume_and_the_end_of_the_overdue_exclude_each_other(g: GatewayBroker, make_late: Make) -> None:
    """This holds on the same gateway too: the second one sees what the first one did."""
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
async def test_no_chunk_follows_one_that_could_not_be_written(g: GatewayBroker, db: redis.Redis) -> None:
    """The rest of its pipeline is refused; otherwise the gap would be acknowledged."""
    await opened(g)
    assert await append(g, 0) is None
    error = await append(g, 2)
    assert isinstance(error, Unavailable)
    assert error.code == "broker_error"
    assert ids(db, keys.audio_key("s")) == ["0-1", "1-0"]
    assert await append(g, 1) is None


@pytest.mark.gen_test
async def test_no_flush_passes_a_chunk_that_could_not_be_written(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis
) -> None:
    """Its client resumes, and sends both again: a resume tells it how many flushes there are."""
    await opened(g)
    assert await g.flush_session("s", 1, 0) == 0
    assert await append(g, 0) is None
    assert await g.flush_session("s", 1, 0) == 1
    assert await g.flush_session("s", 2, 1) == 0
    assert db.hget(keys.session_key("s"), "flushes") == "1"
    assert await append(g, 1) is None
    for _ in range(2):  # its reply was lost
        assert await g.flush_session("s", 2, 1) == 1
    entries = (await w.read_audio({"s": "0-1"}, 10))["s"]
    assert [(entry.id, entry.flush) for entry in entries] == [("1-0", 0), ("1-1", 1), ("2-0", 0), ("2-1", 2)]


@pytest.mark.gen_test
async def test_chunks_that_travel_together_are_answered_one_by_one(g: GatewayBroker, db: redis.Redis) -> None:
    """One script call answers each; a refused or failed chunk does not affect the others."""
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


@pytest.mark.gen_test
async def test_deadlines_are_put_off_only_for_what_is_open(g: GatewayBroker, db: redis.Redis) -> None:
    await opened(g)
    await g.refresh({"s": 5.0, "closed": 5.0})
    assert await g.overdue(6.0, 10) == ["s"]
    await g.refresh({"s": 7.0})
    assert await g.overdue(6.0, 10) == []


@pytest.mark.gen_test
async def test_a_closed_session_leaves_no_key_without_an_end(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis
) -> None:
    """After any end, every key of the session has a TTL; only the two global keys remain."""
    await opened(g)
    await append(g, 0)
    claim = await taken(w)
    await w.append_event(claim, event(claim, 1, 1), "1-0")
    await g.end_session("s", "done", time.time() + 60)
    await w.append_event(claim, event(claim, 2, 2, "final"), "1-1")
    await g.close_session("s", 50)
    every = set(db.scan_iter())
    left = {key for key in every if db.pttl(key) < 0}
    assert left <= {keys.TASKS}
    assert {key("s") for key in (keys.session_key, keys.audio_key, keys.events_key)} <= every - left
    assert all(0 < db.pttl(key) <= 50_000 for key in every - left)
    assert db.xlen(keys.TASKS) == 0
    assert db.xpending(keys.TASKS, keys.GROUP)["pending"] == 0


@pytest.mark.gen_test
async def test_finished_sessions_are_known_until_they_are_stored(
    g: GatewayBroker, w: WorkerBroker, db: redis.Redis
) -> None:
    """One that a gateway of an earlier release has stored, which knows no such list, is forgotten at a look."""
    for sid in ("s", "t"):
        await opened(g, sid, nonce=sid)
        claim = await taken(w)
        assert await g.unstored() == ["s"][: sid == "t"]
        last = event(claim, 1, 1, "final")
        assert await w.append_event(claim, last, "0-1")
        assert await w.append_event(claim, last, "0-1")
    assert await g.unstored() == ["t", "s"]
    assert await g.unstored(["s", "unknown"]) == ["s"]
    await g.close_session("s", 100)
    assert await g.unstored() == ["t"]
    db.zrem(keys.OPEN, "t")
    assert await g.unstored() == []
    assert not db.exists(keys.FINISHED)
