"""asrserver db, and what a server does with a database that it cannot use."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg2
import pytest

from asrserver.storage.migrate import migrations
from tests.program import NONE, System, cli
from tests.recordings import DATA
from tests.waiting import wait_until

LATEST = migrations()[-1].version

#: What a newer program leaves that no older one can use.
NEWER = (LATEST + 7, "moods", LATEST + 7)


def execute(dsn: str, statement: str, *values: object) -> None:
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(statement, values)
        connection.commit()


@pytest.fixture
def newer(database_url: str) -> Iterator[Callable[[], None]]:
    """Return a function that marks the database as one of a newer program, which it is not after the test."""
    yield lambda: execute(database_url, "INSERT INTO asr_migrations VALUES (%s, %s, %s)", *NEWER)
    execute(database_url, "DELETE FROM asr_migrations WHERE version = %s", NEWER[0])


@pytest.mark.usefixtures("processes")
def test_the_tables_of_an_earlier_release_are_upgraded_by_hand(database_url: str, newer: Callable[[], None]) -> None:
    def db(command: str, *arguments: str) -> tuple[int, str]:
        done = cli("db", command, *arguments, env={"DATABASE_URL": database_url})
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    assert db("upgrade") == (0, f"tables: version {LATEST}\n")  # the database is created, if need be
    tables = "asr_sessions, asr_chunks, asr_segments, asr_tombstones, asr_tally, asr_migrations"
    execute(database_url, f"DROP TABLE {tables} CASCADE")
    assert db("status")[1].startswith("tables: none\n")
    execute(database_url, (DATA / "schema-0.1.0.sql").read_text("utf-8"))
    status, text = db("status")
    assert status == 1
    assert text.splitlines()[:3] == ["tables: version 2", f"program: version {LATEST}", "to be applied: 3 migrations"]
    assert db("upgrade")[0] == 0
    assert db("status") == (0, f"tables: version {LATEST}\nprogram: version {LATEST}\n")
    newer()
    for command in ("status", "upgrade"):
        status, text = db(command)
        assert status == 1
        assert "install the newer asrserver again" in text.splitlines()[-1]
    assert "DATABASE_URL" in cli("db", "status", env=NONE).stderr
    nowhere = db("status", "--database-url", "postgresql://u:s3cret@127.0.0.1:9/x")
    assert nowhere[0] == 1
    assert "refused" in nowhere[1]
    assert "s3cret" not in nowhere[1]


def test_a_server_does_not_start_on_a_database_of_a_newer_one(
    start: Callable[..., System], newer: Callable[[], None]
) -> None:
    """It ends at once, with status 3, and its log says why before anything else of importance. One that runs stays as
    it is: a new process that cannot start replaces none."""
    system = start("run", "--workers", "1").wait_ready()
    newer()
    system.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "rolling restart aborted" in system.output())
    assert "needs a program that knows version" in system.output()
    assert system.process.poll() is None
    assert system.stop() == 0
    refused = start("gateway", "--gateways", "2")
    assert refused.process.wait(20) == 3
    worst = [line for line in refused.output().splitlines() if " INFO " not in line]
    assert "needs a program that knows version" in worst[0]
    assert len(worst) == 1
