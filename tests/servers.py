"""The Redis and the PostgreSQL of a test run."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis


@dataclass
class Servers:
    """The Redis and PostgreSQL of the test run."""

    redis: EmbeddedRedis
    postgres: EmbeddedPostgres


def _execute(dsn: str, statement: str) -> None:
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def drop_database(servers: Servers, name: str) -> None:
    """Drop a database with its connections, as the superuser: nobody else may end an autovacuum in it."""
    dsn = make_dsn(**{**parse_dsn(servers.postgres.dsn), "user": "postgres", "dbname": "postgres"})
    _execute(dsn, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
