"""feed.py and listener.py: many live streams are read and heard together, and nobody waits long for that."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asrserver.broker.replies import Entry
from asrserver.errors import AudioError
from asrserver.inference import silero
from asrserver.inference.audio_thread import TOGETHER, Listener, Work
from asrserver.inference.consumer import EACH, GROUPS, ON_ITS_WAY, POLL, WIDEST, Feed
from asrserver.inference.partials import Pace
from asrserver.inference.silero import Stretch
from tests.servers import Servers
from tests.waiting import until

pytestmark = pytest.mark.gen_test


class Stub:
    """A session, as far as the feed's reading knows it."""

    hungry, unread, largest, over = True, 0, 0, False

    def __init__(self, live: bool, backlog: float = 0.0, number: int = 0) -> None:
        self.live = live
        self.backlog = backlog
        self.number = number
        self.cursor = "0-1"
        self.hurried = False

    def hurry(self) -> None:
        self.hurried = True

    def feed(self, entries: list[Entry]) -> None:
        self.cursor = entries[-1].id


class Shelf:
    """A broker that has something for everybody, and knows who was asked for."""

    name = "w"

    def __init__(self) -> None:
        self.asked: list[set[str]] = []

    async def read_audio(self, cursors: Mapping[str, str], count: int) -> dict[str, list[Entry]]:
        if cursors:
            self.asked.append(set(cursors))
        return {sid: [Entry(f"{int(cursor[0]) + 1}-0", b"", None)] for sid, cursor in cursors.items()}


def feed_of(live: int, others: int = 0, backlog: float = 0.0) -> tuple[Feed, Shelf]:
    shelf = Shelf()
    recogniser = SimpleNamespace(engine=SimpleNamespace(pace=Pace()))
    feed = Feed(shelf, recogniser, url="redis://", lease=10, max_backlog=30)  # type: ignore[arg-type]
    feed.sessions.update({f"live{n}": Stub(True, backlog, n) for n in range(live)})  # type: ignore[misc]
    feed.sessions.update({f"file{n}": Stub(False, backlog) for n in range(others)})  # type: ignore[misc]
    return feed, shelf


async def test_the_more_streams_the_coarser_they_are_read() -> None:
    """A few as often as ever, many no less than WIDEST apart; the pace knows of it."""
    grains = []
    for streams in (0, 5, 50, 500):
        feed, _ = feed_of(streams)
        feed._whose_turn(100.0)
        grains.append(feed.recogniser.engine.pace.grain)
    assert grains[:2] == [POLL, POLL]
    assert POLL < grains[2] < grains[3] == WIDEST


async def test_files_do_not_wait_for_streams() -> None:
    feed, shelf = feed_of(live=40, others=1)
    every = EACH * 40
    await feed._read(100.0)
    assert len(shelf.asked[-1]) == 41
    assert feed._next(100.0) == 100.0 + POLL
    await feed._read(100.0 + POLL)
    assert shelf.asked[-1] == {"file0"}
    await feed._read(100.0 + every)
    assert len(shelf.asked[-1]) == 41
    del feed.sessions["file0"]
    assert feed._next(100.0 + every) == pytest.approx(100.0 + 2 * every)


