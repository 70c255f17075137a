"""engine.py with the real model: rows that share calls, rows that fail, whose turn it is."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tornado.ioloop

from asrserver.audio.selection import MIXED
from asrserver.errors import ModelError
from asrserver.inference.decoding import Hypothesis, Request
from asrserver.inference.engine import DecodeJob, Engine, Priority
from asrserver.inference.features import log_mel
from asrserver.inference.partials import PartialScheduler
from asrserver.inference.profiles import DEMO
from asrserver.inference.utterances import UtteranceRecogniser
from asrserver.inference.whisper import Whisper
from asrserver.inference.windows import FULL_WINDOW, window_for
from tests.inference.support import AS_SAMPLES, MELS, same_length, samples
from tests.recordings import Utterance
from tests.waiting import until
from tests.worker_harness import recogniser_of

CLOSING, FINAL, FIRST_DRAFT, DRAFT = Priority

pytestmark = pytest.mark.gen_test(timeout=60)


class Watched:
    """The model, the calls that it got, and which rows make a call fail."""

    def __init__(self, model: Whisper) -> None:
        self.model = model
        self.calls: list[list[tuple[Any, Request, float]]] = []
        self.refuse: Callable[[Any], bool] = lambda row: False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def recognise(self, rows: list[tuple[Any, Request, float]]) -> list[Hypothesis]:
        self.calls.append(rows)
        if any(self.refuse(row) for row in rows):
            raise RuntimeError("refused")
        return self.model.recognise(rows)


@pytest.fixture
def watched(model: Whisper) -> Watched:
    return Watched(model)


@pytest.fixture
def held() -> list[tuple[str, list[str]]]:
    """What the engine held, in order."""
    return []


@pytest.fixture
def engine(io_loop: tornado.ioloop.IOLoop, watched: Watched, held: list[tuple[str, list[str]]]) -> Iterator[Engine]:
    """Batches of four."""

    async def make() -> Engine:
        return Engine(watched, 4, lambda thread, labels: held.append((thread, labels)), PartialScheduler())  # type: ignore[arg-type]

    made = io_loop.run_sync(make)
    yield made
    made.stop(10)


def row(utterance: Utterance, frames: int | None = None, request: Request | None = None, **options: Any) -> DecodeJob:
    seconds = len(utterance.pcm) / 32000
    features = log_mel(samples(utterance), frames or window_for(seconds, "fit"), MELS)
    return DecodeJob(features, request or Request("en"), seconds, utterance.name, **options)


async def together(engine: Engine, rows: list[DecodeJob]) -> list[Hypothesis | BaseException]:
    """Queue jobs at once, so that they may share calls."""
    with engine._lock:
        waits = [asyncio.ensure_future(engine.recognise(item)) for item in rows]
        await asyncio.sleep(0)  # each is queued; the thread waits for the lock
    return await asyncio.gather(*waits, return_exceptions=True)


async def test_rows_share_calls_but_not_texts(engine: Engine, watched: Watched, utterances: list[Utterance]) -> None:
    """Nine rows of one length are three calls, each with its own text."""
    said = same_length(utterances, 9)
    found = await together(engine, [row(one) for one in said])
    assert [getattr(hypothesis, "text", hypothesis) for hypothesis in found] == [one.text for one in said]
    assert [len(call) for call in watched.calls] == [4, 4, 1]
    assert engine.last_batch == 1
    assert engine.waiting == 0
    assert engine.speech_seconds == pytest.approx(sum(len(one.pcm) for one in said) / 32000)


@pytest.mark.parametrize(
    ("device", "each", "most"), [("cpu", 0.004, 4), ("cpu", 0.02, 2), ("cpu", 1.0, 1), ("cuda", 1.0, 8)]
)
async def test_a_call_takes_no_more_rows_than_are_done_soon(
    watched: Watched, device: str, each: float, most: int
) -> None:
    """Without a batch size: the limit follows from the device and from the time that a row takes."""
    watched.device = device  # type: ignore[attr-defined]
    engine = Engine(watched, 0, lambda thread, labels: None, PartialScheduler())  # type: ignore[arg-type]
    try:
        engine._row_seconds = each
        assert engine._max_batch() == most
    finally:
        engine.stop(10)


async def test_windows_of_nearly_one_length_share_a_call(
    engine: Engine, watched: Watched, utterances: list[Utterance]
) -> None:
    """If the model gains by it: the shorter one is lengthened."""
    watched.profile = dataclasses.replace(DEMO, shared_window=0.6)  # type: ignore[attr-defined]
    said = same_length(utterances, 3)
    found = await together(engine, [row(said[0], 1000), row(said[1], 600), row(said[2], 500)])
    assert [[features.shape[1] for features, *_ in call] for call in watched.calls] == [[1000, 1000], [500]]
    assert [getattr(hypothesis, "text", hypothesis) for hypothesis in found] == [one.text for one in said]


async def test_finals_share_no_call_with_drafts(engine: Engine, watched: Watched, utterances: list[Utterance]) -> None:
    said = same_length(utterances, 4)
    await together(engine, [row(one, priority=(FINAL, FIRST_DRAFT)[n % 2]) for n, one in enumerate(said)])
    assert [len(call) for call in watched.calls] == [2, 2]


async def test_rows_that_cannot_share_a_call_do_not(
    engine: Engine, watched: Watched, utterances: list[Utterance]
) -> None:
    """Another window or prompt, or a job that runs alone: a call of its own, in queue order."""
    first, second, third, fourth, fifth = same_length(utterances, 5)
    rows = [
        row(first),
        row(second, frames=FULL_WINDOW),
        row(third, request=Request("en", prompt="music")),
        row(fourth, alone=True),
        row(fifth),
    ]
    found = await together(engine, rows)
    assert [type(hypothesis) for hypothesis in found] == [Hypothesis] * 5
    assert [len(call) for call in watched.calls] == [2, 1, 1, 1]
    keys = [{(call[0].shape[1], call[1].prompt) for call in calls} for calls in watched.calls]
    assert all(len(key) == 1 for key in keys)
    assert [getattr(found[place], "text", None) for place in (0, 4)] == [first.text, fifth.text]


async def test_a_row_that_raises_fails_alone(
    engine: Engine, watched: Watched, utterances: list[Utterance], held: list[tuple[str, list[str]]]
) -> None:
    """Its neighbours are retried one by one; labels are held during each call and released after it."""
    said = same_length(utterances, 4)
    rows = [row(one) for one in said]
    watched.refuse = lambda given: given[0] is rows[2].features
    found = await together(engine, rows)
    assert [getattr(hypothesis, "text", None) for hypothesis in found] == [
        said[0].text,
        said[1].text,
        None,
        said[3].text,
    ]
    assert isinstance(found[2], RuntimeError)
    assert [len(call) for call in watched.calls] == [4, 1, 1, 1, 1]
    assert ("engine", [one.name for one in said]) == held[0]
    assert held[-1] == ("engine", [])
    again = await engine.recognise(row(said[0]))
    assert again.text == said[0].text


async def test_a_request_that_the_model_cannot_serve_fails_alone(
    engine: Engine, watched: Watched, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails before it reaches the thread, which goes on."""
    one = utterances[0]
    with pytest.raises(ModelError, match="dance"):
        await engine.recognise(row(one, request=Request("en", task="dance")))
    assert (await engine.recognise(row(one))).text == one.text


