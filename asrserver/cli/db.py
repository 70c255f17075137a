"""asrserver db: the version of a server's tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from asrserver.cli.help import Group
from asrserver.cli.options import group_options
from asrserver.config import Settings
from asrserver.errors import SettingError

T = TypeVar("T")


@click.group(cls=Group)
def db() -> None:
    """Show and upgrade the tables in PostgreSQL. Gateways upgrade them at start by themselves, if they may."""


@db.command("status")
@group_options("database")
def show_version(**options: Any) -> None:
    """Show the version of the tables, and what they lack. The exit status is 1 if it is not that of this program."""
    from asrserver.storage import schema
    from asrserver.storage.migrate import migrations

    found = _storage(lambda dsn: schema.read_version(schema.parameters(dsn)), options)
    click.echo(f"tables: version {found.number}" if found.number else "tables: none")
    click.echo(f"program: version {migrations()[-1].version}")
    for migration in found.pending:
        click.echo(f"to be applied: {migration.version} {migration.name}")
    _storage(lambda dsn: found.check(), options)
    raise SystemExit(1 if found.pending else 0)


@db.command("upgrade")
@group_options("database")
def upgrade(**options: Any) -> None:
    """Create the database and the tables, or apply the migrations that they lack."""
    from asrserver.storage import schema
    from asrserver.storage.migrate import migrations

    _storage(lambda dsn: schema.prepare(schema.parameters(dsn)), options)
    click.echo(f"tables: version {migrations()[-1].version}")


def _storage(work: Callable[[str], T], options: dict[str, Any]) -> T:
    """Do something with the database that the settings name; what goes wrong is one line."""
    from asrserver.storage.errors import StorageError, translated
    from asrserver.storage.pool import STATEMENT_TIMEOUT

    try:
        settings = Settings(**options)
        if not settings.has_database:
            raise SettingError("set DATABASE_URL or DB_HOST: asrserver run upgrades its own PostgreSQL at start")
        return work(settings.database)
    except (SettingError, StorageError) as exc:
        raise click.ClickException(str(exc)) from None
    except Exception as exc:
        raise click.ClickException(str(translated(exc, STATEMENT_TIMEOUT))) from None