async def test_many_streams_are_read_in_groups() -> None:
    """One after another, of much the same size; each stream once in the time from one read of it to the next."""
    feed, shelf = feed_of(live=500)
    now = 100.0
    for _ in range(2 * GROUPS):
        await feed._read(now)
        now = feed._next(now)
    assert now == pytest.approx(100.0 + 2 * WIDEST)
    assert {len(asked) for asked in shelf.asked} == {500 // GROUPS, 500 // GROUPS + 1}
    assert Counter(sid for asked in shelf.asked for sid in asked) == dict.fromkeys(feed.sessions, 2)


async def test_who_has_ended_does_not_wait_for_the_next_read_of_all() -> None:
    feed, shelf = feed_of(live=40)
    await feed._read(100.0)
    feed.on_end("live7")
    feed.on_end("another worker's")
    await feed._read(100.0 + POLL)
    assert shelf.asked[1:] == [{"live7"}]
    assert [sid for sid, session in feed.sessions.items() if session.hurried] == ["live7"]  # type: ignore[attr-defined]
    await feed._read(100.0 + 2 * POLL)
    assert len(shelf.asked) == 2
    now = asyncio.get_running_loop().time()
    feed._live_at = now + 100.0
    rest = asyncio.ensure_future(feed._rest(now))
    await asyncio.sleep(0)
    feed.on_end("live8")
    assert await rest == now + POLL


async def test_who_is_behind_is_read_at_the_next_look() -> None:
    """A stream of small entries, or one taken over, brings more in the time of a group than one read takes."""
    feed, shelf = feed_of(live=40)
    full = {"live3"}
    read = shelf.read_audio

    async def many(cursors: Mapping[str, str], count: int) -> dict[str, list[Entry]]:
        found = await read(cursors, count)
        return {sid: entries * (count if sid in full else 1) for sid, entries in found.items()}

    shelf.read_audio = many  # type: ignore[method-assign]
    await feed._read(100.0)
    await feed._read(100.0 + POLL)
    full.clear()
    await feed._read(100.0 + 2 * POLL)
    await feed._read(100.0 + 3 * POLL)
    assert shelf.asked[1:] == [{"live3"}, {"live3"}]


async def test_what_is_on_its_way_is_no_backlog() -> None:
    """Hundreds of streams that are served in time leave room for more; one that is behind takes it."""
    feed, _ = feed_of(live=500, backlog=ON_ITS_WAY / 2)
    assert feed.backlog == 0.0
    for late in list(feed.sessions.values())[:250]:
        late.backlog = 3.0  # type: ignore[misc]
    assert feed.backlog == pytest.approx(250 * (3.0 + ON_ITS_WAY / 2) - 500 * ON_ITS_WAY)
    feed, _ = feed_of(live=0, others=4, backlog=ON_ITS_WAY / 2)
    assert feed.backlog == 4 * ON_ITS_WAY / 2


# -- the listener


def listen(frames: int, told: list[Any]) -> Work[float]:
    stretch = Stretch(np.ones((frames, silero.CONTEXT + silero.FRAME), np.float32), None)
    yield [stretch]
    told.append(threading.current_thread().name)
    return float(stretch.probabilities.sum())


async def test_what_is_asked_in_one_turn_is_heard_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    held: list[list[str]] = []
    hear = silero.hear

    def counting(stretches: list[Stretch]) -> None:
        calls.append(len(stretches))
        hear(stretches)

    monkeypatch.setattr(silero, "hear", counting)
    listener = Listener(lambda place, labels: held.append(labels), Pace())
    told: list[Any] = []
    count = TOGETHER + 5
    found = await asyncio.gather(*(listener.run([f"s{n} 1-0"], listen(n % 3 + 1, told)) for n in range(count)))
    alone = [await listener.run(["s 1-0"], listen(n + 1, told)) for n in range(3)]
    assert calls == [TOGETHER, 5, 1, 1, 1]
    np.testing.assert_allclose(found, [alone[n % 3] for n in range(count)], rtol=1e-4)
    assert set(told) == {"live"}
    assert [f"s{n} 1-0" for n in range(TOGETHER)] in held  # while the network hears them
    assert held[:2] == [["s0 1-0"], ["s1 1-0"]]  # alone, while its bytes are decoded
    assert held[-1] == []
    listener.close()
    listener._thread.join()


async def test_who_waits_for_the_last_word_is_heard_first() -> None:
    """However many were asked for before, in the same turn."""
    order: list[int] = []

    def work(number: int) -> Work[None]:
        order.append(number)
        yield []

    listener = Listener(lambda place, labels: None, Pace())
    count = 2 * TOGETHER
    await asyncio.gather(*(listener.run([], work(number), first=number == count) for number in range(count + 1)))
    assert order == [count, *range(count)]
    listener.close()
    listener._thread.join()


async def test_who_ends_while_its_audio_waits_to_be_heard_goes_before_others() -> None:
    """What was asked for in this turn of the loop, and what waits for the thread."""
    order: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def first() -> Work[None]:
        begun.set()
        go_on.wait(10)
        yield []

    def work(session: str) -> Work[None]:
        order.append(session)
        yield []

    listener = Listener(lambda place, labels: None, Pace())
    count = 2 * TOGETHER
    waits = [asyncio.ensure_future(listener.run(["busy 1-0"], first()))]
    await until(begun.is_set)
    waits += [asyncio.ensure_future(listener.run([f"s{n} 1-0"], work(f"s{n}"))) for n in range(count)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # they wait for the thread
    listener.hurry(f"s{count - 1}")
    waits += [asyncio.ensure_future(listener.run([f"t{n} 1-0"], work(f"t{n}"))) for n in range(2)]
    await asyncio.sleep(0)
    listener.hurry("t1")
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*waits)
    assert order == [f"s{count - 1}", "t1", *(f"s{n}" for n in range(count - 1)), "t0"]
    listener.close()
    listener._thread.join()


async def test_one_that_fails_fails_alone() -> None:
    listener = Listener(lambda place, labels: None, Pace())

    def bad(late: bool) -> Work[float]:
        if late:
            yield []
        raise AudioError("undecodable_audio", "bad")

    waits = [listener.run([], work) for work in (listen(1, []), bad(False), listen(1, []), bad(True), listen(1, []))]
    dropped = asyncio.ensure_future(listener.run([], listen(1, [])))
    found = asyncio.gather(*waits, return_exceptions=True)
    await asyncio.sleep(0)
    dropped.cancel()
    one, two, three, four, five = await found
    assert one == pytest.approx(three, rel=1e-3) == pytest.approx(five, rel=1e-3)
    assert isinstance(two, AudioError)
    assert isinstance(four, AudioError)
    listener.close()


@pytest.mark.gen_test
async def test_sessions_are_lost_while_one_is_to_be_handed_back(servers: Servers) -> None:
    """A worker woken from a long stop: behind, it asks for others' room, and meanwhile loses all that it had."""

    class Behind:
        backlog = 100.0
        live = False

    class Away:
        name = "sleeper"

        async def heartbeats(self, _kind: str) -> list[dict[str, object]]:
            feed.sessions.clear()
            return [{"name": "other", "backlog": 0.0}]

    feed = Feed(Away(), None, url=servers.redis.url, lease=10, max_backlog=30)  # type: ignore[arg-type]
    feed.sessions = {"one": Behind(), "two": Behind()}  # type: ignore[dict-item]
    await feed.hand_back()
