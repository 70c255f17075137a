"""JSON objects: what the text messages of every protocol are; and the base64 in them."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from asrserver.errors import BadRequest

#: Maximum number of values in a message, roughly: 15 MB of empty lists stopped a gateway for 3.5 s. They are counted by
#: characters that base64 does not have.
MAX_VALUES = 10_000

#: Maximum nesting of values: no message has more than ten. Quoting hundreds in an error would fail.
MAX_DEPTH = 50

#: Characters beyond which a message is large; from which it is searched for its largest field, and in how many of its
#: first for the name of that; and of base64 that are decoded at a time.
LARGE_TEXT = 1 << 20
BULKY_TEXT = 1 << 12
SEARCHED = 1 << 12
SLICE = 1 << 20

#: From the URL-safe alphabet to the standard one, and what is between lines.
_STANDARD = bytes.maketrans(b"-_", b"+/")
_BETWEEN = b" \t\r\n"


def parse_object(text: str) -> dict[str, Any]:
    """Read a text message; raises BadRequest where it is no JSON object, or has too many values."""
    if len(text) > MAX_VALUES and sum(map(text.count, "[{,")) > MAX_VALUES:
        raise BadRequest("bad_json", f"the message has more than {MAX_VALUES} values")
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise BadRequest("bad_json", f"the message is not JSON: {exc}") from None
    if not isinstance(message, dict):
        raise BadRequest("bad_json", "the message is not a JSON object")
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(message):
        raise BadRequest("bad_json", f"the message has more than {MAX_DEPTH} values within one another")
    return message


def _is_deep(message: dict[str, Any]) -> bool:
    """Whether it has more than MAX_DEPTH values within one another."""
    level: list[Any] = [message]
    for _ in range(MAX_DEPTH):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for values in inner for value in values]
    return bool(level)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The part of a text from `begin` to `end`, which is not copied: memory for tens of megabytes takes 10 ms."""

    text: str
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin


def parse_bulky(text: str, bulk: str) -> dict[str, Any]:
    """Read a text message that one field makes large; as `parse_object`, and at once.

    To parse two seconds of audio and to count the values takes 90 µs; tens of megabytes take a tenth of a second, in
    which a gateway does nothing else. So the text of the field is taken out before, where it is plain.

    Args:
        text: The message.
        bulk: The name of the field.

    Returns:
        The message; that field is an Excerpt where it is large.
    """
    if len(text) < BULKY_TEXT:
        return parse_object(text)
    key = f'"{bulk}"'
    begin = text.find('"', text.find(key, 0, SEARCHED) + len(key)) + 1
    end = text.find('"', begin)
    without = text[:begin] + text[end:]
    # Otherwise it has escapes, or is not what it seems: within another value, say, or one of two.
    if 0 < begin < SEARCHED < end and without.count(key) == 1 and "\\" not in without:
        with suppress(BadRequest):
            message = parse_object(without)
            if message.get(bulk) == "" and text.find("\\", begin, end) < 0:
                return message | {bulk: text[begin:end] if end - begin < LARGE_TEXT else Excerpt(text, begin, end)}
    return parse_object(text)


def from_base64(value: Any, name: str) -> bytes:
    """Decode base64: standard or URL-safe, with or without padding, in lines, or a `data:` URL.

    Args:
        value: What the client sent.
        name: Of the field, for the error.

    Raises:
        BadRequest: `bad_request` or `bad_base64`; it is none.
    """
    if not isinstance(value, str):
        raise BadRequest("bad_request", f"{name} must be a text in base64")
    try:
        with suppress(ValueError):  # nearly all clients
            return _decoded(value)
        if value.startswith("data:"):
            head, comma, value = value.partition(",")
            if not comma or not head.endswith(";base64"):
                raise ValueError("the data URL is not in base64")
        plain = value.encode("ascii").translate(_STANDARD, _BETWEEN)
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError as exc:
        raise BadRequest("bad_base64", f"{name} is not base64: {exc}") from None


def _decoded(text: str) -> bytes:
    """Decode base64 in the standard alphabet, with padding. binascii takes four times as long as msgspec."""
    return msgspec.convert(text, bytes)


def base64_slices(value: Any, name: str) -> Iterator[bytes]:
    """Decode base64 as `from_base64` does, piece by piece: between them, others may have their turn.

    Args:
        value: What the client sent, or an Excerpt of it.
        name: Of the field, for the error.

    Raises:
        BadRequest: As there.
    """
    if isinstance(value, str):
        value = Excerpt(value, 0, len(value))
    if isinstance(value, Excerpt):
        text, at, end = value.text, value.begin, value.end
        if text.find("=", at, max(at, end - 2)) < 0:
            with suppress(ValueError):  # another alphabet, perhaps, or lines
                while at < end:
                    piece = _decoded(text[at : min(at + SLICE, end)])
                    at += SLICE
                    yield piece
                return
        value = text[at:end]
    yield from_base64(value, name)
