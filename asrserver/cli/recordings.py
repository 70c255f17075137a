"""asrserver recordings: the keys that recordings are encrypted with, and those that are there already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asrserver.cli.help import Group
from asrserver.cli.status import format_table
from asrserver.errors import DecryptionError, SettingError

if TYPE_CHECKING:
    from asrserver.encryption.keys import KeyPair, Keyring


@click.group(cls=Group)
def recordings() -> None:
    """Make keys for recordings, show which ones are in use, encrypt and decrypt what is there already."""


def _directory_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--save-audio",
        "directory",
        required=True,
        envvar="ASRSERVER_SAVE_AUDIO",
        show_envvar=True,
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Directory of the recordings.",
    )(function)


def _keys_option(required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--save-audio-keys",
        "keys_file",
        required=required,
        default=None if required else "",
        envvar="ASRSERVER_SAVE_AUDIO_KEYS",
        show_envvar=True,
        type=click.Path(dir_okay=False),
        help="File of the keys.",
    )


@recordings.command("new-key")
@_keys_option(required=True)
def new_key(keys_file: str) -> None:
    """Add a key to the file, as the first: new recordings are encrypted with it. Prints its public half.

    The others stay, for recordings that need them. The file is made if it is missing, readable by its owner only.
    """
    from asrserver.encryption.keys import add_key

    try:
        key = add_key(keys_file)
    except OSError as exc:
        raise click.ClickException(f"{keys_file}: {exc.strerror}") from None
    except SettingError as exc:
        raise click.ClickException(str(exc)) from None
    click.echo(key.public)


@recordings.command("keys")
@_directory_option
@_keys_option(required=False)
def show_keys(directory: Path, keys_file: str) -> None:
    """Show how many recordings need which key, and parts of recordings. The exit status is 1 if the file lacks one.

    Parts are what gateways write of open sessions: with the key that was the first when they began. A key that neither
    a recording nor a part needs may be removed from the file, unless it is the first, or a backup needs it.
    """
    from asrserver.gateway import archive_reencrypt

    keys = _keyring(keys_file)
    first = keys.first.public if keys.first else ""
    found: dict[str, list[int]] = {key: [0, 0, 0] for key in keys.public}
    for path in (*archive_reencrypt.parts(directory), *archive_reencrypt.recordings(directory)):
        try:
            totals = found.setdefault(archive_reencrypt.needed_key(path), [0, 0, 0])
            totals[2] += path.stat().st_size
            totals[path.suffix == ".part"] += 1
        except FileNotFoundError:  # it was removed just now
            continue
        except (DecryptionError, OSError) as exc:
            click.echo(f"{path}: {_reason(exc)}", err=True)
    states = {"": "not encrypted", first: "for new recordings"} if first else {"": "not encrypted"}
    rows = [
        (key or "-", states.get(key, "for older recordings" if keys.find(key) else "MISSING"), *totals)
        for key, totals in found.items()
    ]
    titles = ("KEY", "STATE", "RECORDINGS", "PARTS", "BYTES")
    click.echo("\n".join(format_table(titles, rows)) if rows else "no recordings")
    if any(key and keys.find(key) is None for key in found):
        raise click.exceptions.Exit(1)


@recordings.command("encrypt")
@_directory_option
@_keys_option(required=True)
def encrypt_all(directory: Path, keys_file: str) -> None:
    """Encrypt all recordings with the first key: those from before there was one, and those that have an older one.

    The server may run meanwhile, and the command can be repeated. Blocks of the disk that held a recording unencrypted
    are free afterwards, not erased.
    """
    keys = _keyring(keys_file)
    if keys.first is None:
        raise click.UsageError("--save-audio-keys is empty: encrypting needs a file with a key")
    _reencrypt_all(directory, keys, keys.first)


@recordings.command("decrypt")
@_directory_option
@_keys_option(required=True)
def decrypt_all(directory: Path, keys_file: str) -> None:
    """Decrypt all recordings: to go on without keys. One alone is decrypted by age --decrypt --identity KEYS FILE."""
    _reencrypt_all(directory, _keyring(keys_file), None)


def _reencrypt_all(directory: Path, keys: Keyring, key: KeyPair | None) -> None:
    from asrserver.gateway import archive_reencrypt

    written = left = failed = 0
    try:
        with archive_reencrypt.exclusive(directory):
            for path in archive_reencrypt.recordings(directory):
                try:
                    if archive_reencrypt.reencrypt(directory, path, keys, key):
                        written += 1
                    else:
                        left += 1
                except (DecryptionError, OSError) as exc:
                    failed += 1
                    click.echo(f"{path}: {_reason(exc)}", err=True)
    except BlockingIOError:
        raise click.ClickException(f"{directory}: another encrypt or decrypt is running there") from None
    except OSError as exc:
        raise click.ClickException(f"{exc.filename or directory}: {_reason(exc)}") from None
    click.echo(f"{written} recordings {'encrypted' if key else 'decrypted'}, {left} left as they are, {failed} failed")
    if failed:
        raise click.exceptions.Exit(1)


def _reason(exc: DecryptionError | OSError) -> str:
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)


def _keyring(path: str) -> Keyring:
    from asrserver.encryption.keys import Keyring

    try:
        return Keyring(path)
    except SettingError as exc:
        raise click.ClickException(str(exc)) from None
