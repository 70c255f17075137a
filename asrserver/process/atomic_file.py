"""Atomic changes of small files of the operator's: under a lock, and each file is replaced as a whole."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def update_lock(path: Path) -> Iterator[Path]:
    """Lock the directory of a file for an update: of two at once, neither must lose the change of the other.

    Yields:
        Where the file is, which need not exist: `path` may be a link.

    Raises:
        OSError: There is no such directory, or it cannot be read.
    """
    real = Path(os.path.realpath(path))
    lock = os.open(real.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield real
    finally:
        os.close(lock)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file under `update_lock`, or make it with mode 0600. No reader sees half of it; mode and owner stay.

    Raises:
        OSError: It cannot be written; then the file is as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if path.exists():
                before = path.stat()
                os.fchmod(handle, stat.S_IMODE(before.st_mode))
                if os.geteuid() == 0:
                    os.fchown(handle, before.st_uid, before.st_gid)
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
