"""The order of one session's chunks: which may come next, which came before, and which were refused."""

from __future__ import annotations

from typing import Any

from asrserver.errors import BadRequest
from asrserver.gateway.missing_audio import MAX_REFUSED, MissingAudio

#: Chunk indexes are below this: far below the 64 bits of a Redis stream id, and more than any client sends.
MAX_INDEX = 2**48

#: The one empty set of all sessions: most have no refused chunks, and an empty set is a fifth of a kilobyte.
_NONE: frozenset[int] = frozenset()


class ChunkOrder:
    """The chunks of one session by their indexes.

    The first index may be any; each further one is the one before plus one. A chunk that was refused may be sent again,
    or left out.

    Attributes:
        last: The index of the last accepted chunk; None if there is none.
        missing: The audio that was refused, and was not sent again.
    """

    __slots__ = ("_copied", "_copies", "_first", "_refused", "_sid", "_skips", "last", "missing")

    def __init__(self, sid: str) -> None:
        """Begin without chunks; `sid` is the id of the session, for errors."""
        self.last: int | None = None
        self.missing = MissingAudio()
        self._sid = sid
        self._first = 0
        self._skips = 0  # refused indexes after `last`: the next chunk may have one of them, or the following one
        self._refused = _NONE
        self._copied, self._copies = -1, 0  # index of the last copied chunk, and copies of it in a row

    def restore(self, first: int, last: int) -> None:
        """Take over the chunks that Redis has: those from `first` to `last`."""
        self._first, self.last = first, last

    @property
    def next_index(self) -> int:
        """The index that follows that of the last accepted chunk."""
        return 0 if self.last is None else self.last + 1

    def where(self, index: Any) -> dict[str, Any]:
        """Name a chunk in the details of an error; `index` is as the client sent it."""
        return {"session_id": self._sid} | ({"chunk_index": index} if isinstance(index, int) else {})

    def check(self, index: Any) -> tuple[int, bool]:
        """Check the order of a chunk.

        Args:
            index: `chunk_index` as the client sent it; None: the next.

        Returns:
            The index, and whether the chunk is new; if not, it is a copy of an accepted one.

        Raises:
            BadRequest: It is out of order.
        """
        following = self.next_index
        if index == following and type(index) is int and index < MAX_INDEX:
            return index, True
        if index is None:
            index = following + self._skips
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MAX_INDEX:
            raise BadRequest("bad_index", "chunk_index must be a whole number from 0", session_id=self._sid)
        if self.last is None:
            return index, True
        if index in self._refused and index < following:
            raise BadRequest(
                "chunk_refused", "this chunk was refused, and later ones were accepted", **self.where(index)
            )
        if index <= self.last:
            if index < self._first:
                raise self._gap(index, following)
            return index, False
        if index > following + self._skips:
            raise self._gap(index, following)
        return index, True

    def follows(self, index: int | None, count: int) -> bool:
        """Whether `count` chunks, from `index` on (None: the next), are all new and in order."""
        if self._skips or self.missing.is_awaited:
            return False
        following = self.next_index
        return following + count <= MAX_INDEX and (index is None or index == following)

    def _gap(self, index: int, expected: int) -> BadRequest:
        return BadRequest(
            "chunk_gap",
            f"chunk {index} was sent where {expected} was expected",
            expected=expected,
            **self.where(index),
        )

    def accept(self, index: int, count: int) -> None:
        """Note that `count` new chunks, from `index` on, are accepted."""
        if self.last is None:
            self._first = index
        self.last = index + count - 1
        self._skips = 0
        if self._refused:
            self._refused = self._refused.difference(range(index, index + count)) or _NONE

    def count_copy(self, index: int) -> int:
        """Count a copy of an accepted chunk; return how many copies of it have come in a row."""
        self._copies = self._copies + 1 if index == self._copied else 1
        self._copied = index
        return self._copies

    def refuse(self, index: int | None = None) -> None:
        """Note that a chunk was refused: the client may send it again, or go on with the next one.

        Where audio was refused, tell `missing` as well.

        Args:
            index: The chunk's index; None: that of the next.
        """
        if self.last is None:
            return
        position = self.last + 1 + self._skips
        if (index is None or index == position) and len(self._refused) < MAX_REFUSED:
            self._refused |= {position}
            self._skips += 1

    def refuse_unread(self, index: int | None = None, certain: bool = False) -> None:
        """Note that a message was refused unread, which may have been the next chunk.

        Args:
            index: The chunk's index, if it could be read.
            certain: Whether the message can only have been audio of this session.
        """
        position = self.next_index + self._skips
        self.refuse(index)
        if certain:
            self.missing.refuse(position)
        elif self.last is not None and index in (None, position):  # the first chunk may have any index
            self.missing.doubt(position)
