"""audio_thread.py: live streams share the calls of the network, and urgent work goes first."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

from asrserver.errors import AudioError
from asrserver.inference import silero
from asrserver.inference.audio_thread import MAX_BATCH, AudioThread, AudioWork
from asrserver.inference.fair import Shares
from asrserver.inference.partials import PartialScheduler
from asrserver.inference.silero import FrameRun
from asrserver.shares import Share
from tests.waiting import until

pytestmark = pytest.mark.gen_test


def listen(frames: int, told: list[Any]) -> AudioWork[float]:
    run = FrameRun(np.ones((frames, silero.FRAME_CONTEXT + silero.FRAME), np.float32), None)
    yield [run]
    told.append(threading.current_thread().name)
    return float(run.probabilities.sum())


async def test_work_of_one_loop_iteration_shares_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    held: list[list[str]] = []
    score = silero.score

    def counting(runs: list[FrameRun]) -> None:
        calls.append(len(runs))
        score(runs)

    monkeypatch.setattr(silero, "score", counting)
    audio_thread = AudioThread(lambda thread, labels: held.append(labels), PartialScheduler())
    told: list[Any] = []
    count = MAX_BATCH + 5
    found = await asyncio.gather(*(audio_thread.run([f"s{n} 1-0"], listen(n % 3 + 1, told)) for n in range(count)))
    alone = [await audio_thread.run(["s 1-0"], listen(n + 1, told)) for n in range(3)]
    assert calls == [MAX_BATCH, 5, 1, 1, 1]
    np.testing.assert_allclose(found, [alone[n % 3] for n in range(count)], rtol=1e-4)
    assert set(told) == {"audio"}
    assert [f"s{n} 1-0" for n in range(MAX_BATCH)] in held  # while the network scores their frames
    assert held[:2] == [["s0 1-0"], ["s1 1-0"]]  # alone, while one's bytes are decoded
    assert held[-1] == []
    audio_thread.close(None)


async def test_closing_waits_for_the_step_under_way() -> None:
    """Python must not end while the thread runs: what it has in hand may be native, or the last that has the model."""
    begun, go_on = threading.Event(), threading.Event()

    def work() -> AudioWork[None]:
        begun.set()
        go_on.wait()
        yield []

    audio_thread = AudioThread(lambda thread, labels: None, PartialScheduler())
    running = asyncio.ensure_future(audio_thread.run([], work()))
    await until(begun.is_set)
    closing = asyncio.ensure_future(asyncio.to_thread(audio_thread.close, None))
    assert not (await asyncio.wait([closing], timeout=0.1))[0]
    go_on.set()
    await closing
    assert not audio_thread._thread.is_alive()
    running.cancel()


async def test_work_that_is_done_is_forgotten() -> None:
    """While nothing waits the thread has no stream in hand, nor what came of it."""

    class Stream:
        def work(self) -> AudioWork[Stream]:
            yield []
            return self

    audio_thread, stream = AudioThread(lambda thread, labels: None, PartialScheduler()), Stream()
    forgotten = weakref.ref(stream)
    await audio_thread.run([], stream.work())
    del stream
    await until(lambda: forgotten() is None, what="the stream is freed")
    audio_thread.close(None)


async def test_urgent_work_runs_first() -> None:
    """However much other work was submitted before it."""
    order: list[int] = []

    def work(number: int) -> AudioWork[None]:
        order.append(number)
        yield []

    audio_thread = AudioThread(lambda thread, labels: None, PartialScheduler())
    count = 2 * MAX_BATCH
    await asyncio.gather(*(audio_thread.run([], work(number), urgent=number == count) for number in range(count + 1)))
    assert order == [count, *range(count)]
    audio_thread.close(None)


async def test_waiting_work_of_a_finished_session_is_moved_forward() -> None:
    """Both work submitted in this iteration of the loop and work that waits for the thread."""
    order: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def first() -> AudioWork[None]:
        begun.set()
        go_on.wait(10)
        yield []

    def work(session: str) -> AudioWork[None]:
        order.append(session)
        yield []

    audio_thread = AudioThread(lambda thread, labels: None, PartialScheduler())
    count = 2 * MAX_BATCH
    waits = [asyncio.ensure_future(audio_thread.run(["busy 1-0"], first()))]
    await until(begun.is_set)
    waits += [asyncio.ensure_future(audio_thread.run([f"s{n} 1-0"], work(f"s{n}"))) for n in range(count)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # they wait for the thread
    audio_thread.expedite(f"s{count - 1}")
    waits += [asyncio.ensure_future(audio_thread.run([f"t{n} 1-0"], work(f"t{n}"))) for n in range(2)]
    await asyncio.sleep(0)
    audio_thread.expedite("t1")
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*waits)
    assert order == [f"s{count - 1}", "t1", *(f"s{n}" for n in range(count - 1)), "t0"]
    audio_thread.close(None)


async def test_hours_of_one_key_do_not_keep_another_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of its streams have begun a long work, another key's work is done within the next steps."""
    calls: list[int] = []
    begun = threading.Event()
    shares = Shares()

    def counting(runs: list[FrameRun]) -> None:
        calls.append(len(runs))
        begun.set()
        go_on.wait(10)

    def hours(steps: int) -> AudioWork[int]:
        for _ in range(steps):
            yield [FrameRun(np.ones((1, silero.FRAME_CONTEXT + silero.FRAME), np.float32), None)]
        return len(calls)

    go_on = threading.Event()
    monkeypatch.setattr(silero, "score", counting)
    audio_thread = AudioThread(lambda thread, labels: None, PartialScheduler(), shares)
    for number in range(3 * MAX_BATCH):
        shares.enter(f"a{number}", Share("a", 1.0))
    shares.enter("b", Share("b", 1.0))
    greedy = [asyncio.ensure_future(audio_thread.run([f"a{n} 1-0"], hours(30))) for n in range(3 * MAX_BATCH)]
    await until(begun.is_set)
    other = asyncio.ensure_future(audio_thread.run(["b 1-0"], hours(2)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it waits for the thread
    go_on.set()
    assert await other <= 4
    assert min(await asyncio.gather(*greedy)) >= 30
    audio_thread.close(None)


async def test_who_is_done_waits_for_few_steps_of_those_that_cost_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen streams of packets without audio take a turn of 20 ms each: another's samples do not wait for all."""
    begun, go_on, heard, over = threading.Event(), threading.Event(), threading.Event(), threading.Event()
    now, after = [0.0], [0]
    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    shares = Shares()
    audio_thread = AudioThread(lambda thread, labels: None, PartialScheduler(), shares)

    def costly() -> AudioWork[None]:
        while not over.is_set():
            begun.set()
            go_on.wait(10)
            now[0] += 0.02
            after[0] += heard.is_set()
            if after[0] > 3:
                over.wait(10)
            yield []

    def short() -> AudioWork[None]:
        heard.set()
        return
        yield []

    count = MAX_BATCH - 1
    for number in range(count):
        shares.enter(f"a{number}", Share("a", 1.0))
    shares.enter("b", Share("b", 1.0))
    attack = [asyncio.ensure_future(audio_thread.run([f"a{number} 1-0"], costly())) for number in range(count)]
    await until(begun.is_set)
    other = asyncio.ensure_future(audio_thread.run(["b 1-0"], short()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it waits for the thread
    go_on.set()
    try:
        await asyncio.wait_for(other, 3)
    finally:
        over.set()
        await asyncio.gather(*attack)
        audio_thread.close(None)


async def test_work_that_fails_fails_alone() -> None:
    audio_thread = AudioThread(lambda thread, labels: None, PartialScheduler())

    def bad(late: bool) -> AudioWork[float]:
        if late:
            yield []
        raise AudioError("undecodable_audio", "bad")

    waits = [
        audio_thread.run([], work) for work in (listen(1, []), bad(False), listen(1, []), bad(True), listen(1, []))
    ]
    dropped = asyncio.ensure_future(audio_thread.run([], listen(1, [])))
    found = asyncio.gather(*waits, return_exceptions=True)
    await asyncio.sleep(0)
    dropped.cancel()
    one, two, three, four, five = await found
    assert one == pytest.approx(three, rel=1e-3) == pytest.approx(five, rel=1e-3)
    assert isinstance(two, AudioError)
    assert isinstance(four, AudioError)
    audio_thread.close(None)
