"""Hot words of the operator: for all sessions, and for those of single API keys, from a file that may change.

# a line is a word or a phrase
Kubernetes
Nextcloud Talk

[hospital]          # for the API key with this id or name
metoprolol
"""

from __future__ import annotations

from collections.abc import Iterable

from asrserver.auth.keys import Key
from asrserver.process.watched_file import WatchedFile
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
        self._file = WatchedFile("--hotwords-file", path, MAX_FILE_BYTES)
        self._words: dict[str, list[str]] = {}  # by section; "" is for all
        self.reread()

    def reread(self) -> bool:
        """Load the file again if it has changed; returns whether it had. Blocks.

        Raises:
            SettingError: The file cannot be used; the words that were loaded before stay.
        """
        if (text := self._file.read_changed()) is None:
            return False
        self._words = parse(text.split("\n"))
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
