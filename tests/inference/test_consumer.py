"""consumer.py: many live streams are read together, and no session waits long for that."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from asrserver.broker.replies import Entry
from asrserver.errors import AsrError
from asrserver.inference.consumer import (
    IN_TRANSIT_SECONDS,
    MAX_GROUPS,
    MAX_READ_INTERVAL,
    POLL_SECONDS,
    READ_SECONDS_PER_STREAM,
    SessionConsumer,
    read_interval,
)
from asrserver.inference.inbox import Inbox
from asrserver.inference.partials import PartialScheduler, SpeculationBudget
from asrserver.process.aio import cancel_and_wait
from asrserver.shares import Share
from tests.servers import Servers
from tests.waiting import until

pytestmark = pytest.mark.gen_test


class FakeSession:
    """A session, as far as reading needs one."""

    wants_audio, over, trace = True, False, None

    def __init__(self, is_streaming: bool, backlog: float = 0.0, number: int = 0) -> None:
        self.is_streaming = is_streaming
        self.backlog = backlog
        self.number = number
        self.inbox = Inbox("0-1", lambda: None)
        self.inbox.largest_chunk = 0  # its chunks are small
        self.expedited = False

    def expedite(self) -> None:
        self.expedited = True


class Shelf:
    """A broker that has an entry for every session, and notes whose entries were read."""

    name = "w"

    def __init__(self) -> None:
        self.asked: list[set[str]] = []

    async def read_audio(self, cursors: Mapping[str, str], count: int) -> dict[str, list[Entry]]:
        if cursors:
            self.asked.append(set(cursors))
        return {sid: [Entry(f"{int(cursor[0]) + 1}-0", b"", None)] for sid, cursor in cursors.items()}


def consumer_of(live: int, others: int = 0, backlog: float = 0.0) -> tuple[SessionConsumer, Shelf]:
    shelf = Shelf()
    consumer = SessionConsumer(
        shelf,  # type: ignore[arg-type]
        SimpleNamespace(partials=PartialScheduler()),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        url="redis://",
        lease=10,
        max_backlog=30,
        patience=10,
    )
    consumer.sessions.update({f"live{n}": FakeSession(True, backlog, n) for n in range(live)})  # type: ignore[misc]
    consumer.sessions.update({f"file{n}": FakeSession(False, backlog) for n in range(others)})  # type: ignore[misc]
    return consumer, shelf


async def test_more_streams_are_read_less_often() -> None:
    """A few at every poll, many at least every MAX_READ_INTERVAL; the scheduler of partials is told."""
    few, some, many = (read_interval(streams) for streams in (5, 50, 500))
    assert few == read_interval(0) == POLL_SECONDS
    assert POLL_SECONDS < some < many == MAX_READ_INTERVAL
    for streams, speculates in ((5, True), (500, False)):
        consumer, _ = consumer_of(streams)
        consumer._next_group(100.0)
        assert consumer._partials.may_speculate(SpeculationBudget()) is speculates


async def test_files_do_not_wait_for_streams() -> None:
    consumer, shelf = consumer_of(live=40, others=1)
    every = READ_SECONDS_PER_STREAM * 40
    await consumer._read(100.0)
    assert len(shelf.asked[-1]) == 41
    assert consumer._next_due(100.0) == 100.0 + POLL_SECONDS
    await consumer._read(100.0 + POLL_SECONDS)
    assert shelf.asked[-1] == {"file0"}
    await consumer._read(100.0 + every)
    assert len(shelf.asked[-1]) == 41
    del consumer.sessions["file0"]
    assert consumer._next_due(100.0 + every) == pytest.approx(100.0 + 2 * every)


async def test_many_streams_are_read_in_groups() -> None:
    """One after another, of about the same size; each stream once per read interval."""
    consumer, shelf = consumer_of(live=500)
    now = 100.0
    for _ in range(2 * MAX_GROUPS):
        await consumer._read(now)
        now = consumer._next_due(now)
    assert now == pytest.approx(100.0 + 2 * MAX_READ_INTERVAL)
    assert {len(asked) for asked in shelf.asked} == {500 // MAX_GROUPS, 500 // MAX_GROUPS + 1}
    assert Counter(sid for asked in shelf.asked for sid in asked) == dict.fromkeys(consumer.sessions, 2)


async def test_a_session_that_ended_is_read_at_once() -> None:
    consumer, shelf = consumer_of(live=40)
    await consumer._read(100.0)
    consumer.on_end("live7")
    consumer.on_end("another worker's")
    await consumer._read(100.0 + POLL_SECONDS)
    assert shelf.asked[1:] == [{"live7"}]
    assert [sid for sid, session in consumer.sessions.items() if session.expedited] == ["live7"]  # type: ignore[attr-defined]
    await consumer._read(100.0 + 2 * POLL_SECONDS)
    assert len(shelf.asked) == 2
    now = asyncio.get_running_loop().time()
    consumer._streams_due = now + 100.0
    rest = asyncio.ensure_future(consumer._wait_until_due(now))
    await asyncio.sleep(0)
    consumer.on_end("live8")
    assert await rest == now + POLL_SECONDS


async def test_a_stream_that_is_behind_is_read_at_the_next_poll() -> None:
    """A stream of small entries, or one taken over, may have more entries waiting than one read takes."""
    consumer, shelf = consumer_of(live=40)
    full = {"live3"}
    read = shelf.read_audio

    async def many(cursors: Mapping[str, str], count: int) -> dict[str, list[Entry]]:
        found = await read(cursors, count)
        return {sid: entries * (count if sid in full else 1) for sid, entries in found.items()}

    shelf.read_audio = many  # type: ignore[method-assign]
    await consumer._read(100.0)
    await consumer._read(100.0 + POLL_SECONDS)
    full.clear()
    await consumer._read(100.0 + 2 * POLL_SECONDS)
    await consumer._read(100.0 + 3 * POLL_SECONDS)
    assert shelf.asked[1:] == [{"live3"}, {"live3"}]


async def test_audio_in_transit_is_no_backlog() -> None:
    """Hundreds of streams that are processed in time leave room for more; streams that are behind take it."""
    consumer, _ = consumer_of(live=500, backlog=IN_TRANSIT_SECONDS / 2)
    assert consumer.backlog == 0.0
    for late in list(consumer.sessions.values())[:250]:
        late.backlog = 3.0  # type: ignore[misc]
    assert consumer.backlog == pytest.approx(250 * (3.0 + IN_TRANSIT_SECONDS / 2) - 500 * IN_TRANSIT_SECONDS)
    consumer, _ = consumer_of(live=0, others=4, backlog=IN_TRANSIT_SECONDS / 2)
    assert consumer.backlog == 4 * IN_TRANSIT_SECONDS / 2


class NamedSession:
    """A session that names a model, as far as the consumer deals with that."""

    sid, model, backlog, is_streaming = "s", "tiny.en", 100.0, False

    def __init__(self, **fields: str) -> None:
        self.claim = SimpleNamespace(fields=fields, task="1-0")
        self.done: list[object] = []

    def recognise_with(self, recogniser: object) -> None:
        self.done.append(recogniser)

    async def run(self) -> None:
        self.done.append("run")

    async def fail(self, error: AsrError) -> None:
        self.done.append(error.code)


class OneEngine:
    """Engines of which one can be used."""

    def __init__(self) -> None:
        self.using = 0

    @asynccontextmanager
    async def use(self, name: str, _session: str) -> AsyncIterator[str]:
        if name != "tiny.en":
            raise AsrError("unknown_model", "no")
        self.using += 1
        yield name
        self.using -= 1


async def test_a_session_is_recognised_with_its_model_or_ended() -> None:
    """It is ended if its model is not there, and if three workers died while they loaded it."""
    consumer, _ = consumer_of(0)
    consumer._engines = engines = OneEngine()  # type: ignore[assignment]
    consumer._recogniser = SimpleNamespace(using=lambda engine: f"with {engine}")  # type: ignore[assignment]
    good, unknown, killer = NamedSession(**{"strike:0-1": "2"}), NamedSession(), NamedSession(**{"strike:0-1": "3"})
    unknown.model = "large"
    for session in (good, unknown, killer):
        await consumer._recognise(session)  # type: ignore[arg-type]
    assert (good.done, unknown.done, killer.done) == (["with tiny.en", "run"], ["unknown_model"], ["model_unavailable"])
    assert engines.using == 0


async def test_what_a_dead_worker_has_left_is_looked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asrserver.inference.consumer.STALE_CHECK_SECONDS", 60.0)
    consumer, shelf = consumer_of(1)
    leases: list[float | None] = []

    async def claim(lease: float | None, count: int, block: float, passed: object) -> list[object]:
        leases.append(lease)
        return []

    shelf.claim = claim  # type: ignore[attr-defined]
    running = asyncio.ensure_future(consumer.run())
    await until(lambda: len(leases) > 3)
    assert leases.count(10) == 1
    consumer.on_release()
    await until(lambda: leases.count(10) == 2)
    consumer._stop_renewing.set()
    await cancel_and_wait([running])


async def test_a_session_is_handed_back_only_where_another_worker_offers_its_model() -> None:
    consumer, shelf = consumer_of(0)
    other: dict[str, object] = {"name": "other", "backlog": 0.0}
    released: list[str] = []

    async def heartbeats(_kind: str) -> list[dict[str, object]]:
        return [other]

    async def release(tasks: list[str]) -> int:
        released.extend(tasks)
        return len(tasks)

    shelf.status = SimpleNamespace(heartbeats=heartbeats)  # type: ignore[attr-defined]
    shelf.release = release  # type: ignore[attr-defined]
    consumer.sessions.update({"one": NamedSession(), "two": NamedSession()})  # type: ignore[dict-item]
    for models, expected in (([{"name": "base"}], []), ([{"name": "base"}, {"name": "tiny.en"}], ["1-0"])):
        other["models"] = models
        await consumer.hand_back()
        assert released == expected


@pytest.mark.gen_test
async def test_sessions_may_be_lost_while_one_is_handed_back(servers: Servers) -> None:
    """A worker woken from a long stop is behind; while it asks for others' room, it loses all its sessions."""

    class Behind:
        model = None
        backlog = 100.0
        is_streaming = False

    class Status:
        async def heartbeats(self, _kind: str) -> list[dict[str, object]]:
            consumer.sessions.clear()
            return [{"name": "other", "backlog": 0.0}]

    class Away:
        name = "sleeper"
        status = Status()

    consumer = SessionConsumer(
        Away(),  # type: ignore[arg-type]
        SimpleNamespace(partials=PartialScheduler()),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        url=servers.redis.url,
        lease=10,
        max_backlog=30,
        patience=10,
    )
    consumer.sessions = {"one": Behind(), "two": Behind()}  # type: ignore[dict-item]
    await consumer.hand_back()