async def test_a_cancelled_job_harms_no_other(engine: Engine, utterances: list[Utterance]) -> None:
    first, second = same_length(utterances, 2)
    wait = asyncio.ensure_future(engine.recognise(row(first)))
    await asyncio.sleep(0)
    wait.cancel()
    assert (await engine.recognise(row(second))).text == second.text


async def test_the_time_of_results_that_nobody_takes_is_counted(
    engine: Engine, watched: Watched, utterances: list[Utterance]
) -> None:
    """Of a job that is cancelled while it is run, of one that its owner throws away, and of retries."""
    first, second = same_length(utterances, 2)
    wait = asyncio.ensure_future(engine.recognise(row(first)))
    watched.refuse = lambda row: wait.cancel() and False  # in the engine's thread, when the call begins
    await until(lambda: engine.busy_seconds > 0)
    assert engine.wasted_seconds == pytest.approx(engine.busy_seconds)
    watched.refuse = lambda row: False
    before = engine.wasted_seconds
    found = await engine.recognise(row(second))
    assert 0 < found.took <= engine.busy_seconds
    assert engine.wasted_seconds == before
    engine.count_waste(found.took)
    assert engine.wasted_seconds == before + found.took
    watched.model.wasted_seconds = 0.0

    def retried(row: Any) -> bool:
        watched.model.wasted_seconds += found.took / 1000
        return False

    watched.refuse = retried
    await engine.recognise(row(second))
    assert engine.wasted_seconds == pytest.approx(before + 1.001 * found.took)


async def test_the_age_of_the_queue(engine: Engine, watched: Watched, utterances: list[Utterance]) -> None:
    assert engine.queue_age == 0.0
    with engine._lock:
        wait = asyncio.ensure_future(engine.recognise(row(utterances[0])))
        await asyncio.sleep(0)
        assert engine.waiting == 1
        assert engine.queue_age > 0.0
    await wait
    await until(lambda: engine.busy_seconds > 0.0)


