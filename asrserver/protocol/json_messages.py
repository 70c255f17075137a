"""JSON objects: what the text messages of every protocol are."""

from __future__ import annotations

from typing import Any

import orjson

from asrserver.errors import BadRequest

#: Values of a message at most, about: 15 MB of empty lists stopped a gateway for 3.5 s. Base64 has none of their signs.
MAX_VALUES = 10_000


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
