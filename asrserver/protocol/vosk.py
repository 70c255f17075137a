"""Vosk's WebSocket server (github.com/alphacep/vosk-server, websocket/asr_server.py and its clients): messages to
actions, events to answers.

C {"config":{"sample_rate":16000,"words":true,"max_alternatives":0,"phrase_list":["…"]}}       no answer
C binary frame: 16-bit PCM, mono                S {"partial":"…"}: what is being said; or, once there is some,
                                                S {"result":[{"conf","start","end","word"}],"text":"…"}: what was
C {"reset":1}                                   S {"text":"…"}: all that was said so far; the stream goes on
C {"eof":1}                                     S {"text":"…"}: the rest, and the end of the connection

Clients read one answer to each of their frames before they send the next. It says what is known so far, and never waits
for recognition. The texts joined are the whole, each word once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from asrserver.errors import BadRequest
from asrserver.protocol.events import Partial, Segment, SegmentResult, SessionEvent, Word
from asrserver.protocol.json_messages import parse_object
from asrserver.protocol.options import Options, join_hotwords
from asrserver.protocol.pathless import NO_OPTIONS, UrlOptions
from asrserver.text.words import bare, glue, join, words

#: Stands in a list of phrases for all others.
_UNKNOWN = "[unk]"

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class VoskConfig:
    """What a client has asked for so far.

    Attributes:
        sample_rate: In hertz.
        words: Whether texts come with their words.
        alternatives: Whether texts come as the only entry of a list.
        phrases: What is likely to be said.
        model: The model that is asked for; may be empty.
        url: What its URL says.
    """

    sample_rate: int = 8000
    words: bool = True
    alternatives: bool = False
    phrases: str = ""
    model: str = ""
    url: UrlOptions = NO_OPTIONS

    def updated(self, given: Any) -> VoskConfig:
        """The same with what a `config` names; raises BadRequest where a value cannot be used."""
        if not isinstance(given, Mapping):
            raise BadRequest("bad_request", "config must be an object")
        try:
            changed = replace(
                self,
                sample_rate=int(given.get("sample_rate", self.sample_rate)),
                words=bool(given.get("words", self.words)),
                alternatives=int(given.get("max_alternatives", self.alternatives)) > 0,
                model=str(given.get("model", self.model)),
                phrases=_phrases(given["phrase_list"]) if "phrase_list" in given else self.phrases,
            )
        except (TypeError, ValueError, OverflowError):
            raise BadRequest("bad_request", "sample_rate and max_alternatives must be numbers") from None
        changed.options(None)
        return changed

    def options(self, model: str | None) -> Options:
        """How a session is recognised, by a model of the server's; None: whichever there is. Raises BadRequest."""
        given = {
            "mode": "stream",
            "format": "pcm_s16le",
            "sample_rate": self.sample_rate,
            "hotwords": self.phrases,
            "partials": True,
            "word_timestamps": self.words,
            "language": self.url.language,
            "model": model,
        }
        return Options.parse(given)


def _phrases(given: Any) -> str:
    phrases = given if isinstance(given, list) else [given]
    return join_hotwords(str(phrase) for phrase in phrases if phrase not in (None, "", _UNKNOWN))


def parse(text: str) -> dict[str, Any]:
    """Read a text message.

    Returns:
        The message: it has `config`, `eof` or `reset`.

    Raises:
        BadRequest: It has none of them.
    """
    message = parse_object(text)
    if message.keys().isdisjoint(("config", "eof", "reset")):
        raise BadRequest("bad_request", "the message has none of config, eof and reset")
    return message


class VoskAnswers:
    """What is known of a client's speech, and was not told yet.

    Attributes:
        config: How it is told.
    """

    def __init__(self, config: VoskConfig) -> None:
        self.config = config
        self._segments: list[Segment] = []
        self._partial = self._language = ""

    def add(self, event: SessionEvent) -> None:
        """Take an event of the session."""
        match event:
            case Partial():
                self._partial, self._language = event.text, event.language
            case SegmentResult():
                self._segments += event.segments
                self._partial = ""

    def answer(self) -> bytes:
        """The answer to a frame: what has become final, or else what is being said."""
        if self._segments:
            return self.text()
        return _encode({"partial": self._written(self._partial, self._language)})

    def text(self) -> bytes:
        """What has become final since the last answer, perhaps nothing."""
        told, self._segments = self._segments, []
        found: dict[str, Any] = {}
        if result := [word for segment in told for word in self._words(segment.words)]:
            found["result"] = result
        found["text"] = join([(self._written(one.text, one.language), one.language) for one in told])
        if self.config.alternatives:
            confidence = sum(one.confidence for one in told) / len(told) if told else 1.0
            found = {"alternatives": [{"confidence": round(confidence, 6), **found}]}
        return _encode(found)

    def _words(self, found: Iterable[Word]) -> Iterator[dict[str, Any]]:
        for one in found if self.config.words else ():
            word = plain(one.word, "") if self.config.url.plain else one.word
            if word:
                yield {"conf": one.confidence, "end": one.end, "start": one.start, "word": word}

    def _written(self, text: str, language: str) -> str:
        return plain(text, language) if self.config.url.plain else text


def plain(text: str, language: str) -> str:
    """Write a text as Vosk does: in lower case, without the punctuation around words."""
    found = (bare(word).lower() for word in words(text, language))
    return glue([word for word in found if any(map(str.isalnum, word))], language)


def failure(message: str) -> bytes:
    """The answer to what cannot be done; Vosk itself has none, and closes the connection."""
    return _encode({"error": message})
