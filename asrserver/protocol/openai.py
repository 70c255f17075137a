"""OpenAI's interface for audio files: the fields of its forms to options, events to its answers.

POST /v1/audio/transcriptions, /v1/audio/translations; GET /v1/models. Beside OpenAI's fields, forms may have
`channel_mode` and `track`, as `start` of the native protocol has them. Answers have all fields that the types of
OpenAI's clients require. What they never had (tokens, the probability of no speech) is there with a neutral value.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asrserver.errors import BadRequest
from asrserver.protocol import languages
from asrserver.protocol.events import Final, Segment, on_channel
from asrserver.protocol.options import MAX_TEXT, TRUE, Options, Start, join_hotwords, track_number
from asrserver.text.words import UNSPACED_LANGUAGES, gap, spaced

RESPONSE_FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
GRANULARITIES = ("word", "segment")

_FALSE = ("", "false", "0", "no", "off", "none", "null")

#: The brackets of a field that is a list: `include[]`, and `include[0]` of some clients.
_BRACKETS = re.compile(r"\[\d*\]$")

#: The error codes that OpenAI has names of its own for.
_CODES = {
    "unauthorized": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "quota_exceeded": "rate_limit_exceeded",
    "unknown_model": "model_not_found",
}


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """A form that was read.

    Attributes:
        model: The model that is asked for.
        start: The session.
        format: The response_format.
        stream: Whether the answer is a stream of events.
        segments: Whether verbose_json has segments.
        words: Whether verbose_json has words.
        logprobs: Whether json has logprobs.
        languages: Whether json has languages.
    """

    model: str
    start: Start
    format: str
    stream: bool = False
    segments: bool = True
    words: bool = False
    logprobs: bool = False
    languages: bool = False

    def of_model(self, name: str | None) -> TranscriptionRequest:
        """The same for a model that the server runs; None: whichever there is."""
        return replace(self, start=self.start.changed(model=name))


def parse(fields: Mapping[str, Sequence[str]], task: str) -> TranscriptionRequest:
    """Read the fields of a form; unknown ones are ignored.

    Args:
        fields: The values of each, in order.
        task: transcribe or translate.

    Raises:
        BadRequest: One is missing or wrong; `parameter` in the details names it.
    """
    lists: dict[str, list[str]] = {}
    for name, values in fields.items():
        lists.setdefault(_BRACKETS.sub("", name), []).extend(values)
    single = {name: values[-1].strip() for name, values in lists.items() if values}
    model = single.get("model", "")
    if not model:
        raise _bad("model", "is missing")
    format = single.get("response_format") or "json"
    if format not in RESPONSE_FORMATS:
        raise _bad("response_format", f"must be one of {', '.join(RESPONSE_FORMATS)}")
    _check_temperature(single.get("temperature", ""))
    granularities = set(_items(lists.get("timestamp_granularities", ())))
    if not granularities <= set(GRANULARITIES):
        raise _bad("timestamp_granularities", f"must be of {', '.join(GRANULARITIES)}")
    verbose, transcribes = format == "verbose_json", task == "transcribe"
    words = verbose and "word" in granularities
    logprobs = format == "json" and transcribes and "logprobs" in _items(lists.get("include", ()))
    candidates = [code for code in map(_language, _items(lists.get("languages", ()))) if code]
    language = _language(single.get("language")) if transcribes else None
    if language is None and len(candidates) == 1:
        language = candidates[0]
    given = {
        "mode": "stream",
        "format": "file",
        "language": language,
        "task": task,
        "prompt": single.get("prompt", "")[-MAX_TEXT:],
        "hotwords": join_hotwords(_items(lists.get("keywords", ()))),
        "channel_mode": single.get("channel_mode") or None,
        "track": track_number(single.get("track", "")),
        # With times of words, long segments become several subtitles.
        "word_timestamps": words or logprobs or format in ("srt", "vtt"),
    }
    try:
        options = Options.parse(given)
    except BadRequest as exc:
        raise BadRequest(exc.code, exc.message, parameter=exc.details.get("option")) from None
    return TranscriptionRequest(
        model,
        Start("", "", options, False),
        format,
        transcribes and _flag("stream", single.get("stream", "")),
        not words or "segment" in granularities,
        words,
        logprobs,
        bool(candidates),
    )


def _items(values: Sequence[str]) -> list[str]:
    """The items of a list, however a client wrote it: several fields, or one with commas, or JSON's brackets."""
    return [item for value in values for part in value.split(",") if (item := part.strip(" []\"'"))]


