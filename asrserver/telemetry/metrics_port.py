"""A port of its own for /metrics, in a thread of the supervisor. The HTTP server is loaded only if it is asked for."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from asrserver.telemetry.metrics import CONTENT_TYPE, exposition

#: Seconds that a request may take, and requests at a time: each has a thread. Others are cut off.
REQUEST_SECONDS = 10.0
MAX_REQUESTS = 16


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._free = threading.BoundedSemaphore(MAX_REQUESTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        cut = threading.Timer(REQUEST_SECONDS, _cut, (request,))
        cut.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            cut.cancel()
            self._free.release()


def _cut(connection: socket.socket) -> None:
    """End a connection, whose thread then reads or writes no longer."""
    with suppress(OSError):  # it is over
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def metrics_port(host: str, number: int, allows: Callable[[str], bool]) -> Iterator[None]:
    """Serve /metrics.

    Args:
        host: The address to listen on.
        number: The port.
        allows: Whether a request may have this Host header. No key is asked for: a web page could read the metrics by
            a name that it lets resolve to this machine.

    Raises:
        OSError: The port cannot be bound.
    """

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        if allows(environ.get("HTTP_HOST", "")):
            start_response("200 OK", [("Content-Type", CONTENT_TYPE)])
            return [exposition()]
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"host_not_allowed: the name in the Host header is not one of allowed_hosts\n"]

    found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, (address, *_) = found[0]
    kind: type[_Server] = type("MetricsServer", (_Server,), {"address_family": family})
    with make_server(str(address), number, answer, kind, _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
