"""The data directory, and the file locks that show which process uses it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from asrserver.embedded.locate import EmbeddedError

#: Seconds between two tries to get a lock.
LOCK_RETRY_SECONDS = 0.05


class DataDir:
    """The data directory, created if necessary and held by one process: `with DataDir(path) as directory`.

    The lock belongs to the kernel (flock): it is released when the process ends, however that happens.

    Raises:
        EmbeddedError: On entry: the directory cannot be created, or another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).resolve()

    def __enter__(self) -> Path:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = lock_file(self.path / "lock", 0, f"{self.path} is in use by another asrserver")
        except OSError as error:
            raise EmbeddedError(f"cannot use the data directory: {error}; choose another --data-dir") from error
        return self.path

    def __exit__(self, *exception: object) -> None:
        os.close(self._lock)


def lock_file(path: Path, timeout: float, refusal: str) -> int:
    """Lock a file, which is created if necessary, and write our pid into it.

    Args:
        path: The file.
        timeout: Seconds to wait while another process holds the lock.
        refusal: The beginning of the error message after that; the holder's pid is added.

    Returns:
        The descriptor that holds the lock until it is closed, here and in every child that inherits it.

    Raises:
        EmbeddedError: Another process still holds the lock.
        OSError: The file cannot be opened.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(lock, b"%-9d" % os.getpid(), 0)
            return lock
        except BlockingIOError:
            if time.monotonic() >= deadline:
                refusal += f" (pid {os.pread(lock, 9, 0).decode().strip()})"
                os.close(lock)
                raise EmbeddedError(f"{refusal}: stop that process, or choose another --data-dir") from None
            time.sleep(LOCK_RETRY_SECONDS)
