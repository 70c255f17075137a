"""Shared by the tests of the embedded servers: they write to a real server, read from it and kill it."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psycopg2
import pytest
import redis

from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.embedded.server import EmbeddedServer
from tests.waiting import wait_until

Kind = TypeVar("Kind", bound=EmbeddedServer)

both = pytest.mark.parametrize("kind", [EmbeddedRedis, EmbeddedPostgres])


class Run(Protocol):
    """Starts a server of a class, in a directory or in the test's own."""

    def __call__(self, kind: type[Kind], path: Path = ...) -> Kind: ...


def client(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=5)


def query(server: EmbeddedPostgres, statement: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(server.dsn, connect_timeout=5)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def remember(server: EmbeddedServer, word: str) -> None:
    if isinstance(server, EmbeddedRedis):
        with client(server) as connection:
            connection.xadd("words", {"word": word})
    elif isinstance(server, EmbeddedPostgres):
        query(server, "CREATE TABLE IF NOT EXISTS words (word text)")
        query(server, f"INSERT INTO words VALUES ('{word}')")


def remembered(server: EmbeddedServer) -> list[str]:
    if isinstance(server, EmbeddedRedis):
        with client(server) as connection:
            return [fields[b"word"].decode() for _, fields in connection.xrange("words")]
    assert isinstance(server, EmbeddedPostgres)
    return [word for (word,) in query(server, "SELECT word FROM words")]


def kill(server: EmbeddedServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: server.poll() is not None)
    assert server.poll() == -signal.SIGKILL


def modes(path: Path) -> dict[Path, tuple[int, int, int]]:
    status = {parent: parent.stat() for parent in path.parents}
    return {parent: (each.st_mode, each.st_uid, each.st_gid) for parent, each in status.items()}


def forbid_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid user namespaces, as a container's seccomp does: by an unshare flag that the kernel does not know."""
    monkeypatch.setattr("asrserver.embedded.identity._CLONE_NEWUSER", 0x1)
