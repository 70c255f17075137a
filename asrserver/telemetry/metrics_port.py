"""A port of its own for /metrics, in a thread of the supervisor. Only those who ask for it load an HTTP server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from asrserver.telemetry.metrics import of_all_processes

#: Seconds that a client may take to send its request: each has a thread.
REQUEST_SECONDS = 10.0


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

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
    exposition = make_wsgi_app(of_all_processes())

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        if allows(environ.get("HTTP_HOST", "")):
            return exposition(environ, start_response)
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
