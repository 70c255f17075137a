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

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec
import orjson

from asrserver import __version__
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
from asrserver.protocol.options import TRUE, Normalise, Options, join_hotwords
from asrserver.protocol.word_times import spread
from asrserver.text.words import clean, words

#: `encoding` of headerless audio → the format of the session; and of packets and containers.
HEADERLESS = {"linear16": "pcm_s16le", "linear32": "pcm_f32le", "mulaw": "pcm_mulaw", "alaw": "pcm_alaw"}
ENCODINGS = HEADERLESS | {"opus": "opus", "ogg-opus": "file", "flac": "file"}

#: Samples per second of telephony, if nothing else is said.
RATES = {"pcm_mulaw": 8000, "pcm_alaw": 8000}

#: Milliseconds of quiet that end a segment: at 10 ms, Deepgram's default, each breath would be a segment.
MIN_ENDPOINTING = 300
MAX_ENDPOINTING = 5000

#: Seconds after which an utterance is over at most.
MAX_UTTERANCE_END = 60.0

#: Characters of a text message, and of one that an error repeats, at most.
MAX_MESSAGE = 1 << 16
MAX_REPEATED = 1000

#: The errors of a text message that cannot be understood.
SCHEMA_ERRORS = ("bad_json", "bad_request", "unknown_action")

_FALSE = ("", "false", "0", "no", "off")

_encode = msgspec.json.Encoder().encode


# -- queries ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """The query of a connection.

    Attributes:
        model: The model that is asked for; may be empty.
        options: How the audio is recognised.
        endpointing: Whether the final result before a pause is marked as the end of speech.
        utterance_end: Seconds of quiet after a word after which an utterance is over; None: that is not told.
        vad_events: Whether the beginning of speech is told.
        languages: Whether results say their language.
    """

    model: str
    options: Options
    endpointing: bool
    utterance_end: float | None
    vad_events: bool
    languages: bool


def parse_live(query: Mapping[str, Sequence[str]]) -> LiveRequest:
    """Read the query of a connection; what is unknown is ignored.

    Raises:
        BadRequest: A parameter has a value that cannot be used; `parameter` in the details names it.
    """
    values = single(query)
    encoding = values.get("encoding", "").lower()
    if encoding and encoding not in ENCODINGS:
        raise _bad("encoding", f"must be one of {', '.join(ENCODINGS)}")
    silence = _endpointing(values.get("endpointing", ""))
    utterance_end = number(values, "utterance_end_ms", 0.0) / 1000
    vad_events = flag(values, "vad_events")
    asked = options(
        query,
        ENCODINGS.get(encoding, "auto"),
        silence=silence or None,
        partials=flag(values, "interim_results"),
        speech_events=vad_events or utterance_end > 0,
    )
    return LiveRequest(
        values.get("model", ""),
        asked,
        silence is not None,
        min(utterance_end, MAX_UTTERANCE_END) or None,
        vad_events,
        asked.language is None,
    )


def single(query: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The last value of each parameter."""
    return {name: values[-1].strip() for name, values in query.items() if values}


def options(query: Mapping[str, Sequence[str]], format: str, **further: Any) -> Options:
    """Read what both kinds of requests say of their audio; raises BadRequest."""
    values = single(query)
    given = {
        "mode": "stream",
        "format": format,
        "sample_rate": whole(values, "sample_rate") or RATES.get(format),
        "channels": whole(values, "channels"),
        "language": None if flag(values, "detect_language") else values.get("language"),
        "hotwords": join_hotwords(_hotwords(query)),
        "word_timestamps": True,
        **further,
    }
    try:
        found = Options.parse(given)
    except BadRequest as exc:
        raise BadRequest("bad_request", exc.message, parameter=exc.details.get("option")) from None
    if flag(values, "numerals"):  # in languages that have none it is ignored, as by Deepgram
        found = msgspec.structs.replace(found, normalise=Normalise(numerals="digits"))
    return found


def _endpointing(value: str) -> float | None:
    """The seconds of quiet that end a segment; 0: the server's own; None: such an end is not marked."""
    if value.lower() in ("false", "0"):
        return None
    if value.lower() in ("", "true"):
        return 0.0
    milliseconds = number({"endpointing": value}, "endpointing", 0.0)
    return min(max(milliseconds, MIN_ENDPOINTING), MAX_ENDPOINTING) / 1000


