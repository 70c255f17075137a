"""Sessions to be stored."""

from __future__ import annotations

from typing import Any

from asrserver.storage.storage import Storage
from asrserver.storage.tables import Record


def record(name: str = "a", count: int = 2, **session: Any) -> Record:
    def chunk(n: int) -> dict[str, Any]:
        return {"chunk_index": n, "text": f"word{n}", "duration": 0.5, "received_at": 1.7e9 + n}

    def segment(n: int) -> dict[str, Any]:
        return {"number": n, "start_time": n, "end_time": n + 1, "text": f"word{n}", "worker": "w"}

    return Record({"id": name, **session}, [*map(chunk, range(count))], [*map(segment, range(count))])


async def stored(store: Storage, name: str) -> dict[str, Any]:
    """A session that exists in the database."""
    found = await store.session(name)
    assert found is not None
    return found


DONE: dict[str, Any] = {
    "status": "done",
    "final_text": "all",
    "completed_at": 1.7e9,
    "chunk_count": 2,
    "total_duration": 8.5,
}
