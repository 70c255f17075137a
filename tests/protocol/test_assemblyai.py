"""assemblyai.py: the query and messages of AssemblyAI's clients, and messages with all fields that they require."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from asrserver.errors import AsrError, BadRequest, Refused
from asrserver.protocol import model_names
from asrserver.protocol.assemblyai import AssemblyAiTurns, parse_query
from asrserver.protocol.events import Partial, Refusal, SessionEvent, SpeechStarted, Word
from asrserver.protocol.options import Options
from tests.events import durable, segment

#: What AssemblyAI's own library requires of a turn, and of its words, with their types.
TURN = {
    "type": str,
    "turn_order": int,
    "turn_is_formatted": bool,
    "end_of_turn": bool,
    "transcript": str,
    "end_of_turn_confidence": float,
    "words": list,
}
WORD = {"start": int, "end": int, "confidence": float, "text": str, "word_is_final": bool}


def turns(**query: str) -> AssemblyAiTurns:
    return AssemblyAiTurns(parse_query({"sample_rate": "16000", **query}))


def told(made: AssemblyAiTurns, *events: SessionEvent) -> list[dict[str, Any]]:
    return [orjson.loads(data) for event in events for data in made.messages(event)]


def growing(text: str, stable: str) -> Partial:
    return Partial(session_id="s", start=1.0, end=2.0, text=text, stable=stable, language="en", follows=0)


def ended(text: str, cut: bool = False) -> SessionEvent:
    words = [Word(word, 1.0 + number, 1.5004 + number, 0.9) for number, word in enumerate(text.split())]
    return durable("segment", 1, text=text, segments=[segment(0, text, words=words)], cut=cut)


def seen(messages: list[dict[str, Any]]) -> list[tuple[int, str, bool, bool]]:
    return [(one["turn_order"], one["transcript"], one["end_of_turn"], one["turn_is_formatted"]) for one in messages]


# -- what they send


def test_the_query_becomes_options() -> None:
    asked = parse_query(
        {
            "sample_rate": "8000",
            "encoding": "pcm_mulaw",
            "format_turns": "True",
            "future": "x",
            "speech_model": "universal-streaming-english",
            "keyterms_prompt": '["Zürich", " Uri "]',
            "min_turn_silence": "400",
            "max_turn_silence": "2000",
        }
    )
    assert asked.options.of_model("base") == Options(
        mode="stream",
        format="pcm_mulaw",
        sample_rate=8000,
        language="en",
        partials=True,
        hotwords="Zürich, Uri",
        silence=0.4,
        word_timestamps=True,
        speech_events=True,
        model="base",
    )
    assert (asked.is_formatted, asked.has_partials, asked.model) == (True, True, "universal-streaming-english")
    assert not parse_query({"include_partial_turns": "False"}).options.partials


@pytest.mark.parametrize(
    ("encoding", "format"), [("", "pcm_s16le"), ("opus", "opus"), ("ogg_opus", "file"), ("aac", "file")]
)
def test_encodings(encoding: str, format: str) -> None:
    """What says its own rate needs none, and one that is given does not matter."""
    rate = {"sample_rate": "96000"} if format in ("opus", "file") else {}
    assert parse_query({"encoding": encoding, **rate}).options.format == format


@pytest.mark.parametrize(
    ("query", "language"),
    [
        ({}, None),
        ({"language_codes": '["es"]'}, "es"),
        ({"language_codes": '["es", "en"]'}, None),
        ({"language_code": "de-DE"}, "de"),
        ({"language_code": "fr", "speech_model": "universal-streaming-english"}, "fr"),
        ({"speech_model": "universal-streaming-multilingual"}, None),
    ],
)
def test_languages(query: dict[str, str], language: str | None) -> None:
    assert parse_query(query).options.language == language


@pytest.mark.parametrize(("given", "silence"), [("10", 0.3), ("1000", 1.0), ("99999", 5.0)])
def test_pauses_have_bounds(given: str, silence: float) -> None:
    assert parse_query({"max_turn_silence": given}).options.silence == silence


@pytest.mark.parametrize(
    "query",
    [
        *({"encoding": "mp3"}, {"sample_rate": "fast"}, {"sample_rate": "4000"}, {"keyterms_prompt": "Zürich"}),
        *({"keyterms_prompt": "[1]"}, {"language_code": "klingon"}, {"min_turn_silence": "x"}),
    ],
)
def test_bad_queries(query: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        parse_query(query)


@pytest.mark.parametrize("name", ["universal-streaming-english", "u3-rt-pro", "universal-3-6", "whisper-rt"])
def test_its_models_are_the_loaded_one(name: str) -> None:
    assert model_names.resolve(name, ["base"], {}, model_names.ASSEMBLYAI) is None
    with pytest.raises(Refused):
        model_names.resolve(f"my {name}", ["base"], {}, model_names.ASSEMBLYAI)


# -- what they get


def test_turns_grow_and_end() -> None:
    made = turns()
    events = (growing("one too", "one"), growing("one to", "one"), growing("one two tree", "one two"), ended("one two"))
    messages = told(made, *events, ended("three"))
    assert seen(messages) == [
        (0, "one", False, False),
        (0, "one two", False, False),
        (0, "one two", True, False),
        (1, "three", True, False),
    ]
    for message in messages:
        assert {name: type(message[name]) for name in TURN} == TURN
        for word in message["words"]:
            assert {name: type(word[name]) for name in WORD} == WORD
    assert [(one["start"], one["end"]) for one in messages[2]["words"]] == [(1000, 1500), (2000, 2500)]
    assert messages[0]["words"][0]["start"] == 1000
    assert 1000 < messages[0]["words"][0]["end"] < 2000


def test_the_end_of_a_turn_comes_twice_where_it_is_formatted() -> None:
    made = turns(format_turns="true")
    assert seen(told(made, ended("One."))) == [(0, "One.", True, False), (0, "One.", True, True)]
    assert not list(made.configured({"type": "UpdateConfiguration", "format_turns": False}))
    assert seen(told(made, ended("Two."))) == [(1, "Two.", True, False)]


def test_a_turn_of_several_segments() -> None:
    """Speech that goes on for longer than a segment may be has not ended."""
    messages = told(turns(), ended("one", cut=True), growing("two", "two"), ended("two"), ended("three"))
    assert seen(messages) == [
        (0, "one", False, False),
        (0, "one two", False, False),
        (0, "one two", True, False),
        (1, "three", True, False),
    ]
    assert [word["text"] for word in messages[2]["words"]] == ["one", "two"]


@pytest.mark.parametrize("last", [growing("", ""), durable("flushed", 2, number=1), durable("final", 2)])
def test_a_turn_that_was_cut_and_went_on_without_words(last: SessionEvent) -> None:
    """Its text is told as that of a turn that is over: clients wait for that."""
    made = turns(format_turns="true")
    assert seen(told(made, ended("one two", cut=True))) == [(0, "one two", False, False)]
    found = [message for message in told(made, last) if message["type"] == "Turn"]
    assert seen(found) == [(0, "one two", True, False), (0, "one two", True, True)]
    assert seen(told(made, ended("three")))[0] == (1, "three", True, False)


def test_turns_only_at_their_ends() -> None:
    messages = told(turns(include_partial_turns="false"), growing("one", "one"), ended("one"))
    assert seen(messages) == [(0, "one", True, False)]


def test_the_other_messages() -> None:
    made = turns()
    begin = orjson.loads(made.begin("s", 60.0))
    assert (begin["type"], begin["id"], type(begin["expires_at"])) == ("Begin", "s", int)
    messages = told(
        made,
        SpeechStarted(session_id="s", start=0.4, follows=0),
        durable("flushed", 1),
        durable("error", 1, code="undecodable_audio", message="broken"),
        durable("error", 1, code="recognition_failed", message="no"),
        Refusal.of(AsrError("too_many_sessions", "full")),
        durable("final", 2, total=8.4),
    )
    assert messages == [
        {"type": "SpeechStarted", "timestamp": 400},
        {"type": "Warning", "warning_code": 3005, "warning": "broken"},
        {"type": "Error", "error_code": 3005, "error": "no"},
        {"type": "Error", "error_code": 3009, "error": "full"},
        {"type": "Termination", "audio_duration_seconds": 8, "session_duration_seconds": 0},
    ]


def test_what_cannot_be_changed_is_a_warning() -> None:
    [warning] = turns().configured({"type": "UpdateConfiguration", "prompt": "x", "vad_threshold": 0.5})
    assert "prompt" in orjson.loads(warning)["warning"]
