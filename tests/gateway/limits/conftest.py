"""A gateway with the limits that a test gives by parametrize, and a second one beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tornado.ioloop
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from asrserver.auth.keys import KeyLimits
from asrserver.config import Settings
from asrserver.gateway import gateway as gateway_module
from asrserver.gateway.gateway import Gateway
from asrserver.handlers.app import AsrApplication
from tests.gateway.limits.support import Keyed
from tests.gateways import accepting


@pytest.fixture
def given() -> dict[str, Any]:
    """The test's settings, by parametrize."""
    return {}


@pytest.fixture
def shares(tmp_path: Path) -> KeyLimits | None:
    """The limits of the test's key, by parametrize. None: the gateway asks for no keys."""
    return None


@pytest.fixture
def keyed(tmp_path: Path, shares: KeyLimits | None) -> Keyed | None:
    return None if shares is None else Keyed(tmp_path / "keys.json", shares)


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str, given: dict[str, Any], keyed: Keyed | None) -> Settings:
    path = "" if keyed is None else str(keyed.file.path)
    return Settings(redis_url=redis_url, database_url=database_url, keys_file=path, **given)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "WATCH_EVERY", 0.05)
    monkeypatch.setattr(gateway_module, "HEARTBEAT_EVERY", 0.2)


@pytest.fixture
def other(io_loop: tornado.ioloop.IOLoop, gateway_settings: Settings, gateway: Gateway) -> Iterator[str]:
    """The URL of a second gateway."""

    async def opened() -> tuple[Gateway, HTTPServer, str]:
        made = Gateway(gateway_settings)
        await made.open()
        accepting(made)
        server = HTTPServer(AsrApplication(made))
        socket, port = bind_unused_port()
        server.add_socket(socket)
        return made, server, f"ws://127.0.0.1:{port}/ws/asr"

    made, server, url = io_loop.run_sync(opened)
    yield url

    async def closed() -> None:
        server.stop()
        await server.close_all_connections()
        await made.close()

    io_loop.run_sync(closed)
