"""The Redis and the PostgreSQL of a test run."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis


@dataclass
class Servers:
    """The Redis and PostgreSQL of the test run."""

    redis: EmbeddedRedis
    postgres: EmbeddedPostgres


#: What the tables, indexes, triggers and functions of a database are: another text, and somebody has changed them.
_SHAPE = """
SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
    SELECT format('%s %s %s', table_name, column_name, data_type) FROM information_schema.columns
    WHERE table_schema = 'public'
    UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
) AS lines(line)
"""

#: Not DELETE: after it, the planner would remember how large the tables were.
_CLEAR = "TRUNCATE asr_sessions, asr_chunks, asr_segments, asr_tombstones, asr_tally RESTART IDENTITY"


class Databases:
    """The databases of the tests: one after the other uses the same one, if it was left as the program makes it.

    To create a database, its tables, and to drop it takes a third of a second, to empty its tables much less.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._numbers = itertools.count()
        self._shape: str | None = None  # of the first one
        self._spare: list[str] = []

    @contextlib.contextmanager
    def lent(self) -> Iterator[str]:
        """The URL of a database that is empty, or does not exist yet: the program creates it."""
        name = self._spare.pop() if self._spare else f"test_{os.getpid()}_{next(self._numbers)}"
        yield make_dsn(**{**parse_dsn(self._servers.postgres.dsn), "dbname": name})
        if self._empty(name):
            self._spare.append(name)
        else:
            drop_database(self._servers, name)

    def _empty(self, name: str) -> bool:
        """Close what is connected to a database, and empty its tables; False if it cannot be used again."""
        try:
            connection = _superuser(self._servers, name)
        except psycopg2.OperationalError:  # it was never created
            return False
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
                    " WHERE datname = %s AND pid <> pg_backend_pid()",
                    (name,),
                )
                cursor.execute(_SHAPE)
                shape = cursor.fetchone()[0]
                if shape is None or shape != (self._shape or shape):
                    return False
                cursor.execute(_CLEAR)
        except psycopg2.Error:
            return False
        finally:
            connection.close()
        self._shape = shape
        return True


def drop_database(servers: Servers, name: str) -> None:
    """Drop a database with its connections, as the superuser: nobody else may end an autovacuum in it."""
    connection = _superuser(servers, "postgres")
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    connection.close()


def _superuser(servers: Servers, database: str) -> Any:
    connection = psycopg2.connect(
        make_dsn(**{**parse_dsn(servers.postgres.dsn), "user": "postgres", "dbname": database})
    )
    connection.autocommit = True
    return connection
