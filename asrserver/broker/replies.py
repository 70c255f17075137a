"""The replies of Redis as Python objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from asrserver.protocol import codec
from asrserver.protocol.events import Result, UnknownEvent


class Task(NamedTuple):
    """The entry of a session in a stream of tasks; while it is pending for a worker, that worker has the lease.

    Attributes:
        stream: The key of the stream.
        id: The id of the entry.
    """

    stream: str
    id: str


@dataclass(slots=True)
class Claim:
    """A session that this worker owns: what it needs to continue where the last owner stopped.

    Attributes:
        sid: The id of the session.
        task: Its task.
        epoch: The number of this ownership, which fences off all earlier ones.
        fields: The fields of the session's hash.
        events: The durable events in Redis, oldest first; those that were stored and delivered long ago are trimmed.
        transcript: Text and language of every segment so far.
        charged: Seconds of audio that were charged to the API key.
    """

    sid: str
    task: Task
    epoch: int
    fields: dict[str, str]
    events: list[Result]
    transcript: list[tuple[str, str]] = field(default_factory=list)
    charged: float = 0.0

    def event_id(self, number: int) -> str:
        """Return the id of this owner's durable event number `number`, counted from 1."""
        return f"{self.epoch}-{number}"


@dataclass(slots=True)
class Entry:
    """One entry of a session's audio: consecutive chunks, a part of a large one, a flush, other options, or the end.

    Attributes:
        id: The id of the stream entry.
        data: The bytes of the chunks; None for the others.
        status: Of the end: how the session ended; else None.
        received: When the gateway had the first chunk, in seconds since the epoch.
        chunks: The number of chunks.
        flush: The number of the flush; 0 for the others.
        part: Of a part of a chunk: its number, from 0. None for the others.
        parts: Of a large chunk, whose last part this is: how many were before it.
        options: How the audio after it is recognised, as the session's hash has it; None for the others.
    """

    id: str
    data: bytes | None
    status: str | None
    received: float | None = None
    chunks: int = 1
    flush: int = 0
    part: int | None = None
    parts: int = 0
    options: str | None = None

    @property
    def index(self) -> int:
        """The index of the last chunk."""
        return int(self.id.partition("-")[0]) - 1

    def label(self, sid: str) -> str:
        """How crash attribution names it: "session entry"."""
        return f"{sid} {self.id}"


def strings(fields: dict[bytes, bytes]) -> dict[str, str]:
    """Decode a hash. What another program wrote into it may be no text."""
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in fields.items()}


def tasks(stream: str, entries: Any) -> list[tuple[Task, str]]:
    """Return (task, session id) of each entry of a stream of tasks; the id is empty where another program wrote it."""
    return [
        (Task(stream, entry.decode()), fields.get(b"sid", b"").decode(errors="ignore"))
        for entry, fields in pairs(entries)
    ]


def by_stream(found: Iterable[Task]) -> dict[str, list[str]]:
    """Group tasks: stream → ids."""
    streams: dict[str, list[str]] = {}
    for task in found:
        streams.setdefault(task.stream, []).append(task.id)
    return streams


def pairs(entries: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return (id, fields) of stream entries; redis-py makes a dict of the fields for some commands only."""
    found = []
    for entry_id, fields in filter(None, entries):
        if fields and not isinstance(fields, dict):
            fields = dict(zip(fields[::2], fields[1::2], strict=True))
        if fields:  # a claimed entry that was deleted has none
            found.append((entry_id, fields))
    return found


def events(entries: Any) -> list[Result]:
    """Decode the durable events among entries of an event stream; another program's entries are passed over."""
    return [
        _event(entry_id, fields)
        for entry_id, fields in pairs(entries)
        if b"data" in fields and fields.get(b"seq", b"").isdigit()
    ]


def _event(entry_id: bytes, fields: dict[bytes, bytes]) -> Result:
    event: Result
    try:
        event = codec.decode(fields[b"data"])
    except ValueError as exc:  # an unreadable event must not hold up all others
        event = UnknownEvent(session_id="", type="", problem=str(exc))
    if isinstance(event, UnknownEvent):  # it keeps its place among the others
        return event.placed(entry_id.decode(), int(fields[b"seq"]))
    return event


def texts(items: Iterable[bytes]) -> list[tuple[str, str]]:
    """Decode (text, language) of segments; each item holds those of one event."""
    return [(text, language) for item in items for text, language in orjson.loads(item)]


def entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    """Decode an entry of a session's audio. One of another program has nothing that counts."""
    status, options = fields.get(b"s"), fields.get(b"o")
    received = fields.get(b"at")
    number = _whole(fields, b"p", 0)
    return Entry(
        entry_id.decode(),
        fields.get(b"d"),
        status.decode(errors="replace") if status else None,
        _seconds(received),
        _whole(fields, b"n", 1),
        _whole(fields, b"f", 0),
        part=number if fields.get(b"t") == b"part" else None,
        parts=0 if fields.get(b"t") == b"part" else number,
        options=options.decode(errors="replace") if options else None,
    )


def _whole(fields: dict[bytes, bytes], name: bytes, default: int) -> int:
    value = fields.get(name, b"")
    return int(value) if value.isdigit() and len(value) < 18 else default


def _seconds(value: bytes | None) -> float | None:
    try:
        return float(value) if value else None
    except ValueError:
        return None
