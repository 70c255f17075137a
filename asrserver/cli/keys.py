"""asrserver keys: the API keys in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from gettext import gettext as _
from typing import Any

import click

from asrserver.auth.keys import MAX_WEIGHT, MIN_WEIGHT, PRIORITIES, KeyLimits, KeysFile
from asrserver.cli.help import Group
from asrserver.cli.status import format_table
from asrserver.errors import SettingError


@click.group(cls=Group)
def keys() -> None:
    """Create, list, limit and revoke API keys in a file. Running servers reload the file within two seconds."""


_keys_file = click.option(
    "--keys-file",
    "path",
    required=True,
    envvar="ASRSERVER_KEYS_FILE",
    show_envvar=True,
    type=click.Path(dir_okay=False),
    help="File of API keys; created with the first key.",
)


def _limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for flag, type_, text in (
        (
            "--weight",
            click.FloatRange(MIN_WEIGHT, MAX_WEIGHT),
            "Its part of busy workers and of waiting audio beside other keys, by weight.  [default: 1]",
        ),
        (
            "--priority",
            click.Choice(PRIORITIES),
            "low: under overload, its new sessions are refused before those of others.  [default: normal]",
        ),
        (
            "--keep-days",
            click.FloatRange(min=0),
            "Days after which its sessions are deleted. 0: as the setting keep-days says.",
        ),
        ("--audio-per-minute", click.FloatRange(min=0), "Seconds of audio recognised per minute. 0: no limit."),
        ("--starts-per-minute", click.IntRange(min=0), "Sessions started per minute. 0: no limit."),
        ("--sessions", click.IntRange(min=0), "Open sessions. 0: no limit."),
        ("--connections", click.IntRange(min=0), "Open connections. 0: no limit."),
    ):
        function = click.option(flag, type=type_, help=text)(function)
    return function


@keys.command("create")
@click.argument("name")
@_keys_file
@_limit_options
@click.option("--operator", is_flag=True, help="Let the key see and delete the sessions of all keys.")
def create_key(name: str, path: str, operator: bool, **limits: Any) -> None:
    """Create a key called NAME and print it. The file keeps only its hash, so it cannot be printed again."""
    given: dict[str, Any] = {limit: value for limit, value in limits.items() if value is not None}
    with _setting_errors():
        key, text = KeysFile(path).create(name, KeyLimits(**given), operator)
    click.echo(_("key {id} for {name}; it cannot be printed again:").format(id=key.id, name=name), err=True)
    click.echo(text)


@keys.command("list")
@_keys_file
def list_keys(path: str) -> None:
    """List the keys with their limits, without the secrets."""
    with _setting_errors():
        found = KeysFile(path).read()
    head = (
        "ID",
        "NAME",
        "CREATED",
        "STATE",
        "CONNECTIONS",
        "SESSIONS",
        "STARTS/MIN",
        "AUDIO s/MIN",
        "KEPT DAYS",
        "WEIGHT",
        "PRIORITY",
    )
    rows = []
    for key in found:
        state = f"revoked {key.revoked}" if key.revoked else "operator" if key.operator else "valid"
        limits = (key.limits.connections, key.limits.sessions, key.limits.starts_per_minute)
        shown = (n or "-" for n in (*limits, key.limits.audio_per_minute, key.limits.keep_days))
        rows.append((key.id, key.name, key.created, state, *shown, f"{key.limits.weight:g}", key.limits.priority))
    click.echo("\n".join(format_table(head, rows)) if rows else "no keys")


@keys.command("limit")
@click.argument("key_id", metavar="ID")
@_keys_file
@_limit_options
def limit_key(key_id: str, path: str, **limits: Any) -> None:
    """Change limits of the key ID; limits not given stay as they are."""
    with _setting_errors():
        changed = KeysFile(path).limit(key_id, {name: value for name, value in limits.items() if value is not None})
    if changed is None:
        raise click.ClickException(f"no key {key_id} in {path}")


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@_keys_file
def revoke_key(key_id: str, path: str) -> None:
    """Revoke the key ID: it is refused from now on, and its connections are closed."""
    with _setting_errors():
        revoked = KeysFile(path).revoke(key_id)
    if revoked is None:
        raise click.ClickException(f"no key {key_id} in {path}")
    click.echo(_("key {id} revoked").format(id=key_id), err=True)


@contextmanager
def _setting_errors() -> Iterator[None]:
    try:
        yield
    except SettingError as exc:
        raise click.ClickException(str(exc)) from None
    except OSError as exc:
        raise click.ClickException(f"{exc.filename}: {exc.strerror}") from None
