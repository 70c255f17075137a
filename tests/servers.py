"""The Redis and the PostgreSQL of a run."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis


@dataclass
class Servers:
    """The run's Redis and PostgreSQL."""

    redis: EmbeddedRedis
    postgres: EmbeddedPostgres


def _execute(dsn: str, statement: str) -> None:
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def drop_database(servers: Servers, name: str) -> None:
    """With whoever is still in it. As the superuser: an autovacuum at work there is nobody else's to end."""
    dsn = make_dsn(**{**parse_dsn(servers.postgres.dsn), "user": "postgres", "dbname": "postgres"})
    _execute(dsn, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
