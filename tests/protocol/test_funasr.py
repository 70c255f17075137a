"""funasr.py: what FunASR's clients send, and texts that they show one after the other."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest

from asrserver.errors import AsrError, BadRequest
from asrserver.protocol.events import Partial, Refusal, Segment, SessionEvent, Word
from asrserver.protocol.funasr import FunasrConfig, FunasrResults, signs_of, tokens
from asrserver.protocol.options import MAX_TEXT, Options
from asrserver.protocol.pathless import UrlOptions
from tests.events import durable, segment

#: As its client sends it.
FIRST: dict[str, Any] = {
    "mode": "2pass",
    "chunk_size": [5, 10, 5],
    "chunk_interval": 10,
    "encoder_chunk_look_back": 4,
    "decoder_chunk_look_back": 0,
    "audio_fs": 8000,
    "wav_name": "demo",
    "wav_format": "pcm",
    "is_speaking": True,
    "hotwords": "",
    "itn": True,
}


def results(mode: str = "2pass") -> FunasrResults:
    return FunasrResults(FunasrConfig().updated({"mode": mode, "wav_name": "a"}))


def growing(stable: str, language: str = "en") -> Partial:
    text = f"{stable} uh"
    return Partial(session_id="s", start=0.0, end=1.0, text=text, stable=stable, language=language, follows=0)


def ended(text: str, language: str = "en", **fields: Any) -> SessionEvent:
    return durable("segment", 1, text=text, segments=[segment(0, text, language=language, **fields)])


def told(made: FunasrResults, *events: SessionEvent) -> list[dict[str, Any]]:
    return [orjson.loads(data) for event in events for data in made.messages(event)]


def last(made: FunasrResults, is_end: bool = False) -> list[dict[str, Any]]:
    return [orjson.loads(data) for data in made.finish(is_end)]


def shown(messages: list[dict[str, Any]]) -> str:
    """The text as the clients make it."""
    offline = online = ""
    for message in messages:
        if message["mode"].endswith("offline"):
            offline, online = offline + message["text"], ""
        else:
            online += message["text"]
    return offline + online


# -- what they send


def test_a_configuration_becomes_options() -> None:
    config = FunasrConfig().updated(FIRST)
    assert config.options("base", is_file=False) == Options(
        mode="stream",
        format="pcm_s16le",
        sample_rate=8000,
        partials=True,
        word_timestamps=True,
        model="base",
    )
    assert (config.name, config.mode) == ("demo", "2pass")
    later = config.updated({"is_speaking": False, "mode": "offline", "wav_name": "h5", "wav_format": "mp3"})
    options = later.options(None, is_file=False)
    assert (options.format, options.sample_rate, options.partials) == ("file", 16000, False)
    assert later.name == "h5"
    assert not FunasrConfig().updated({"mode": "online"}).options(None, is_file=False).word_timestamps


@pytest.mark.parametrize(
    ("format", "begins_a_file", "expected"),
    [
        ("pcm", False, "pcm_s16le"),
        ("PCM", True, "file"),  # the page sends WAV files so
        ("wav", False, "pcm_s16le"),
        ("wav", True, "file"),
        ("others", False, "file"),
    ],
)
def test_what_the_audio_is_in(format: str, begins_a_file: bool, expected: str) -> None:
    assert FunasrConfig().updated({"wav_format": format}).options(None, begins_a_file).format == expected


@pytest.mark.parametrize(
    ("given", "hotwords"),
    [
        ("", ""),
        ("阿里巴巴,通义", "阿里巴巴, 通义"),
        ('{"阿里巴巴": 20, "hello world": 30}', "阿里巴巴, hello world"),
        ({"one": 1, "two": 2}, "one, two"),
        (["one", "two"], "one, two"),
        (None, ""),
        ("x" * 2000, "x" * MAX_TEXT),
    ],
)
def test_hotwords_in_all_forms(given: Any, hotwords: str) -> None:
    assert FunasrConfig().updated({"hotwords": given}).hotwords == hotwords


def test_the_language_is_said_in_two_places() -> None:
    config = FunasrConfig.of_url(UrlOptions(language="de"))
    assert config.language == "de"
    assert config.updated({"svs_lang": "zh"}).language == "zh"
    assert config.updated({"svs_lang": "auto"}).language is None


@pytest.mark.parametrize(
    "given", [{"mode": "3pass"}, {"mode": ["2pass"]}, {"audio_fs": "x"}, {"hotwords": "{"}, {"svs_lang": "klingon"}]
)
def test_bad_configurations(given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        FunasrConfig().updated(given)


# -- what they get


def test_pieces_and_then_the_sentence() -> None:
    """Words that may change are not told."""
    made = results()
    messages = told(made, growing("one"), growing("one"), growing("one two"), ended("One, two."))
    assert [(message["mode"], message["text"]) for message in messages] == [
        ("2pass-online", "one"),
        ("2pass-online", " two"),
        ("2pass-offline", "One, two."),
    ]
    messages += told(made, growing("three"), growing("thee"), growing("three four"))
    assert shown(messages) == "One, two. three four"
    made.is_ending = True
    messages += told(made, ended("Three, four."), ended("Five."))
    assert [message["text"] for message in messages[-1:]] == [" Three, four."]
    messages += last(made)
    assert shown(messages) == "One, two. Three, four. Five."
    assert [message["is_final"] for message in messages] == [False] * (len(messages) - 1) + [True]
    assert {message["wav_name"] for message in messages} == {"a"}


def test_only_pieces() -> None:
    made = results("online")
    events = (growing("one"), ended("one two"), growing("three"), ended("Three, four."), ended("五", "zh"))
    messages = [*told(made, *events), *last(made)]
    assert {message["mode"] for message in messages} == {"online"}
    assert shown(messages) == "one two three four.五"
    assert (messages[-1]["text"], messages[-1]["is_final"]) == ("", True)


@pytest.mark.parametrize("mode", ["2pass", "online", "offline"])
def test_a_sentence_that_was_taken_for_another_language(mode: str) -> None:
    made = results(mode)
    messages = told(made, ended("One."), growing("Two", "zh"), ended("Two.", "zh"), ended("三。", "zh"), ended("Four."))
    assert shown([*messages, *last(made)]) == "One. Two.三。 Four."


def test_one_text_at_the_end() -> None:
    made = results("offline")
    assert told(made, growing("one"), ended("One."), ended("Two.")) == []
    [message] = last(made)
    assert (message["mode"], message["text"], message["is_final"]) == ("offline", "One. Two.", True)


@pytest.mark.parametrize("mode", ["2pass", "online", "offline"])
def test_silence_is_a_result(mode: str) -> None:
    [message] = last(results(mode))
    assert (message["text"], message["is_final"]) == ("", True)
    assert "timestamp" not in message


def test_the_acknowledgement_of_the_end() -> None:
    assert last(results(), is_end=True)[1:] == [{"mode": "2pass", "wav_name": "a", "is_final": True, "is_end": True}]


@pytest.mark.parametrize(
    "event",
    [
        durable("error", 1, code="not_audio", message="no"),
        Refusal.of(AsrError("too_fast", "no")),
        durable("final", 1, status="interrupted"),
    ],
)
def test_an_error_is_told_at_the_end(event: SessionEvent) -> None:
    made = results()
    assert told(made, event) == []
    message, end = last(made, is_end=True)
    assert message["error"] in ("no", "the session was interrupted")
    assert (end["is_final"], end["error"]) == (False, message["error"])


def test_damage_is_an_error_where_nothing_is_left() -> None:
    damage = durable("error", 1, code="undecodable_audio", message="broken")
    for total, error in ((3.0, None), (0.0, "broken")):
        made = results("offline")
        told(made, damage, durable("final", 2, total=total))
        assert made.error == error


# -- times


def spoken(text: str, language: str, *found: str) -> Segment:
    """A segment with these words, each of half a second."""
    words = [Word(word, number / 2, number / 2 + 0.4, 0.9) for number, word in enumerate(found)]
    return segment(0, text, language=language, end=10.0, words=words)


TEXTS = [
    spoken("Hello, world!", "en", "Hello,", "world!"),
    spoken("I don't know: 3.5 — maybe?", "en", "I", "don't", "know:", "3.5", "—", "maybe?"),
    spoken("打开卧室的门。", "zh", "打开", "卧室", "的", "门。"),
    spoken("打开iPhone，好！", "zh", "打开", "iPhone", "，", "好！"),
    spoken("no words at all", "en"),
    spoken("other words", "en", "quite", "words"),
]


@pytest.mark.parametrize("said", [[one] for one in TEXTS] + [TEXTS], ids=[*(one.text for one in TEXTS), "all"])
def test_the_page_finds_a_time_for_each_word(said: list[Segment]) -> None:
    """It goes through the times by number; where one is missing, it stops, and the text is lost."""
    made = results("offline")
    for one in said:
        told(made, durable("segment", 1, text=one.text, segments=[one]))
    [message] = last(made)
    times = orjson.loads(message["timestamp"])
    at = 0
    for part in re.sub("[。？，、?. ]", ",", message["text"]).split(","):
        if part:
            assert times[at]
            at += 1 if re.fullmatch("[a-zA-Z]+", part) else len(part)
    assert at == len(times)
    assert all(start <= end for start, end in times)


def test_times_of_signs_and_words() -> None:
    assert list(tokens(signs_of(TEXTS[0])))[:2] == [("Hello", 0, 333), ("w", 500, 567)]
    assert [token[0] for token in tokens(signs_of(TEXTS[3]))] == [*"打开iPhone", "好", "！"]
    made = results("offline")
    told(made, durable("segment", 1, text="x", segments=[TEXTS[2]]))
    [sentence] = last(made)[0]["stamp_sents"]
    assert (sentence["text_seg"], sentence["punc"]) == ("打 开 卧 室 的 门", "。")
    assert (sentence["start"], sentence["end"]) == (0, 10000)
    assert sentence["ts_list"][:3] == [[0, 200], [200, 400], [500, 700]]
