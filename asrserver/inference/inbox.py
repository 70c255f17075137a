"""The inbox of a session: audio entries that were read from Redis and not processed yet."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator

from asrserver.broker.replies import Entry

log = logging.getLogger("asrserver.consumer")

#: Unprocessed bytes above which no more of a session's audio is read.
MAX_UNREAD_BYTES = 8 * 2**20


class Inbox:
    """A queue of entries. The consumer puts them in, the session's transcriber takes them out.

    Attributes:
        cursor: Id of the last entry put in.
        processed: Id of the last entry taken out.
        unread: Bytes of the entries that wait.
        largest_chunk: Bytes of the largest chunk so far; before the first one, MAX_UNREAD_BYTES.
    """

    def __init__(self, after: str, arrived: Callable[[], None]) -> None:
        """Start empty.

        Args:
            after: Id of the entry after which to read.
            arrived: Called after entries were put in.
        """
        self.cursor = after
        self.processed = after
        self.unread = 0
        self.largest_chunk = MAX_UNREAD_BYTES
        self._arrived = arrived
        self._entries = deque[Entry]()
        self._parts = list[Entry]()  # of a large chunk that is not whole yet

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_full(self) -> bool:
        """Whether no more entries should be read."""
        return self.unread >= MAX_UNREAD_BYTES

    @property
    def first(self) -> Entry:
        """The entry to process next; there must be one."""
        return self._entries[0]

    @property
    def has_end(self) -> bool:
        """Whether the end of the session has been read; there must be an entry."""
        return self._entries[-1].status is not None

    def following(self, count: int) -> Iterator[Entry]:
        """Up to `count` entries after the first."""
        return itertools.islice(self._entries, 1, 1 + count)

    def put(self, entries: list[Entry]) -> None:
        """Add entries, which follow those put in before."""
        self.cursor = entries[-1].id
        sizes = [len(entry.data or b"") // max(1, entry.chunks) for entry in entries]
        known = 0 if self.largest_chunk == MAX_UNREAD_BYTES else self.largest_chunk
        self.largest_chunk = max(known, *sizes)
        whole = [entry for entry in entries if self._complete(entry)]
        self._entries.extend(whole)
        self.unread += sum(len(entry.data or b"") for entry in whole)
        if whole:
            self._arrived()

    def _complete(self, entry: Entry) -> bool:
        """Join a large chunk with its parts; return whether the entry is whole. Parts of no whole chunk are dropped."""
        if entry.part == 0:
            self._parts = [entry]
        elif entry.part is not None:
            self._parts.append(entry)
        elif entry.parts:
            parts, self._parts = self._parts, []
            if [(part.part, part.received) for part in parts] != [(n, entry.received) for n in range(entry.parts)]:
                log.error("entry %s is incomplete: it has %d of %d parts", entry.id, len(parts), entry.parts)
            entry.data = b"".join(part.data or b"" for part in (*parts, entry))
        else:
            self._parts = []
        return entry.part is None

    def pop(self, count: int = 1) -> None:
        """Remove the first entries, which are processed."""
        for _ in range(count):
            entry = self._entries.popleft()
            self.processed = entry.id
            self.unread -= len(entry.data or b"")
