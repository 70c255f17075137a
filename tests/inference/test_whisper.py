"""whisper.py with the real model: rejected texts, retried windows, word times, languages, prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import ctranslate2
import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.pcm import Samples
from asrserver.errors import ModelError
from asrserver.inference import vocabulary, whisper
from asrserver.inference.decoding import Hypothesis, Request
from asrserver.inference.features import log_mel
from asrserver.inference.vad import segments
from asrserver.inference.whisper import Whisper
from asrserver.inference.windows import FULL_WINDOW, TOKENS_PER_SECOND, length_limit, window_for
from tests.inference.support import MELS, same_length, samples
from tests.recordings import Utterance

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_words_are_timed_where_requested(own_model: Whisper, utterances: list[Utterance]) -> None:
    """In order and inside the window, in one call with rows that do not ask; none for a rejected text."""
    said = same_length(utterances, 4)
    requests = [Request("en", words=words) for words in (True, False, True, True)]
    found = own_model.recognise([row_data(one, request) for one, request in zip(said, requests, strict=True)])
    assert [" ".join(word.word for word in one.words) for one in found] == [
        said[0].text, "", said[2].text, said[3].text
    ]  # fmt: skip
    for one, hypothesis in zip(said, found, strict=True):
        times = [time for word in hypothesis.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert all(0 <= time <= len(one.pcm) / 32000 + 0.5 for time in times)
    alone = own_model.recognise([row_data(said[2], Request("en", words=True))])[0]
    assert [word.word for word in alone.words] == [word.word for word in found[2].words]
    trouble = Trouble(own_model._model, lambda frames, options, result: Result(result, sequences_ids=[[9] * 40]))
    own_model._model = trouble
    assert own_model.recognise([row_data(said[0], Request("en", words=True))])[0].words == []


async def test_a_draft_is_decoded_once(own_model: Whisper, utterances: list[Utterance]) -> None:
    trouble = Trouble(own_model._model, lambda frames, options, result: Result(result, scores=[-3.0]))
    own_model._model = trouble
    assert recognise(own_model, utterances[0], Request("en", draft=True)).text
    assert len(trouble.calls) == 1


async def test_a_full_window_is_not_encoded_again(own_model: Whisper, utterances: list[Utterance]) -> None:
    """A retry is decoded from the row's own encoder output, whichever row of the call it was."""
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
    """The model may generate all tokens that the speech may have, although CTranslate2 halves max_length."""
    noise = np.random.default_rng(1).normal(0, 0.3, (1, model.n_mels, 400)).astype(np.float32)
    prompt = model.vocabulary.prompt(Request(), "en")
    limit = length_limit(len(prompt), 2.0)
    found = model._model.generate(
        ctranslate2.StorageView.from_array(noise),
        [prompt],
        beam_size=1,
        max_length=limit,
        suppress_tokens=[model.vocabulary.eot],
    )
    assert len(found[0].sequences_ids[0]) >= 2.0 * TOKENS_PER_SECOND


class Trouble:
    """CTranslate2's model with results spoiled by the test."""

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
    """A result with some attributes changed."""

    def __init__(self, real: Any, **changed: Any) -> None:
        self.sequences_ids, self.scores, self.no_speech_prob = real.sequences_ids, real.scores, real.no_speech_prob
        self.__dict__.update(changed)


@pytest.fixture
def own_model() -> Whisper:
    """A model of the test's own, to be spoiled."""
    return Whisper("demo", "cpu", "default", 1, 1)


def recognise(model: Whisper, one: Utterance, request: Request | None = None) -> Hypothesis:
    item = row_data(one, request)
    [found] = model.recognise([item])
    return found


def row_data(one: Utterance, request: Request | None = None) -> tuple[Any, Request, float]:
    seconds = len(one.pcm) / 32000
    return log_mel(samples(one), window_for(seconds, "fit"), MELS), request or Request("en"), seconds


