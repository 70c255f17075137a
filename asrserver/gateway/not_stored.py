"""Why PostgreSQL does not have a session that somebody looks for."""

from __future__ import annotations

import asyncio

from asrserver.errors import Unavailable
from asrserver.gateway.gateway import Gateway

#: Seconds that Redis may take to say whether it has a session.
TIMEOUT = 2.0


async def why_missing(gateway: Gateway, sid: str) -> str:
    """What is known of a session that is not stored, for whoever may see all sessions.

    Raises:
        StorageError: PostgreSQL cannot be asked.
    """
    if deleted := await gateway.storage.deleted_at(sid):
        return f"the session was deleted at {deleted.isoformat()}"
    try:
        async with asyncio.timeout(TIMEOUT):
            waits = await gateway.broker.known([sid])
    except (TimeoutError, Unavailable):
        return "PostgreSQL has no such session, and Redis does not say whether it has one that is not stored yet"
    if waits:
        return "the session is in Redis, but not stored: see its lines in the log, and asr_dead in Redis"
    return "there is no such session; GET /api/v1/history lists those that there are"
