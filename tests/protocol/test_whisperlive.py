"""whisperlive.py: what WhisperLive's clients send, and messages of which they lose nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from asrserver.errors import AsrError, BadRequest, Refused
from asrserver.protocol import model_names, whisperlive
from asrserver.protocol.events import Partial, Refusal, SessionEvent, Word
from asrserver.protocol.options import MAX_TEXT, Options
from asrserver.protocol.pathless import UrlOptions
from asrserver.protocol.whisperlive import WhisperLiveResults, parse, uid_of
from tests.events import durable, segment

#: As the client sends it.
FIRST: dict[str, Any] = {
    "uid": "7-f",
    "language": None,
    "task": "transcribe",
    "model": "small",
    "use_vad": True,
    "send_last_n_segments": 2,
    "no_speech_thresh": 0.45,
    "clip_audio": False,
    "same_output_threshold": 10,
    "enable_translation": False,
    "target_language": "fr",
    "hotwords": None,
    "enable_diarization": False,
    "max_speakers": 10,
    "known_speakers": [],
    "word_timestamps": False,
    "initial_prompt": None,
    "vad_parameters": None,
}


def results(**fields: Any) -> WhisperLiveResults:
    made = WhisperLiveResults()
    made.uid = "7-f"
    ready = orjson.loads(made.ready(parse({**FIRST, **fields}, UrlOptions())))
    assert ready == {"uid": "7-f", "message": "SERVER_READY", "backend": "faster_whisper"}
    return made


def told(made: WhisperLiveResults, *events: SessionEvent) -> list[dict[str, Any]]:
    messages = [orjson.loads(data) for event in events for data in made.messages(event)]
    assert {message.pop("uid") for message in messages} <= {"7-f"}
    return messages


def growing(text: str, start: float = 0.0, end: float = 0.5) -> Partial:
    return Partial(session_id="s", start=start, end=end, text=text, stable="", language="en", follows=0)


def ended(number: int, text: str, **fields: Any) -> SessionEvent:
    return durable("segment", number + 1, text=text, segments=[segment(number, text, **fields)])


def texts(message: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(one["text"], one["completed"]) for one in message["segments"]]


# -- what they send


def test_the_first_message_becomes_options() -> None:
    asked = parse(FIRST, UrlOptions())
    assert asked.options.of_model("base") == Options(mode="stream", format="pcm_f32le", partials=True, model="base")
    assert (asked.model, asked.is_8_bit, asked.last_segments) == ("small", False, 2)
    assert parse({"uid": 1}, UrlOptions()).last_segments == 10
    changed = {
        "language": "de-CH",
        "task": "translate",
        "word_timestamps": True,
        "initial_prompt": "x" * 2000 + "end",
        "hotwords": ["Zürich", "Uri"],
        "audio_format": "uint8",
        "send_last_n_segments": 10**9,
    }
    asked = parse({**FIRST, **changed}, UrlOptions(language="fr", model="base"))
    options = asked.options
    assert (options.language, options.task, options.hotwords) == ("de", "translate", "Zürich, Uri")
    assert (len(options.prompt), options.prompt[-3:], options.word_timestamps) == (MAX_TEXT, "end", True)
    assert (options.format, asked.is_8_bit, asked.model) == ("pcm_s16le", True, "base")
    assert asked.last_segments == whisperlive.MAX_LAST_SEGMENTS


@pytest.mark.parametrize(
    ("fields", "url", "language"),
    [
        ({}, UrlOptions(language="fr"), "fr"),
        ({"language": "en"}, UrlOptions(language="fr"), "en"),
        ({"model": "tiny.en"}, UrlOptions(), "en"),
        ({"model": "tiny.en", "language": "fr"}, UrlOptions(), "fr"),
    ],
)
def test_the_language_is_said_in_several_places(fields: dict[str, Any], url: UrlOptions, language: str) -> None:
    assert parse({**FIRST, **fields}, url).options.language == language


@pytest.mark.parametrize(
    "fields", [{"language": "klingon"}, {"language": 3}, {"model": [1]}, {"audio_format": [1]}, {"task": "sing"}]
)
def test_bad_first_messages(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        parse({**FIRST, **fields}, UrlOptions())


@pytest.mark.parametrize("uid", [None, [], {}, "x" * 999])
def test_bad_uids(uid: Any) -> None:
    with pytest.raises(BadRequest, match="uid"):
        uid_of({"uid": uid})


@pytest.mark.parametrize(
    "name", ["small", "tiny.en", "large-v3", "large-v3-turbo", "distil-large-v3.5", "Systran/faster-whisper-medium.en"]
)
def test_sizes_are_the_loaded_model(name: str) -> None:
    assert model_names.resolve(name, ["demo"], {}, model_names.WHISPER) is None
    with pytest.raises(Refused):
        model_names.resolve(f"my-{name}-mine", ["demo"], {}, model_names.WHISPER)


def test_samples_of_8_bit_are_widened() -> None:
    assert whisperlive.widened(bytes([0, 128, 255])) == b"\x00\x80\x00\x00\x00\x7f"


# -- what they get


def test_a_segment_grows_and_is_completed() -> None:
    """Told as growing with its last text, or the client would keep an older text of it and write it at the end."""
    made = results(language="en")
    messages = told(made, growing("hel", 0.1), growing("hello", 0.1), ended(0, "hello world"))
    assert list(map(texts, messages)) == [
        [(" hel", False)],
        [(" hello", False)],
        [(" hello world", False)],
        [(" hello world", True)],
    ]
    assert messages[0]["segments"] == [{"start": "0.100", "end": "0.500", "text": " hel", "completed": False}]
    [message] = told(made, growing("and", 1.2, 1.5))
    assert texts(message) == [(" hello world", True), (" and", False)]


def test_the_last_segments_are_repeated() -> None:
    made = results(language="en")
    messages = told(made, *(ended(number, str(number)) for number in range(3)), growing("3", 3.0, 3.5))
    assert texts(messages[-2]) == [(" 1", True), (" 2", True)]
    assert texts(messages[-1]) == [(" 2", True), (" 3", False)]


def test_a_segment_that_was_none() -> None:
    """The client keeps the last growing one: it is told the one before again. An empty list would end it."""
    made = results(language="en")
    assert told(made, growing("uh"), growing("")) == told(results(language="en"), growing("uh"))
    messages = told(made, ended(0, "hello"), growing("uh", 1.5, 2.0), growing(""))
    assert list(map(texts, messages[-3:])) == [
        [(" hello", True), (" uh", False)],
        [(" hello", False)],
        [(" hello", True)],
    ]


def test_segments_follow_each_other() -> None:
    """One that begins before the end of the last one is dropped by the client."""
    made = results(language="en")
    messages = told(made, ended(0, "a", end=1.2345), growing("b", 1.2, 1.1), ended(1, "b", start=1.1, end=2.0))
    pairs = [(one["start"], one["end"]) for one in messages[-1]["segments"]]
    assert pairs == [("0.000", "1.234"), ("1.234", "2.000")]
    assert messages[2]["segments"][-1] == {"start": "1.234", "end": "1.234", "text": " b", "completed": False}


def test_words() -> None:
    made = results(language="en", word_timestamps=True)
    messages = told(made, ended(0, "hi", words=[Word("hi", 0.1, 0.25, 0.9)]))
    assert messages[-1]["segments"][0]["words"] == [
        {"word": " hi", "start": "0.100", "end": "0.250", "probability": 0.9}
    ]


def test_the_language_is_told_once_and_by_itself() -> None:
    """To those who named none: the client stops reading a message there."""
    made = results()
    messages = told(made, growing("hal"), ended(0, "hallo", language="de"), ended(1, "du", language="de"))
    assert [message for message in messages if "language" in message] == [{"language": "de", "language_prob": 0.9}]
    assert not any("language" in message for message in told(results(language="en"), ended(0, "hello")))


def test_errors_and_the_end() -> None:
    made = results()
    assert told(made, durable("error", 1, message="no")) == [{"status": "ERROR", "message": "no"}]
    full = Refusal.of(AsrError("too_many_sessions", "no room", retry_after=70.0))
    assert told(made, full) == [{"status": "WAIT", "message": 2}]
    assert told(made, Refusal.of(AsrError("bad_option", "no"))) == [{"status": "ERROR", "message": "no"}]
    assert told(made, durable("final", 2)) == [{"message": "DISCONNECT"}]


@pytest.mark.parametrize("events", [[], [growing("")], [durable("flushed", 1)]])
def test_no_list_of_segments_is_empty(events: Iterable[SessionEvent]) -> None:
    assert told(results(), *events) == []
