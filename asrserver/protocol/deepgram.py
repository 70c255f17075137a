"""Deepgram's transcription, /v1/listen: its queries to options, and what the answers of live audio (deepgram_live.py)
and of recordings (deepgram_recorded.py) have in common (developers.deepgram.com; the fields are those that Deepgram's
own libraries, LiveKit and pipecat read).

With `multichannel`, channels are recognised separately.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import msgspec

from asrserver import __version__
from asrserver.errors import BadRequest
from asrserver.protocol.events import Segment, Word
from asrserver.protocol.options import TRUE, Normalise, Options, join_hotwords
from asrserver.text.words import clean

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

_FALSE = ("", "false", "0", "no", "off")

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
        "channel_mode": "separate" if flag(values, "multichannel") else None,
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


# -- what clients get ------------------------------------------------------------------------------------------------


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


def metadata(request_id: str, sha256: str, created: datetime, duration: float, channels: int) -> dict[str, Any]:
    """What both kinds of answers say of the audio."""
    return {
        "transaction_key": "deprecated",
        "request_id": request_id,
        "sha256": sha256,
        "created": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "duration": round(duration, 3),
        "channels": channels,
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