async def test_a_full_worker_goes_on_to_claim_for_keys_that_have_less_than_their_share() -> None:
    """Those that have theirs are passed over until there is room again; a key that is alone may have all."""
    consumer, shelf = consumer_of(0)
    passed: list[set[str]] = []

    async def claim(lease: float | None, count: int, block: float, full: Iterable[str]) -> list[object]:
        passed.append(set(full))
        return []

    shelf.claim = claim  # type: ignore[attr-defined]

    async def claimed(**backlogs: float) -> set[str]:
        consumer.sessions.clear()
        for key, seconds in backlogs.items():
            consumer.sessions[key] = held = FakeSession(False, seconds)  # type: ignore[assignment]
            held.share = Share(key, 3.0 if key == "heavy" else 1.0)  # type: ignore[attr-defined]
        consumer._backlog_checked_at = 0.0
        await consumer._claim(stale=True)
        return passed[-1]

    assert await claimed(a=29.0) == set()
    assert await claimed(a=30.0) == {"a"}
    assert await claimed(a=200.0, b=1.0) == {"a"}
    assert await claimed(a=200.0, b=15.0) == {"a", "b"}
    assert await claimed(a=8.0, heavy=22.4) == {"a"}
    assert await claimed(a=20.0, b=9.0) == set()
