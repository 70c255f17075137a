"""cli/options.py: where a server is, and what to do when it is not there."""

from __future__ import annotations

import ssl
from email.message import Message
from urllib.error import HTTPError

import pytest
from click.testing import CliRunner

from asrserver.cli.main import main
from asrserver.cli.options import advice, server_url, websocket_urls
from asrserver.client import HandshakeRefused


@pytest.mark.parametrize(
    ("server", "below"),
    [
        ("127.0.0.1:8080", "ws://127.0.0.1:8080"),
        ("localhost:8080", "ws://localhost:8080"),
        ("http://asr:8080/", "ws://asr:8080"),
        ("ws://asr:8080/ws/asr", "ws://asr:8080"),
        ("https://example.org/speech/", "wss://example.org/speech"),
        ("wss://example.org/speech/ws/asr", "wss://example.org/speech"),
    ],
)
def test_the_address_may_be_that_of_the_page_or_of_the_websocket(server: str, below: str) -> None:
    """Whichever was copied; below the path that a reverse proxy has for it, which was dropped."""
    assert websocket_urls(server) == [f"{below}/ws/asr"]
    assert server_url(server, "http", "/metrics") == f"http{below.removeprefix('ws')}/metrics"


def test_of_several_servers_each_has_an_address() -> None:
    assert websocket_urls("ws://a:1, b:2") == ["ws://a:1/ws/asr", "ws://b:2/ws/asr"]
    assert server_url("ws://a:1,b:2", "http", "") == "http://a:1"


@pytest.mark.parametrize(
    "server",
    [
        "ftp://asr:1",
        "ws:///ws/asr",
        ":8080",
        "asr:99999",
        "http://asr:port",
        "[::1:8080",
        "ws://a:1/?key=secret",
        "ws://a:1,ftp://b",
    ],
)
def test_what_is_no_address_is_refused(server: str) -> None:
    done = CliRunner().invoke(main, ["transcribe", "--server", server, __file__])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: --server: ")


def untrusted(code: int) -> ssl.SSLCertVerificationError:
    exc = ssl.SSLCertVerificationError(1, "certificate verify failed")
    exc.verify_code = code
    return exc


@pytest.mark.parametrize(
    ("exc", "secure", "key", "cure"),
    [
        (ConnectionRefusedError(), False, "", "is it running"),
        (ConnectionResetError(), False, "", "--server https://"),
        (ConnectionError("Connection closed"), False, "", "--server https://"),
        (ConnectionResetError(), True, "", ""),
        (TimeoutError("Timeout during TLS handshake"), True, "", "--server http://"),
        (ssl.SSLError(1, "wrong version number"), True, "", "--server http://"),
        (TimeoutError(), False, "", ""),
        (untrusted(18), True, "", "--ca"),
        (untrusted(20), True, "", "--ca"),
        (untrusted(62), True, "", "as the certificate does"),
        (untrusted(64), True, "", "as the certificate does"),
        (HandshakeRefused(401, "Unauthorized"), False, "", "set --key"),
        (HandshakeRefused(401, "Unauthorized"), False, "x", "does not know this key"),
        (HTTPError("http://x", 401, "Unauthorized", Message(), None), False, "x", "does not know this key"),
        (HandshakeRefused(403, "Forbidden"), False, "", ""),
        (HandshakeRefused(404, "Not Found"), False, "", "is it an asrserver, and its path right?"),
    ],
    ids=str,
)
def test_who_cannot_reach_a_server_is_told_what_to_try(exc: Exception, secure: bool, key: str, cure: str) -> None:
    told = advice(exc, secure, key)
    assert told.startswith("; ") if cure else told == ""
    assert cure in told
