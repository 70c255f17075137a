"""Fixtures of the tests of handlers."""

from __future__ import annotations

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer

from tests.handlers.api import Api


@pytest.fixture
def ws_url(base_url: str, http_server: HTTPServer) -> str:
    """The address of the server for WebSockets, without a path."""
    return base_url.replace("http", "ws", 1)


@pytest.fixture
def api(http_client: AsyncHTTPClient, base_url: str) -> Api:
    return Api(http_client, base_url)
