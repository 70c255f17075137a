"""Fixtures of the tests of handlers."""

from __future__ import annotations

import pytest
from tornado.httpserver import HTTPServer


@pytest.fixture
def ws_url(base_url: str, http_server: HTTPServer) -> str:
    """The address of the server for WebSockets, without a path."""
    return base_url.replace("http", "ws", 1)
