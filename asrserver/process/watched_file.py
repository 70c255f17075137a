"""A file of the operator's that may change while the server runs."""

from __future__ import annotations

import os

from asrserver.errors import SettingError


class WatchedFile:
    """The text of a file that a setting names.

    Args:
        flag: The setting, for messages.
        path: The file; empty: there is none.
        most: Its bytes at most.
    """

    def __init__(self, flag: str, path: str, most: int) -> None:
        self.label = f"{flag} {path}"
        self._path = path
        self._most = most
        self._seen: tuple[int, ...] | None = None

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
            status = os.stat(self._path)
            seen: tuple[int, ...] = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError as exc:
            seen = (exc.errno or 0,)
        if seen == self._seen:
            return None
        self._seen = seen  # before reading: a file that is bad or missing is reported once, not every second
        try:
            with open(self._path, "rb") as file:
                data = file.read(self._most + 1)
            if len(data) > self._most:
                raise SettingError(f"{self.label} has more than {self._most} bytes")
            return data.decode("utf-8-sig")
        except OSError as exc:
            raise SettingError(f"{self.label}: {exc.strerror}") from None
        except UnicodeDecodeError:
            raise SettingError(f"{self.label} is not text in UTF-8") from None
