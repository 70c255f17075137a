"""Events for tests, with defaults for fields that do not matter."""

from __future__ import annotations

import time
from typing import Any

from asrserver.protocol.events import ChunkResult, ErrorEvent, Final, Flushed, Result, Segment, SegmentResult

#: The durable events by their type, and what each has beside the base.
_KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "chunk": (ChunkResult, {"chunk_index": 0, "text": "word", "duration": 0.5}),
    "segment": (SegmentResult, {"text": "word"}),
    "flushed": (Flushed, {"number": 1}),
    "error": (ErrorEvent, {"code": "not_audio", "message": "no audio"}),
    "final": (Final, {"text": "words", "status": "done"}),
}


def durable(kind: str, seq: int, **fields: Any) -> Result:
    """A durable event of a session."""
    make, own = _KINDS[kind]
    base = {
        "session_id": "s",
        "seq": seq,
        "id": f"1-{seq}",
        "time": time.time(),
        "worker": "w",
        "model": "none",
        "chunk_count": 0,
        "total": 0.0,
        "language": "en",
        "segments": [],
    }
    event: Result = make(**{**base, **own, **fields})
    return event


def segment(number: int = 0, text: str = "word", **fields: Any) -> Segment:
    """A segment of a second."""
    times = {"start": float(number), "end": number + 1.0}
    return Segment(**{"number": number, **times, "text": text, "language": "en", "confidence": 0.9, **fields})
