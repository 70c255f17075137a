"""What Redis's replies mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from asrserver.protocol import codec
from asrserver.protocol.events import Result, UnknownEvent


@dataclass(slots=True)
class Claim:
    """A session that this worker owns: what a new owner needs to go on."""

    sid: str
    task: str
    epoch: int
    fields: dict[str, str]
    events: list[Result]  # the last ones, without those that are stored and delivered for long
    transcript: list[tuple[str, str]] = field(default_factory=list)  # (text, language) of every segment
    counted: float = 0.0  # seconds of audio that its key's quota has been charged for

    def event_id(self, number: int) -> str:
        """The id of this owner's durable event with the number, from 1."""
        return f"{self.epoch}-{number}"


@dataclass(slots=True)
class Entry:
    """One entry of a session's audio: the bytes of a chunk, or of `chunks` in a row; or the end (`status` says how)."""

    id: str
    data: bytes | None
    status: str | None
    received: float | None = None  # when the gateway had the first chunk, in seconds of the epoch
    chunks: int = 1

    @property
    def index(self) -> int:
        """The last chunk's."""
        return int(self.id.partition("-")[0]) - 1


def strings(fields: dict[bytes, bytes]) -> dict[str, str]:
    """A hash."""
    return {key.decode(): value.decode() for key, value in fields.items()}


def tasks(entries: Any) -> list[tuple[str, str]]:
    """(task, sid) of each entry."""
    return [(task.decode(), fields[b"sid"].decode()) for task, fields in pairs(entries)]


def pairs(entries: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Stream entries with their fields as a dict; redis-py does that for some commands and not for others."""
    found = []
    for entry_id, fields in filter(None, entries):
        if fields and not isinstance(fields, dict):
            fields = dict(zip(fields[::2], fields[1::2], strict=True))
        if fields:  # an entry that was deleted under its claim has none
            found.append((entry_id, fields))
    return found


def events(entries: Any) -> list[Result]:
    """Durable events."""
    return [_event(entry_id, fields) for entry_id, fields in pairs(entries) if b"data" in fields]


def _event(entry_id: bytes, fields: dict[bytes, bytes]) -> Result:
    event: Result
    try:
        event = codec.decode(fields[b"data"])
    except ValueError as exc:  # one that cannot be read must not hold up all others
        event = UnknownEvent(session_id="", type="", problem=str(exc))
    if isinstance(event, UnknownEvent):  # whatever it is, it has a place among the others
        return event.placed(entry_id.decode(), int(fields[b"seq"]))
    return event


def texts(items: Iterable[bytes]) -> list[tuple[str, str]]:
    """(text, language) of segments, of which each item has some."""
    return [(text, language) for item in items for text, language in orjson.loads(item)]


def entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    """Of a session's audio."""
    status = fields.get(b"s")
    received = fields.get(b"at")
    return Entry(
        entry_id.decode(),
        fields.get(b"d"),
        status.decode() if status else None,
        float(received) if received else None,
        int(fields.get(b"n", 1)),
    )
