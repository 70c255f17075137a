"""Requests to REST: through the environment's proxy, but not to loopback addresses."""

from __future__ import annotations

import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from asrserver.client.rest import open_url


class Recorder(BaseHTTPRequestHandler):
    """Answers every request with its target, as the request line has it, and its key."""

    def do_GET(self) -> None:
        self.send_response(418 if self.path.endswith("/teapot") else 200)
        self.end_headers()
        self.wfile.write(f"{self.path} {self.headers['Authorization']}".encode())

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server, in an environment with a proxy that does not exist, and without no_proxy."""
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # seconds between looks for the shutdown
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_loopback_address_is_not_requested_from_a_proxy(port: int, host: str) -> None:
    with open_url(f"http://{host}:{port}/health", "secret", 5) as answer:
        assert answer.read() == b"/health Bearer secret"


def test_another_host_is_requested_from_the_proxy(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(urllib.error.URLError, match="refused"):
        open_url("http://asr.example.org/health", "", 5)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    with open_url("http://asr.example.org/health", "", 5) as answer:
        assert answer.read() == b"http://asr.example.org/health None"


def test_an_error_status_is_raised(port: int) -> None:
    with pytest.raises(urllib.error.HTTPError, match="418"):
        open_url(f"http://127.0.0.1:{port}/teapot", "", 5)
