"""One connection of the client, and who may watch what happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import orjson
from tornado import httpclient
from tornado.httpclient import HTTPRequest
from tornado.httputil import HTTPHeaders
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError

from asrserver.client.errors import Event
from asrserver.protocol.frames import TEXT, FrameProtocol

#: Seconds between pings: a connection without a pong is half open, and lost.
PING_INTERVAL = 10.0

#: Bytes of the longest message that is read.
MAX_MESSAGE = 1 << 26


def authorization(key: str) -> dict[str, str]:
    """The header that shows an API key; none for an empty one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


class Watch:
    """Is told what happens to a client, as it happens and before the client makes something of it.

    For those who must know more than a caller: a load tester, say. Override what is wanted.
    """

    def connected(self, seconds: float) -> None:
        """There is a connection, made in so many seconds: the first, or another after `lost`."""

    def refused(self, reason: Exception, pause: float) -> None:
        """A try to connect failed, and there will be another; the server asked for a pause of so many seconds, or 0."""

    def lost(self, code: int | None) -> None:
        """The connection ended, with WebSocket's close code if it was closed, and not by the client."""

    def received(self, event: Event) -> None:
        """A message came."""


class ClientConnection(WebSocketClientConnection):
    """Tornado's, with frames of our own; `heard` gets every message, and `ended` is set when no more comes."""

    def __init__(self, request: HTTPRequest, heard: Callable[[str | bytes], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard = heard
        request.headers = HTTPHeaders(request.headers)
        proxy = httpclient._RequestProxy(request, HTTPRequest._DEFAULTS)  # both as websocket_connect does
        super().__init__(
            cast(HTTPRequest, proxy),
            self._hear,
            ping_interval=PING_INTERVAL,
            ping_timeout=PING_INTERVAL,
            max_message_size=MAX_MESSAGE,
        )

    def get_websocket_protocol(self) -> FrameProtocol:
        return FrameProtocol(self, mask_outgoing=True, params=self.params)

    @property
    def wire(self) -> FrameProtocol:
        """Raises WebSocketClosedError."""
        if self.protocol is None or self.protocol.is_closing():
            raise WebSocketClosedError
        return cast(FrameProtocol, self.protocol)

    async def write(self, message: Event) -> None:
        """Raises WebSocketClosedError."""
        wire = self.wire
        wire.send(TEXT, orjson.dumps(message))
        await wire.drained()

    def on_binaries(self, messages: list[bytes]) -> None:
        for message in messages:
            self.on_message(message)

    def _hear(self, message: str | bytes | None) -> None:
        if self.ended.done():
            return
        if message is None:
            self.ended.set_result(None)
            return
        try:
            self._heard(message)
        except Exception as exc:
            self.ended.set_exception(exc)
