"""The fixtures of the embedded servers' tests. They end only processes that they started, by their pid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from asrserver.embedded.data_dir import DataDir
from asrserver.embedded.server import EmbeddedServer
from tests.embedded.support import Kind, Run


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    with DataDir(tmp_path / "data") as path:
        yield path


@pytest.fixture
def run(real_servers: None, directory: Path) -> Iterator[Run]:
    """Start a server of the given class; all that still run are stopped at the end."""
    servers: list[EmbeddedServer] = []

    def start(kind: type[Kind], path: Path = directory) -> Kind:
        server = kind(path)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop(10)
