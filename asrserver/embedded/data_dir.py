"""The data directory, and the file locks that say who uses it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from asrserver.embedded.locate import EmbeddedError


class DataDir:
    """The data directory, made if need be and held by one process: `with DataDir(path) as directory`.

    The lock is the kernel's (flock): it goes with the process, however that ends. Raises EmbeddedError.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).resolve()

    def __enter__(self) -> Path:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = lock_file(self.path / "lock", 0, f"{self.path} is in use by another asrserver")
        except OSError as error:
            raise EmbeddedError(f"{error}: choose another --data-dir") from error
        return self.path

    def __exit__(self, *exception: object) -> None:
        os.close(self._lock)


def lock_file(path: Path, timeout: float, refusal: str) -> int:
    """Return a locked descriptor of the file; raise `refusal`, with its holder's pid, after `timeout` s."""
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
                raise EmbeddedError(f"{refusal}: end that, or choose another --data-dir") from None
            time.sleep(0.05)
