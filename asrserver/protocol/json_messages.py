"""JSON objects: what the text messages of every protocol are; and the base64 in them."""

from __future__ import annotations

import binascii
from contextlib import suppress
from typing import Any

import orjson

from asrserver.errors import BadRequest

#: Values of a message at most, about: 15 MB of empty lists stopped a gateway for 3.5 s. Base64 has none of their signs.
MAX_VALUES = 10_000

#: From the URL-safe alphabet to the standard one, and what is between lines.
_STANDARD = bytes.maketrans(b"-_", b"+/")
_BETWEEN = b" \t\r\n"


def parse_object(text: str) -> dict[str, Any]:
    """Read a text message; raises BadRequest where it is no JSON object, or has too many values."""
    if sum(map(text.count, "[{,")) > MAX_VALUES:
        raise BadRequest("bad_json", f"the message has more than {MAX_VALUES} values")
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise BadRequest("bad_json", f"the message is not JSON: {exc}") from None
    if not isinstance(message, dict):
        raise BadRequest("bad_json", "the message is not a JSON object")
    return message


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
            return binascii.a2b_base64(value, strict_mode=True)
        if value.startswith("data:"):
            head, comma, value = value.partition(",")
            if not comma or not head.endswith(";base64"):
                raise ValueError("the data URL is not in base64")
        plain = value.encode("ascii").translate(_STANDARD, _BETWEEN)
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError as exc:
        raise BadRequest("bad_base64", f"{name} is not base64: {exc}") from None
