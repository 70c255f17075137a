"""Deepgram's live transcription, WebSocket /v1/listen: its query and messages to options and actions, events to its
messages (developers.deepgram.com, Live Audio; the fields are those that Deepgram's own libraries, LiveKit and pipecat
read).

C binary frames: audio; an empty one is CloseStream
C {"type":"KeepAlive"}  {"type":"Finalize"}  {"type":"CloseStream"}  {"type":"Configure",…}
S {"type":"Results","start":0.0,"duration":1.2,"is_final":true,"speech_final":true,"channel":{"alternatives":[…]},…}
with vad_events:        S {"type":"SpeechStarted","channel":[0,1],"timestamp":0.4}
with utterance_end_ms:  S {"type":"UtteranceEnd","channel":[0,1],"last_word_end":1.1}
at the end:             S {"type":"Metadata","request_id":"…","duration":8.4,…}
S {"type":"Error","variant":"…","description":"…"}
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from asrserver import __version__
from asrserver.errors import BadRequest
from asrserver.protocol.events import (
    ErrorEvent,
    Final,
    Partial,
    Refusal,
    Segment,
    SegmentResult,
    SessionEvent,
    Word,
)
from asrserver.protocol.options import MAX_TEXT, Options
from asrserver.text.words import clean, words

#: `encoding` → the format of the session.
ENCODINGS = {
    "linear16": "pcm_s16le",
    "linear32": "pcm_f32le",
    "flac": "file",
    "ogg-opus": "file",
}

#: Milliseconds of quiet that end a segment at least: at 10 ms, Deepgram's default, each breath would be one.
MIN_ENDPOINTING = 300
MAX_ENDPOINTING = 5000

_TRUE = ("true", "1", "yes", "on")
_FALSE = ("", "false", "0", "no", "off")

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """The query of a connection.

    Attributes:
        model: The model that is asked for; may be empty.
        options: How the audio is recognised.
        interim: Whether results that are not final are wanted.
        endpointing: Whether the final result before a pause is marked as the end of speech.
    """

    model: str
    options: Options
    interim: bool
    endpointing: bool

    def of_model(self, name: str | None) -> Options:
        """The options for a model that the server runs; None: whichever there is."""
        return msgspec.structs.replace(self.options, model=name)


def parse_live(query: Mapping[str, Sequence[str]]) -> LiveRequest:
    """Read the query of a connection; what is unknown is ignored.

    Raises:
        BadRequest: A parameter has a value that cannot be used; `parameter` in the details names it.
    """
    single = {name: values[-1].strip() for name, values in query.items() if values}
    interim = _flag(single, "interim_results")
    silence = _endpointing(single.get("endpointing", ""))
    encoding = single.get("encoding", "").lower()
    if encoding and encoding not in ENCODINGS:
        raise _bad("encoding", f"must be one of {', '.join(ENCODINGS)}")
    given = {
        "mode": "stream",
        "format": ENCODINGS.get(encoding, "auto"),
        "sample_rate": _whole(single, "sample_rate", None),
        "channels": _whole(single, "channels", None),
        "language": None if _flag(single, "detect_language") else single.get("language"),
        "hotwords": _hotwords(query),
        "partials": interim,
        "silence": silence or None,
        "word_timestamps": True,
    }
    try:
        options = Options.parse(given)
    except BadRequest as exc:
        raise BadRequest("bad_request", exc.message, parameter=exc.details.get("option")) from None
    return LiveRequest(single.get("model", ""), options, interim, silence is not None)


def _endpointing(value: str) -> float | None:
    """The seconds of quiet that end a segment; 0: the server's own; None: such an end is not marked."""
    if value.lower() in ("false", "0"):
        return None
    if value.lower() in ("", "true"):
        return 0.0
    try:
        milliseconds = float(value)
    except ValueError:
        raise _bad("endpointing", "must be a number of milliseconds, true or false") from None
    return min(max(milliseconds, MIN_ENDPOINTING), MAX_ENDPOINTING) / 1000


def _hotwords(query: Mapping[str, Sequence[str]]) -> str:
    """Of `keyterm`, and of `keywords`, each of which may have a boost: word:2; a negative one means the opposite."""
    pairs = (item.rpartition(":") for item in query.get("keywords", ()))
    boosted = (word or boost for word, _, boost in pairs if not (word and boost.startswith("-")))
    return ", ".join(word for item in (*query.get("keyterm", ()), *boosted) if (word := item.strip()))[:MAX_TEXT]


def _flag(single: Mapping[str, str], name: str) -> bool:
    value = single.get(name, "").lower()
    if value not in (*_TRUE, *_FALSE):
        raise _bad(name, "must be true or false")
    return value in _TRUE


def _whole(single: Mapping[str, str], name: str, default: int | None) -> int | None:
    value = single.get(name, "")
    if not value:
        return default
    if not value.isascii() or not value.isdigit():
        raise _bad(name, "must be a whole number")
    return int(value[:9])


def _bad(name: str, must: str) -> BadRequest:
    return BadRequest("bad_request", f"{name} {must}", parameter=name)


# -- what clients send -----------------------------------------------------------------------------------------------


