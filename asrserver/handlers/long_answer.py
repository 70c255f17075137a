"""Answers that take long: begun before they are complete, so that no proxy or client gives up waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import orjson
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from asrserver.handlers.base import RestHandler

#: Seconds after which an answer is begun, complete or not. Clients and proxies do not wait for ever for the first byte:
#: 10 minutes in OpenAI's libraries, 5 in Node's fetch, 1 in nginx. Until then, an error can have its own status.
BEGIN_SECONDS = 30.0

#: Seconds between the parts of an answer that keep the request alive.
KEEP_ALIVE_SECONDS = 10.0


class LongAnswerHandler(RestHandler):
    """A route whose answer waits for a job."""

    async def finish_json(self, job: asyncio.Task[Any], body: Callable[[], Any]) -> None:
        """Answer with JSON when the job is done. Until then blanks, which JSON allows, keep the request alive."""
        await self._begin(job, "application/json", lambda: " ")
        job.result()
        self.finish(orjson.dumps(body()))

    async def finish_text(self, job: asyncio.Task[Any], media_type: str, text: Callable[[], str]) -> None:
        """Answer with a text when the job is done. `text` returns it so far; it only grows, and is sent as it grows."""
        sent = ""

        def more() -> str:
            nonlocal sent
            before, sent = sent, text().rstrip("\n")
            return sent[len(before) :]

        await self._begin(job, media_type, more)
        job.result()
        self.finish(text()[len(sent) :])

    async def send(self, data: bytes) -> None:
        """Send a part of the answer. A client that does not read it within unread_timeout is cut.

        Raises:
            CancelledError: It is gone, or was cut.
        """
        self.write(data)
        try:
            async with asyncio.timeout(self.gateway.settings.unread_timeout):
                await self.flush()
        except (TimeoutError, StreamClosedError):
            self.stream.close()
            raise asyncio.CancelledError from None

    @property
    def connection(self) -> HTTP1Connection:
        """The connection that the request came on."""
        return cast(HTTP1Connection, self.request.connection)

    @property
    def stream(self) -> Any:
        """Its socket."""
        return self.connection.stream

    async def _begin(self, job: asyncio.Task[Any], media_type: str, more: Callable[[], str]) -> None:
        """Wait for the job; begin the answer with what there is of it if that takes long."""
        self.set_header("Content-Type", f"{media_type}; charset=utf-8")
        await asyncio.wait([job], timeout=BEGIN_SECONDS)
        while not job.done():
            await self.send(more().encode())
            await asyncio.wait([job], timeout=KEEP_ALIVE_SECONDS)
