"""asrserver backup and restore: the embedded servers and the recordings as one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from asrserver.config import Settings

_data_dir = click.option(
    "--data-dir", envvar="ASRSERVER_DATA_DIR", show_envvar=True, default="", help="As that of asrserver run."
)
_recordings = click.option(
    "--save-audio", envvar="ASRSERVER_SAVE_AUDIO", show_envvar=True, default="", help="Directory of the recordings."
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_data_dir
@_recordings
def backup(file: Path, data_dir: str, save_audio: str) -> None:
    """Write the embedded servers' data, and the recordings, into a tar FILE. The server may run meanwhile."""
    from asrserver.embedded.backup import backup as write

    _tell("written", write, file, data_dir, save_audio)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_data_dir
@_recordings
def restore(file: Path, data_dir: str, save_audio: str) -> None:
    """Restore a FILE of asrserver backup into an empty data directory, before the server is started there."""
    from asrserver.embedded.backup import restore as read

    _tell("restored", read, file, data_dir, save_audio)


def _tell(
    done: str, work: Callable[[Path, Path, Path | None], list[str]], file: Path, data_dir: str, save_audio: str
) -> None:
    """Do the work on a file, and print what was done."""
    from asrserver.embedded.locate import EmbeddedError

    recordings = Path(save_audio).absolute() if save_audio else None
    try:
        found = work(file, Settings(data_dir=data_dir).data_path, recordings)
    except EmbeddedError as exc:
        raise click.ClickException(str(exc)) from None
    click.echo(f"{file}: {done}: {', '.join(found)}")
