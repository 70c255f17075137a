"""Where `asrserver transcribe` puts its results, and in which format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from asrserver.text.subtitles import plain, srt, vtt

#: What makes a result of a transcript, by format. A transcript is a dict as POST /api/v1/transcribe answers with.
MAKERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "txt": plain,
    "srt": srt,
    "vtt": vtt,
    "json": lambda transcript: json.dumps(transcript, ensure_ascii=False) + "\n",
}
FORMATS = tuple(MAKERS)


class Outputs:
    """The results of one run.

    Args:
        format: The setting format.
        output: The setting output.
        files: The files that are to be transcribed.
        watch: The directory whose files are to be transcribed.

    Attributes:
        format: The format of all results.

    Raises:
        ClickException: Two files would have the same result; or the directory is not there, or cannot be made.
    """

    def __init__(self, format: str | None, output: str | None, files: Sequence[Path], watch: Path | None) -> None:
        self.format = format or _format_of(output) or "txt"
        self._several = len(files) > 1
        self._file: Path | None = None
        self._directory: Path | None = None
        if output is None or output == "-":
            self._directory = watch
            if self._several and self.format in ("srt", "vtt"):
                raise click.UsageError(f"Several files in the format {self.format} need --output DIR.")
        elif watch or self._several or os.path.isdir(output) or output.endswith(os.sep):
            self._directory = _made_directory(Path(output))
        else:
            self._file = Path(output)
            if not self._file.parent.is_dir():
                raise click.ClickException(f"--output {output}: there is no directory {self._file.parent}")
        taken: dict[Path, Path] = {}
        for file in files if self._directory else ():
            if (other := taken.setdefault(self._in_directory(file), file)) is not file:
                raise click.UsageError(f"{other} and {file} would have the same result {self._in_directory(file)}.")

    @property
    def options(self) -> dict[str, Any]:
        """Options of the protocol that the format needs."""
        # With times of words, long segments become several subtitles.
        return {"word_timestamps": True} if self.format in ("srt", "vtt") else {}

    def path(self, file: Path) -> Path | None:
        """Where the result of a file goes; None: to standard output."""
        return self._in_directory(file) if self._directory else self._file

    def write(self, file: Path, transcript: dict[str, Any]) -> None:
        """Write the result of a file; whoever looks for it sees all of it or nothing. Raises OSError."""
        text, path = MAKERS[self.format]({"file": str(file), **transcript}), self.path(file)
        if path is None:
            named = f"{file}: {text}" if self._several and self.format == "txt" else text
            click.echo(named, nl=not text.endswith("\n"))
            return
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        except OSError as exc:
            raise OSError(exc.errno, f"{path} cannot be written: {exc.strerror}") from None
        finally:
            part.unlink(missing_ok=True)

    def _in_directory(self, file: Path) -> Path:
        assert self._directory is not None
        return self._directory / f"{file.stem}.{self.format}"


def _format_of(output: str | None) -> str | None:
    """The format that the name of a file means."""
    ending = Path(output or "").suffix.lower().removeprefix(".")
    return ending if ending in FORMATS else None


def _made_directory(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise click.ClickException(f"--output {path}: {exc.strerror}") from None
    return path
