"""Migrations: the numbered SQL files that bring a database of an earlier version to this one. Blocking.

A new database gets schema.sql, which is all of them in one. Which were applied stands in asr_migrations; databases of
release 0.1.0 and before have no such table, and are recognised by what they lack.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import psycopg2

from asrserver.storage.errors import StorageError

log = logging.getLogger("asrserver.storage")

#: Key of the advisory lock under which the schema is changed.
SCHEMA_LOCK = 0x617372_01

#: Begins the message about tables that this program cannot use.
ANOTHER_VERSION = "the database has tables of another version, or of another program"

#: The name of a migration's file, and the line that says which programs it ends: those that know no later one than that
#: before the given number.
_FILE = re.compile(r"(\d{4})_(\w+)\.sql")
_OLDEST = re.compile(r"^-- oldest program: (\d+)$", re.M)

#: The versions of databases without asr_migrations: the table that came with each, the newest first.
_UNNUMBERED = ((2, "asr_tally"), (1, "asr_sessions"))


@dataclass(frozen=True, slots=True)
class Migration:
    """A numbered change of the schema.

    Attributes:
        version: Its number.
        name: What it is about.
        sql: Its statements.
        oldest: Programs that know no migration of this number cannot use the database any more.
    """

    version: int
    name: str
    sql: str
    oldest: int


@dataclass(frozen=True, slots=True)
class Version:
    """The state of a database.

    Attributes:
        number: The last migration that was applied; 0: it has no tables yet.
        oldest: Programs must know the migration of this number.
    """

    number: int
    oldest: int = 1

    @property
    def pending(self) -> list[Migration]:
        """The migrations that it lacks, in order."""
        return [migration for migration in migrations() if migration.version > self.number]

    def check(self) -> None:
        """Raise StorageError if this program cannot use the database, because a newer one has changed it."""
        known = migrations()[-1].version
        if self.oldest > known:
            raise StorageError(
                f"the database has version {self.number}, which needs a program that knows version {self.oldest}; this "
                f"one knows up to {known}: install the newer asrserver again, or restore a backup from before"
            )


@cache
def migrations() -> list[Migration]:
    """All that this program knows, in order."""
    found = []
    for file in resources.files("asrserver").joinpath("storage", "sql").iterdir():
        if named := _FILE.fullmatch(file.name):
            sql = file.read_text("utf-8")
            oldest = _OLDEST.search(sql)
            found.append(Migration(int(named[1]), named[2], sql, int(oldest[1]) if oldest else 1))
    return sorted(found, key=lambda migration: migration.version)


def version(cursor: Any) -> Version:
    """Read the version of the current schema."""
    tables = {"asr_migrations", *(table for _, table in _UNNUMBERED)}
    cursor.execute(
        "SELECT relname FROM pg_class WHERE relname = ANY (%s) AND relnamespace = current_schema()::regnamespace",
        (list(tables),),
    )
    present = {name for (name,) in cursor}
    if "asr_migrations" in present:
        cursor.execute("SELECT max(version), max(oldest) FROM asr_migrations")
        number, oldest = cursor.fetchone()
        if number is not None:
            return Version(number, oldest)
    return Version(next((number for number, table in _UNNUMBERED if table in present), 0))


def upgrade(cursor: Any, before: Version) -> None:
    """Apply what the database lacks, in the transaction of the caller, who holds SCHEMA_LOCK.

    Raises:
        StorageError: A migration cannot be applied; names it.
    """
    for migration in before.pending:
        execute(cursor, migration.sql, f"{ANOTHER_VERSION}: migration {migration.version} ({migration.name})")
    record(cursor, before.pending)
    if before.pending:
        log.info("PostgreSQL: the tables were brought from version %d to %d", before.number, migrations()[-1].version)


def record(cursor: Any, applied: list[Migration]) -> None:
    """Note in the database that migrations were applied; those that it lacks are noted with the first of them."""
    for migration in migrations() if applied else ():
        cursor.execute(
            "INSERT INTO asr_migrations (version, title, oldest) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            (migration.version, migration.name, migration.oldest),
        )


def execute(cursor: Any, statements: str, problem: str) -> None:
    """Execute statements that change the schema.

    Raises:
        StorageError: They cannot be; begins with `problem`.
    """
    try:
        cursor.execute(statements)
    except psycopg2.errors.InsufficientPrivilege as exc:
        user = cursor.connection.info.user
        raise StorageError(
            f"{problem}: {exc.diag.message_primary}; user {user!r} does not own the tables: let their owner run "
            "asrserver db upgrade"
        ) from None
    except (psycopg2.ProgrammingError, psycopg2.IntegrityError, psycopg2.DataError, psycopg2.NotSupportedError) as exc:
        raise StorageError(f"{problem}: {exc.diag.message_primary}") from None