async def test_an_improbable_text_is_retried_in_the_full_window(
    own_model: Whisper, utterances: list[Utterance]
) -> None:
    """And taken if it is good there; the other rows of the call are not run again."""
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
    wasted = own_model.wasted_seconds
    assert wasted > 0
    recognise(own_model, one, Request("en", draft=True))
    assert own_model.wasted_seconds == wasted


async def test_then_with_temperature_and_the_best_attempt_is_taken(
    own_model: Whisper, utterances: list[Utterance]
) -> None:
    trouble = Trouble(own_model._model, lambda frames, options, result: Result(result, scores=[-3.0]))
    own_model._model = trouble
    recognise(own_model, utterances[0])
    assert [temperature for _, temperature in trouble.calls] == [0.0, 0.0, *own_model.profile.temperatures]


async def test_an_unsure_text_is_searched_with_more_beams(own_model: Whisper, utterances: list[Utterance]) -> None:
    """And the more probable text is taken. Not for a draft, which must be quick."""
    own_model.profile = replace(own_model.profile, sure_text=0.7)
    one, real = utterances[0], own_model._model
    wrong = own_model._tokenizer.encode(" monday", add_special_tokens=False).ids
    searches: list[int] = []

    def spoiled(score: float, _frames: int, options: dict[str, Any], result: Any) -> Any:
        searches.append(options["beam_size"])
        return result if options["beam_size"] > 1 else Result(result, sequences_ids=[wrong], scores=[score])

    for score, request, expected, beams in (
        (math.log(0.2), Request("en"), one.text, [1, whisper.UNSURE_BEAM]),
        (math.log(0.2), Request("en", draft=True), "monday", [1]),
        (math.log(0.95), Request("en"), "monday", [1]),
    ):
        searches.clear()
        own_model._model = Trouble(real, partial(spoiled, score))
        assert recognise(own_model, one, request).text == expected
        assert searches == beams
    assert own_model.wasted_seconds > 0


async def test_no_unsure_text_is_searched_while_others_wait(own_model: Whisper, utterances: list[Utterance]) -> None:
    own_model.profile = replace(own_model.profile, sure_text=0.7)
    own_model.hurried = True
    searches: list[int] = []

    def unsure(_frames: int, options: dict[str, Any], result: Any) -> Any:
        searches.append(options["beam_size"])
        return Result(result, scores=[math.log(0.5)])

    own_model._model = Trouble(own_model._model, unsure)
    assert recognise(own_model, utterances[0]).text == utterances[0].text
    assert searches == [1]


async def test_a_search_that_ends_in_a_loop_is_not_taken(own_model: Whisper, utterances: list[Utterance]) -> None:
    """As that of a question in noise did: a loop is more probable than a guess."""
    own_model.profile = replace(own_model.profile, sure_text=0.7)
    word = own_model._tokenizer.encode(" monday", add_special_tokens=False).ids
    own_model._model = Trouble(
        own_model._model,
        lambda frames, options, result: (
            Result(result, sequences_ids=[word * 5], scores=[-0.1])
            if options["beam_size"] > 1
            else Result(result, scores=[-0.8])
        ),
    )
    assert recognise(own_model, utterances[0]).text == utterances[0].text


async def test_a_text_that_repeats_itself_is_rejected(own_model: Whisper, utterances: list[Utterance]) -> None:
    word = own_model._tokenizer.encode(" monday", add_special_tokens=False).ids
    own_model._model = Trouble(
        own_model._model, lambda frames, options, result: Result(result, sequences_ids=[word * 40], scores=[-0.1])
    )
    assert recognise(own_model, utterances[0]).text == ""


