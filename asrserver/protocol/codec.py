"""Events and options to bytes and back: the one place that knows how they are written in Redis.

An event is a JSON object with `type` and the attributes of its class (events.py); options are one with the attributes
of Options. Processes of two releases share one Redis during a rolling restart, and a session may outlive one; so,
whatever changes:

1. A reader ignores fields that it does not know.
2. A new field has a default, with which readers take what older writers wrote.
3. A field never changes its meaning, its unit or its type: what means something else gets a new name.
4. What the last release reads is still written; tests/protocol/test_compatibility.py lists it.
5. A type that a reader does not know is an UnknownEvent: it counts (`seq` goes on, its segments are stored), and no
   client is told of it.
6. `v` says which version of the format an event was written in: it grows by one when a type or a field is added. As
   long as the rules above are kept, no reader needs it. Events without it are of release 0.1.0, which is version 1.
"""

from __future__ import annotations

import msgspec

from asrserver.protocol.events import (
    ChunkResult,
    ErrorEvent,
    Event,
    Final,
    Flushed,
    Moved,
    Partial,
    Progress,
    Published,
    Result,
    SegmentResult,
    SpeechStarted,
    UnknownEvent,
)
from asrserver.protocol.options import Options

_encoder = msgspec.json.Encoder()
_results: msgspec.json.Decoder[Result] = msgspec.json.Decoder(
    ChunkResult | SegmentResult | Flushed | ErrorEvent | Final
)
_published: msgspec.json.Decoder[Published] = msgspec.json.Decoder(
    ChunkResult | SegmentResult | Flushed | ErrorEvent | Final | SpeechStarted | Partial | Progress | Moved
)
_unknown = msgspec.json.Decoder(UnknownEvent)
_options = msgspec.json.Decoder(Options)

#: Types that this release knows.
_TYPES = frozenset(
    kind.__struct_config__.tag
    for kind in (ChunkResult, SegmentResult, Flushed, ErrorEvent, Final, SpeechStarted, Partial, Progress, Moved)
)


def encode(event: Event) -> bytes:
    """An event, durable or published, as Redis holds it."""
    return _encoder.encode(event)


def decode(data: bytes) -> Result:
    """A durable event; raises ValueError for what is none of any release."""
    try:
        return _results.decode(data)
    except msgspec.ValidationError as exc:
        return _other(data, exc)


def decode_published(data: bytes) -> Published:
    """What a gateway got through Pub/Sub; raises ValueError for what is none of any release."""
    try:
        return _published.decode(data)
    except msgspec.ValidationError as exc:
        return _other(data, exc)


def _other(data: bytes, exc: msgspec.ValidationError) -> UnknownEvent:
    event = _unknown.decode(data)
    if event.type in _TYPES:
        return msgspec.structs.replace(event, problem=str(exc))
    return event


def encode_options(options: Options) -> str:
    """Options as the session's hash holds them."""
    return _encoder.encode(options).decode()


def decode_options(text: str) -> Options:
    """Options from a session's hash: they were checked when they were put there. Raises ValueError."""
    return _options.decode(text)
