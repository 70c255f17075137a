"""Substitutes for the workers of benchmarks: they do to Redis what workers do, and every chunk has the same text."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis
import uvloop

from asrserver.broker.replies import Claim, Entry
from asrserver.broker.worker_side import WorkerBroker
from asrserver.config import Settings
from asrserver.protocol.events import ChunkResult, Final, Result, Segment

#: Seconds between reads, as of a worker, and entries of each session at most.
READ_SECONDS = 0.04
READ_ENTRIES = 16


@dataclass
class Owned:
    """A session that a substitute owns: the last entry that it read, and the chunks and events so far."""

    claim: Claim
    cursor: str = "0-1"
    chunks: int = 0
    events: int = 0

    def result(self, entry: Entry, text: str) -> Result:
        """The event that answers a chunk or the end; without a text, a chunk has no segment."""
        self.events += 1
        self.chunks += entry.status is None
        total = self.chunks / 10
        about: dict[str, Any] = {
            "session_id": self.claim.sid, "seq": self.events, "id": self.claim.event_id(self.events),
            "time": time.time(), "worker": "bench", "model": "none", "chunk_count": self.chunks, "total": total,
            "language": "en" if text else None, "segments": [],
        }  # fmt: skip
        if entry.status is not None:
            return Final(status=entry.status, text=" ".join([text] * self.chunks), **about)
        if text:
            segment = Segment(self.chunks - 1, total - 0.1, total, text, "en", 0.9, entry.index)
            about["segments"] = [segment]
        return ChunkResult(chunk_index=entry.index, text=text, duration=0.1, **about)


def run_consumer(settings: Settings, text: str = "") -> None:
    """Answer every chunk and every end that this server's gateways append."""
    uvloop.run(_consume(settings, text))


async def _consume(settings: Settings, text: str) -> None:
    broker = WorkerBroker(settings.redis, "bench-worker")
    await broker.open()
    sessions: dict[str, Owned] = {}

    async def answer(owned: Owned, entries: Iterable[Entry]) -> None:
        events = [(owned.result(entry, text), entry.id) for entry in entries]
        await asyncio.gather(*(broker.append_event(owned.claim, event, after) for event, after in events))

    while True:
        for task, sid in await broker.claim(None, 100, 0.0):
            claim = await broker.acquire(task, sid)
            if claim is not None:
                sessions[sid] = Owned(claim)
        cursors = {sid: owned.cursor for sid, owned in sessions.items()}
        read = await broker.read_audio(cursors, READ_ENTRIES)
        await asyncio.gather(*(answer(sessions[sid], entries) for sid, entries in read.items()))
        for sid, entries in read.items():
            sessions[sid].cursor = entries[-1].id
            if entries[-1].status is not None:
                del sessions[sid]
        await asyncio.sleep(READ_SECONDS)


def run_go_worker(url: str, text: str) -> None:
    """Answer every chunk that kikipounamu's gateway appends; as its worker does, but many at a time."""
    client = redis.Redis.from_url(url)
    client.xgroup_create("asr_tasks", "asr_workers", "0", mkstream=True)
    while True:
        found: Any = client.xreadgroup("asr_workers", "bench", {"asr_tasks": ">"}, count=64, block=1000)
        with client.pipeline(transaction=False) as pipeline:
            for entry, fields in found[0][1] if found else []:
                sid, payload = fields[b"task_id"].decode(), fields[b"payload"]
                index = int(payload[payload.rindex(b":") + 1 : -1])  # its last field; the first is the audio
                result = json.dumps({"chunk_index": index, "text": text, "duration": 2.0, "error": ""})
                pipeline.publish(f"asr_result_{sid}", result)
                pipeline.rpush(f"asr:results:{sid}", result)
                pipeline.expire(f"asr:results:{sid}", 60)
                pipeline.xack("asr_tasks", "asr_workers", entry)
            pipeline.execute()
