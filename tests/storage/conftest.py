"""A real PostgreSQL; each test has a database of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from asrserver.storage.storage import Storage
from tests.storage.postgres import Postgres


@pytest.fixture(scope="session")
def server(real_servers: None) -> Iterator[Postgres]:
    postgres = Postgres()
    postgres.start()
    yield postgres
    postgres.stop()
    shutil.rmtree(postgres.root)


@pytest.fixture
def postgres(server) -> Iterator[Postgres]:
    """The server, running, and again running after a test that stopped it."""
    yield server
    if server.process.poll() is not None:
        server.start()


@pytest.fixture
def database(postgres) -> str:
    """The name of a database that does not exist yet."""
    return f"test_{next(postgres.names)}"


@pytest.fixture
def store(io_loop, postgres, database):
    made = Storage(postgres.dsn(database), pool_size=2)
    io_loop.run_sync(made.open)
    yield made
    io_loop.run_sync(made.close)
