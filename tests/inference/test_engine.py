"""engine.py and whisper.py with the real model: rows that share calls, rows that fail, windows that are tried again."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ctranslate2
import numpy as np
import pytest
import tornado.ioloop

from asrserver.audio.files import RATE, Pcm, Samples
from asrserver.errors import ModelError
from asrserver.inference import whisper
from asrserver.inference.engine import FINAL, FIRST, LAST, REFRESH, Engine, Row
from asrserver.inference.fair import FairQueue
from asrserver.inference.features import log_mel
from asrserver.inference.partials import LATE, LEAST, SHARE, SPAN, Pace
from asrserver.inference.vad import segments
from asrserver.inference.whisper import (
    FULL_WINDOW,
    TOKENS_PER_SECOND,
    Hypothesis,
    Request,
    Whisper,
    length_limit,
    window_for,
)
from asrserver.inference.worker import Hands
from tests.conftest import Utterance, until
from tests.worker_harness import recogniser_of

#: Mel bands of the model in the package.
MELS = 64

pytestmark = pytest.mark.gen_test(timeout=60)


class Watched:
    """The model, and the calls that it got; `fail` is a label of features it refuses."""

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
    """What was said to be in hand."""
    return []


@pytest.fixture
def engine(io_loop: tornado.ioloop.IOLoop, watched: Watched, held: list[tuple[str, list[str]]]) -> Iterator[Engine]:
    """Batches of four."""

    async def make() -> Engine:
        return Engine(watched, 4, lambda place, labels: held.append((place, labels)))  # type: ignore[arg-type]

    made = io_loop.run_sync(make)
    yield made
    made.stop(10)


def samples(utterance: Utterance) -> Samples:
    return Pcm("pcm_s16le", RATE, 1).feed(utterance.pcm)


def row(utterance: Utterance, frames: int | None = None, request: Request | None = None, **options: Any) -> Row:
    seconds = len(utterance.pcm) / 32000
    features = log_mel(samples(utterance), frames or window_for(seconds, "fit"), MELS)
    return Row(features, request or Request("en"), seconds, utterance.name, **options)


async def together(engine: Engine, rows: list[Row]) -> list[Hypothesis | BaseException]:
    """Queue rows in one go, so that they may share calls."""
    with engine._lock:
        waits = [asyncio.ensure_future(engine.recognise(item)) for item in rows]
        await asyncio.sleep(0)  # each is queued; the thread waits for the lock
    return await asyncio.gather(*waits, return_exceptions=True)


def same_length(utterances: list[Utterance], count: int) -> list[Utterance]:
    """So many utterances whose window is the same."""
    windows = itertools.groupby(
        sorted(utterances, key=lambda one: len(one.pcm)), lambda one: window_for(len(one.pcm) / 32000, "fit")
    )
    return next(found for _, group in windows if len(found := list(group)) >= count)[:count]


async def test_rows_share_calls_and_none_another_s_text(
    engine: Engine, watched: Watched, utterances: list[Utterance]
) -> None:
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
async def test_a_call_takes_no_more_rows_than_are_soon_done(
    watched: Watched, device: str, each: float, most: int
) -> None:
    """Where nothing is set, of a model that takes so long for one."""
    watched.device = device  # type: ignore[attr-defined]
    engine = Engine(watched, 0, lambda place, labels: None)  # type: ignore[arg-type]
    try:
        engine._each = each
        assert engine._most() == most
    finally:
        engine.stop(10)


async def test_what_ends_a_segment_shares_no_call_with_a_guess(
    engine: Engine, watched: Watched, utterances: list[Utterance]
) -> None:
    said = same_length(utterances, 4)
    await together(engine, [row(one, priority=(FINAL, FIRST)[n % 2]) for n, one in enumerate(said)])
    assert [len(call) for call in watched.calls] == [2, 2]


async def test_rows_that_may_not_share_do_not(engine: Engine, watched: Watched, utterances: list[Utterance]) -> None:
    """Another window, prompt or suspicion: a call of its own; the order is the queue's."""
    first, second, third, fourth, fifth = same_length(utterances, 5)
    rows = [
        row(first),
        row(second, frames=FULL_WINDOW),
        row(third, request=Request("en", prompt="music")),
        row(fourth, alone=True),
        row(fifth),
    ]
    found = await together(engine, rows)
    assert all(isinstance(hypothesis, Hypothesis) for hypothesis in found)
    assert [len(call) for call in watched.calls] == [2, 1, 1, 1]
    keys = [{(call[0].shape[1], call[1].prompt) for call in calls} for calls in watched.calls]
    assert all(len(key) == 1 for key in keys)
    assert found[0].text == first.text
    assert found[4].text == fifth.text


