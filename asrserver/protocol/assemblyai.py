"""AssemblyAI's streaming API, version 3 (assemblyai.com/docs, and the fields that its own Python library requires): its
query to options, its messages to actions, events to its messages.

S {"type":"Begin","id":"…","expires_at":1795966374}
C binary frames: audio
with words that stay    S {"type":"Turn","turn_order":0,"end_of_turn":false,"transcript":"…","words":[…],…}
at the end of a turn    S the same with "end_of_turn":true; with format_turns once more with "turn_is_formatted":true
C {"type":"ForceEndpoint"}  {"type":"UpdateConfiguration",…}  {"type":"KeepAlive"}
                        S {"type":"SpeechStarted","timestamp":400}  {"type":"Warning","warning_code":…,"warning":"…"}
C {"type":"Terminate"}  S the last turns, {"type":"Termination",…}, and the end of the connection
S {"type":"Error","error_code":…,"error":"…"}: its clients end with it

Times are whole milliseconds. A turn is a segment, or several where speech went on for longer than one may be.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from asrserver.errors import BadRequest
from asrserver.protocol.events import (
    ErrorEvent,
    Final,
    Flushed,
    Partial,
    Refusal,
    Segment,
    SegmentResult,
    SessionEvent,
    SpeechStarted,
    Word,
)
from asrserver.protocol.options import MAX_TEXT, TRUE, Options, join_hotwords
from asrserver.protocol.word_times import spread
from asrserver.text.words import join, words

#: `encoding` of headerless audio → the format of the session; and of what says its own sample rate.
HEADERLESS = {"pcm_s16le": "pcm_s16le", "pcm_mulaw": "pcm_mulaw"}
ENCODINGS = HEADERLESS | {"opus": "opus", "ogg_opus": "file", "aac": "file"}

#: Milliseconds of quiet that end a turn.
MIN_SILENCE = 300
MAX_SILENCE = 5000

#: Parameters that say how long a pause ends a turn; the first that is given counts.
_SILENCES = ("min_turn_silence", "min_end_of_turn_silence_when_confident", "max_turn_silence")

#: Settings that UpdateConfiguration may name and that hold for a whole session here.
_FIXED = (*_SILENCES, "prompt", "language_codes")

#: Error codes → AssemblyAI's.
_CODES = {
    "bad_json": 4100,
    "bad_option": 3006,
    "bad_request": 3006,
    "message_too_large": 3007,
    "overloaded": 1013,
    "quota_exceeded": 4029,
    "rate_limited": 3009,
    "session_idle": 4031,
    "session_too_long": 3008,
    "shutting_down": 1013,
    "too_fast": 4029,
    "too_many_sessions": 3009,
    "unauthorized": 4001,
    "unknown_model": 3006,
}
_SERVER_ERROR = 3005

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class AssemblyAiRequest:
    """The query of a connection.

    Attributes:
        model: The model that is asked for; may be empty.
        options: How the audio is recognised.
        is_formatted: Whether the end of a turn is told once more, as formatted.
        has_partials: Whether turns are told before they end.
    """

    model: str
    options: Options
    is_formatted: bool
    has_partials: bool


def parse_query(query: Mapping[str, str]) -> AssemblyAiRequest:
    """Read the query of a connection; what is unknown is ignored.

    Raises:
        BadRequest: A parameter has a value that cannot be used; the message names it.
    """
    encoding = query.get("encoding") or "pcm_s16le"
    if encoding not in ENCODINGS:
        raise BadRequest("bad_request", f"encoding must be one of {', '.join(ENCODINGS)}")
    has_partials = _flag(query.get("include_partial_turns") or "true")
    model = query.get("speech_model") or ""
    silence = next((query[name] for name in _SILENCES if query.get(name)), "")
    given = {
        "mode": "stream",
        "format": ENCODINGS[encoding],
        "sample_rate": _number(query, "sample_rate") if encoding in HEADERLESS else None,
        "language": _language(query, model),
        "prompt": query.get("prompt", "")[-MAX_TEXT:],
        "hotwords": join_hotwords(_texts(query, "keyterms_prompt")),
        "partials": has_partials,
        "silence": _milliseconds(silence) / 1000 if silence else None,
        "word_timestamps": True,
        "speech_events": True,
    }
    return AssemblyAiRequest(model, Options.parse(given), _flag(query.get("format_turns", "")), has_partials)


def _flag(value: str) -> bool:
    return value.lower() in TRUE


def _number(query: Mapping[str, str], name: str) -> int | None:
    value = query.get(name, "")
    if value and not (value.isascii() and value.isdigit()):
        raise BadRequest("bad_request", f"{name} must be a whole number")
    return int(value[:9]) if value else None


def _milliseconds(value: str) -> float:
    try:
        return min(max(float(value), MIN_SILENCE), MAX_SILENCE)
    except ValueError:
        raise BadRequest("bad_request", f"{_SILENCES[0]} must be a number of milliseconds") from None


def _texts(query: Mapping[str, str], name: str) -> list[str]:
    """The texts of a list in JSON."""
    try:
        found = orjson.loads(query.get(name) or "[]")
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise BadRequest("bad_request", f"{name} must be a list of texts, as JSON")
    return [text for one in found if (text := one.strip())]


def _language(query: Mapping[str, str], model: str) -> str | None:
    """The only language that is named; None: it is detected."""
    named = _texts(query, "language_codes") or [query.get("language_code") or ""]
    if any(named):
        return named[0] if len(named) == 1 else None
    return "en" if model.endswith("-english") else None


# -- what clients get ------------------------------------------------------------------------------------------------


class AssemblyAiTurns:
    """The messages of one connection."""

    def __init__(self, asked: AssemblyAiRequest) -> None:
        self._asked = asked
        self._is_formatted = asked.is_formatted
        self._began = time.monotonic()
        self._order = 0  # of the present turn
        self._before: list[Segment] = []  # of the present turn, whose speech went on
        self._told: list[str] = []  # words of it that were told

    def begin(self, session_id: str, seconds: float) -> bytes:
        """The first message; `seconds`: how long the session may last."""
        return _encode({"type": "Begin", "id": session_id, "expires_at": int(time.time() + seconds)})

    def configured(self, message: Mapping[str, Any]) -> Iterator[bytes]:
        """Take an UpdateConfiguration, and make the messages that answer it."""
        if isinstance(message.get("format_turns"), bool):
            self._is_formatted = message["format_turns"]
        fixed = [name for name in _FIXED if message.get(name) is not None]
        if fixed:
            yield self.warning("bad_option", f"{', '.join(fixed)} cannot be changed in a session and stays as it was")

    def messages(self, event: SessionEvent) -> Iterator[bytes]:
        """Make the messages of an event."""
        match event:
            case SpeechStarted():
                yield _encode({"type": "SpeechStarted", "timestamp": _milli(event.start)})
            case Partial(text="") | Flushed():
                yield from self._over()
            case Partial():
                yield from self._grown(event)
            case SegmentResult():
                for segment in event.segments:
                    yield from self._ended(segment, event.cut)
            case ErrorEvent(code="undecodable_audio"):  # the rest may be whole
                yield self.warning(event.code, event.message)
            case ErrorEvent() | Refusal():
                yield _encode({"type": "Error", "error_code": _code(event.code), "error": event.message})
            case Final():
                yield from self._over()
                lasted = round(time.monotonic() - self._began)
                end = {"audio_duration_seconds": round(event.total), "session_duration_seconds": lasted}
                yield _encode({"type": "Termination", **end})

    def warning(self, code: str, message: str) -> bytes:
        """The message of an error that does not end the session."""
        return _encode({"type": "Warning", "warning_code": _code(code), "warning": message})

    def _grown(self, event: Partial) -> Iterator[bytes]:
        """The turn so far, if it has more words that stay."""
        found = words(event.stable, event.language)
        if not found or found == self._told or not self._asked.has_partials:
            return
        self._told = found
        # How long they took is known for the whole text only.
        end = event.start + (event.end - event.start) * len(event.stable) / max(1, len(event.text))
        heard = spread(found, event.start, end, [1.0] * len(found))
        yield self._turn([(event.stable, event.language)], heard)

    def _ended(self, segment: Segment, cut: bool) -> Iterator[bytes]:
        if cut:
            self._told = []
            self._before.append(segment)
            yield self._turn([], [])
            return
        yield from self._end([(segment.text, segment.language)], _words(segment))

    def _over(self) -> Iterator[bytes]:
        """Nothing more was said in the turn, of which the last segment was cut."""
        if self._before:
            yield from self._end([], [])

    def _end(self, text: list[tuple[str, str]], heard: Sequence[Word]) -> Iterator[bytes]:
        self._told = []
        yield self._turn(text, heard, is_end=True)
        if self._is_formatted:
            yield self._turn(text, heard, is_end=True, is_formatted=True)
        self._order += 1
        self._before = []

    def _turn(
        self, text: list[tuple[str, str]], heard: Sequence[Word], is_end: bool = False, is_formatted: bool = False
    ) -> bytes:
        before = [(one.text, one.language) for one in self._before]
        heard = [word for one in self._before for word in _words(one)] + list(heard)
        return _encode(
            {
                "type": "Turn",
                "turn_order": self._order,
                "turn_is_formatted": is_formatted,
                "end_of_turn": is_end,
                "transcript": join([*before, *text]),
                "end_of_turn_confidence": 1.0 if is_end else 0.0,
                "words": [
                    {
                        "start": _milli(word.start),
                        "end": _milli(word.end),
                        "confidence": word.confidence,
                        "text": word.word,
                        "word_is_final": True,
                    }
                    for word in heard
                ],
                "language_code": [*before, *text][-1][1],
            }
        )


def _words(segment: Segment) -> list[Word]:
    found = words(segment.text, segment.language)
    return segment.words or spread(found, segment.start, segment.end, [segment.confidence] * len(found))


def _milli(seconds: float) -> int:
    return round(1000 * seconds)


def _code(code: str) -> int:
    return _CODES.get(code, _SERVER_ERROR)
