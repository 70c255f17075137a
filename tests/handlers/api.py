"""The REST interface, as tests call it."""

from __future__ import annotations

from typing import Any

import orjson
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from asrserver.gateway.gateway import Gateway
from asrserver.gateway.session import Session
from asrserver.protocol.events import Final, Segment, SessionEvent
from asrserver.protocol.options import Options, Start
from tests.fakes import FakeWorker
from tests.gateways import offer
from tests.waiting import until


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


async def session(
    gateway: Gateway, sid: str = "s", user_id: str = "", **options: Any
) -> tuple[Session, list[SessionEvent]]:
    """Open a session; returns it with its client's events."""
    got: list[SessionEvent] = []
    return await gateway.start(Start(sid, user_id, Options(**options), False), got.append), got


async def whole_session(gateway: Gateway, worker: FakeWorker, sid: str, text: str = "hello world") -> None:
    """Run a session of one chunk until it is stored."""
    opened, got = await session(gateway, sid, user_id="somebody")
    offer(gateway, opened, b"audio", 0)
    gateway.finish(opened)
    await worker.take(sid)
    row = Segment(number=0, start=0.1, end=1.4, text=text, language="en", confidence=0.9, chunk_index=0)
    await worker.audio(sid, 1)
    await worker.say(sid, "chunk", "1-0", chunk_index=0, text=text, duration=1.5, segments=[row])
    await worker.final(sid, text)
    await until(lambda: got and isinstance(got[-1], Final))
    await until(gateway.write_behind.is_flushed)