async def test_a_row_that_raises_fails_alone(
    engine: Engine, watched: Watched, utterances: list[Utterance], held: list[tuple[str, list[str]]]
) -> None:
    """Its neighbours are tried singly; what is in hand is told before each call, and let go after."""
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


async def test_a_request_that_the_model_has_no_words_for_fails_alone(
    engine: Engine, watched: Watched, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it comes to the thread, which goes on."""
    one = utterances[0]
    with pytest.raises(ModelError, match="dance"):
        await engine.recognise(row(one, request=Request("en", task="dance")))
    assert (await engine.recognise(row(one))).text == one.text


async def test_the_row_of_a_dropped_session_harms_nobody(engine: Engine, utterances: list[Utterance]) -> None:
    first, second = same_length(utterances, 2)
    wait = asyncio.ensure_future(engine.recognise(row(first)))
    await asyncio.sleep(0)
    wait.cancel()
    assert (await engine.recognise(row(second))).text == second.text


async def test_the_age_of_the_queue(engine: Engine, watched: Watched, utterances: list[Utterance]) -> None:
    assert engine.queue_age == 0.0
    with engine._lock:
        wait = asyncio.ensure_future(engine.recognise(row(utterances[0])))
        await asyncio.sleep(0)
        assert engine.waiting == 1
        assert engine.queue_age > 0.0
    await wait
    await until(lambda: engine.busy_seconds > 0.0)


async def test_finals_go_before_guesses_and_nobody_is_served_twice_first(
    engine: Engine, watched: Watched, utterances: list[Utterance]
) -> None:
    """Whatever the order of asking."""
    one = utterances[0]
    engine._batch_size = 1
    asked = [("b", REFRESH), ("a", FIRST), ("a", FINAL), ("a", FINAL), ("a", FINAL), ("c", FINAL), ("b", FIRST)]
    rows = [row(one, session=session, priority=priority) for session, priority in asked]
    await together(engine, rows)
    served = [asked[[item.features is call[0][0] for item in rows].index(True)] for call in watched.calls]
    assert served == [
        ("a", FINAL), ("c", FINAL), ("a", FINAL), ("a", FINAL), ("a", FIRST), ("b", FIRST), ("b", REFRESH)
    ]  # fmt: skip


async def test_who_has_finished_is_served_first(engine: Engine, watched: Watched, utterances: list[Utterance]) -> None:
    """With what waits already, and in its order; not with guesses."""
    one = utterances[0]
    engine._batch_size = 1
    asked = [("a", FINAL), ("b", FINAL), ("b", FINAL), ("b", FIRST), ("c", LAST)]
    rows = [row(one, session=session, priority=priority) for session, priority in asked]
    with engine._lock:  # held until all of them wait, and one session has ended
        wait = asyncio.gather(*(engine.recognise(item) for item in rows))
        await asyncio.sleep(0)
        engine.hurry("b")
        engine.hurry("nobody")
    await wait
    served = [[item.features is call[0][0] for item in rows].index(True) for call in watched.calls]
    assert served == [4, 1, 2, 0, 3]
    assert [item.priority for item in rows] == [FINAL, LAST, LAST, FIRST, LAST]


async def test_a_guess_that_waited_is_of_what_is_newest(
    engine: Engine, watched: Watched, utterances: list[Utterance]
) -> None:
    one = utterances[0]
    old, new = row(one), row(one, frames=FULL_WINDOW)
    old.newest = lambda: (new.features, 9.0)
    await together(engine, [old])
    assert watched.calls[0][0][0] is new.features
    assert engine.last_batch == 1


async def test_who_gave_up_waiting_is_not_served(engine: Engine, watched: Watched, utterances: list[Utterance]) -> None:
    rows = [row(one) for one in utterances[:2]]
    with engine._lock:
        waits = [asyncio.ensure_future(engine.recognise(item)) for item in rows]
        await asyncio.sleep(0)
        waits[0].cancel()
        await asyncio.sleep(0)
    assert (await waits[1]).text == utterances[1].text
    assert [call[0][0] is rows[1].features for call in watched.calls] == [True]


def test_rounds_of_a_fair_queue() -> None:
    queue = FairQueue[str]()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item, 0, item[0])
    assert queue.take(1, lambda one, other: False) == ["a1"]
    queue.put("d1", 0, "d")
    queue.put("a4", 0, "a")
    assert queue.take(3, lambda one, other: True) == ["b1", "c1", "d1"]
    assert queue.take(9, lambda one, other: other[0] == "a") == ["a2", "a3", "a4"]
    assert list(queue) == ["b2"]
    for n in range(5000):  # owners that came and went are forgotten
        queue.put("x", 0, f"owner-{n}")
        queue.take(1, lambda one, other: False)
    assert len(queue._last) <= 1001


def test_a_fair_queue_of_items_that_cost_more_and_less() -> None:
    """Who asks for little waits for what is being served, and not for what others want; who asks for much is served."""
    queue = FairQueue[str]()

    def take() -> str:
        return queue.take(1, lambda one, other: False)[0]

    for owner in "abc":
        queue.put(owner, 0, owner, 24.0)
    assert take() == "a"
    for number in range(40):
        queue.put(f"d{number}", 0, "d", 1.0)
    taken = [take() for _ in range(42)]
    assert taken[:23] == [f"d{number}" for number in range(23)]
    assert sorted(taken[23:26]) == ["b", "c", "d23"]
    assert taken[26:] == [f"d{number}" for number in range(24, 40)]


async def test_a_short_utterance_does_not_wait_for_a_backlog(engine: Engine, utterances: list[Utterance]) -> None:
    """Of others' long ones only what is in hand comes before it, be it a part of one."""
    recogniser = recogniser_of(engine)
    go, looked = threading.Event(), threading.Event()
    prepared: list[str] = []
    recogniser._hold = lambda place, labels: prepared.extend(labels)
    long = np.concatenate([samples(one) for one in utterances[:12]])

    async def say(sid: str, audio: np.ndarray[Any, Any]) -> str:
        found = await recogniser.samples(audio, Request(), f"{sid} 1-0", False, 0.4)
        return " ".join(segment.text for segment in found)

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


def test_guesses_thin_out_before_finals_slow_down() -> None:
    """The interval is as asked until all growing segments together would take too much of the engine's time."""
    pace = Pace()
    assert pace.interval(0.5) == 0.5
    pace.growing = {str(n) for n in range(60)}
    for _ in range(100):
        pace.spent(0.01, 1, 0.01)
    assert pace.interval(0.5) == pytest.approx(60 * 0.01 / SHARE)
    for _ in range(40):
        pace.spent(0.0, 0, SPAN * SHARE / 80)
    assert pace.interval(0.5) == pytest.approx(60 * 0.01 / (SHARE / 2), rel=0.01)
    for to_be in ("read", "heard"):
        for _ in range(200):
            pace.waited(to_be, 1.0)
        assert pace.interval(0.5) == pytest.approx(LATE, rel=0.01)
        for _ in range(200):
            pace.waited(to_be, 0.0)
    pace.spent(0.0, 0, 0.01, 41 * 0.5)  # the 41 finals of the last seconds waited half a second on average
    assert pace.interval(0.5) == pytest.approx(LATE * 0.5, rel=0.01)
    for _ in range(100):
        pace.spent(0.0, 0, SPAN)
    assert pace.interval(0.5) == pytest.approx(60 * 0.01 / LEAST)


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([1] * 9, False),
        ([1] * 10, True),
        ([1, 2] * 4, False),
        ([9, *[1, 2] * 5, 7], True),
        ([1, 2, 3, 4, 5, 6] * 5, True),
        (list(range(50)), False),
        ([], False),
    ],
)
def test_a_phrase_said_over_and_over_is_a_loop(tokens: list[int], loops: bool) -> None:
    assert whisper._loops(tokens) is loops


