"""A folder whose recordings are transcribed as they appear."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import signal
import sys
import time
from gettext import gettext as _
from pathlib import Path
from typing import NamedTuple, NoReturn

import click

from asrserver.cli.files import SOURCE_ERRORS, FileTranscriber, report_failure
from asrserver.cli.outputs import Outputs
from asrserver.client import Client, ConnectionLost, ServerError
from asrserver.client.session import SESSION_LOST_CODES

#: Names of recordings; other files are left alone.
RECORDING = re.compile(
    r"[^.].*\.(3gp|aac|ac3|aif[cf]?|amr|asf|au|avi|caf|flac|flv|m4[abv]|mk[av]|mov|mp[234]|mpe?g|og[agv]|opus|spx|ts|w64|"
    r"wav|weba|webm|wm[av]|wv)",
    re.IGNORECASE | re.DOTALL,
)

#: Seconds between two looks at the folder. A file is taken that was the same in two of them.
LOOK_SECONDS = 2.0

#: Seconds since its last change after which a file is taken even if it is open for writing, as far as that is known:
#: the system says so of every file on some network drives.
OPEN_SECONDS = 60.0

#: Seconds until the next try where the server is not there, or has no room, and the longest such pause.
RETRY_SECONDS = 2.0
MAX_RETRY_SECONDS = 60.0

#: Tries of one file, if each of them fails for a reason that may pass.
MAX_TRIES = 5


class Stamp(NamedTuple):
    """What changes with a file."""

    inode: int
    size: int
    changed: int  # nanoseconds


class Folder:
    """The recordings in a folder, and what has become of them in this run.

    Args:
        path: The folder.
        outputs: Where their results are.
    """

    def __init__(self, path: Path, outputs: Outputs) -> None:
        self._path = path
        self._outputs = outputs
        self._seen: dict[Path, Stamp] = {}  # at the last look
        self._done: dict[Path, Stamp] = {}  # as they were when they were transcribed, or given up
        self._results: dict[Path, Path] = {}  # result → the recording that it is of
        self._tries: dict[Path, int] = {}

    def look(self) -> list[Path]:
        """The recordings that are to be transcribed now, oldest first; it blocks. Raises OSError."""
        with os.scandir(self._path) as entries:
            now = {Path(entry.path): stamp for entry in entries if (stamp := _stamp(entry)) is not None}
        for known in self._done, self._tries:
            for gone in known.keys() - now.keys():
                del known[gone]
        self._results = {result: file for result, file in self._results.items() if file in now}
        stable = [file for file, stamp in now.items() if stamp.size and self._seen.get(file) == stamp]
        self._seen = now
        stable.sort(key=lambda file: (now[file].changed, file))
        return [file for file in stable if self._is_due(file, now[file])]

    def _is_due(self, file: Path, stamp: Stamp) -> bool:
        if self._done.get(file) == stamp:
            return False
        result = self._outputs.path(file)
        assert result is not None
        owner = self._results.setdefault(result, file)
        if owner != file:
            click.echo(f"{file}: its result would be {result}, as that of {owner}: rename it", err=True)
            self._done[file] = stamp
            return False
        if result.exists() and file not in self._done:  # of an earlier run, or of somebody else
            return False
        return not is_being_written(file, stamp)

    def finished(self, file: Path) -> bool:
        """Note that a file was transcribed; False if it has changed meanwhile: then it is due again."""
        stamp = self._seen[file]
        self._done[file] = stamp
        try:
            return _stamp(file) == stamp
        except OSError:
            return False

    def failed(self, file: Path, may_pass: bool) -> bool:
        """Note that a file could not be transcribed; whether it is tried again before it changes."""
        self._tries[file] = tries = self._tries.get(file, 0) + 1
        if may_pass and tries < MAX_TRIES:
            return True
        del self._tries[file]
        self._done[file] = self._seen[file]
        return False


def _stamp(file: os.DirEntry[str] | Path) -> Stamp | None:
    """The stamp of a recording; None if it is none."""
    if not RECORDING.fullmatch(file.name) or not file.is_file():
        return None
    found = file.stat()
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns)


def is_being_written(file: Path, stamp: Stamp) -> bool:
    """Whether somebody has a file open for writing, as far as the system tells.

    It gives a lease only of a file that nobody writes (fcntl(2)); with no right to leases, nothing is known.
    """
    if time.time() - stamp.changed / 1e9 > OPEN_SECONDS:
        return False
    try:
        with file.open("rb") as opened:
            fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(opened, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as exc:
        return exc.errno == errno.EAGAIN
    return False


def watch_until_interrupted(path: Path, transcriber: FileTranscriber, outputs: Outputs) -> NoReturn:
    """Watch a folder until somebody presses Ctrl+C, which ends the program."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(watch_folder(path, transcriber, outputs))
    sys.exit(0)


async def watch_folder(path: Path, transcriber: FileTranscriber, outputs: Outputs) -> NoReturn:
    """Transcribe the recordings of a folder as they appear, one at a time. Errors are printed, and survived."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # for whom a lease stands in the way, in that moment
    click.echo(_("watching {path}: press Ctrl+C to end").format(path=path), err=True)
    folder = Folder(path, outputs)
    loop = asyncio.get_running_loop()
    pause = RETRY_SECONDS
    while True:
        try:
            due = await loop.run_in_executor(None, folder.look)
            if due:
                async with await transcriber.connect() as client:
                    for file in due:
                        await _transcribe(client, file, transcriber, outputs, folder)
            pause = RETRY_SECONDS
        except OSError as exc:
            report_failure(path, exc)
        except (click.ClickException, _TryLater) as exc:
            if isinstance(exc, click.ClickException):
                click.echo(exc.message, err=True)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_RETRY_SECONDS)
        await asyncio.sleep(LOOK_SECONDS)


class _TryLater(Exception):
    """Raised when a file could not be transcribed for a reason that may pass."""


async def _transcribe(
    client: Client, file: Path, transcriber: FileTranscriber, outputs: Outputs, folder: Folder
) -> None:
    """Transcribe one file, and write its result; raises _TryLater."""
    try:
        transcript = await transcriber.transcribe(client, file)
        if folder.finished(file):
            outputs.write(file, transcript)
            click.echo(f"{file}: {outputs.path(file)}")
    except SOURCE_ERRORS as exc:
        report_failure(file, exc)
        if folder.failed(file, _may_pass(exc)):
            raise _TryLater from None


def _may_pass(exc: Exception) -> bool:
    """Whether an error is not the file's: the server is away, or has no room."""
    if isinstance(exc, ServerError):
        return "retry_after" in exc.event or exc.event.get("code") in SESSION_LOST_CODES
    return isinstance(exc, ConnectionLost) or getattr(exc, "code", "") == "session_gone"
