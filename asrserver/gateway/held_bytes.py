"""What a gateway holds for its clients until it can be handled, by API key: over all their connections and protocols.

Of memory these are messages that are not whole, whole ones that wait for one that takes time, chunks on their way to
Redis, and the beginnings of uploads; of the disk, uploads. A hundred slow clients with large messages would otherwise
fill either, each within its own limits.
"""

from __future__ import annotations

from collections.abc import Callable

from asrserver.shares import Share, keys_at_share

#: Up to this size in bytes nothing is refused for lack of room: live audio comes in smaller pieces.
LARGE_BYTES = 1 << 16


class HeldBytes:
    """Counts the bytes, and finds who must not hold more.

    Like that of load_shedding.py, the limit is shared out among the keys that hold something: one that is alone may use
    all of it, and one that comes has its share at once.

    Args:
        limit: Bytes that all may hold together.
        share: The share of an API key, by its id; it is empty for clients without one, who have one share together.

    Attributes:
        total: Bytes that all hold.
    """

    def __init__(self, limit: int, share: Callable[[str], Share]) -> None:
        self.total = 0
        self._limit = limit
        self._share = share
        self._held: dict[str, int] = {}

    def add(self, owner: str, size: int) -> None:
        """Count bytes of a key; with a negative number, bytes that it no longer holds."""
        self.total += size
        held = self._held.pop(owner, 0) + size
        if held:
            self._held[owner] = held

    def is_full_for(self, owner: str, size: int = 0) -> bool:
        """Whether the limit is reached, with `size` bytes more of a key, and that key then has its share or more."""
        total = self.total + size
        if total <= self._limit:
            return False
        used = {self._share(one): float(held) for one, held in self._held.items()}
        share = self._share(owner)
        used[share] = used.get(share, 0.0) + size
        return owner in keys_at_share(used, self._limit)

    def grew(self, owner: str, before: int, now: int) -> bool:
        """Count that something of a key had `before` bytes and has `now`; return whether it must be given up."""
        self.add(owner, now - before)
        return now > max(before, LARGE_BYTES) and self.is_full_for(owner)
