"""What clients do who come back."""

from __future__ import annotations

from asrserver.storage.errors import StorageUnavailable
from tests.gateways import Door
from tests.waiting import until
from tests.ws_client import Message, Talk

AUDIO = bytes(range(256)) * 8


def resume(sid: str = "s", last_seq: int = 0) -> Message:
    return {"action": "resume", "session_id": sid, "last_seq": last_seq}


async def drop(talk: Talk) -> None:
    """The client's network is gone."""
    talk.drop()
    await talk.close()


async def resumed(talk: Talk, sid: str = "s", last_seq: int = 0) -> Message:
    """Resume; the acknowledgement."""
    await talk.send(resume(sid, last_seq))
    await until(lambda: any(m.get("status") == "session_resumed" for m in talk.of(sid)), what=str(talk.messages))
    return next(m for m in talk.of(sid) if m.get("status") == "session_resumed")


def patience(doors: tuple[Door, Door], seconds: float) -> None:
    """How long sessions wait for their clients."""
    for door in doors:
        object.__setattr__(door.gateway.settings, "resume_timeout", seconds)


async def unavailable(_records: object) -> None:
    raise StorageUnavailable("away")
