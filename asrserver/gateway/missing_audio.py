"""What a session's client has sent, was refused, and did not send again: without it the session is not done.

A chunk that is sent again is recognised by its index, or where the client does not count, by a checksum. Chunks come in
order: one that was refused is lost for good when a later one is accepted.

A message that is refused unread may have been a chunk, or of another session. That is a doubt: it becomes a certainty
when the client passes over the index that the chunk would have had.
"""

from __future__ import annotations

from zlib import crc32

#: Refused chunks of one session that are remembered; of one that lacks more, all count as lost.
MAX_REFUSED = 1000

#: Bytes of a chunk, at its beginning, from which its checksum is made: together with its size they tell chunks apart.
CHECKED_BYTES = 1 << 16

#: Stands for all chunks where audio is lost for good.
LOST = "lost"

#: The one empty set of all sessions: Python makes more than one empty frozenset.
_NONE: frozenset[int] = frozenset()

#: Follows a doubtful index in the text.
_DOUBT = "?"


class MissingAudio:
    """What is missing of one session's audio, for certain or perhaps. It is true if there is anything.

    As a text it is a field of the session's hash in Redis, so that any gateway knows it where the session is resumed.

    Attributes:
        lost: Whether audio is missing for good, because later audio was accepted.
    """

    __slots__ = ("_doubtful", "_refused", "lost")

    def __init__(self) -> None:
        self.lost = False
        # Most sessions have none: empty sets of their own would be a kilobyte for two sessions.
        self._refused = _NONE  # indexes, and below 0 checksums
        self._doubtful = _NONE  # indexes that an unread message may have had

    def __bool__(self) -> bool:
        return self.lost or self.is_awaited

    def __str__(self) -> str:
        if self.lost:
            return LOST
        return " ".join([*map(str, sorted(self._refused)), *(f"{key}{_DOUBT}" for key in sorted(self._doubtful))])

    def restore(self, text: str, last: int | None) -> None:
        """Take over what `str` returned.

        Args:
            text: That.
            last: The index of the last chunk that Redis has: all up to it that were not lost have come.
        """
        self.lost = text == LOST
        words = [] if self.lost else text.split()
        refused = (int(word) for word in words if not word.endswith(_DOUBT))
        doubtful = (int(word[:-1]) for word in words if word.endswith(_DOUBT))
        self._refused = frozenset(key for key in refused if key < 0 or last is None or key > last) or _NONE
        self._doubtful = frozenset(key for key in doubtful if last is None or key > last) or _NONE

    @property
    def is_certain(self) -> bool:
        """Whether audio is missing for certain."""
        return self.lost or bool(self._refused)

    @property
    def is_awaited(self) -> bool:
        """Whether the next accepted chunks must be looked at: they may be what is missing, or pass it over."""
        return bool(self._refused or self._doubtful)

    def refuse(self, index: int | None, data: bytes = b"") -> None:
        """Note that a chunk was refused; `index` is as its client sent it."""
        if not self.lost:
            self._refused |= {_checksum(data) if index is None else index}
            if len(self._refused) > MAX_REFUSED:
                self._lose()

    def doubt(self, index: int) -> None:
        """Note that a message was refused unread, which may have been the chunk with this index."""
        if not self.lost and len(self._doubtful) < MAX_REFUSED:
            self._doubtful |= {index}

    def accept(self, sent: int | None, index: int, data: bytes) -> None:
        """Note that a chunk is accepted.

        Args:
            sent: Its index as its client sent it: None if the client does not count.
            index: Its index.
            data: Its audio.
        """
        key = _checksum(data) if sent is None else index
        if key in self._refused or index in self._refused:
            self._refused = self._refused - {key, index} or _NONE
        elif any(refused < index for refused in self._refused):
            self._lose()
        if sent is not None and any(doubtful < index for doubtful in self._doubtful):
            self._lose()
        self._doubtful = frozenset(doubtful for doubtful in self._doubtful if doubtful > index) or _NONE

    def _lose(self) -> None:
        self.lost = True
        self._refused = self._doubtful = _NONE


def _checksum(data: bytes) -> int:
    return ~crc32(data[:CHECKED_BYTES], len(data) & 0xFFFFFFFF)