def _language(given: str | None) -> str | None:
    try:
        return languages.parse(given)
    except BadRequest as exc:
        raise BadRequest(exc.code, exc.message, parameter="language") from None


def _flag(name: str, value: str) -> bool:
    if value.lower() not in (*TRUE, *_FALSE):
        raise _bad(name, "must be true or false")
    return value.lower() in TRUE


def _check_temperature(value: str) -> None:
    """It must be a number; the server decides itself when to decode again at a higher temperature."""
    try:
        good = not value or 0 <= float(value) <= 2
    except ValueError:
        good = False
    if not good:
        raise _bad("temperature", "must be a number from 0 to 1")


def _bad(name: str, message: str) -> BadRequest:
    return BadRequest("bad_request", f"{name} {message}", parameter=name)


# -- answers ---------------------------------------------------------------------------------------------------------


def answer(asked: TranscriptionRequest, segments: Sequence[Segment], final: Final) -> dict[str, Any]:
    """Make the body of json or verbose_json."""
    usage = {"type": "duration", "seconds": round(final.total, 3)}
    if asked.format != "verbose_json":
        body: dict[str, Any] = {"text": final.text, "usage": usage}
        if asked.logprobs:
            body["logprobs"] = logprobs(segments)
        if asked.languages and final.language:
            body["languages"] = [{"code": final.language}]
        return body
    translates = asked.start.options.task == "translate"
    body = {
        "task": asked.start.options.task,
        "language": "english" if translates else languages.name_of(final.language or asked.start.options.language),
        "duration": round(final.total, 3),
        "text": final.text,
    }
    if asked.segments:
        befores = ["", *(segment.text for segment in segments)]
        body["segments"] = [
            _segment(number, segment, before)
            for number, (segment, before) in enumerate(zip(segments, befores, strict=False))
        ]
    if asked.words:
        body["words"] = [
            {"word": word.word, "start": word.start, "end": word.end, **on_channel(segment.channel)}
            for segment in segments
            for word in segment.words
        ]
    return body | {"usage": usage}


def _segment(number: int, segment: Segment, before: str) -> dict[str, Any]:
    """A segment behind the text of another one; the first begins with a space too, if its language has any."""
    first = "" if segment.language in UNSPACED_LANGUAGES else " "
    text = (gap(before, segment.text, segment.language) if before else first) + segment.text
    data = text.encode()
    return {
        "id": number,
        "seek": round(segment.start * 100),
        "start": segment.start,
        "end": segment.end,
        "text": text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": _log(segment.confidence),
        "compression_ratio": round(len(data) / len(zlib.compress(data)), 3),
        "no_speech_prob": 0.0,
        **on_channel(segment.channel),
    }


def logprobs(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """The words, each of which stands for its tokens."""
    found: list[dict[str, Any]] = []
    before = ""  # the word
    for segment in segments:
        for number, word in enumerate(segment.words):
            if number:
                blank = " " if spaced(before, word.word, segment.language) else ""
            else:
                blank = gap(before, word.word, segment.language)
            token, before = blank + word.word, word.word
            found.append({"token": token, "logprob": _log(word.confidence), "bytes": list(token.encode())})
    return found


def _log(probability: float) -> float:
    return round(math.log(max(probability, 1e-5)), 4)


def delta(before: str, segment: Segment) -> dict[str, Any]:
    """Make the event of a streamed answer for a segment after a text; the deltas together are the whole text."""
    return {"type": "transcript.text.delta", "delta": gap(before, segment.text, segment.language) + segment.text}


def done(asked: TranscriptionRequest, segments: Sequence[Segment], final: Final) -> dict[str, Any]:
    """Make the last event of a streamed answer."""
    body: dict[str, Any] = {"type": "transcript.text.done", "text": final.text}
    if asked.logprobs:
        body["logprobs"] = logprobs(segments)
    return body


def model(name: str, created: int) -> dict[str, Any]:
    """Describe a model; `created` is in seconds since the Unix epoch."""
    return {"id": name, "object": "model", "created": created, "owned_by": "asrserver"}


def error(status: int, code: str, message: str, parameter: str | None) -> dict[str, Any]:
    """Make the body of an error: all four keys are always there."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    return {"error": {"message": message, "type": kind, "param": parameter, "code": _CODES.get(code, code)}}