def parse_message(text: str) -> dict[str, Any]:
    """Read a text message.

    Raises:
        BadRequest: It is no JSON object with a type.
    """
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise BadRequest("bad_json", f"the message is not JSON: {exc}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise BadRequest("bad_request", "the message is not a JSON object with a type")
    return message


# -- what clients get ------------------------------------------------------------------------------------------------


class LiveResults:
    """The messages of one connection, made of its session's events.

    The ranges of final results follow each other: each begins where the one before ended.

    Attributes:
        model: Name of the model, as far as it is known.
    """

    def __init__(self, asked: LiveRequest, request_id: str, model: str | None) -> None:
        self.model = model or ""
        self._asked = asked
        self._request_id = request_id
        self._created = datetime.now(UTC)
        self._position = 0.0  # seconds that final results cover

    def messages(self, event: SessionEvent) -> Iterator[bytes]:
        """Make the messages of an event."""
        return map(_encode, self._messages(event))

    def _messages(self, event: SessionEvent) -> Iterator[dict[str, Any]]:
        match event:
            case Partial():
                if self._asked.interim:
                    yield self._interim(event)
            case SegmentResult():
                self.model = event.model
                for segment in event.segments:
                    yield self._result(segment)
            case ErrorEvent() | Refusal():
                yield error(event.code, event.message)
            case Final():
                yield self._metadata(event)

    def _interim(self, event: Partial) -> dict[str, Any]:
        found = words(event.text, event.language)
        stable = len(words(event.stable, event.language))
        start, end = max(self._position, event.start), max(self._position, event.end)
        confidences = [1.0 if number < stable else 0.5 for number in range(len(found))]
        return self._results(event.text, _spread(found, confidences, start, end), end, final=False)

    def _result(self, segment: Segment) -> dict[str, Any]:
        end = max(self._position, segment.end)
        made = self._results(segment.text, segment.words, end, final=True, confidence=segment.confidence)
        self._position = end
        return made

    def _metadata(self, event: Final) -> dict[str, Any]:
        return {
            "type": "Metadata",
            "transaction_key": "deprecated",
            "request_id": self._request_id,
            "sha256": "",
            "created": timestamp(self._created),
            "duration": round(event.total, 3),
            "channels": 1,
        }

    def _results(
        self, text: str, heard: Sequence[Word], end: float, *, final: bool, confidence: float | None = None
    ) -> dict[str, Any]:
        if confidence is None:
            confidence = sum(word.confidence for word in heard) / len(heard) if heard else 0.0
        return {
            "type": "Results",
            "channel_index": [0, 1],
            "start": round(self._position, 3),
            "duration": round(end - self._position, 3),
            "is_final": final,
            "speech_final": final and self._asked.endpointing,
            "from_finalize": False,
            "channel": {"alternatives": [alternative(text, heard, confidence)]},
            "metadata": {
                "request_id": self._request_id,
                "model_info": model_info(self.model),
                "model_uuid": model_uuid(self.model),
            },
        }


def alternative(text: str, heard: Sequence[Word], confidence: float) -> dict[str, Any]:
    """A text with its words, as results have it."""
    return {
        "transcript": text,
        "confidence": round(confidence, 4),
        "words": [
            {
                "word": clean(word.word),
                "start": word.start,
                "end": word.end,
                "confidence": word.confidence,
                "punctuated_word": word.word,
            }
            for word in heard
        ],
    }


def _spread(found: list[str], confidences: list[float], start: float, end: float) -> list[Word]:
    """Words whose times are not known: each takes a part of the time as long as it is."""
    letters = sum(map(len, found))
    made, at = [], 0
    for word, confidence in zip(found, confidences, strict=True):
        begin, at = at, at + len(word)
        times = [round(start + (end - start) * part / letters, 3) for part in (begin, at)]
        made.append(Word(word, times[0], times[1], confidence))
    return made


def model_info(name: str) -> dict[str, str]:
    """Describe a model."""
    return {"name": name, "version": __version__, "arch": "whisper"}


def model_uuid(name: str) -> str:
    """The id of a model: the same for the same name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"asrserver:{name}"))


def timestamp(when: datetime) -> str:
    """A moment as answers have it."""
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def error(code: str, message: str) -> dict[str, Any]:
    """The message of an error."""
    return {"type": "Error", "variant": code, "description": message, "message": message}


#: Error codes → Deepgram's.
_CODES = {
    "unauthorized": "INVALID_AUTH",
    "unknown_model": "INVALID_QUERY_PARAMETER",
    "bad_option": "INVALID_QUERY_PARAMETER",
    "bad_request": "INVALID_QUERY_PARAMETER",
    "too_many_connections": "TOO_MANY_REQUESTS",
    "too_many_sessions": "TOO_MANY_REQUESTS",
    "rate_limited": "TOO_MANY_REQUESTS",
    "quota_exceeded": "TOO_MANY_REQUESTS",
}


def refusal(code: str, message: str, request_id: str) -> dict[str, Any]:
    """The body of a refused request."""
    return {"err_code": _CODES.get(code, code.upper()), "err_msg": message, "request_id": request_id}
