"""Deepgram's live transcription, WebSocket /v1/listen: its messages to actions, events to its messages.

C binary frames: audio; an empty one is CloseStream
C {"type":"KeepAlive"}  {"type":"Finalize"}  {"type":"CloseStream"}  {"type":"Configure",…}
S {"type":"Results","start":0.0,"duration":1.2,"is_final":true,"speech_final":true,"channel":{"alternatives":[…]},…}
with vad_events:        S {"type":"SpeechStarted","channel":[0,1],"timestamp":0.4}
with utterance_end_ms:  S {"type":"UtteranceEnd","channel":[0,1],"last_word_end":1.1}
at the end:             S {"type":"Metadata","request_id":"…","duration":8.4,…}
S {"type":"Error","variant":"…","description":"…"}

[0,1] is the channel, from 0, and the number of channels; so is `channel_index` of Results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from asrserver.errors import BadRequest
from asrserver.protocol.deepgram import LiveRequest, alternative, metadata, model_info, model_uuid
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
)
from asrserver.protocol.word_times import spread
from asrserver.text.words import words

#: Characters of a text message, and of one that an error repeats, at most.
MAX_MESSAGE = 1 << 16
MAX_REPEATED = 1000

#: The errors of a text message that cannot be understood.
SCHEMA_ERRORS = ("bad_json", "bad_request", "unknown_action")

_encode = msgspec.json.Encoder().encode


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
        self.asked = asked
        self.request_id = request_id
        self.model = model or ""
        self.flushed = 0
        self._created = datetime.now(UTC)
        # Of a container the channels are known when it is heard.
        self._channels = [_ChannelResults(self, number) for number in range(max(1, self._claimed))]

    @property
    def _claimed(self) -> int:
        options = self.asked.options
        return options.channels if options.separate else 1

    @property
    def count(self) -> int:
        """The number of channels that have results of their own, as far as it is known."""
        return len(self._channels)

    def messages(self, event: SessionEvent) -> Iterator[bytes]:
        """Make the messages of an event."""
        return map(_encode, self._messages(event))

    def utterance_waits(self, total: float) -> list[tuple[float, int, float]]:
        """When to call `utterance_over`: after how many seconds from now, and with what.

        Args:
            total: Seconds of audio that were heard by now.
        """
        limit = self.asked.utterance_end
        if limit is None:
            return []
        return [
            (max(0.0, limit - (total - channel.last_word)), channel.number, channel.last_word)
            for channel in self._channels
            if channel.last_word is not None
        ]

    def utterance_over(self, number: int, last_word: float) -> Iterator[bytes]:
        """Make the message that an utterance of a channel is over, unless speech has come since its last word."""
        channel = self._channels[number]
        return map(_encode, channel.utterance_end() if channel.last_word == last_word else ())

    def configured(self, keyterms: Sequence[str] | None) -> bytes:
        """The answer to a `Configure` that was carried out; features do not change anything here."""
        answer: dict[str, Any] = {"type": "ConfigureSuccess", "request_id": self.request_id}
        return _encode(answer if keyterms is None else answer | {"keyterms": keyterms})

    def not_configured(self, error: BadRequest) -> bytes:
        """The answer to a `Configure` that was not."""
        answer = {"type": "ConfigureFailure", "request_id": self.request_id, "code": "INVALID_KEYTERMS"}
        return _encode(answer | {"description": error.message})

    def _messages(self, event: SessionEvent) -> Iterator[dict[str, Any]]:
        if isinstance(event, SpeechStarted | Partial | SegmentResult | Flushed | Final):
            while self.count < event.channels:
                self._channels.append(_ChannelResults(self, self.count))
        match event:
            case SpeechStarted():
                yield from self._channels[event.channel or 0].speech_started(event.start)
            case Partial():
                yield from self._channels[event.channel or 0].interim(event)
            case SegmentResult():
                self.model = event.model
                for segment in event.segments:
                    yield from self._channels[segment.channel or 0].segment(segment, event.cut)
            case Flushed():
                self.flushed = event.number
                for channel in self._channels:
                    yield from channel.answer_flush(event)
            case ErrorEvent() | Refusal():
                yield self._error(event)
            case Final():
                self.model = event.model or self.model
                for channel in self._channels:
                    yield from channel.release()
                count = self.count if self.asked.options.separate else self.asked.options.channels
                sha256 = self.sha256.hexdigest()
                yield {"type": "Metadata", **metadata(self.request_id, sha256, self._created, event.total, count)}

    def _error(self, event: ErrorEvent | Refusal) -> dict[str, Any]:
        message = {"type": "Error", "variant": event.code, "description": event.message}
        if event.code in SCHEMA_ERRORS:
            message |= {"variant": "SchemaError", "message": self.unreadable[:MAX_REPEATED]}
        return message


class _ChannelResults:
    """The results of one channel, or of all that are mixed.

    Attributes:
        number: The channel, from 0.
        last_word: Where the last word of a final result ended, in seconds; None once its utterance is over.
    """

    def __init__(self, connection: LiveResults, number: int) -> None:
        self.number = number
        self.last_word: float | None = None
        self._connection = connection
        self._asked = connection.asked
        self._position = 0.0  # seconds that final results cover: each begins where the one before ended
        # The last final result, while a flush is to be answered, and where its segment began, in seconds.
        self._held: tuple[float, dict[str, Any]] | None = None
        self._speech = -1.0  # where the newest speech began
        self._last_start = -1.0  # where the last segment with a final result began

    @property
    def _index(self) -> list[int]:
        return [self.number, self._connection.count]

    # -- speech --------------------------------------------------------------------------------------------------

    def speech_started(self, start: float) -> Iterator[dict[str, Any]]:
        """Speech that begins there, in seconds, has gone on; the client is told once."""
        if start <= self._speech:
            return
        self._speech = start
        yield from self._pause()
        if self._asked.vad_events:
            yield {"type": "SpeechStarted", "channel": self._index, "timestamp": round(start, 3)}

    def _pause(self) -> Iterator[dict[str, Any]]:
        """Whether an utterance was over before the newest speech, once both are known."""
        if self.last_word is not None and self._speech > self._last_start:
            if self._asked.utterance_end is not None and self._speech - self.last_word >= self._asked.utterance_end:
                yield from self.utterance_end()
            self.last_word = None

    def utterance_end(self) -> Iterator[dict[str, Any]]:
        """The utterance of the last word is over."""
        last_word, self.last_word = self.last_word, None
        yield {"type": "UtteranceEnd", "channel": self._index, "last_word_end": last_word}

    # -- results -------------------------------------------------------------------------------------------------

    def interim(self, event: Partial) -> Iterator[dict[str, Any]]:
        """A text that is growing."""
        yield from self.speech_started(event.start)
        if not self._asked.options.partials or self._held is not None:
            return
        start, end = max(self._position, event.start), max(self._position, event.end)
        found = words(event.text, event.language)
        stable = len(words(event.stable, event.language))
        # What will not change is as good as certain; of the rest nothing is known.
        heard = spread(found, start, end, [1.0 if place < stable else 0.5 for place in range(len(found))])
        certainty = sum(word.confidence for word in heard) / len(heard) if heard else 0.0
        yield self._results(alternative(event.text, heard, certainty), event.language, end)

    def segment(self, segment: Segment, cut: bool) -> Iterator[dict[str, Any]]:
        """A final text."""
        yield from self.release()
        yield from self.speech_started(segment.start)
        found = words(segment.text, segment.language)
        heard = segment.words or spread(found, segment.start, segment.end, [segment.confidence] * len(found))
        end = max(self._position, segment.end)
        best = alternative(segment.text, heard, segment.confidence)
        self._held = segment.start, self._results(best, segment.language, end, is_final=True, ends=not cut)
        self._position = end
        if self._connection.flushed == self._connection.flushes:
            yield from self.release()

    def release(self, **changes: Any) -> Iterator[dict[str, Any]]:
        """The final result that is held back, if there is one, with changes."""
        held, self._held = self._held, None
        if held is not None:
            self._last_start, result = held
            heard = result["channel"]["alternatives"][0]["words"]
            self.last_word = heard[-1]["end"] if heard else None
            yield result | changes
            yield from self._pause()

    def answer_flush(self, event: Flushed) -> Iterator[dict[str, Any]]:
        """One result answers a flush: the last one before it, or an empty one."""
        if self._held is None:
            end = max(self._position, event.total)
            empty = self._results(alternative("", [], 0.0), event.language, end, is_final=True, ends=True)
            self._position = end
            yield empty | {"from_finalize": True}
        yield from self.release(from_finalize=True, speech_final=self._asked.endpointing)

    def _results(
        self, best: dict[str, Any], language: str | None, end: float, *, is_final: bool = False, ends: bool = False
    ) -> dict[str, Any]:
        """A result up to `end`, in seconds; `ends` says whether speech ends there."""
        if self._asked.languages and language:
            best["languages"] = [language]
        model = self._connection.model
        return {
            "type": "Results",
            "channel_index": self._index,
            "start": round(self._position, 3),
            "duration": round(end - self._position, 3),
            "is_final": is_final,
            "speech_final": ends and self._asked.endpointing,
            "from_finalize": False,
            "channel": {"alternatives": [best]},
            "metadata": {
                "request_id": self._connection.request_id,
                "model_info": model_info(model),
                "model_uuid": model_uuid(model),
            },
        }
