"""One WebSocket connection of the client, and the observer of what happens to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

import orjson
from tornado import httpclient
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httputil import HTTPHeaders
from tornado.simple_httpclient import HTTPTimeoutError
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketError

from asrserver.client.errors import Event, HandshakeRefused, no_tls
from asrserver.protocol.frames import TEXT, FrameProtocol

#: Seconds between pings, and until a ping must be answered: else the connection is half open, and lost.
PING_INTERVAL = 10.0

#: Size in bytes of the largest message that is read.
MAX_MESSAGE_SIZE = 1 << 26

#: The status that Tornado invents where no answer came.
NO_ANSWER = 599


def authorization(key: str) -> dict[str, str]:
    """The HTTP header that carries an API key; no header for an empty key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


class ConnectionObserver:
    """Receives what happens to a client's connection, before the client reacts to it.

    For programs that must know more than the client tells its caller, such as a load tester. Override the methods that
    are needed.
    """

    def connected(self, seconds: float) -> None:
        """A connection was made, the first or another one after `lost`; it took `seconds`."""

    def refused(self, reason: Exception, pause: float) -> None:
        """An attempt to connect failed, and another will follow.

        Args:
            reason: HandshakeRefused or OSError.
            pause: Seconds that the server asks to wait; 0 if it does not.
        """

    def lost(self, code: int | None) -> None:
        """The connection ended, and the client did not close it; `code` is the WebSocket close code if there is one."""

    def received(self, event: Event) -> None:
        """A message arrived."""


class ClientConnection(WebSocketClientConnection):
    """Tornado's client connection with the frames of asrserver.protocol.frames.

    Args:
        request: The URL, headers and timeouts.
        on_message: Called with every message.

    Attributes:
        ended: Done when no more messages come; carries the exception that `on_message` raised, if it did.
    """

    def __init__(self, request: HTTPRequest, on_message: Callable[[str | bytes], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._deliver = on_message
        request.headers = HTTPHeaders(request.headers)
        proxy = httpclient._RequestProxy(request, HTTPRequest._DEFAULTS)  # both as websocket_connect does
        super().__init__(
            cast(HTTPRequest, proxy),
            self._receive,
            ping_interval=PING_INTERVAL,
            ping_timeout=PING_INTERVAL,
            max_message_size=MAX_MESSAGE_SIZE,
        )

    async def opened(self) -> None:
        """Wait for the end of the handshake.

        Raises:
            HandshakeRefused: The server refuses.
            OSError: The server cannot be reached, or does not answer in time.
        """
        try:
            await self.connect_future
        except ssl.SSLError as exc:
            raise (no_tls(exc) or exc) from None
        except HTTPTimeoutError as exc:
            raise TimeoutError(exc.message) from exc
        except HTTPClientError as exc:
            if exc.code == NO_ANSWER:
                raise ConnectionError(exc.message) from exc
            value = exc.response.headers.get("Retry-After", "") if exc.response is not None else ""
            raise HandshakeRefused(exc.code, exc.message, float(value) if value.isdecimal() else 0.0) from exc
        except WebSocketError as exc:
            raise HandshakeRefused(200, "the URL is not one of a WebSocket") from exc

    def get_websocket_protocol(self) -> FrameProtocol:
        """Use our frames instead of Tornado's; Tornado calls this."""
        return FrameProtocol(self, mask_outgoing=True, params=self.params)

    @property
    def frames(self) -> FrameProtocol:
        """The protocol that writes frames.

        Raises:
            WebSocketClosedError: The connection is closed.
        """
        if self.protocol is None or self.protocol.is_closing():
            raise WebSocketClosedError
        return cast(FrameProtocol, self.protocol)

    async def write(self, message: Event) -> None:
        """Send a message as JSON, and wait until the next one may be written.

        Raises:
            WebSocketClosedError: The connection is closed.
        """
        frames = self.frames
        frames.send(TEXT, orjson.dumps(message))
        await frames.drained()

    def on_binaries(self, messages: list[bytes]) -> None:
        """Receive the binary messages of one read; FrameProtocol calls this."""
        for message in messages:
            self.on_message(message)

    def _receive(self, message: str | bytes | None) -> None:
        if self.ended.done():
            return
        if message is None:
            self.ended.set_result(None)
            return
        try:
            self._deliver(message)
        except Exception as exc:
            self.ended.set_exception(exc)
