#!/usr/bin/env python3
"""Measure the cost of typed events: making, encoding and decoding them, against dicts and orjson in the same run.

    python tools/bench_events.py [--rounds 9]

For each frequent kind of event:

    write   make the event from its fields and encode it, as a worker does, against a dict of the same keys and
            orjson.dumps
    read    decode the event, as a gateway does, against orjson.loads of the same bytes
    tell    make the native protocol's message from the event, against selecting keys of a dict and orjson.dumps

Times are the best of the rounds, which alternate; ratios are typed to dict.
"""

from __future__ import annotations

import argparse
import timeit
from collections.abc import Callable
from typing import Any

import orjson
from benching import add_json, write_ratios

from asrserver.protocol import codec, native
from asrserver.protocol.events import (
    ChunkResult,
    Event,
    Partial,
    Progress,
    Received,
    Segment,
    SegmentResult,
    SessionEvent,
    Word,
)

#: Calls in a round.
CALLS = 5000

TEXT = "turn on the light in the kitchen and close the window"

WORDS = [Word(word, n / 4, n / 4 + 0.21, 0.983) for n, word in enumerate(TEXT.split())]

BASE: dict[str, Any] = {
    "session_id": "4be0643f-1d98-573b-97cd-ca98a65347dd",
    "seq": 17,
    "id": "1-17",
    "time": 1795932428.391,
    "worker": "host-20959-0",
    "model": "demo",
    "chunk_count": 27,
    "total": 102.7,
    "language": "en",
}

SEGMENT: dict[str, Any] = {
    "number": 3,
    "start": 98.152,
    "end": 101.44,
    "text": TEXT,
    "language": "en",
    "confidence": 0.9998,
}

#: The type and the fields of each kind, by name.
KINDS: dict[str, tuple[type[Event], dict[str, Any]]] = {
    "chunk": (
        ChunkResult,
        BASE | {"chunk_index": 16, "text": "", "duration": 0.1, "received": 1795932427.9, "segments": []},
    ),
    "segment": (SegmentResult, BASE | {"text": TEXT, "segments": [Segment(**SEGMENT)]}),
    "with words": (SegmentResult, BASE | {"text": TEXT, "segments": [Segment(**SEGMENT, words=WORDS)]}),
    "partial": (
        Partial,
        {
            "session_id": BASE["session_id"],
            "start": 98.152,
            "end": 100.7,
            "text": TEXT,
            "stable": TEXT[:20],
            "language": "en",
            "follows": 16,
        },
    ),
    "progress": (Progress, {"session_id": BASE["session_id"], "taken": 26, "total": 102.7}),
}


def best(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Microseconds per call of each function: the best of the rounds."""
    found = [[timeit.timeit(work, number=CALLS) for work in works] for _ in range(rounds)]
    return [1e6 * min(times) / CALLS for times in zip(*found, strict=True)]


class Sides:
    """One kind of event, typed and as a dict."""

    def __init__(self, kind: type[Event], fields: dict[str, Any]) -> None:
        self._kind = kind
        self._fields = fields
        self._data = codec.encode(kind(**fields))
        self._plain = orjson.loads(self._data)

    def write(self) -> bytes:
        return codec.encode(self._kind(**self._fields))

    def write_plain(self) -> bytes:
        """Combine the worker's fields and the broker's, and encode them."""
        event = {**self._plain}
        return orjson.dumps({**event, "id": "1-17", "session_id": BASE["session_id"]})

    def read(self) -> object:
        return codec.decode_published(self._data)

    def read_plain(self) -> object:
        return orjson.loads(self._data)


class Told:
    """One message of the native protocol, made from an event and from a dict."""

    def __init__(self, event: SessionEvent) -> None:
        self._event = event
        data = native.format(event)
        assert data is not None
        self._plain = orjson.loads(data)

    def tell(self) -> object:
        return native.format(self._event)

    def tell_plain(self) -> bytes:
        return orjson.dumps({name: value for name, value in self._plain.items() if value is not None})


def show(name: str, what: str, times: list[float]) -> None:
    """Print a line of the table."""
    print(f"{name:12}{what:8}{times[0]:10.2f}{times[1]:10.2f}{times[0] / times[1]:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    add_json(parser)
    options = parser.parse_args()
    rounds = options.rounds
    print(f"{'microseconds':20}{'typed':>10}{'dict':>10}{'ratio':>8}")
    total = [0.0, 0.0]
    for name, (kind, fields) in KINDS.items():
        sides = Sides(kind, fields)
        for what, works in (("write", (sides.write, sides.write_plain)), ("read", (sides.read, sides.read_plain))):
            times = best(rounds, *works)
            show(name, what, times)
            total = [sum(both) for both in zip(total, times, strict=True)]
    show("together", "", total)
    write_ratios(options, {"typed events to dicts, time": [total[0] / total[1]]})
    events: dict[str, SessionEvent] = {
        "ack": Received(BASE["session_id"], 16),
        "chunk": ChunkResult(**KINDS["chunk"][1]),
        "with words": SegmentResult(**KINDS["with words"][1]),
    }
    for name, event in events.items():
        told = Told(event)
        show(name, "tell", best(rounds, told.tell, told.tell_plain))


if __name__ == "__main__":
    main()
