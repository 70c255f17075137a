"""Clients that speak TLS to a port without it, or HTTP to one with TLS: both are told so, and at once.

Otherwise one that speaks TLS waits for its timeout, because the server waits for the end of what could be a request's
headers; and one that speaks HTTP sees its connection cut, and no reason.
"""

from __future__ import annotations

import logging
import socket
import ssl
from contextlib import suppress

from tornado.iostream import IOStream, SSLIOStream, UnsatisfiableReadError

log = logging.getLogger("asrserver.app")

#: How a TLS connection begins: a record of the handshake, of any version (RFC 8446, 5.1).
TLS_BEGIN = b"\x16\x03"

#: Bytes of a request that are read before the answer to it: with some unread, the kernel would reset the connection.
_REQUEST_BYTES = 1 << 16


def _refusal(message: str) -> bytes:
    """An answer; many clients show no more of it than the reason in its first line."""
    body = f'{{"error":{{"code":"bad_request","message":"{message}"}}}}'
    return (
        f"HTTP/1.1 400 {message}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}"
    ).encode()


#: It is no TLS either, which TLS libraries say at once.
NO_TLS = _refusal("this port speaks no TLS: use http or ws")
ONLY_TLS = _refusal("this port speaks TLS: use https or wss")


class PlainStream(IOStream):
    """A connection to a port without TLS."""

    _begun = False

    def _find_read_pos(self) -> int | None:
        if not self._begun and self._read_buffer_size >= len(TLS_BEGIN):
            self._begun = True
            if self._read_buffer.startswith(TLS_BEGIN):
                with suppress(OSError):
                    log.info("TLS from %s to a port without it (--tls-cert)", self.socket.getpeername()[0])
                    self.socket.send(NO_TLS)
                raise UnsatisfiableReadError("TLS")  # upon which Tornado closes the connection
        return super()._find_read_pos()


class TlsStream(SSLIOStream):
    """A connection to a port with TLS."""

    def close(self, exc_info: object = False) -> None:
        """Close the connection; first tell why, if it began with HTTP."""
        if isinstance(exc_info, ssl.SSLError) and exc_info.reason == "HTTP_REQUEST" and not self.closed():
            with suppress(OSError):
                socket.socket.recv(self.socket, _REQUEST_BYTES)  # both without TLS
                socket.socket.send(self.socket, ONLY_TLS)
        super().close(exc_info)  # type: ignore[arg-type]
