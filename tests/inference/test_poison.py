"""poison.py: crash attribution, strikes, isolation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from asrserver.broker.worker_side import MAX_STRIKES
from asrserver.inference.poison import AUDIO_STEP_TIMEOUT, InFlight, IsolationLock, PoisonTracker


def test_what_is_in_flight_is_written() -> None:
    """Entries of all threads together."""
    written: list[bytes] = []
    in_flight = InFlight(written.append)
    in_flight.hold("engine", ["one 1-0", "two 3-0"])
    in_flight.hold("prepare", ["three 1-0"])
    assert written[-1] == b"one 1-0\ntwo 3-0\nthree 1-0"
    in_flight.hold("engine", [])
    assert written[-1] == b"three 1-0"
    in_flight.hold("prepare", [])
    assert written[-1] == b""


def test_a_thread_without_progress_is_found_and_alone_to_blame() -> None:
    """Steps on audio have seconds, the model's calls as much as the settings say; what makes progress says so."""
    written: list[bytes] = []
    in_flight = InFlight(written.append)
    now = 100.0
    in_flight.find_stuck(300, now)
    in_flight.hold("engine", ["one 1-0"])
    in_flight.hold("prepare-1", ["two 1-0"])
    in_flight.hold("audio", ["three 1-0"])
    now += AUDIO_STEP_TIMEOUT - 1
    in_flight.find_stuck(300, now)
    in_flight.hold("prepare-1", ["two 1-0"])
    assert in_flight.find_stuck(300, now) == []
    now += 2
    assert in_flight.find_stuck(300, now) == ["audio"]
    assert written[-1] == b"three 1-0"
    in_flight.hold("engine", ["four 1-0"])
    assert written[-1] == b"three 1-0"
    in_flight.hold("audio", ["three 2-0"])  # it goes on after all
    assert sorted(written[-1].split(b"\n")) == [b"four 1-0", b"three 2-0", b"two 1-0"]
    in_flight.hold("audio", [])
    in_flight.hold("prepare-1", [])
    now += 299
    assert in_flight.find_stuck(300, now) == []
    now += 2
    assert in_flight.find_stuck(300, now) == ["engine"]
    in_flight.hold("engine", [])
    assert in_flight.find_stuck(300, now) == []


def test_after_the_drain_no_audio_is_to_blame() -> None:
    """A call that is still under way when the worker ends may write no more."""
    written: list[bytes] = []
    in_flight = InFlight(written.append)
    in_flight.hold("engine", ["one 1-0"])
    in_flight.close()
    in_flight.hold("engine", ["one 2-0"])
    assert written == [b"one 1-0", b""]


def test_strikes_of_a_session() -> None:
    fields = {"options": "{}", "strike:9-0": str(MAX_STRIKES - 1), "strike:10-0": str(MAX_STRIKES)}
    poison = PoisonTracker(fields)
    assert [poison.is_suspect(entry) for entry in ("8-0", "9-0", "10-0")] == [False, True, True]
    assert [poison.is_poison(entry) for entry in ("8-0", "9-0", "10-0")] == [False, False, True]
    assert [poison.has_suspect_after(entry) for entry in ("0-1", "9-0", "9-9", "10-0")] == [True, True, True, False]
    assert not PoisonTracker({}).has_suspect_after("0-1")


@pytest.mark.gen_test
async def test_a_suspect_runs_alone_and_its_turn_comes() -> None:
    """It waits for those that run; those that come after it wait for it; another suspect waits for both."""
    lock = IsolationLock()
    running: set[str] = set()
    seen: list[set[str]] = []

    @asynccontextmanager
    async def work(name: str, alone: bool) -> AsyncIterator[None]:
        async with lock.hold(alone):
            running.add(name)
            seen.append(set(running))
            yield
            running.remove(name)

    release = {name: asyncio.Event() for name in ("a", "b", "suspect", "c", "other")}

    async def hold(name: str, alone: bool) -> None:
        async with work(name, alone):
            await release[name].wait()

    tasks = []
    for name, alone in (("a", False), ("b", False), ("suspect", True), ("c", False), ("other", True)):
        tasks.append(asyncio.create_task(hold(name, alone)))
        await asyncio.sleep(0)
    assert running == {"a", "b"}
    for name in ("a", "b", "suspect", "other", "c"):
        release[name].set()
    await asyncio.gather(*tasks)
    assert {"suspect"} in seen
    assert {"other"} in seen
    assert [names for names in seen if names & {"suspect", "other"}] == [{"suspect"}, {"other"}]
    assert seen[-1] == {"c"}


@pytest.mark.gen_test
async def test_a_suspect_that_gives_up_waiting_holds_nobody_up() -> None:
    lock = IsolationLock()
    async with lock.hold(False):
        suspect = asyncio.create_task(_hold(lock, True))
        await asyncio.sleep(0)
        ordinary = asyncio.create_task(_hold(lock, False))
        await asyncio.sleep(0)
        assert not ordinary.done()
        suspect.cancel()
        await asyncio.wait([ordinary], timeout=10)
        assert ordinary.done()
    await _hold(lock, True)


async def _hold(lock: IsolationLock, alone: bool) -> None:
    async with lock.hold(alone):
        pass
