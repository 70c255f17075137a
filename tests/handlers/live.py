"""What a worker does with the live session of a connection."""

from __future__ import annotations

from asrserver.gateway.gateway import Gateway
from tests.events import segment
from tests.fakes import FakeWorker
from tests.waiting import until


async def session_of(gateway: Gateway, worker: FakeWorker) -> str:
    """The only session, once the worker has it."""
    await until(lambda: gateway.sessions)
    [sid] = gateway.sessions
    await worker.take(sid)
    return sid


async def say(worker: FakeWorker, sid: str, *texts: str) -> None:
    """Let segments with these texts end."""
    for text in texts:
        await worker.say(sid, "segment", text=text, segments=[segment(text=text)])
