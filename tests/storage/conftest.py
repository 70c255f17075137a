"""A real PostgreSQL; each test has its own database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import tornado.ioloop

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
def postgres(server: Postgres) -> Iterator[Postgres]:
    """The running server; it is started again after a test that stopped it."""
    yield server
    if server.process is None or server.process.poll() is not None:
        server.start()


@pytest.fixture
def database(postgres: Postgres) -> str:
    """The name of a database that does not exist yet."""
    return f"test_{next(postgres.names)}"


@pytest.fixture
def store(io_loop: tornado.ioloop.IOLoop, postgres: Postgres, database: str) -> Iterator[Storage]:
    made = Storage(postgres.dsn(database), pool_size=2)
    io_loop.run_sync(made.open)
    yield made
    io_loop.run_sync(made.close)