async def test_words_have_times_of_their_language_s_call(own_model: Whisper, utterances: list[Utterance]) -> None:
    """Asked for or not in one call; in order, inside the window; none of a text that is not believed."""
    said = same_length(utterances, 4)
    requests = [Request("en", words=words) for words in (True, False, True, True)]
    found = own_model.recognise([row_data(one, request) for one, request in zip(said, requests, strict=True)])
    assert [" ".join(word["word"] for word in one.words) for one in found] == [
        said[0].text, "", said[2].text, said[3].text
    ]  # fmt: skip
    for one, hypothesis in zip(said, found, strict=True):
        times = [word[name] for word in hypothesis.words for name in ("start", "end")]
        assert times == sorted(times)
        assert all(0 <= time <= len(one.pcm) / 32000 + 0.5 for time in times)
    alone = own_model.recognise([row_data(said[2], Request("en", words=True))])[0]
    assert [word["word"] for word in alone.words] == [word["word"] for word in found[2].words]
    trouble = Trouble(own_model._model, lambda frames, options, result: Result(result, sequences_ids=[[9] * 40]))
    own_model._model = trouble
    assert own_model.recognise([row_data(said[0], Request("en", words=True))])[0].words == []


async def test_a_draft_is_decoded_once(own_model: Whisper, utterances: list[Utterance]) -> None:
    trouble = Trouble(own_model._model, lambda frames, options, result: Result(result, scores=[-3.0]))
    own_model._model = trouble
    assert recognise(own_model, utterances[0], Request("en", draft=True)).text
    assert len(trouble.calls) == 1


