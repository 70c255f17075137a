"""Files that were handed in, by the id of their session: how far they are, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass

from asrserver.gateway.gateway import Gateway


@dataclass(frozen=True, slots=True)
class Submission:
    """A file that was handed in.

    Attributes:
        state: queued, processing, done or failed.
        text: What was said; empty until it is done.
        duration: Seconds of audio; 0 until it is done.
        created_at: When it came, in ISO 8601; None while it is not stored.
        error: Why it failed, in words.
    """

    state: str
    text: str = ""
    duration: float = 0.0
    created_at: str | None = None
    error: str | None = None


async def find(gateway: Gateway, sid: str, owner: str | None) -> Submission | None:
    """Look a file up: in the history, and while it is not there, among the open sessions of all gateways.

    One that failed in a part only is done. So is one that was interrupted: all of it was there when it was accepted.

    Args:
        gateway: Any.
        sid: The id of its session.
        owner: If given, the id of the API key that it must belong to.

    Raises:
        StorageError: PostgreSQL cannot be asked.
        Unavailable: Redis cannot be asked.
    """
    await gateway.wait_stored(sid)
    found = await gateway.storage.record(sid, owner=owner)
    if found is None or found["status"] == "recording":
        stage = await gateway.broker.status.stage(sid, owner)
        created = None if found is None else found["created_at"]
        return None if stage is None else Submission(stage, created_at=created)
    error = found["error_message"] or await _chunk_error(gateway, sid, owner)
    failed = found["status"] == "error" or (error is not None and not found["text"])
    return Submission(
        "failed" if failed else "done",
        found["text"],
        found["duration"],
        found["created_at"],
        error if failed else None,
    )


async def _chunk_error(gateway: Gateway, sid: str, owner: str | None) -> str | None:
    """The first error of its chunks."""
    async for part in gateway.storage.chunks(sid, owner=owner):
        for chunk in part:
            if chunk["error_message"]:
                return str(chunk["error_message"])
    return None
