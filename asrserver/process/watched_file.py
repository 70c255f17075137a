"""A file of the operator's that may change while the server runs."""

from __future__ import annotations

import os

from asrserver.errors import SettingError


def stamp(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """A value that changes when a file does, also by a symbolic link; raises OSError.

    It includes the time of the last change of permissions: a file that could not be read may be readable now.
    """
    status = os.stat(path)
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev


class WatchedFile:
    """The text of a file that a setting names.

    Args:
        flag: The setting, for messages.
        path: The file; empty: there is none.
        most: Its bytes at most.
        missing: What to do where there is no such file; may be empty.
    """

    def __init__(self, flag: str, path: str, most: int, missing: str = "") -> None:
        self.label = f"{flag} {path}"
        self._missing = missing
        self._path = path
        self._most = most
        self._seen: tuple[int, ...] | None = None
        self._failed: int | None = None  # the error number of the last attempt

    def read_changed(self) -> str | None:
        """Read the file if it is not as it was last time. Blocks for as long as reading a small file takes.

        Returns:
            Its text; None if it has not changed, or there is none.

        Raises:
            SettingError: It cannot be read.
        """
        if not self._path:
            return None
        try:
            seen = stamp(self._path)
            if seen == self._seen:
                return None
            with open(self._path, "rb") as file:
                data = file.read(self._most + 1)
        except OSError as exc:
            self._seen = None  # it is tried again each time, and reported once
            if exc.errno == self._failed:
                return None
            self._failed = exc.errno
            advice = f"; {self._missing}" if self._missing and isinstance(exc, FileNotFoundError) else ""
            raise SettingError(f"{self.label}: {exc.strerror}{advice}") from None
        self._seen, self._failed = seen, None  # errors in its contents are reported once
        if len(data) > self._most:
            raise SettingError(f"{self.label} has more than {self._most} bytes")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise SettingError(f"{self.label} is not text in UTF-8") from None
