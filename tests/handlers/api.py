"""The REST interface, as tests call it."""

from __future__ import annotations

from typing import Any

import orjson
from tornado.httpclient import AsyncHTTPClient, HTTPResponse


class Api:
    """Sends requests and parses the answers."""

    def __init__(self, client: AsyncHTTPClient, url: str) -> None:
        self._client = client
        self._url = url

    async def fetch(self, path: str, method: str = "GET", **options: Any) -> HTTPResponse:
        return await self._client.fetch(
            self._url + path, method=method, raise_error=False, allow_nonstandard_methods=True, **options
        )

    async def call(self, path: str, method: str = "GET") -> tuple[int, Any]:
        """(status, body); every answer is JSON."""
        response = await self.fetch("/api/v1" + path, method)
        assert response.headers["Content-Type"].startswith("application/json")
        return response.code, orjson.loads(response.body)