async def test_a_full_window_is_not_encoded_again(own_model: Whisper, utterances: list[Utterance]) -> None:
    """A second attempt is decoded from the row's own encoder output, whichever row of the call it was."""
    trouble = Trouble(own_model._model, lambda frames, options, result: result)
    own_model._model = trouble
    guesses = iter([Result, Result])

    def spoil(frames: int, options: dict[str, Any], result: Any) -> Any:
        bad = options.get("sampling_temperature", 0.0) == 0.0 and next(guesses, None) is None
        return Result(result, scores=[-3.0]) if bad else result

    trouble._spoil = spoil
    said = utterances[:3]
    items = [(log_mel(samples(one), FULL_WINDOW, MELS), Request("en"), len(one.pcm) / 32000) for one in said]
    found = own_model.recognise(items)
    assert trouble.encoded == 1
    assert found[2].text.split()[0] == said[2].text.split()[0]


def test_fast_speech_is_not_cut_short(model: Whisper) -> None:
    """The model may say all the tokens that so much speech may have: CTranslate2 halves what it is told."""
    noise = np.random.default_rng(1).normal(0, 0.3, (1, model.n_mels, 400)).astype(np.float32)
    prompt = model.prompt(Request(), "en")
    limit = length_limit(len(prompt), 2.0)
    found = model._model.generate(
        ctranslate2.StorageView.from_array(noise), [prompt], beam_size=1, max_length=limit, suppress_tokens=[model._eot]
    )
    assert len(found[0].sequences_ids[0]) >= 2.0 * TOKENS_PER_SECOND


def test_what_is_in_hand_is_told_and_timed() -> None:
    """A native call that hangs, in whatever place, is seen by how long it is in hand."""
    told: list[bytes] = []
    hands = Hands(told.append)
    assert hands.longest == 0.0
    hands.hold("engine", ["one 1-0", "two 3-0"])
    hands.hold("prepare", ["three 1-0"])
    assert told[-1] == b"one 1-0\ntwo 3-0\nthree 1-0"
    assert hands.longest > 0.0
    hands.hold("engine", [])
    assert told[-1] == b"three 1-0"
    hands.hold("prepare", [])
    assert told[-1] == b""
    assert hands.longest == 0.0


# -- the model


class Trouble:
    """CTranslate2's model, whose results are as bad as the test says, in windows that it says."""

    def __init__(self, real: Any, spoil: Callable[[int, dict[str, Any], Any], Any]) -> None:
        self._real = real
        self._spoil = spoil
        self.calls: list[tuple[int, float]] = []  # frames, temperature
        self.encoded = 0
        self._frames = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def encode(self, features: Any) -> Any:
        self.encoded += 1
        self._frames = features.shape[2]
        return self._real.encode(features)

    def generate(self, heard: Any, prompts: Any, **options: Any) -> Any:
        if heard.shape[1] == MELS:  # features, which it encodes itself
            self._frames = heard.shape[2]
        self.calls.append((self._frames, options.get("sampling_temperature", 0.0)))
        return [self._spoil(self._frames, options, result) for result in self._real.generate(heard, prompts, **options)]


