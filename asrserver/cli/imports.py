"""asrserver import-kikipounamu: the history of the server that this one replaces."""

from __future__ import annotations

from typing import Any

import click

from asrserver.cli.options import group_options
from asrserver.config import Settings


@click.command("import-kikipounamu")
@click.argument("dsn", metavar="DSN")
@click.option("--owner", default="", metavar="ID", help="Id of the API key that the sessions are to belong to.")
@group_options("database")
def import_kikipounamu(dsn: str, owner: str, **options: Any) -> None:
    """Copy the history of kikipounamu's Go server into this server's PostgreSQL.

    DSN is its database, such as postgresql://postgres:PASSWORD@127.0.0.1/kikipounamu. Nothing is changed there.
    Sessions that are here already, or were deleted here, are left out: the command can be repeated. Recordings are not
    copied.
    """
    import asyncio

    from asrserver.errors import SettingError
    from asrserver.storage.errors import StorageError

    settings = Settings(**options)
    if not settings.has_database:
        raise click.ClickException("set DATABASE_URL or DB_HOST: the PostgreSQL that the history is copied into")
    try:
        copied, left = asyncio.run(_copy(dsn, settings.database, owner or None))
    except (SettingError, StorageError) as exc:
        raise click.ClickException(str(exc)) from None
    click.echo(f"{copied} sessions copied, {left} left out: they are here already, or cannot be stored")


async def _copy(dsn: str, database: str, owner: str | None) -> tuple[int, int]:
    """Returns (sessions that were copied, sessions that were left out)."""
    from asrserver.storage.ancestor import read_history
    from asrserver.storage.storage import Storage

    copied = left = 0
    storage = Storage(database)
    await storage.open()
    try:
        for records in read_history(dsn, owner):  # blocks, and nothing else runs here
            new = [record for record in records if not await storage.known(record.session["id"])]
            refused = await storage.save(new)
            copied += len(new) - len(refused)
            left += len(records) - len(new) + len(refused)
    finally:
        await storage.close()
    return copied, left
