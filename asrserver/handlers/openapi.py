"""The description of the routes for programs: OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0).

The document is data/openapi.json; tests hold it against the code.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import orjson

from asrserver import __version__
from asrserver.handlers.base import RestHandler


@cache
def document() -> dict[str, Any]:
    """Read the document, with the version of this program in it."""
    found: dict[str, Any] = orjson.loads(resources.files("asrserver").joinpath("data", "openapi.json").read_bytes())
    found["info"]["version"] = __version__
    return found


class OpenApiHandler(RestHandler):
    """GET /api/v1/openapi.json: the document."""

    async def get(self) -> None:
        self.answer(document())
