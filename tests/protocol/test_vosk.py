"""vosk.py and pathless.py: what Vosk's clients send and read, and how their protocol is told from its neighbours'."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from asrserver.errors import BadRequest, Refused
from asrserver.protocol import model_names, pathless, vosk
from asrserver.protocol.events import Partial, Word
from asrserver.protocol.options import Options
from asrserver.protocol.pathless import UrlOptions
from asrserver.protocol.vosk import VoskAnswers, VoskConfig
from tests.events import durable, segment

HELLO = segment(0, "Hello, World!", words=[Word("Hello,", 0.1, 0.4, 0.9), Word("World!", 0.5, 0.9, 0.8)])
DOOR = segment(1, "打开，卧室的门。", language="zh")


def answers(**config: Any) -> VoskAnswers:
    return VoskAnswers(VoskConfig(url=UrlOptions(plain=config.pop("plain", False))).updated(config))


def said(made: VoskAnswers, *segments: Any) -> None:
    for number, one in enumerate(segments, 1):
        made.add(durable("segment", number, text=one.text, segments=[one]))


def partial(text: str) -> Partial:
    return Partial(session_id="s", start=0.0, end=1.0, text=text, stable="", language="en", follows=0)


def read(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(data)
    return found


# -- configuration


def test_a_configuration_changes_what_it_names() -> None:
    config = VoskConfig()
    assert config.options(None) == Options(
        mode="stream", format="pcm_s16le", sample_rate=8000, partials=True, word_timestamps=True
    )
    config = config.updated({"sample_rate": 16000.0, "phrase_list": ["zero one", "[unk]", "two"], "future": 1})
    config = config.updated({"words": 0, "model": "vosk-model-en-us-0.22"})
    options = config.options("base")
    assert (options.sample_rate, options.hotwords, options.word_timestamps) == (16000, "zero one, two", False)
    assert (options.model, config.model) == ("base", "vosk-model-en-us-0.22")
    assert config.updated({"phrase_list": "three"}).phrases == "three"


@pytest.mark.parametrize(
    "config", [3, {"sample_rate": "fast"}, {"sample_rate": None}, {"sample_rate": 4000}, {"max_alternatives": []}]
)
def test_bad_configurations(config: Any) -> None:
    with pytest.raises(BadRequest):
        VoskConfig().updated(config)


@pytest.mark.parametrize("text", ["", "[]", "audio", '{"text": 1}', "{" * 9])
def test_bad_messages(text: str) -> None:
    with pytest.raises(BadRequest):
        vosk.parse(text)


@pytest.mark.parametrize("text", ['{"eof" : 1}', '{"eof":1}', '{ "eof" : true }'])
def test_messages_are_json_however_they_are_written(text: str) -> None:
    assert vosk.parse(text)["eof"]


@pytest.mark.parametrize("name", ["model", "/opt/vosk-model-en/model", "vosk-model-small-cn-0.22", "model-en"])
def test_vosk_s_models_are_the_loaded_one(name: str) -> None:
    assert model_names.resolve(name, ["base"], {}, model_names.VOSK) is None
    with pytest.raises(Refused, match="does not exist"):
        model_names.resolve("grass", ["base"], {}, model_names.VOSK)


# -- answers


def test_an_answer_says_what_is_known() -> None:
    made = answers()
    assert read(made.answer()) == {"partial": ""}
    made.add(partial("Hel"))
    assert read(made.answer()) == {"partial": "Hel"}
    said(made, HELLO)
    made.add(partial("And"))
    assert read(made.answer()) == {
        "result": [
            {"conf": 0.9, "start": 0.1, "end": 0.4, "word": "Hello,"},
            {"conf": 0.8, "start": 0.5, "end": 0.9, "word": "World!"},
        ],
        "text": "Hello, World!",
    }
    assert read(made.answer()) == {"partial": "And"}
    assert read(made.text()) == {"text": ""}


def test_an_answer_has_all_that_was_said_since_the_last_one() -> None:
    made = answers(words=0)
    said(made, HELLO, segment(1, "Good bye."), DOOR)
    assert read(made.answer()) == {"text": "Hello, World! Good bye.打开，卧室的门。"}
    assert read(made.answer()) == {"partial": ""}


def test_alternatives_are_one() -> None:
    made = answers(max_alternatives=3)
    said(made, HELLO)
    [found] = read(made.text())["alternatives"]
    assert (found["text"], found["confidence"]) == ("Hello, World!", 0.9)
    assert [word["word"] for word in found["result"]] == ["Hello,", "World!"]
    assert read(made.text()) == {"alternatives": [{"text": "", "confidence": 1.0}]}


def test_texts_as_vosk_writes_them() -> None:
    made = answers(plain=True)
    made.add(partial("Don't, STOP — 3.5"))
    assert read(made.answer()) == {"partial": "don't stop 3.5"}
    said(made, HELLO, DOOR)
    found = read(made.answer())
    assert found["text"] == "hello world打开卧室的门"
    assert [word["word"] for word in found["result"]] == ["hello", "world"]
    assert vosk.plain("… Straße!", "de") == "straße"


# -- which protocol


@pytest.mark.parametrize(
    ("message", "subprotocol", "name"),
    [
        ('{"uid": "1", "language": null, "task": "transcribe"}', None, "whisperlive"),
        ('{"mode": "2pass", "chunk_size": [5, 10, 5], "is_speaking": true}', None, "funasr"),
        ('{"is_speaking": false}', None, "funasr"),
        ('{"config": {"sample_rate": 16000}}', None, "vosk"),
        ('{"eof" : 1}', None, "vosk"),
        (b"\0\0", None, "vosk"),
        (b"\0\0", "binary", "funasr"),
    ],
)
def test_the_first_message_tells_the_protocol(message: str | bytes, subprotocol: str | None, name: str) -> None:
    assert pathless.detect_protocol(message, subprotocol) == name


@pytest.mark.parametrize("message", ['{"action": "start"}', "{}", "[1]", "hello", ""])
def test_the_first_message_is_of_none(message: str) -> None:
    with pytest.raises(BadRequest):
        pathless.detect_protocol(message, None)


@pytest.mark.parametrize("message", ['{"action": "start"}', '{"action": "start", "mode": "stream"}'])
def test_a_client_of_the_native_protocol_is_told_its_path(message: str) -> None:
    """A `mode` is a sign of FunASR's protocol elsewhere."""
    with pytest.raises(BadRequest, match="at the path /ws/asr"):
        pathless.detect_protocol(message, None)


def test_the_url_says_what_messages_cannot() -> None:
    assert UrlOptions.parse({"uid": "7"}) == UrlOptions()
    assert UrlOptions.parse({"language": "de-CH", "model": " base ", "plain": ""}) == UrlOptions("de", "base", True)
    assert not UrlOptions.parse({"plain": "false"}).plain
    options = VoskConfig(url=UrlOptions("de")).options(None)
    assert options.language == "de"
    with pytest.raises(BadRequest, match="klingon"):
        UrlOptions.parse({"language": "klingon"})