async def test_finals_go_before_drafts_and_sessions_take_turns(
    engine: Engine, watched: Watched, utterances: list[Utterance]
) -> None:
    """Whatever the order of submission."""
    one = utterances[0]
    engine._batch_size = 1
    asked = [
        ("b", DRAFT),
        ("a", FIRST_DRAFT),
        ("a", FINAL),
        ("a", FINAL),
        ("a", FINAL),
        ("c", FINAL),
        ("b", FIRST_DRAFT),
    ]
    rows = [row(one, session=session, priority=priority) for session, priority in asked]
    await together(engine, rows)
    served = [asked[[item.features is call[0][0] for item in rows].index(True)] for call in watched.calls]
    assert served == [
        ("a", FINAL), ("c", FINAL), ("a", FINAL), ("a", FINAL), ("a", FIRST_DRAFT), ("b", FIRST_DRAFT), ("b", DRAFT)
    ]  # fmt: skip


async def test_finals_of_a_finished_session_go_first(
    engine: Engine, watched: Watched, utterances: list[Utterance]
) -> None:
    """Those that wait already, in their order; its drafts stay where they are."""
    one = utterances[0]
    engine._batch_size = 1
    asked = [
        ("a", FINAL),
        ("b", FINAL),
        ("b", FINAL),
        ("b", FIRST_DRAFT),
        ("c", CLOSING),
    ]
    rows = [row(one, session=session, priority=priority) for session, priority in asked]
    with engine._lock:  # held until all jobs wait and one session has ended
        wait = asyncio.gather(*(engine.recognise(item) for item in rows))
        await asyncio.sleep(0)
        engine.expedite("b")
        engine.expedite("nobody")
    await wait
    served = [[item.features is call[0][0] for item in rows].index(True) for call in watched.calls]
    assert served == [4, 1, 2, 0, 3]
    assert [item.priority for item in rows] == [
        FINAL,
        CLOSING,
        CLOSING,
        FIRST_DRAFT,
        CLOSING,
    ]


async def test_a_draft_that_waited_is_brought_up_to_date(
    engine: Engine, watched: Watched, utterances: list[Utterance]
) -> None:
    one = utterances[0]
    old, new = row(one), row(one, frames=FULL_WINDOW)
    old.newest = lambda: (new.features, 9.0)
    await together(engine, [old])
    assert watched.calls[0][0][0] is new.features
    assert engine.last_batch == 1


async def test_a_job_cancelled_while_it_waits_is_not_run(
    engine: Engine, watched: Watched, utterances: list[Utterance]
) -> None:
    rows = [row(one) for one in utterances[:2]]
    with engine._lock:
        waits = [asyncio.ensure_future(engine.recognise(item)) for item in rows]
        await asyncio.sleep(0)
        waits[0].cancel()
        await asyncio.sleep(0)
    assert (await waits[1]).text == utterances[1].text
    assert [call[0][0] is rows[1].features for call in watched.calls] == [True]


async def test_a_short_utterance_does_not_wait_for_a_backlog(engine: Engine, utterances: list[Utterance]) -> None:
    """Only the part of another's long utterance that is under way goes before it."""
    recogniser = recogniser_of(engine, PartialScheduler())
    recognise = UtteranceRecogniser(recogniser, 0.4, MIXED).recognise_pcm
    go, looked = threading.Event(), threading.Event()
    prepared: list[str] = []
    recogniser._hold = lambda thread, labels: prepared.extend(labels)
    long = np.concatenate([samples(one) for one in utterances[:12]])

    async def say(sid: str, audio: np.ndarray[Any, Any]) -> str:
        found = await recognise(audio.tobytes(), AS_SAMPLES, lambda channel: Request(), f"{sid} 1-0", False)
        return " ".join(segment.text for segment in found.segments)

    def hold() -> None:
        looked.set()
        go.wait(30)

    held = asyncio.ensure_future(recogniser._pool.run(hold, "hostile", 24.0))
    backlog = [asyncio.ensure_future(say(f"hostile-{number}", long)) for number in range(4)]
    while not looked.is_set() or len(recogniser._pool._queue) < 4:
        await asyncio.sleep(0)
    short = asyncio.ensure_future(say("s", samples(utterances[0])))
    while len(recogniser._pool._queue) < 5:
        await asyncio.sleep(0)
    go.set()
    assert await short == utterances[0].text
    assert prepared[0] == "s 1-0"
    for one in backlog:
        one.cancel()
    await asyncio.gather(held, *backlog, return_exceptions=True)
    recogniser.close()
