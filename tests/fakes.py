"""A worker that sends the results that the test tells it to, through the real broker."""

from __future__ import annotations

from typing import Any

from asrserver.broker.replies import Claim, Entry
from asrserver.broker.worker_side import WorkerBroker
from asrserver.protocol.events import Partial, Result
from tests.events import durable
from tests.waiting import until


class FakeWorker:
    """`take` claims a session, `chunk`, `final` and `say` answer in it."""

    def __init__(self, url: str, name: str = "fake-worker") -> None:
        self.broker = WorkerBroker(url, name)
        self.claims: dict[str, Claim] = {}
        self._seq: dict[str, int] = {}

    async def take(self, *sids: str) -> None:
        """Acquire these sessions, once they are started."""
        await self.broker.open()
        while not self.claims.keys() >= set(sids):
            for task, sid in await self.broker.claim(None, 100, 0):
                claim = await self.broker.acquire(task, sid)
                assert claim is not None
                self.claims[sid] = claim
                self._seq[sid] = 0

    def event(self, sid: str, kind: str, **fields: Any) -> Result:
        """The session's next event, as a worker would make it."""
        self._seq[sid] = seq = self._seq[sid] + 1
        own = {
            "session_id": sid,
            "id": self.claims[sid].event_id(seq),
            "worker": self.broker.name,
            "chunk_count": fields.get("chunk_index", -1) + 1,
            "total": 1.5,
        }
        return durable(kind, seq, **{**own, **fields})

    async def say(self, sid: str, kind: str, after: str = "0-1", **fields: Any) -> None:
        event = self.event(sid, kind, **fields)
        assert await self.broker.append_event(self.claims[sid], event, after)

    def partial(self, sid: str, text: str, stable: str = "", **fields: Any) -> None:
        """Publish what is being said."""
        own = {"start": 0.0, "end": 0.5, "language": "en", "follows": self._seq[sid]}
        self.broker.publish(self.claims[sid], Partial(session_id=sid, text=text, stable=stable, **{**own, **fields}))

    async def flush(self, sid: str, number: int = 1) -> None:
        """Wait until a flush has come."""
        while not any(entry.flush == number for entry in await self.entries(sid)):
            pass

    async def chunk(self, sid: str, index: int, text: str = "word") -> None:
        await self.say(sid, "chunk", f"{index + 1}-0", chunk_index=index, text=text, duration=0.5)

    async def final(self, sid: str, text: str = "words", chunks: int = 1) -> None:
        """Send the final result, after the end has come."""
        await self.ended(sid)
        await self.say(sid, "final", text=text, status=await self.ended(sid), chunk_count=chunks)

    async def ended(self, sid: str) -> str:
        """Wait for the session's end; return its status."""
        while True:
            for entry in await self.entries(sid):
                if entry.status is not None:
                    return entry.status

    async def audio(self, sid: str, count: int) -> dict[str, bytes]:
        """The session's chunks by entry id, once there are `count`."""
        found: dict[str, bytes] = {}
        while len(found) < count:
            found = {entry.id: entry.data for entry in await self.entries(sid) if entry.data is not None}
        return found

    async def entries(self, sid: str) -> list[Entry]:
        return (await self.broker.read_audio({sid: "0-1"}, 10_000)).get(sid, [])

    async def close(self) -> None:
        await until(lambda: self.broker.pipeline._task is None)
        await self.broker.close()