async def test_of_what_a_guess_repeats_one_copy_stays(
    own_model: Whisper, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As base did with a question of 2 s in noise: too short a loop to be rejected, and its copies took time."""
    monkeypatch.setattr(whisper, "find_copy", lambda words: None)
    own_model.profile = replace(own_model.profile, cuts_copies=True)
    word = own_model._tokenizer.encode(" monday", add_special_tokens=False).ids
    real = own_model._model

    def looping(score: float) -> Callable[..., Result]:
        return lambda frames, options, result: Result(result, sequences_ids=[word * 5], scores=[score])

    for score, expected in ((-0.95, "monday"), (-0.1, " ".join(["monday"] * 5))):
        own_model._model = Trouble(real, looping(score))
        assert recognise(own_model, utterances[0]).text == expected


async def test_a_word_that_begins_a_sentence_when_the_speech_has_ended_is_cut(
    own_model: Whisper, utterances: list[Utterance]
) -> None:
    """Only a text that ends so is aligned for it."""
    one = utterances[0]
    encode = own_model._tokenizer.encode
    said = encode(f" {one.text}", add_special_tokens=False).ids
    mark, word = (encode(text, add_special_tokens=False).ids for text in (".", " monday"))
    real = own_model._model

    def ended(tokens: list[int]) -> Callable[..., Result]:
        return lambda frames, options, result: Result(result, sequences_ids=[tokens], scores=[-0.1])

    for cuts, tokens, expected in (
        (True, [*said, *mark, *word], f"{one.text}."),
        (False, [*said, *mark, *word], f"{one.text}. monday"),
        (True, [*said, *mark], f"{one.text}."),
    ):
        own_model.profile = replace(own_model.profile, cuts_copies=cuts)
        own_model._model = Trouble(real, ended(tokens))
        assert recognise(own_model, one).text == expected


async def test_an_improbable_text_with_no_speech_is_silence(own_model: Whisper, utterances: list[Utterance]) -> None:
    """And it is not retried."""
    trouble = Trouble(
        own_model._model, lambda frames, options, result: Result(result, scores=[-3.0], no_speech_prob=0.9)
    )
    own_model._model = trouble
    assert recognise(own_model, utterances[0]).text == ""
    assert len(trouble.calls) == 1


def sure_of(probability: float, _frames: int, _options: dict[str, Any], result: Any) -> Result:
    """A result that gives no speech this probability."""
    return Result(result, no_speech_prob=probability)


async def test_a_probable_text_with_surely_no_speech_is_silence(
    own_model: Whisper, utterances: list[Utterance]
) -> None:
    real = own_model._model
    texts = []
    for probability in (0.8, 0.95):
        own_model._model = trouble = Trouble(real, partial(sure_of, probability))
        texts.append(recognise(own_model, utterances[0]).text)
        assert len(trouble.calls) == 1
    assert texts == [utterances[0].text, ""]


def chords(seconds: int, random: np.random.Generator) -> Samples:
    """Two a second, of three decaying notes with overtones: music that the speech detector is unsure of."""
    time = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    pieces = []
    for _ in range(2 * seconds):
        notes = 440 * 2 ** ((random.integers(48, 72, 3) - 69) / 12)
        tones = [np.sin(2 * np.pi * note * n * time) / n for note in notes for n in (1, 2, 3)]
        pieces.append(np.sum(tones, axis=0) * np.exp(-4 * time))
    return (np.concatenate(pieces) * random.uniform(0.02, 0.1)).astype(np.float32)


def heard(model: Whisper, recording: Samples, request: Request | None = None) -> list[tuple[int, Hypothesis]]:
    """(first sample, hypothesis) of each segment that passes the speech detector."""
    found = []
    for start, end in segments(recording, 0.4):
        seconds = (end - start) / SAMPLE_RATE
        features = log_mel(recording[start:end], window_for(seconds, "fit"), MELS)
        found.append((start, model.recognise([(features, request or Request(), seconds)])[0]))
    return found


async def test_chords_are_no_words(
    model: Whisper, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the speech detector takes some for speech: the model is nearly sure that it is none."""
    random = np.random.default_rng(5)
    music = [chords(6, random) for _ in range(40)]
    let_through = [found.text for recording in music for _, found in heard(model, recording)]
    assert len(let_through) >= 5
    assert not any(let_through)
    speech = samples(utterances[0])
    spoken = [found.text for _, found in heard(model, speech)]
    assert spoken
    assert all(spoken)
    monkeypatch.setattr(model, "profile", replace(model.profile, no_speech=-1.0))
    assert not any(found.text for _, found in heard(model, speech))


async def test_words_alone_are_words(
    model: Whisper, all_utterances: list[Utterance], mandarin: list[Utterance]
) -> None:
    """Words cut out of their sentences have a text if the speech detector finds them, however short they are.

    They are cut with a tenth of a second around them: that is how far off the model's times are, and it may return
    nothing for an incomplete word.
    """
    texts, around = [], SAMPLE_RATE // 10
    for one, language in [(one, "en") for one in all_utterances[:20]] + [(one, "zh") for one in mandarin]:
        for begin, sentence in heard(model, samples(one), Request(language, words=True)):
            for word in sentence.words:
                start, end = (begin + int(edge * SAMPLE_RATE) for edge in (word.start, word.end))
                alone = np.pad(samples(one)[max(start - around, 0) : end + around], SAMPLE_RATE // 2)
                texts += [found.text for _, found in heard(model, alone)]
    assert len(texts) >= 150
    assert sum(not text for text in texts) <= 0.01 * len(texts)


async def test_the_padded_window_is_the_features_of_the_padded_audio(utterances: list[Utterance]) -> None:
    one = samples(utterances[0])
    short = log_mel(one, window_for(len(one) / SAMPLE_RATE, "fit"), MELS)
    full = log_mel(one, FULL_WINDOW, MELS)
    np.testing.assert_allclose(full[:, : short.shape[1]], short, atol=1e-5)
    assert full[:, short.shape[1] :].max() == pytest.approx(short.min(), abs=1e-5)


async def test_the_language_is_requested_or_detected_or_the_only_one(
    own_model: Whisper, utterances: list[Utterance], mandarin: list[Utterance]
) -> None:
    """Detection compares the tokens of the model's languages only."""
    assert own_model.languages == ["en", "zh"]
    for language, one in (("en", utterances[0]), ("zh", mandarin[0])):
        heard = recognise(own_model, one, Request())
        assert heard.language == language
        assert 0.5 < heard.language_probability <= 1.0
        assert heard.text == one.text
    given = recognise(own_model, mandarin[0], Request("en"))
    assert (given.language, given.language_probability) == ("en", 1.0)
    own_model.vocabulary.languages = {"en": own_model.vocabulary.languages["en"]}
    found = recognise(own_model, utterances[0], Request())
    assert (found.language, found.language_probability) == ("en", 1.0)


async def test_the_most_probable_text_decides_where_no_language_is_certain(
    own_model: Whisper, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a draft, which must be quick."""
    own_model.profile = replace(own_model.profile, sure_language=0.8)
    monkeypatch.setattr(own_model, "_detect", lambda encoded, requests: [[("zh", 0.5), ("en", 0.4)]])
    own_model._model = trouble = Trouble(
        own_model._model, lambda frames, options, result: result if trouble.calls[1:] else Result(result, scores=[-0.9])
    )
    found = recognise(own_model, utterances[0], Request())
    assert (found.language, found.language_probability, found.text) == ("en", 0.4, utterances[0].text)
    wasted = own_model.wasted_seconds
    assert wasted > 0
    assert recognise(own_model, utterances[0], Request(draft=True)).language == "zh"
    assert own_model.wasted_seconds == wasted


async def test_silence_is_decoded_in_no_other_language(
    own_model: Whisper, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would become a word in one of them."""
    own_model.profile = replace(own_model.profile, sure_language=0.8)
    monkeypatch.setattr(own_model, "_detect", lambda encoded, requests: [[("zh", 0.5), ("en", 0.4)]])
    own_model._model = trouble = Trouble(
        own_model._model,
        lambda frames, options, result: (
            result if trouble.calls[1:] else Result(result, scores=[-3.0], no_speech_prob=0.9)
        ),
    )
    assert recognise(own_model, utterances[0], Request()).text == ""


async def test_prompts(model: Whisper) -> None:
    """Hot words, then the prompt, then the start tokens; cut from the front to half of the decoder's context."""
    plain = model.vocabulary.prompt(Request(), "en")
    assert len(plain) == 4
    asked = model.vocabulary.prompt(Request(prompt="play music", hotwords="tokyo"), "en")
    assert asked[0] == model._tokenizer.token_to_id("<|startofprev|>")
    assert asked[-4:] == plain
    assert model._tokenizer.decode(asked[1:-4]).strip() == "tokyo play music"
    assert len(model.vocabulary.prompt(Request(prompt="monday " * 1000), "en")) == 1 + vocabulary.MAX_PROMPT_TOKENS + 4


async def test_a_prompt_does_not_break_recognition(model: Whisper, utterances: list[Utterance]) -> None:
    found = model.recognise([row_data(utterances[0], Request("en", prompt="monday " * 140))])
    assert isinstance(found[0].text, str)


@pytest.mark.parametrize("name", ["/nonexistent/model", "file"])
async def test_the_error_of_a_model_that_cannot_be_loaded_is_one_line(tmp_path: Any, name: str) -> None:
    """A path that does not exist, and a directory without a model."""
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "config.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        Whisper(str(tmp_path / "file") if name == "file" else name, "cpu", "default", 1, 1)
    assert len(str(caught.value).splitlines()) == 1


async def test_a_text_that_ends_long_before_the_speech_is_continued(
    own_model: Whisper, utterances: list[Utterance]
) -> None:
    one = max(utterances, key=lambda one: len(one.pcm))
    whole = recognise(own_model, one).text
    half_a_second = own_model.vocabulary.no_timestamps + 1 + 25
    trouble = Trouble(
        own_model._model,
        lambda frames, options, result: (
            Result(result, sequences_ids=[[*result.sequences_ids[0][:3], half_a_second]])
            if len(trouble.calls) == 1
            else result
        ),
    )
    own_model._model = trouble
    assert recognise(own_model, one, Request("en", timestamps=True)).text == whole
    assert len(trouble.calls) == 2


@pytest.mark.parametrize(
    ("generated", "finished"),
    [
        ("<0.00> a b <12.00> <12.50> c", (4, 12.0)),  # the window ends in c
        ("<0.00> a <5.00> <5.00> b <12.00> <12.50> c d <20.00>", (10, 20.0)),  # or behind d
        ("<0.00> a <5.00> <5.50>", (3, 5.0)),
        ("<0.00> a b c", None),
        ("", None),
    ],
)
def test_what_of_a_window_is_finished(model: Whisper, generated: str, finished: tuple[int, float] | None) -> None:
    first = model.vocabulary.no_timestamps + 1
    tokens = [first + round(float(one[1:-1]) / 0.02) if one[0] == "<" else ord(one) for one in generated.split()]
    assert model.vocabulary.finished(tokens) == finished


@pytest.mark.parametrize(("end", "read"), [(12.0, 12.0), (2.0, None)])
async def test_what_is_unfinished_where_the_speech_goes_on_is_left_out(
    own_model: Whisper, utterances: list[Utterance], end: float, read: float | None
) -> None:
    """But not where next to nothing would be left."""
    one = max(utterances, key=lambda one: len(one.pcm))
    whole = recognise(own_model, one).text
    timestamp = own_model.vocabulary.no_timestamps + 1 + round(end / 0.02)

    def spoil(frames: int, options: dict[str, Any], result: Any) -> Any:
        text = [token for token in result.sequences_ids[0] if token < own_model.vocabulary.eot]
        return Result(result, sequences_ids=[[*text[:3], timestamp, timestamp, *text[3:]]])

    own_model._model = Trouble(own_model._model, spoil)
    features, _, seconds = row_data(one)
    [found] = own_model.recognise([(features, Request("en", timestamps=True, goes_on=True), seconds)])
    assert found.read == read
    assert found.text
    assert whole.startswith(found.text)
    assert (found.text == whole) == (read is None)
