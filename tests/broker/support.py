"""What several tests of the broker do with it and with Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.replies import Claim
from asrserver.broker.worker_side import WorkerBroker
from asrserver.protocol.events import Result
from tests.events import durable
from tests.servers import Servers

FIELDS = {"gateway": "g", "user_id": "", "created": "1.0", "options": "{}"}


Make = Callable[[str], GatewayBroker]


async def opened(
    gateway: GatewayBroker, sid: str = "s", nonce: str = "n", model: str | None = None, owner: str = ""
) -> bool:
    fields = {**FIELDS, "gateway": gateway.name, "owner": owner}
    return await gateway.open_session(sid, nonce, fields, time.time() + 60, model)


async def append(
    gateway: GatewayBroker, index: int, data: bytes = b"x", sid: str = "s", first: int = 0
) -> Exception | None:
    """Append a chunk after the one before it (unless it is the `first`); return what `done` was called with."""
    future: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    gateway.append(sid, index, index - 1 if index > first else None, [data], False, future.set_result)
    return await future


async def taken(worker: WorkerBroker, lease: float | None = None) -> Claim:
    """Claim the only session that can be claimed."""
    [(task, sid)] = await worker.claim(lease, 10, 0)
    claim = await worker.acquire(task, sid)
    assert claim is not None
    return claim


def event(claim: Claim, number: int, seq: int, kind: str = "chunk", **fields: Any) -> Result:
    """An event of this claim's owner, with its own `number` and the session's `seq`."""
    return durable(kind, seq, id=claim.event_id(number), text=f"word{seq}", **fields)


def ids(db: redis.Redis, key: str) -> list[str]:
    return [str(entry) for entry, _ in db.xrange(key) or []]


@contextmanager
def nobody_listens(servers: Servers) -> Iterator[None]:
    """Refuse new connections to Redis meanwhile."""
    path = servers.redis.socket_path
    away = path.rename(f"{path}.away")
    try:
        yield
    finally:
        away.rename(path)


def drop_connections(db: redis.Redis, kind: str = "normal") -> None:
    db.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
