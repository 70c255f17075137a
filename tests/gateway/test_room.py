"""Waiting for room: it costs nothing while nothing changes, and ends at once when there is some."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from asrserver.auth.access import Access
from asrserver.broker.fullness import FULL_FOR_AUDIO, FULL_FOR_SESSIONS
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.config import Settings
from asrserver.gateway import room
from asrserver.gateway.admission import Admission
from asrserver.gateway.backlog import MAX_KEY_BYTES, MAX_SESSION_BYTES, Backlog
from asrserver.gateway.held_bytes import HeldBytes
from asrserver.gateway.load_shedding import LoadShedder
from asrserver.gateway.room import MAX_IN_FLIGHT, RoomGate
from asrserver.gateway.session import Session
from asrserver.protocol.options import Options

PCM = bytes(32_000)  # a second

WAITERS = 500

#: Far below the time after which a wait ends in any case, and far above what a busy machine needs.
SOON = room.MAX_WAIT / 2


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often it wakes up."""

    turns = 0

    def _run_once(self) -> None:
        self.turns += 1
        super()._run_once()  # type: ignore[misc]


def run(test: Callable[[RoomGate, Backlog], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Run a test with a gate whose broker is not connected: nothing of it is asked."""

    async def main() -> None:
        given = Settings(**settings)
        broker, backlog = GatewayBroker("redis://127.0.0.1:1", "g"), Backlog()
        access = Access(given.keys_file, given.api_keys, given.allowed_origins, given.trusted_proxies)
        admission, shedder = Admission(given, access, broker.quota, "g"), LoadShedder(given, access, backlog)
        held = HeldBytes(given.message_memory, shedder.share)
        await test(RoomGate(broker, admission, backlog, shedder, held), backlog)

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.run(main())


def session(gate: RoomGate, backlog: Backlog, sid: str = "s", seconds: int = 0) -> Session:
    """A session that sent so many seconds of audio at once, of which none is recognised."""
    made = Session(sid, "", Options(mode="stream", format="pcm_s16le"), None)
    for index in range(seconds):
        gate._admission.chunk(made, len(PCM), 1.0, float(index))
        backlog.taken(sid, index, PCM, len(PCM), 32_000, True)
    return made


def waiter(gate: RoomGate, of: Session) -> asyncio.Task[bool]:
    wait = gate.for_audio(of)
    assert wait is not None
    return asyncio.ensure_future(wait)


async def stays(waits: list[asyncio.Task[bool]], seconds: float = 0.2) -> int:
    """Assert that nobody gets room in this time, and return how often the loop woke up."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CountingLoop)
    await asyncio.sleep(0)  # all have begun to wait
    await asyncio.sleep(0)
    before = loop.turns
    done, _ = await asyncio.wait(waits, timeout=seconds)
    assert not done
    return loop.turns - before


def test_who_waits_for_redis_costs_nothing_and_wakes_when_it_has_room() -> None:
    """Two causes, and the fullness is known from heartbeats: neither wakes anybody while the other is left."""

    async def test(gate: RoomGate, backlog: Backlog) -> None:
        of = session(gate, backlog)
        assert gate.for_audio(of) is None
        gate.fullness = FULL_FOR_AUDIO
        gate._broker.pipeline.bytes = MAX_IN_FLIGHT
        waits = [waiter(gate, of) for _ in range(WAITERS)]
        assert await stays(waits) <= 2  # of which the end of the wait is one
        gate.fullness = 0.5
        assert await stays(waits, 0.01) <= 2
        gate._broker.pipeline.bytes = MAX_IN_FLIGHT - 1
        gate.fullness = FULL_FOR_AUDIO
        gate._broker.pipeline.on_replies()
        assert await stays(waits, 0.01) <= 2
        gate.fullness = FULL_FOR_AUDIO - 0.01
        assert await asyncio.wait_for(asyncio.gather(*waits), SOON) == [True] * WAITERS
        assert gate.for_audio(of) is None

    run(test)


def test_replies_make_room() -> None:
    async def test(gate: RoomGate, backlog: Backlog) -> None:
        gate._broker.pipeline.bytes = MAX_IN_FLIGHT
        waits = [waiter(gate, session(gate, backlog)) for _ in range(WAITERS)]
        await stays(waits, 0.01)
        gate._broker.pipeline.bytes -= 1
        gate._broker.pipeline.on_replies()
        assert await asyncio.wait_for(asyncio.gather(*waits), SOON) == [True] * WAITERS

    run(test)


def test_who_is_ahead_waits_for_its_own_results() -> None:
    """Those of another session, and its own that are not enough, let nobody read on."""

    async def test(gate: RoomGate, backlog: Backlog) -> None:
        one, other = (session(gate, backlog, sid, 60) for sid in ("one", "other"))
        waits = [waiter(gate, one), waiter(gate, other)]
        assert await stays(waits) <= 2
        backlog.progressed("one", 20, 21.0)
        await stays(waits, 0.01)
        backlog.progressed("one", 58, 59.0)
        assert await asyncio.wait_for(waits[0], SOON)
        await stays(waits[1:], 0.01)
        backlog.over("other")  # another gateway has it now, say
        assert await asyncio.wait_for(waits[1], SOON)
        assert not gate._sessions

    run(test, max_ahead=5.0, max_speed=0.0)


def test_who_is_too_fast_waits_for_the_clock_alone() -> None:
    async def test(gate: RoomGate, backlog: Backlog) -> None:
        loop = asyncio.get_running_loop()
        of = session(gate, backlog, seconds=2)
        assert 0.05 < gate._admission.seconds_ahead(of, backlog) <= 0.1
        began = loop.time()
        assert await asyncio.wait_for(waiter(gate, of), 5)
        assert loop.time() - began > 0.04
        assert gate._admission.seconds_ahead(of, backlog) == 0
        assert not gate._sessions

    run(test, max_ahead=0.0, max_speed=10.0, speed_burst=1.0)


def test_a_session_that_takes_no_more_waits_no_longer() -> None:
    """Its connection may have others."""

    async def test(gate: RoomGate, backlog: Backlog) -> None:
        of = session(gate, backlog, seconds=60)
        wait = waiter(gate, of)
        await stays([wait], 0.01)
        of.state = "finishing"
        backlog.closed("s")
        assert await asyncio.wait_for(wait, SOON)

    run(test, max_ahead=5.0, max_speed=0.0)


def test_a_wait_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_WAIT", 0.05)

    async def test(gate: RoomGate, backlog: Backlog) -> None:
        gate.fullness = 0.95
        assert await asyncio.wait_for(waiter(gate, session(gate, backlog)), 5) is False
        assert await asyncio.wait_for(gate.for_session(""), 5) is False
        gate.fullness = 0.0
        assert await asyncio.wait_for(waiter(gate, session(gate, backlog, seconds=60)), 5) is False
        assert not gate._sessions

    run(test, max_ahead=5.0, max_speed=0.0)


def test_new_sessions_wait_for_more_room_than_audio() -> None:
    async def test(gate: RoomGate, backlog: Backlog) -> None:
        gate.fullness = FULL_FOR_SESSIONS
        assert gate.for_audio(session(gate, backlog)) is None
        waits = [asyncio.ensure_future(gate.for_session("")) for _ in range(WAITERS)]
        assert await stays(waits) <= 2
        gate.fullness = FULL_FOR_SESSIONS - 0.01
        assert await asyncio.wait_for(asyncio.gather(*waits), SOON) == [True] * WAITERS

    run(test)


def test_who_has_sent_many_bytes_waits_for_their_results() -> None:
    """However few seconds they are: of a session, and of all sessions of a key together."""
    chunk = 40 << 20

    def taken(backlog: Backlog, made: Session, index: int) -> None:
        backlog.taken(made.id, index, b"ID3\4" + bytes(100), chunk, 32_000, True, made.owner)

    async def test(gate: RoomGate, backlog: Backlog) -> None:
        many = [Session(f"s{n}", "key", Options(mode="stream"), None) for n in range(8)]
        for one in many:
            taken(backlog, one, 0)
        assert 8 * chunk > MAX_KEY_BYTES
        held = [waiter(gate, one) for one in many]
        await stays(held, 0.01)
        for one in many[1:]:
            backlog.progressed(one.id, 0, 0.0)
        assert all(await asyncio.wait_for(asyncio.gather(*held), SOON))  # within HOLD_SECONDS: others made room
        assert gate.for_audio(many[0]) is None
        taken(backlog, many[0], 1)
        assert 2 * chunk > MAX_SESSION_BYTES
        waits = [waiter(gate, many[0])]
        assert gate.for_audio(many[1]) is None
        await stays(waits, 0.01)
        backlog.progressed(many[0].id, 1, 0.0)
        assert await asyncio.wait_for(waits[0], 1)
        taken(backlog, many[0], 2)
        backlog.over(many[0].id)
        assert not backlog._bytes

    run(test, max_speed=0.0)
