"""How long sessions are kept: those that are too old are deleted, and those of a user when somebody asks for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from asrserver.auth.access import Access
from asrserver.storage.storage import Storage

log = logging.getLogger("asrserver.retention")

#: Sessions that are looked for at a time.
BATCH = 200

#: Seconds that one round of housekeeping, or one request for a user, may take: the next one goes on.
ROUND_SECONDS = 20.0


class Retention:
    """Deletes sessions with all that there is of them: rows, streams in Redis, recordings."""

    def __init__(
        self, keep_days: float, access: Access, storage: Storage, delete: Callable[[str, str | None], Awaitable[bool]]
    ) -> None:
        """Create it.

        Args:
            keep_days: Days after which a session is deleted, unless its API key says otherwise; 0: never.
            access: The API keys.
            storage: Where the sessions are.
            delete: Deletes a session of an owner (None: of anybody) for good, and returns whether there was one.
        """
        self._keep_days = keep_days
        self._access = access
        self._storage = storage
        self._delete = delete

    async def tidy(self) -> None:
        """Delete sessions that are over and too old.

        Raises:
            StorageError, Unavailable: They cannot be deleted now.
        """
        own = {key.id: key.limits.keep_days for key in self._access.keys if key.limits.keep_days}
        until = time.monotonic() + ROUND_SECONDS
        for owner, days in own.items():
            await self._expire(days, owner, (), until)
        if self._keep_days:
            await self._expire(self._keep_days, None, list(own), until)

    async def _expire(self, days: float, owner: str | None, others: Sequence[str], until: float) -> None:
        deleted, _ = await self._delete_all(
            lambda: self._storage.older_than(days, owner, others, BATCH), owner=None, until=until
        )
        if deleted:
            log.info("deleted %d sessions older than %g days key=%s", deleted, days, owner or "-")

    async def erase(self, user_id: str, owner: str | None) -> tuple[int, bool]:
        """Delete the sessions of a user. Those that are open are kept from being stored, and go on for their clients.

        Args:
            user_id: The user's name, as clients gave it.
            owner: If given, the id of the API key that the sessions must belong to.

        Returns:
            (sessions that were deleted, whether that was all; if not, the same call again does more).

        Raises:
            StorageError, Unavailable: They cannot be deleted now; the same call again does the rest.
        """
        return await self._delete_all(
            lambda: self._storage.sessions_of(user_id, owner, BATCH), owner, time.monotonic() + ROUND_SECONDS
        )

    async def _delete_all(
        self, find: Callable[[], Awaitable[list[str]]], owner: str | None, until: float
    ) -> tuple[int, bool]:
        """Delete what is found, BATCH sessions at a time; returns (how many, whether all before the time `until`)."""
        deleted = 0
        while time.monotonic() < until:
            found = await find()
            for sid in found:
                deleted += await self._delete(sid, owner)
            if len(found) < BATCH:
                return deleted, True
        return deleted, False