class Result:
    """A result with another score."""

    def __init__(self, real: Any, **changed: Any) -> None:
        self.sequences_ids, self.scores, self.no_speech_prob = real.sequences_ids, real.scores, real.no_speech_prob
        self.__dict__.update(changed)


@pytest.fixture
def own_model() -> Whisper:
    """One to be spoiled."""
    return Whisper("demo", "cpu", "default", 1, 1)


def recognise(model: Whisper, one: Utterance, request: Request | None = None) -> Hypothesis:
    item = row_data(one, request)
    [found] = model.recognise([item])
    return found


def row_data(one: Utterance, request: Request | None = None) -> tuple[Any, Request, float]:
    seconds = len(one.pcm) / 32000
    return log_mel(samples(one), window_for(seconds, "fit"), MELS), request or Request("en"), seconds


async def test_a_guess_is_tried_again_in_the_full_window(own_model: Whisper, utterances: list[Utterance]) -> None:
    """And what is good there is taken; the other rows of the call are not run again."""
    trouble = Trouble(
        own_model._model,
        lambda frames, options, result: result if frames == FULL_WINDOW else Result(result, scores=[-3.0]),
    )
    own_model._model = trouble
    one = utterances[0]
    found = recognise(own_model, one)
    assert trouble.calls == [(window_for(len(one.pcm) / 32000, "fit"), 0.0), (FULL_WINDOW, 0.0)]
    assert found.text
    assert found.confidence > 0.3


async def test_then_with_temperature_and_then_the_best_is_taken(
    own_model: Whisper, utterances: list[Utterance]
) -> None:
    trouble = Trouble(own_model._model, lambda frames, options, result: Result(result, scores=[-3.0]))
    own_model._model = trouble
    recognise(own_model, utterances[0])
    assert [temperature for _, temperature in trouble.calls] == [0.0, 0.0, *whisper.TEMPERATURES]


async def test_a_text_that_repeats_itself_is_no_text(own_model: Whisper, utterances: list[Utterance]) -> None:
    word = own_model._tokenizer.encode(" monday", add_special_tokens=False).ids
    own_model._model = Trouble(
        own_model._model, lambda frames, options, result: Result(result, sequences_ids=[word * 40], scores=[-0.1])
    )
    assert recognise(own_model, utterances[0]).text == ""


async def test_a_guess_where_nothing_is_said_is_silence(own_model: Whisper, utterances: list[Utterance]) -> None:
    """And not tried again."""
    trouble = Trouble(
        own_model._model, lambda frames, options, result: Result(result, scores=[-3.0], no_speech_prob=0.9)
    )
    own_model._model = trouble
    assert recognise(own_model, utterances[0]).text == ""
    assert len(trouble.calls) == 1


async def test_what_is_surely_no_speech_is_silence_however_probable(
    own_model: Whisper, utterances: list[Utterance]
) -> None:
    real = own_model._model
    texts = []
    for probability in (0.8, 0.95):
        own_model._model = trouble = Trouble(
            real, lambda frames, options, result, p=probability: Result(result, no_speech_prob=p)
        )
        texts.append(recognise(own_model, utterances[0]).text)
        assert len(trouble.calls) == 1
    assert texts == [utterances[0].text, ""]


