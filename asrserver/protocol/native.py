"""The native WebSocket protocol, /ws/asr: its text messages to actions, events to its messages.

C {"action":"start","session_id":"…","user_id":"…", …options}
                                                                 S {"type":"ack","status":"session_started"}
C {"action":"chunk","session_id":"…","chunk_index":0,"audio_data":"<base64>"}   or a binary frame: the audio,
                          of the session started last; or of the one that a HEADER before it names by its channel
                                                                 S {"type":"ack","chunk_index":0,"status":"received"}
                                                                 S {"type":"chunk_result","chunk_index":0,"text":"…"}
in stream mode, or where asked for:                              S {"type":"partial_result","text":"…","stable":"…"}
                                                                 S {"type":"segment_result","text":"…","start":…}
                                                                 S {"type":"speech_started","start":…}
C {"action":"flush","session_id":"…"}                            S {"type":"flushed","number":1}
C {"action":"finish","session_id":"…"}                           S {"type":"final_result","text":"…","duration":8.4,…}
C {"action":"resume","session_id":"…","last_seq":17}             S {"type":"ack","status":"session_resumed",…}
S {"type":"error","code":"…","message":"…"}

A further protocol is a module like this one, over the same events and the same calls of the gateway.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from asrserver.errors import BadRequest
from asrserver.protocol.events import (
    ChunkResult,
    Durable,
    ErrorEvent,
    Final,
    Flushed,
    Lost,
    Partial,
    Received,
    Refusal,
    Resumed,
    SegmentResult,
    SessionEvent,
    SpeechStarted,
    Started,
    on_channel,
)
from asrserver.protocol.json_messages import LARGE_TEXT, Excerpt, base64_slices, from_base64, parse_bulky
from asrserver.protocol.options import Options, Resume, Start, seconds, unknown_option, valid_id, whole_number

#: The first bytes of a binary frame once a session has a channel: the channel and the chunk's index, big endian.
HEADER = struct.Struct("!IQ")

#: Longest session id that an error quotes, in characters: no valid one is longer.
MAX_NAME = 128

#: Fields of `start`: others are refused. Clients of the ancestor that are written in Go send all fields of `chunk` too.
START_FIELDS = frozenset(
    (
        *("action", "session_id", "user_id", "resume", "queue_position", "channel", "ack_interval"),
        *Options.__struct_fields__,
    )
)
IGNORED_FIELDS = frozenset(("chunk_index", "audio_data"))

#: Fields of `resume`: its acknowledgement warns of others.
RESUME_FIELDS = frozenset(("action", "session_id", "last_seq", "channel", "ack_interval"))

#: What a query may have besides options, and the kinds of what is no text. Binary frames are raw there: no channel.
QUERY_FIELDS = START_FIELDS - {"action", "channel"}
_TYPES = {field.name: field.type for field in msgspec.structs.fields(Options)}
_FLAGS = {"resume", "queue_position", *(name for name, kind in _TYPES.items() if kind is bool)}
_NUMBERS = {"ack_interval", *(name for name, kind in _TYPES.items() if kind in (int, float, int | None, float | None))}
_TRUTH = {"1": True, "true": True, "0": False, "false": False}

#: Maximum number of unknown fields that are named, and of characters of each name.
MAX_WARNINGS = 10
MAX_FIELD_NAME = 50

_encode = msgspec.json.Encoder().encode


# -- what clients send -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """How a session is carried on its connection.

    Attributes:
        channel: Its name in binary frames; None: they are those of the session started last.
        ack_interval: Seconds for which acknowledgements may wait for others; 0: one for each chunk.
    """

    channel: int | None
    ack_interval: float

    @classmethod
    def parse(cls, message: dict[str, Any]) -> Link:
        """Read it from a `start` or `resume` message; raises BadRequest naming the field."""
        channel, interval = message.get("channel"), message.get("ack_interval")
        if channel is not None:
            whole_number("channel", channel, 0, 2**32 - 1)
        if interval is not None:
            seconds("ack_interval", interval, 0.0, 5.0)
        return cls(channel, float(interval or 0.0))


@dataclass(frozen=True, slots=True)
class StartAction:
    """`start`.

    Attributes:
        start: The session that is asked for.
        link: How its connection carries it.
        queue_position: Whether the acknowledgement says how many sessions wait for a worker before this one.
        warnings: What the acknowledgement warns of.
    """

    start: Start
    link: Link
    queue_position: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResumeAction:
    """`resume`.

    Attributes:
        resume: The session that is to go on.
        link: How its connection carries it.
        warnings: What the acknowledgement warns of.
    """

    resume: Resume
    link: Link
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkAction:
    """`chunk`. Its fields are as the client sent them: an error in them names the session, which is not known yet."""

    session_id: Any
    chunk_index: Any
    audio_data: Any

    def audio(self) -> bytes:
        """Decode the audio; raises BadRequest."""
        return from_base64(self.audio_data, "audio_data")

    @property
    def is_large(self) -> bool:
        """Whether `audio` would take long: `audio_slices` returns the same piece by piece."""
        return isinstance(self.audio_data, str | Excerpt) and len(self.audio_data) >= LARGE_TEXT

    def audio_slices(self) -> Iterator[bytes]:
        """Decode the audio piece by piece; raises BadRequest."""
        return base64_slices(self.audio_data, "audio_data")


@dataclass(frozen=True, slots=True)
class FinishAction:
    """`finish`. Its session is as the client named it."""

    session_id: Any


@dataclass(frozen=True, slots=True)
class FlushAction:
    """`flush`. Its session is as the client named it."""

    session_id: Any


#: What is about a session that was started or resumed before.
SessionAction = ChunkAction | FlushAction | FinishAction

Action = StartAction | ResumeAction | SessionAction


def parse(text: str) -> Action:
    """Read a text message.

    Raises:
        BadRequest: It is none that the protocol has; the details say which session and which field, where it is known.
    """
    message = parse_bulky(text, "audio_data")
    action = message.get("action")
    if action == "chunk":
        return ChunkAction(message.get("session_id"), message.get("chunk_index"), message.get("audio_data"))
    if action == "flush":
        return FlushAction(message.get("session_id"))
    if action == "finish":
        return FinishAction(message.get("session_id"))
    if action in ("start", "resume"):
        try:
            return _start(message) if action == "start" else _resume(message)
        except BadRequest as exc:
            exc.details = named(message.get("session_id")) | exc.details
            raise
    if action is None:
        raise BadRequest("bad_request", "the message has no action")
    raise BadRequest("unknown_action", f"the action {str(action)[:50]!r} is not start, resume, chunk, flush or finish")


def _start(message: dict[str, Any]) -> StartAction:
    for name in message:
        if name not in START_FIELDS and name not in IGNORED_FIELDS:
            raise unknown_option(name, START_FIELDS)
    link = Link.parse(message)
    sid, user_id = (
        "" if message.get(name) in (None, "") else valid_id(message[name], name) for name in ("session_id", "user_id")
    )
    start = Start(sid, user_id, Options.parse(message), message.get("resume") is True)
    return StartAction(start, link, message.get("queue_position") is True)


def start_of_query(query: Mapping[str, str]) -> StartAction | None:
    """Read the `start` that a connection's query stands for: that of a client that sends audio and no JSON.

    Args:
        query: The query's parameters, without API keys. Of unknown ones the acknowledgement warns: misspelt ones,
            or those of other servers' clients, such as uid.

    Returns:
        The action; None where the query names no option of a session.

    Raises:
        BadRequest: A value is not allowed; the details name the option.
    """
    if query.keys().isdisjoint(Options.__struct_fields__):
        return None
    start = _start({name: _value(name, text) for name, text in query.items() if name in QUERY_FIELDS and text})
    return replace(start, warnings=_ignored("parameter", query, QUERY_FIELDS))


def _value(name: str, text: str) -> Any:
    """A parameter of a query as it would be in JSON; an invalid value stays text, which is refused later."""
    if name in _FLAGS:
        return _TRUTH.get(text.lower(), text)
    if name in _NUMBERS:
        for kind in (int, float):
            with suppress(ValueError):
                return kind(text)
    return text


def _resume(message: dict[str, Any]) -> ResumeAction:
    link = Link.parse(message)
    sid = valid_id(message.get("session_id"), "session_id")
    last_seq = message.get("last_seq", 0)
    if isinstance(last_seq, bool) or not isinstance(last_seq, int) or last_seq < 0:
        raise BadRequest("bad_seq", "last_seq must be a whole number from 0")
    return ResumeAction(Resume(sid, last_seq), link, _ignored("field", message, RESUME_FIELDS))


def _ignored(kind: str, given: Iterable[str], known: Collection[str]) -> tuple[str, ...]:
    """Warnings of what is ignored because it is unknown: misspelt, most likely."""
    names = [name[:MAX_FIELD_NAME] for name in given if name not in known]
    return tuple(f"the {kind} {name!r} is unknown and was ignored" for name in names[:MAX_WARNINGS])


def named(session_id: Any) -> dict[str, Any]:
    """The session that a client named, for the details of an error; nothing if it is not an id."""
    return {"session_id": session_id} if isinstance(session_id, str) and 0 < len(session_id) <= MAX_NAME else {}


# -- what clients get ------------------------------------------------------------------------------------------------
#
# The ancestor's messages (ack of start and chunk, chunk_result, final_result, error) all have a chunk_index, as its
# clients' types demand. In those about no chunk it is 0, as there; but in errors it is null, so that nobody takes one
# for that of chunk 0.


def format(event: SessionEvent, channel: int | None = None, warnings: tuple[str, ...] = ()) -> bytes | None:
    """Make the message of an event.

    Args:
        event: Any that a session has, or an answer of its gateway.
        channel: What the connection calls the session, of Started and Resumed.
        warnings: What to warn of, in Resumed.

    Returns:
        The text message, or None where a client of this protocol is told nothing.
    """
    make = _MESSAGES.get(type(event))
    if make is None:
        return None
    message = make(event)
    if channel is not None:
        message["channel"] = channel
    if warnings:
        message["warnings"] = warnings
    return _encode(message)


def _started(event: Started) -> dict[str, Any]:
    message: dict[str, Any] = {
        "type": "ack",
        "session_id": event.session_id,
        "chunk_index": 0,
        "status": "session_started",
    }
    if event.queued is not None:
        message["queued"] = event.queued
    if event.model is not None:
        message["model"] = event.model
    return message


def _resumed(event: Resumed) -> dict[str, Any]:
    message = {
        "type": "ack",
        "session_id": event.session_id,
        "status": "session_resumed",
        "state": event.state,
        "next_chunk_index": event.next_chunk_index,
    }
    if event.missed:
        message["missed"] = event.missed
    if event.flushes:
        message["flushes"] = event.flushes
    return message


def _received(event: Received) -> dict[str, Any]:
    message = {
        "type": "ack",
        "session_id": event.session_id,
        "chunk_index": event.chunk_index,
        "status": "received",
    }
    if event.through:
        message["through"] = True
    return message


def _by_channel(event: Durable) -> dict[str, Any]:
    """The field with the segments of an event whose text is that of all channels, where these are recognised
    separately."""
    segments = [segment.asdict() for segment in event.segments if segment.channel is not None]
    return {"segments": segments} if segments else {}


def _chunk_result(event: ChunkResult) -> dict[str, Any]:
    return {
        "type": "chunk_result",
        "session_id": event.session_id,
        "chunk_index": event.chunk_index,
        "text": event.text,
        "duration": event.duration,
        "language": event.language,
        "seq": event.seq,
    } | _by_channel(event)


def _speech_started(event: SpeechStarted) -> dict[str, Any]:
    message = {"type": "speech_started", "session_id": event.session_id, "start": event.start}
    return message | on_channel(event.channel)


def _partial_result(event: Partial) -> dict[str, Any]:
    return {
        "type": "partial_result",
        "session_id": event.session_id,
        "start": event.start,
        "end": event.end,
        "text": event.text,
        "stable": event.stable,
        "language": event.language,
    } | on_channel(event.channel)


def _segment_result(event: SegmentResult) -> dict[str, Any]:
    (segment,) = event.segments
    message = {
        "type": "segment_result",
        "session_id": event.session_id,
        "number": segment.number,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "language": segment.language,
        "confidence": segment.confidence,
        "seq": event.seq,
    } | on_channel(segment.channel)
    if segment.words:
        message["words"] = segment.words
    return message


def _flushed(event: Flushed) -> dict[str, Any]:
    return {
        "type": "flushed",
        "session_id": event.session_id,
        "number": event.number,
        "duration": event.total,
        "seq": event.seq,
    }


def _final_result(event: Final) -> dict[str, Any]:
    return {
        "type": "final_result",
        "session_id": event.session_id,
        "chunk_index": 0,
        "text": event.text,
        "duration": event.total,
        "chunk_count": event.chunk_count,
        "language": event.language,
        "status": event.status,
        "seq": event.seq,
    } | _by_channel(event)


def _error(event: ErrorEvent) -> dict[str, Any]:
    return {
        "type": "error",
        "code": event.code,
        "message": event.message,
        "session_id": event.session_id,
        "chunk_index": event.chunk_index,
        "seq": event.seq,
    } | _by_channel(event)


def _refusal(event: Refusal) -> dict[str, Any]:
    message: dict[str, Any] = {
        "type": "error",
        "code": event.code,
        "message": event.message,
        "chunk_index": event.chunk_index,
    }
    for name in ("session_id", "expected", "option", "retry_after", "resumable"):
        value = getattr(event, name)
        if value is not None:
            message[name] = value
    return message


_MESSAGES: dict[type, Callable[[Any], dict[str, Any]]] = {
    Started: _started,
    Resumed: _resumed,
    Received: _received,
    ChunkResult: _chunk_result,
    SpeechStarted: _speech_started,
    Partial: _partial_result,
    SegmentResult: _segment_result,
    Flushed: _flushed,
    Final: _final_result,
    ErrorEvent: _error,
    Refusal: _refusal,
    Lost: _refusal,
}
