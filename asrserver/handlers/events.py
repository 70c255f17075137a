"""A session's events in the words of the native protocol (websocket.py)."""

from __future__ import annotations

from typing import Any

#: What of an event is told, by its type: in which message, and which fields of it under which names.
_RESULTS = {
    "chunk": (
        "chunk_result",
        {name: name for name in ("session_id", "chunk_index", "text", "duration", "language", "seq")},
    ),
    "partial": (
        "partial_result",
        {name: name for name in ("session_id", "start", "end", "text", "stable", "language")},
    ),
    "final": (
        "final_result",
        {
            "session_id": "session_id",
            "text": "text",
            "duration": "total",
            "chunk_count": "chunk_count",
            "language": "language",
            "status": "status",
            "seq": "seq",
        },
    ),
}

#: Fields of an error, where it has them.
_ERROR = (
    "type",
    "code",
    "message",
    "session_id",
    "chunk_index",
    "expected",
    "retry_after",
    "resumable",
    "seq",
)


def message(event: dict[str, Any]) -> dict[str, Any] | None:
    """What the client is sent of an event; None where it is sent nothing."""
    kind = event["type"]
    if kind in _RESULTS:
        name, fields = _RESULTS[kind]
        return {"type": name} | {ours: event[theirs] for ours, theirs in fields.items()}
    if kind == "segment":
        (segment,) = event["segments"]
        said = {name: value for name, value in segment.items() if name != "chunk_index"}
        return {"type": "segment_result", "session_id": event["session_id"], **said, "seq": event["seq"]}
    if kind == "error":
        return {name: event[name] for name in _ERROR if event.get(name) is not None}
    return event if kind == "ack" else None