def chords(seconds: int, random: np.random.Generator) -> Samples:
    """Two a second, of three decaying notes with overtones each: music enough for the speech detector to be unsure."""
    time = np.arange(RATE // 2) / RATE
    pieces = []
    for _ in range(2 * seconds):
        notes = 440 * 2 ** ((random.integers(48, 72, 3) - 69) / 12)
        tones = [np.sin(2 * np.pi * note * n * time) / n for note in notes for n in (1, 2, 3)]
        pieces.append(np.sum(tones, axis=0) * np.exp(-4 * time))
    return (np.concatenate(pieces) * random.uniform(0.02, 0.1)).astype(np.float32)


def heard(model: Whisper, recording: Samples, request: Request | None = None) -> list[tuple[int, Hypothesis]]:
    """(where it begins, what the model makes of it) of each stretch that the speech detector lets through."""
    found = []
    for start, end in segments(recording, 0.4):
        seconds = (end - start) / RATE
        features = log_mel(recording[start:end], window_for(seconds, "fit"), MELS)
        found.append((start, model.recognise([(features, request or Request(), seconds)])[0]))
    return found


async def test_chords_are_no_words(
    model: Whisper, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the speech detector takes some for speech; and what the model is nearly sure is no speech is none."""
    random = np.random.default_rng(5)
    music = [chords(6, random) for _ in range(40)]
    let_through = [found.text for recording in music for _, found in heard(model, recording)]
    assert len(let_through) >= 5
    assert not any(let_through)
    speech = samples(utterances[0])
    spoken = [found.text for _, found in heard(model, speech)]
    assert spoken
    assert all(spoken)
    monkeypatch.setattr(whisper, "SURELY_NO_SPEECH", -1.0)
    assert not any(found.text for _, found in heard(model, speech))


async def test_words_alone_are_words(
    model: Whisper, all_utterances: list[Utterance], mandarin: list[Utterance]
) -> None:
    """Cut out of their sentences, however short they are: what the speech detector hears has a text.

    With a tenth of a second around: that is how far off the model's times are, and of a word that is not wholly there
    it may say nothing.
    """
    texts, around = [], RATE // 10
    for one, language in [(one, "en") for one in all_utterances[:20]] + [(one, "zh") for one in mandarin]:
        for begin, sentence in heard(model, samples(one), Request(language, words=True)):
            for word in sentence.words:
                start, end = (begin + int(word[edge] * RATE) for edge in ("start", "end"))
                alone = np.pad(samples(one)[max(start - around, 0) : end + around], RATE // 2)
                texts += [found.text for _, found in heard(model, alone)]
    assert len(texts) >= 150
    assert sum(not text for text in texts) <= 0.01 * len(texts)


async def test_the_padded_window_is_the_features_of_the_padded_audio(utterances: list[Utterance]) -> None:
    one = samples(utterances[0])
    short = log_mel(one, window_for(len(one) / RATE, "fit"), MELS)
    full = log_mel(one, FULL_WINDOW, MELS)
    np.testing.assert_allclose(full[:, : short.shape[1]], short, atol=1e-5)
    assert full[:, short.shape[1] :].max() == pytest.approx(short.min(), abs=1e-5)


async def test_the_language_is_the_only_one_there_is_or_what_is_heard(
    own_model: Whisper, utterances: list[Utterance], mandarin: list[Utterance]
) -> None:
    """A model of several: given, it is taken; not given, the tokens of the languages alone are asked."""
    assert own_model.languages == ["en", "zh"]
    for language, one in (("en", utterances[0]), ("zh", mandarin[0])):
        heard = recognise(own_model, one, Request())
        assert heard.language == language
        assert 0.5 < heard.language_probability <= 1.0
        assert heard.text == one.text
    given = recognise(own_model, mandarin[0], Request("en"))
    assert (given.language, given.language_probability) == ("en", 1.0)
    own_model._languages = {"en": own_model._languages["en"]}
    found = recognise(own_model, utterances[0], Request())
    assert (found.language, found.language_probability) == ("en", 1.0)


async def test_prompts(model: Whisper) -> None:
    """Hot words, then the prompt, before the start; cut from the front to half the decoder's context."""
    plain = model.prompt(Request(), "en")
    assert len(plain) == 4
    asked = model.prompt(Request(prompt="play music", hotwords="tokyo"), "en")
    assert asked[0] == model._previous
    assert asked[-4:] == plain
    assert model._tokenizer.decode(asked[1:-4]).strip() == "tokyo play music"
    assert len(model.prompt(Request(prompt="monday " * 1000), "en")) == 1 + whisper.MAX_PROMPT_TOKENS + 4


async def test_a_prompt_does_not_break_recognition(model: Whisper, utterances: list[Utterance]) -> None:
    found = model.recognise([row_data(utterances[0], Request("en", prompt="monday " * 140))])
    assert isinstance(found[0].text, str)


@pytest.mark.parametrize("name", ["/nonexistent/model", "file"])
async def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path: Any, name: str) -> None:
    """A path that is none, and a directory with something else in it."""
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "config.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        Whisper(str(tmp_path / "file") if name == "file" else name, "cpu", "default", 1, 1)
    assert len(str(caught.value).splitlines()) == 1
