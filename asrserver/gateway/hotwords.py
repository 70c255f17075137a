"""Hot words of the operator: for all sessions, and for those of single API keys, from a file that may change.

# a line is a word or a phrase
Kubernetes
Nextcloud Talk

[hospital]          # for the API key with this id or name
metoprolol
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from asrserver.auth import Key
from asrserver.errors import SettingError
from asrserver.protocol.options import MAX_TEXT, WORD_SEPARATOR

#: Bytes of the file at most: a session gets MAX_TEXT characters of it.
MAX_FILE_BYTES = 1 << 20


class Hotwords:
    """The hot words of the file, if there is one.

    Args:
        path: The file; empty: there is none.

    Raises:
        SettingError: It cannot be used.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._words: dict[str, list[str]] = {}  # by section; "" is for all
        self.reread()

    def reread(self) -> bool:
        """Load the file again if it has changed. Blocks for as long as reading a small file takes.

        Returns:
            Whether it had changed.

        Raises:
            SettingError: The file cannot be used; the words that were loaded before stay.
        """
        if not self._path:
            return False
        try:
            status = os.stat(self._path)
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return False
            self._seen = seen  # before reading: a bad file is reported once, not every second
            if status.st_size > MAX_FILE_BYTES:
                raise SettingError(f"--hotwords-file {self._path} has more than {MAX_FILE_BYTES} bytes")
            with open(self._path, encoding="utf-8-sig") as file:
                self._words = parse(file)
        except OSError as exc:
            raise SettingError(f"--hotwords-file {self._path}: {exc.strerror}") from None
        except UnicodeDecodeError:
            raise SettingError(f"--hotwords-file {self._path} is not text in UTF-8") from None
        return True

    def join(self, own: str, key: Key | None) -> str:
        """The hot words of a session, of MAX_TEXT characters at most.

        Args:
            own: Those that its client gave. They come last, nearest to the speech, and are the last to be left out.
            key: The API key that it belongs to.
        """
        if not self._words:
            return own
        names = ("",) if key is None else ("", key.name, key.id)
        words = dict.fromkeys(word for name in names for word in self._words.get(name, ()))
        left = MAX_TEXT - len(own)
        chosen = [own] if own else []
        for word in reversed(words):
            left -= len(word) + len(WORD_SEPARATOR)
            if left < 0:
                break
            chosen.append(word)
        return WORD_SEPARATOR.join(reversed(chosen))


def parse(lines: Iterable[str]) -> dict[str, list[str]]:
    """Read the lines of a file: section → words, in their order."""
    words: dict[str, list[str]] = {}
    section = ""
    for line in lines:
        text = " ".join(line.replace("\0", " ").partition("#")[0].split())
        if text.startswith("[") and text.endswith("]"):
            section = text[1:-1].strip()
        elif text:
            words.setdefault(section, []).append(text)
    return words
