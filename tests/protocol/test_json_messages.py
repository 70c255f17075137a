"""json_messages.py: large messages are read as small ones are, with less work at a time."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from asrserver.errors import BadRequest
from asrserver.protocol import json_messages
from asrserver.protocol.json_messages import (
    MAX_DEPTH,
    SLICE,
    Excerpt,
    base64_slices,
    from_base64,
    parse_bulky,
    parse_object,
)

AUDIO = os.urandom(3 * SLICE)
TEXT = base64.b64encode(AUDIO).decode()


def whole(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the texts of its excerpts."""
    return {
        name: value.text[value.begin : value.end] if isinstance(value, Excerpt) else value
        for name, value in message.items()
    }


def test_the_bulk_is_not_copied() -> None:
    message = json.dumps({"action": "chunk", "audio_data": TEXT})
    found = parse_bulky(message, "audio_data")["audio_data"]
    assert isinstance(found, Excerpt)
    assert found.text is message
    assert len(found) == len(TEXT)


def test_the_bulk_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def parse(text: str) -> dict[str, Any]:
        parsed.append(text)
        return parse_object(text)

    monkeypatch.setattr(json_messages, "parse_object", parse)
    message = {"action": "chunk", "session_id": "s", "chunk_index": 0, "audio_data": TEXT}
    assert whole(parse_bulky(json.dumps(message), "audio_data")) == message
    assert whole(parse_bulky(json.dumps(message, separators=(",", ":")), "audio_data")) == message
    assert max(map(len, parsed)) < 100


@pytest.mark.parametrize(
    "message",
    [
        {"action": "chunk", "audio_data": TEXT + "\n" + TEXT},
        {"action": "chunk", "audio_data": 'a"' * SLICE},
        {"action": "chunk", "other": {"audio_data": TEXT}},
        {"action": "chunk", "other": {"audio_data": TEXT}, "audio_data": TEXT},
        {"action": "chunk", "other": '"audio_data": "', "audio_data": TEXT},
        {"action": "audio_data", "audio_data": TEXT},
        {"action": "chunk", "padding": "x" * 5000, "audio_data": TEXT},
        {"action": "chunk", "audio_data": None, "other": TEXT},
        {"action": "chunk", "audio_data": 5, "other": TEXT},
        {"action": "chunk", "text": TEXT},
    ],
)
def test_what_is_not_plain_is_parsed_as_it_is(message: dict[str, Any]) -> None:
    assert whole(parse_bulky(json.dumps(message), "audio_data")) == message


@pytest.mark.parametrize("text", ["[" + '"audio_data": "' + TEXT + '"]', '{"audio_data": "' + TEXT, TEXT, "[" * SLICE])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_bulky(text + " " * SLICE, "audio_data")


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        base64.b64encode(AUDIO + b"x").decode(),
        base64.b64encode(AUDIO + b"x").decode().rstrip("="),
        base64.urlsafe_b64encode(AUDIO).decode(),
        TEXT[: 2 * SLICE] + base64.urlsafe_b64encode(base64.b64decode(TEXT[2 * SLICE :])).decode(),
        base64.encodebytes(AUDIO).decode(),
        "data:audio/wav;base64," + TEXT,
        "QUJD",
    ],
)
def test_slices_are_the_whole(text: str) -> None:
    excerpt = Excerpt(f"=={text}==", 2, 2 + len(text))
    for value in (text, excerpt):
        assert b"".join(base64_slices(value, "audio_data")) == from_base64(text, "audio_data")


@pytest.mark.parametrize("text", ["QQ==" + TEXT, TEXT + "!", TEXT[:SLICE] + "ä" + TEXT, 5, None])
def test_what_is_no_base64_is_refused(text: Any) -> None:
    with pytest.raises(BadRequest, match="audio_data"):
        list(base64_slices(text, "audio_data"))


def test_how_deep_a_message_may_be() -> None:
    def nested(depth: int) -> str:
        return '{"a": ' + "[" * depth + "]" * depth + ', "b": [' + "[1]," * 60 + "1]}"

    assert len(parse_object(nested(MAX_DEPTH - 2))["b"]) == 61
    for depth in (MAX_DEPTH + 1, 1000):
        with pytest.raises(BadRequest, match="within one another"):
            parse_object(nested(depth))
