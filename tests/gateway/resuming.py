"""What clients that come back do."""

from __future__ import annotations

from asrserver.storage.errors import StorageUnavailable
from tests.gateways import Gateways
from tests.waiting import until
from tests.ws_client import Message, WsClient

AUDIO = bytes(range(256)) * 8


def resume(sid: str = "s", last_seq: int = 0) -> Message:
    return {"action": "resume", "session_id": sid, "last_seq": last_seq}


async def drop(ws: WsClient) -> None:
    """Lose the client's network."""
    ws.drop()
    await ws.close()


async def resumed(ws: WsClient, sid: str = "s", last_seq: int = 0) -> Message:
    """Resume; return the acknowledgement."""
    await ws.send(resume(sid, last_seq))
    await until(lambda: any(m.get("status") == "session_resumed" for m in ws.of(sid)), what=str(ws.messages))
    return next(m for m in ws.of(sid) if m.get("status") == "session_resumed")


def patience(gateways: Gateways, seconds: float) -> None:
    """Set how long sessions wait for their clients, in seconds."""
    for server in gateways:
        object.__setattr__(server.gateway.settings, "resume_timeout", seconds)


async def unavailable(_records: object) -> None:
    raise StorageUnavailable("away")
