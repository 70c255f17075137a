"""openai.py and model_names.py: what forms mean, and the shapes that OpenAI's clients require of answers."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.audio import TranscriptionVerbose
from openai.types.audio.transcription import Transcription

from asrserver.errors import AsrError, Refused
from asrserver.protocol import model_names, openai
from asrserver.protocol.events import Final, Word
from asrserver.protocol.options import MAX_TEXT, Options
from asrserver.text.words import join
from asrserver.text.words import words as split
from tests.events import durable, segment


def parse(task: str = "transcribe", /, **fields: Any) -> openai.TranscriptionRequest:
    given = {"model": "whisper-1", **fields}
    return openai.parse({name: value if isinstance(value, list) else [value] for name, value in given.items()}, task)


def test_fields_become_options() -> None:
    asked = parse(language="en-US", prompt="p" * (MAX_TEXT + 5) + "end", response_format="verbose_json", future="x")
    assert asked.start.options == Options(
        mode="stream", format="file", language="en", prompt="p" * (MAX_TEXT - 3) + "end"
    )
    assert (asked.format, asked.stream, asked.segments, asked.words) == ("verbose_json", False, True, False)
    assert parse(language="", temperature="", prompt="", response_format="") == parse()


@pytest.mark.parametrize("name", ["timestamp_granularities[]", "timestamp_granularities", "timestamp_granularities[0]"])
def test_lists_are_taken_however_they_are_written(name: str) -> None:
    words = parse(response_format="verbose_json", **{name: "word"})
    assert (words.words, words.segments, words.start.options.word_timestamps) == (True, False, True)
    for value in (["word", "segment"], "word,segment", '["word", "segment"]'):
        both = parse(response_format="verbose_json", **{name: value})
        assert (both.words, both.segments) == (True, True)
    assert not parse(**{name: "word"}).start.options.word_timestamps  # json has no times


def test_what_newer_models_take() -> None:
    asked = parse(**{"keywords[]": ["Zürich", "CTranslate2"], "languages[]": ["de-CH"], "include[]": "logprobs"})
    assert asked.start.options.hotwords == "Zürich, CTranslate2"
    assert (asked.start.options.language, asked.languages, asked.logprobs) == ("de", True, True)
    assert parse(**{"languages[]": ["de", "en"]}).start.options.language is None


@pytest.mark.parametrize(
    ("value", "flag"), [("true", True), ("True", True), ("1", True), ("false", False), ("", False), ("0", False)]
)
def test_flags(value: str, flag: bool) -> None:
    assert parse(stream=value).stream is flag
    assert not parse("translate", stream=value).stream


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ""),
        ("response_format", "diarized_json"),
        ("temperature", "warm"),
        ("temperature", "nan"),
        ("language", "klingon"),
        ("timestamp_granularities", "letter"),
        ("stream", "perhaps"),
        ("prompt", "a\x00b"),
    ],
)
def test_a_bad_field_is_named(name: str, value: str) -> None:
    with pytest.raises(AsrError, match=name) as caught:
        parse(**{name: value})
    assert caught.value.details["parameter"] == name


def answered(asked: openai.TranscriptionRequest) -> dict[str, Any]:
    words = [Word("hello", 0.0, 0.5, 0.9), Word("world", 0.5, 1.0, 0.8)]
    segments = [segment(0, "hello world", words=words), segment(1, "again", words=[Word("again", 1.0, 2.0, 1.0)])]
    final = durable("final", 3, text="hello world again", total=2.5)
    assert isinstance(final, Final)
    return openai.answer(asked, segments, final)


def test_the_answer_has_what_the_types_require() -> None:
    """In strict mode: pydantic refuses what is missing or of another type."""
    body = answered(parse(response_format="verbose_json", timestamp_granularities=["word", "segment"]))
    found = TranscriptionVerbose.model_validate(body, strict=True)
    assert (found.language, found.duration, found.text) == ("english", 2.5, "hello world again")
    assert found.segments is not None
    assert found.words is not None
    assert "".join(one.text for one in found.segments) == " hello world again"
    assert [one.word for one in found.words] == ["hello", "world", "again"]
    assert all(one.avg_logprob <= 0 for one in found.segments)
    plain = Transcription.model_validate(answered(parse(**{"include[]": "logprobs"})))
    assert plain.logprobs is not None
    assert "".join(one.token or "" for one in plain.logprobs) == plain.text
    assert "segments" not in answered(parse(response_format="verbose_json", timestamp_granularities="word"))
    assert answered(parse("translate", response_format="verbose_json"))["task"] == "translate"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_deltas_together_are_the_text(language: str) -> None:
    segments = [segment(n, text, language=language) for n, text in enumerate(("one", "二。", "three", "四"))]
    texts = ["", *(one.text for one in segments)]
    deltas = [openai.delta(before, one)["delta"] for before, one in zip(texts, segments, strict=False)]
    assert "".join(deltas) == join([(one.text, one.language) for one in segments])


@pytest.mark.parametrize("mistaken", ["en", "zh", "ja"])
def test_segments_and_tokens_together_are_the_text(mistaken: str) -> None:
    """Also where a sentence was taken for one of a language without spaces."""
    said = [("One two.", "en"), ("Three four.", mistaken), ("五六。", "zh"), ("Seven.", "en")]
    segments = [
        segment(n, text, language=language, words=[Word(word, n, n, 0.9) for word in split(text, language)])
        for n, (text, language) in enumerate(said)
    ]
    final = durable("final", 5, text=join(said), total=4.0)
    assert isinstance(final, Final)
    body = openai.answer(parse(response_format="verbose_json", timestamp_granularities="segment"), segments, final)
    assert "".join(one["text"] for one in body["segments"]) == " " + join(said)
    assert "".join(one["token"] for one in openai.logprobs(segments)) == join(said)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((name, None) for name in ("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe-2025-12-15")),
        *((name, None) for name in ("gpt-transcribe", "gpt-4o-transcribe-diarize", "gpt-realtime-whisper", "ours")),
        *((name, "base") for name in ("base", "openai/whisper-base", "Systran/faster-whisper-base", "theirs")),
    ],
)
def test_a_model_has_many_names(name: str, model: str | None) -> None:
    known = model_names.aliases(" ours , theirs=base,")
    assert known == {"ours": "", "theirs": "base"}
    assert model_names.resolve(name, ["base"], known, model_names.OPENAI) == model


@pytest.mark.parametrize("name", ["nova-3", "gpt-4o", "large", "theirs", "x" * 10_000, "\n"])
def test_an_unknown_model_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(Refused, match="tiny") as caught:
        model_names.resolve(name, ["tiny"], {"theirs": "base"}, model_names.OPENAI)
    assert (caught.value.status, caught.value.code) == (404, "unknown_model")
    assert len(caught.value.message) < 300
