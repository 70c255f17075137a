"""Backups of the embedded servers and the recordings: one tar file, written while the server runs or not.

    redis.rdb       sessions that were open
    postgres.dump   the history, for pg_restore
    recordings/     as below --save-audio

Redis comes first: what is stored between the two is in both, and storing is idempotent: nothing is lost between them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from asrserver.embedded import locate
from asrserver.embedded.data_dir import DataDir
from asrserver.embedded.locate import EmbeddedError
from asrserver.embedded.postgres import POSTGRES_PORT, EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis, restore_snapshot, snapshot
from asrserver.embedded.server import EmbeddedServer, last_lines

REDIS, POSTGRES, RECORDINGS = "redis.rdb", "postgres.dump", "recordings"

#: Seconds that pg_dump and pg_restore may take.
DUMP_TIMEOUT = 6 * 3600.0

#: Seconds that a server gets to stop.
STOP_TIMEOUT = 60.0


def backup(target: Path, data_dir: Path, recordings: Path | None) -> list[str]:
    """Write a backup. It appears under its name when it is whole.

    Args:
        target: The file; it must not exist.
        data_dir: The data directory, of a server that runs or not.
        recordings: The directory of the recordings; None: there are none.

    Returns:
        What is in it, for people.

    Raises:
        EmbeddedError: It cannot be written.
    """
    if target.exists():
        raise EmbeddedError(f"{target} exists: choose another name")
    found = [name for name in ("redis", "postgres") if (data_dir / name).is_dir()]
    if not found:
        raise EmbeddedError(f"{data_dir} has no embedded servers: back up your own Redis and PostgreSQL by their means")
    running = [cls(data_dir).find_running() for cls in (EmbeddedRedis, EmbeddedPostgres)]
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=target.parent) as folder, ExitStack() as stack:
            if not any(running):
                stack.enter_context(DataDir(data_dir))  # or it is being started or stopped, and this says so
            with tarfile.open(unfinished, "w") as archive:
                os.chmod(unfinished, 0o600)  # it holds transcripts
                if "redis" in found:
                    archive.add(_redis_snapshot(data_dir, Path(folder), stack), REDIS)
                if "postgres" in found:
                    archive.add(_postgres_dump(data_dir, Path(folder), stack), POSTGRES)
                if recordings is not None:
                    found.append(f"{_add_tree(archive, recordings)} recordings")
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.rename(target)
    except OSError as exc:
        raise EmbeddedError(f"cannot write {target}: {exc}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return found


def restore(source: Path, data_dir: Path, recordings: Path | None) -> list[str]:
    """Restore a backup into a data directory that has no servers yet.

    Args:
        source: The file.
        data_dir: The data directory; it is made if it is missing.
        recordings: Where the recordings go: a directory that is empty or missing. None: not at all.

    Returns:
        What was restored, for people.

    Raises:
        EmbeddedError: There is something already, or the backup cannot be used; then nothing is left of it.
    """
    for place in (data_dir / "redis", data_dir / "postgres", *([recordings] if recordings else [])):
        if place.is_dir() and any(place.iterdir()):
            raise EmbeddedError(f"{place} is not empty: restore into another directory, or move it away")
    try:
        with tarfile.open(source) as archive, DataDir(data_dir) as directory, _all_or_nothing(directory) as folder:
            names = set(archive.getnames())
            found = [name for name in (REDIS, POSTGRES) if name in names]
            if not found:
                raise EmbeddedError(f"{source} is no backup of this program")
            for name in found:
                archive.extract(name, folder, filter="data")
            if REDIS in found:
                restore_snapshot(folder / REDIS, directory / "redis")
            if POSTGRES in found:
                _load_dump(folder / POSTGRES, directory)
            members = [member for member in archive if member.name.startswith(f"{RECORDINGS}/")]
            if recordings is not None:
                recordings.mkdir(parents=True, exist_ok=True, mode=0o700)
                for member in members:
                    member.name = member.name.partition("/")[2]
                    archive.extract(member, recordings, filter="data")
                found.append(f"{sum(member.isfile() for member in members)} recordings")
            elif members:
                found.append("without its recordings: name a directory with --save-audio")
    except (OSError, tarfile.TarError) as exc:
        raise EmbeddedError(f"cannot restore {source}: {exc}") from None
    return found


@contextmanager
def _all_or_nothing(data_dir: Path) -> Iterator[Path]:
    """A directory for what is unpacked; after an error, the servers' directories are removed, which were not there."""
    with tempfile.TemporaryDirectory(prefix="restore-", dir=data_dir) as folder:
        try:
            yield Path(folder)
        except BaseException:
            for name in ("redis", "postgres"):
                shutil.rmtree(data_dir / name, ignore_errors=True)
            raise


def _redis_snapshot(data_dir: Path, folder: Path, stack: ExitStack) -> Path:
    server = _running(EmbeddedRedis(data_dir), stack)
    written = snapshot(server.socket_path)
    copy = folder / REDIS
    shutil.copyfile(written, copy)
    written.unlink()
    return copy


def _postgres_dump(data_dir: Path, folder: Path, stack: ExitStack) -> Path:
    server = _running(EmbeddedPostgres(data_dir), stack)
    copy = folder / POSTGRES
    _run("pg_dump", server.socket_path.parent, ["--format=custom", f"--file={copy}", "asrserver"])
    return copy


def _load_dump(dump: Path, data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    try:
        server.start()
        options = ["--exit-on-error", "--single-transaction", "--no-owner", "--dbname=asrserver", str(dump)]
        _run("pg_restore", server.socket_path.parent, options)
    finally:
        server.stop(STOP_TIMEOUT)


def _running(server: EmbeddedServer, stack: ExitStack) -> EmbeddedServer:
    """The server, started if nobody runs it; it is stopped with the stack."""
    if not server.find_running():
        stack.callback(server.stop, STOP_TIMEOUT)
        server.start()
    return server


def _run(program: str, sockets: Path, options: list[str]) -> None:
    """Run a program of PostgreSQL, beside those of the server, on its database."""
    path = locate.postgres() / program
    command = [str(path), f"--host={sockets}", f"--port={POSTGRES_PORT}", "--username=asrserver", "--no-password"]
    try:
        done = subprocess.run(
            [*command, *options], timeout=DUMP_TIMEOUT, check=False, capture_output=True, text=True, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise EmbeddedError(f"{program} cannot be run: {exc}") from None
    if done.returncode:
        raise EmbeddedError(f"{program} failed: {last_lines(done.stderr)}")


def _add_tree(archive: tarfile.TarFile, top: Path) -> int:
    """Add a directory; what is removed meanwhile is left out. Returns the number of files."""
    count = 0
    for path in sorted(top.rglob("*")):
        try:
            archive.add(path, f"{RECORDINGS}/{path.relative_to(top)}", recursive=False)
        except FileNotFoundError:
            continue
        count += path.is_file()
    return count
