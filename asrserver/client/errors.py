"""The exceptions of the Python client.

ServerError           the server reported an error
ConnectionLost        there is no connection, and there will be none
└── HandshakeRefused  the server answered the WebSocket handshake with an HTTP status
"""

from __future__ import annotations

import ssl
from typing import Any

#: A message of the server: JSON, as docs/reference/websocket.md describes it.
Event = dict[str, Any]


class ServerError(Exception):
    """Raised for an error that the server reported.

    Attributes:
        event: The whole `error` message.
    """

    def __init__(self, event: Event) -> None:
        super().__init__(f"{event.get('code', 'error')}: {event.get('message', '')}")
        self.event = event


class ConnectionLost(Exception):
    """Raised when the connection ended before the awaited result came, and could not be made again."""


class HandshakeRefused(ConnectionLost):
    """Raised when the server refuses the WebSocket handshake.

    Attributes:
        status: The HTTP status.
        retry_after: Seconds that the server asks to wait before the next attempt; 0 if it does not.
    """

    def __init__(self, status: int, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status = status
        self.retry_after = retry_after


#: What OpenSSL says, before version 3.2 and since, of an answer that is no TLS.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


def no_tls(exc: BaseException | str) -> ConnectionError | None:
    """The error for a server that speaks no TLS, in plain words, if this is why it could not be reached."""
    if isinstance(exc, ssl.SSLError) and exc.reason in _NO_TLS:
        return ConnectionError("the server speaks no TLS: use http or ws")
    return None