def _hotwords(query: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The words of `keyterm`, and of `keywords`, which may have a boost: word:2; a negative one means the opposite."""
    yield from filter(None, map(str.strip, query.get("keyterm", ())))
    for item in query.get("keywords", ()):
        word, colon, boost = item.rpartition(":")
        if not colon:
            word = item
        if word.strip() and not boost.strip().startswith("-"):
            yield word.strip()


def flag(values: Mapping[str, str], name: str) -> bool:
    """A parameter that is true or false; raises BadRequest."""
    value = values.get(name, "").lower()
    if value not in (*TRUE, *_FALSE):
        raise _bad(name, "must be true or false")
    return value in TRUE


def whole(values: Mapping[str, str], name: str) -> int | None:
    """A whole number, or None where there is none; raises BadRequest."""
    value = values.get(name, "")
    if value and not (value.isascii() and value.isdigit()):
        raise _bad(name, "must be a whole number")
    return int(value[:9]) if value else None


def number(values: Mapping[str, str], name: str, default: float) -> float:
    """A number from 0; raises BadRequest."""
    value = values.get(name, "")
    if value.lower() in ("", "false"):
        return default
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e6:
        raise _bad(name, "must be a number")
    return found


def _bad(name: str, must: str) -> BadRequest:
    return BadRequest("bad_request", f"{name} {must}", parameter=name)


# -- what clients send -----------------------------------------------------------------------------------------------


def parse_message(text: str) -> dict[str, Any]:
    """Read a text message.

    Raises:
        BadRequest: It is no JSON object with a type.
    """
    if len(text) > MAX_MESSAGE:
        raise BadRequest("bad_request", f"the message has more than {MAX_MESSAGE} characters")
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

    Attributes:
        sha256: The hash of the audio: to be updated with it.
        flushes: How often the session was flushed for the client: to be set before the Flushed event comes.
        unreadable: The client's last message that was refused.
    """

    def __init__(self, asked: LiveRequest, request_id: str, model: str | None) -> None:
        """Begin; `model` is the name of the model as far as it is known."""
        self.sha256 = hashlib.sha256()
        self.flushes = 0
        self.unreadable = ""
        self._asked = asked
        self._request_id = request_id
        self._model = model or ""
        self._created = datetime.now(UTC)
        self._position = 0.0  # seconds that final results cover: each begins where the one before ended
        self._flushed = 0
        # The last final result, while a flush is to be answered, and where its segment began, in seconds.
        self._held: tuple[float, dict[str, Any]] | None = None
        self._speech = -1.0  # where the newest speech began
        # Where the last segment with a final result began, and its last word ended; None once its utterance is over.
        self._last_start = -1.0
        self._last_word: float | None = None

    def messages(self, event: SessionEvent) -> Iterator[bytes]:
        """Make the messages of an event."""
        return map(_encode, self._messages(event))

    def utterance_wait(self, total: float) -> tuple[float, float] | None:
        """How long to wait now before `utterance_over` is called, in seconds, and with what; None: nobody waits.

        Args:
            total: Seconds of audio that were heard by now.
        """
        limit = self._asked.utterance_end
        if limit is None or self._last_word is None:
            return None
        return max(0.0, limit - (total - self._last_word)), self._last_word

    def utterance_over(self, last_word: float) -> Iterator[bytes]:
        """Make the message that an utterance is over, unless speech has come since its last word."""
        return map(_encode, self._utterance_end() if self._last_word == last_word else ())

    def configured(self, keyterms: Sequence[str] | None) -> bytes:
        """The answer to a `Configure` that was carried out; features do not change anything here."""
        answer: dict[str, Any] = {"type": "ConfigureSuccess", "request_id": self._request_id}
        return _encode(answer if keyterms is None else answer | {"keyterms": keyterms})

    def not_configured(self, error: BadRequest) -> bytes:
        """The answer to a `Configure` that was not."""
        answer = {"type": "ConfigureFailure", "request_id": self._request_id, "code": "INVALID_KEYTERMS"}
        return _encode(answer | {"description": error.message})

    def _messages(self, event: SessionEvent) -> Iterator[dict[str, Any]]:
        match event:
            case SpeechStarted():
                yield from self._speech_started(event.start)
            case Partial():
                yield from self._speech_started(event.start)
                if self._asked.options.partials and self._held is None:
                    yield self._interim(event)
            case SegmentResult():
                self._model = event.model
                for segment in event.segments:
                    yield from self._segment(segment, event.cut)
            case Flushed():
                yield from self._answer_flush(event)
            case ErrorEvent() | Refusal():
                yield self._error(event)
            case Final():
                self._model = event.model or self._model
                yield from self._release()
                about = metadata(self._request_id, self.sha256.hexdigest(), self._created, event.total)
                yield {"type": "Metadata", **about, "channels": self._asked.options.channels}

    # -- speech --------------------------------------------------------------------------------------------------

    def _speech_started(self, start: float) -> Iterator[dict[str, Any]]:
        """Speech that begins there, in seconds, has gone on; the client is told once."""
        if start <= self._speech:
            return
        self._speech = start
        yield from self._pause()
        if self._asked.vad_events:
            yield {"type": "SpeechStarted", "channel": [0, 1], "timestamp": round(start, 3)}

    def _pause(self) -> Iterator[dict[str, Any]]:
        """Whether an utterance was over before the newest speech, once both are known."""
        if self._last_word is not None and self._speech > self._last_start:
            if self._asked.utterance_end is not None and self._speech - self._last_word >= self._asked.utterance_end:
                yield from self._utterance_end()
            self._last_word = None

    def _utterance_end(self) -> Iterator[dict[str, Any]]:
        last_word, self._last_word = self._last_word, None
        yield {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": last_word}

    # -- results -------------------------------------------------------------------------------------------------

    def _interim(self, event: Partial) -> dict[str, Any]:
        start, end = max(self._position, event.start), max(self._position, event.end)
        found = words(event.text, event.language)
        stable = len(words(event.stable, event.language))
        # What will not change is as good as certain; of the rest nothing is known.
        heard = spread(found, start, end, [1.0 if place < stable else 0.5 for place in range(len(found))])
        certainty = sum(word.confidence for word in heard) / len(heard) if heard else 0.0
        return self._results(alternative(event.text, heard, certainty), event.language, end)

    def _segment(self, segment: Segment, cut: bool) -> Iterator[dict[str, Any]]:
        yield from self._release()
        yield from self._speech_started(segment.start)
        found = words(segment.text, segment.language)
        heard = segment.words or spread(found, segment.start, segment.end, [segment.confidence] * len(found))
        end = max(self._position, segment.end)
        best = alternative(segment.text, heard, segment.confidence)
        self._held = segment.start, self._results(best, segment.language, end, is_final=True, ends=not cut)
        self._position = end
        if self._flushed == self.flushes:
            yield from self._release()

    def _release(self, **changes: Any) -> Iterator[dict[str, Any]]:
        """The final result that is held back, if there is one, with changes."""
        held, self._held = self._held, None
        if held is not None:
            self._last_start, result = held
            heard = result["channel"]["alternatives"][0]["words"]
            self._last_word = heard[-1]["end"] if heard else None
            yield result | changes
            yield from self._pause()

    def _answer_flush(self, event: Flushed) -> Iterator[dict[str, Any]]:
        """One result answers a flush: the last one before it, or an empty one."""
        self._flushed = event.number
        if self._held is None:
            end = max(self._position, event.total)
            empty = self._results(alternative("", [], 0.0), event.language, end, is_final=True, ends=True)
            self._position = end
            yield empty | {"from_finalize": True}
        yield from self._release(from_finalize=True, speech_final=self._asked.endpointing)

    def _results(
        self, best: dict[str, Any], language: str | None, end: float, *, is_final: bool = False, ends: bool = False
    ) -> dict[str, Any]:
        """A result up to `end`, in seconds; `ends` says whether speech ends there."""
        if self._asked.languages and language:
            best["languages"] = [language]
        return {
            "type": "Results",
            "channel_index": [0, 1],
            "start": round(self._position, 3),
            "duration": round(end - self._position, 3),
            "is_final": is_final,
            "speech_final": ends and self._asked.endpointing,
            "from_finalize": False,
            "channel": {"alternatives": [best]},
            "metadata": {
                "request_id": self._request_id,
                "model_info": model_info(self._model),
                "model_uuid": model_uuid(self._model),
            },
        }

    def _error(self, event: ErrorEvent | Refusal) -> dict[str, Any]:
        message = {"type": "Error", "variant": event.code, "description": event.message}
        if event.code in SCHEMA_ERRORS:
            message |= {"variant": "SchemaError", "message": self.unreadable[:MAX_REPEATED]}
        return message


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


def mean(segments: Sequence[Segment]) -> float:
    """The mean confidence of segments, by their lengths."""
    length = sum(segment.end - segment.start for segment in segments)
    return sum(one.confidence * (one.end - one.start) for one in segments) / length if length else 0.0


def metadata(request_id: str, sha256: str, created: datetime, duration: float) -> dict[str, Any]:
    """What both kinds of answers say of the audio."""
    return {
        "transaction_key": "deprecated",
        "request_id": request_id,
        "sha256": sha256,
        "created": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "duration": round(duration, 3),
        "channels": 1,
    }


def model_info(name: str) -> dict[str, str]:
    """Describe a model."""
    return {"name": name, "version": __version__, "arch": "whisper"}


@cache
def model_uuid(name: str) -> str:
    """The id of a model: the same for the same name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"asrserver:{name}"))


#: Error codes → Deepgram's, of refused requests.
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
