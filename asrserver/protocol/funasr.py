"""FunASR's WebSocket protocol (github.com/modelscope/FunASR, runtime/docs/websocket_protocol.md, and the clients of
runtime/python/websocket and runtime/html5): configurations to sessions, events to messages.

C {"mode":"2pass","wav_name":"a","wav_format":"pcm","audio_fs":16000,"is_speaking":true,"hotwords":"…",…}
C binary frames: 16-bit PCM, or the bytes of a file
                  S {"mode":"2pass-online","wav_name":"a","text":"…","is_final":false}: a further piece of the text
                  S {"mode":"2pass-offline","wav_name":"a","text":"…","timestamp":"[[ms,ms],…]",…}: replaces the pieces
C {"is_speaking":false}
                  S the last text, with "is_final":true
with "is_end":true also
                  S {"mode":"2pass","wav_name":"a","is_final":true,"is_end":true}; without it the client waits for 300 s
The next recording comes on the same connection.

In the mode `online` there are only pieces, in the mode `offline` there is one text at the end. The clients put nothing
between what they get: the blank between two English sentences is part of the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec
import orjson

from asrserver.errors import BadRequest
from asrserver.protocol import languages
from asrserver.protocol.events import ErrorEvent, Final, Partial, Refusal, Segment, SegmentResult, SessionEvent
from asrserver.protocol.options import Options, join_hotwords
from asrserver.protocol.pathless import UrlOptions
from asrserver.text.words import gap, glue, words

MODES = ("2pass", "online", "offline")

#: Characters of the name of a recording at most: each message repeats it.
MAX_NAME = 500

#: What the page of FunASR takes for the borders of words; of what lies between, it counts Latin words as one sign.
_BORDERS = re.compile(r"[^。？，、?.,\s]+")
_LATIN = re.compile(r"[a-zA-Z]+")

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class FunasrConfig:
    """What a client has asked for so far.

    Attributes:
        mode: One of MODES.
        name: Of the recording.
        format: The value of `wav_format`.
        sample_rate: Of PCM, in hertz.
        hotwords: Words that are likely, as one text.
        language: What is spoken; None: it is detected.
    """

    mode: str = "2pass"
    name: str = "microphone"
    format: str = "pcm"
    sample_rate: int = 16000
    hotwords: str = ""
    language: str | None = None

    @classmethod
    def of_url(cls, url: UrlOptions) -> FunasrConfig:
        """What is asked for before any message."""
        return cls(language=url.language)

    def updated(self, given: Mapping[str, Any]) -> FunasrConfig:
        """The same with what a message names; raises BadRequest where a value cannot be used."""
        mode = given.get("mode") or self.mode
        if mode not in MODES:
            raise BadRequest("bad_request", f"mode must be one of {', '.join(MODES)}")
        try:
            return replace(
                self,
                mode=mode,
                name=str(given.get("wav_name") or self.name)[:MAX_NAME],
                format=str(given.get("wav_format") or self.format).lower(),
                sample_rate=int(given.get("audio_fs") or self.sample_rate),
                hotwords=_hotwords(given["hotwords"]) if "hotwords" in given else self.hotwords,
                language=languages.parse(given["svs_lang"]) if given.get("svs_lang") else self.language,
            )
        except (TypeError, ValueError, AttributeError):
            raise BadRequest("bad_request", "audio_fs must be a number, svs_lang a text") from None

    @property
    def names_file(self) -> bool:
        """Whether its audio is said to be in some container; a WAV file is also sent without its header."""
        return self.format not in ("pcm", "wav")

    def options(self, model: str | None, is_file: bool) -> Options:
        """How a recording is recognised.

        Args:
            model: A model of the server's; None: whichever there is.
            is_file: Whether its audio begins a container, whatever was said of it.

        Raises:
            BadRequest: A value cannot be used.
        """
        is_file = is_file or self.names_file
        given = {
            "mode": "stream",
            "format": "file" if is_file else "pcm_s16le",
            "sample_rate": None if is_file else self.sample_rate,
            "hotwords": self.hotwords,
            "language": self.language,
            "partials": self.mode != "offline",
            "word_timestamps": self.mode != "online",
            "model": model,
        }
        return Options.parse(given)


def _hotwords(given: Any) -> str:
    """Of a text in JSON {"word": weight}, the same as an object, or a list with commas between."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = orjson.loads(given)
        except orjson.JSONDecodeError:
            raise BadRequest("bad_request", "hotwords must be JSON, or words with commas between") from None
    found = given.split(",") if isinstance(given, str) else given if isinstance(given, Mapping | list) else ()
    return join_hotwords(word for item in found if (word := str(item).strip()))


class FunasrResults:
    """The messages of one recording.

    Attributes:
        config: What is asked for.
        error: Why the recording is not recognised as a whole; None: it is.
        is_ending: Whether all its audio has come: the next text may be the last.
    """

    def __init__(self, config: FunasrConfig) -> None:
        self.config = config
        self.error: str | None = None
        self.is_ending = False
        self._segments: list[Segment] = []  # that were not told yet
        self._piece = ""  # of the growing segment, as far as it was told
        self._before = ""  # the text of the last segment that was told
        self._damage: str | None = None

    def messages(self, event: SessionEvent) -> Iterator[bytes]:
        """Make the messages of an event."""
        match event:
            case Partial():
                yield from self._grown(event.stable, event.language)
            case SegmentResult():
                for segment in event.segments:
                    yield from self._ended(segment)
            case ErrorEvent(code="undecodable_audio"):  # the rest may be whole
                self._damage = self._damage or event.message
            case ErrorEvent() | Refusal():
                self.error = self.error or event.message
            case Final():
                self._over(event)

    def _grown(self, stable: str, language: str) -> Iterator[bytes]:
        """A further piece, if the words that stay have become more."""
        piece = stable[len(self._piece) :]
        if piece and stable.startswith(self._piece) and self.config.mode != "offline":
            blank = "" if self._piece else gap(self._before, piece, language)
            self._piece = stable
            yield self._online(blank + piece)

    def _ended(self, segment: Segment) -> Iterator[bytes]:
        if self.config.mode == "online":
            yield from self._grown(self._kept(segment), segment.language)
            self._before = segment.text or self._before
        else:
            if self.config.mode == "2pass" and self._segments:
                yield self._offline(is_final=False)  # it was not the last
            self._segments.append(segment)
            if self.config.mode == "2pass" and not self.is_ending:
                yield self._offline(is_final=False)
        self._piece = ""

    def _kept(self, segment: Segment) -> str:
        """The text of a segment, with the beginning that was told already as it was told."""
        if segment.text.startswith(self._piece):
            return segment.text
        told = words(self._piece, segment.language)
        return glue([*told, *words(segment.text, segment.language)[len(told) :]], segment.language)

    def _over(self, final: Final) -> None:
        if final.status != "done":
            self.error = self.error or "the session was interrupted"
        elif self._damage and not final.total:
            self.error = self.error or self._damage

    def finish(self, is_end: bool) -> Iterator[bytes]:
        """Make the last messages; `is_end`: whether the client waits for the acknowledgement of the end."""
        if self.config.mode == "online":
            yield self._online("", is_final=True)
        else:
            yield self._offline(is_final=True)
        if is_end:
            end = {"mode": self.config.mode, "wav_name": self.config.name, "is_final": not self.error, "is_end": True}
            yield _encode(end | self._failure())

    def _failure(self) -> dict[str, str]:
        return {"error": self.error} if self.error else {}

    def _online(self, text: str, is_final: bool = False) -> bytes:
        mode = "online" if self.config.mode == "online" else "2pass-online"
        return self._message(mode, text, is_final)

    def _offline(self, is_final: bool) -> bytes:
        """The message of the segments that were not told yet."""
        told, self._segments = self._segments, []
        signs: list[Sign] = []
        sentences = []
        for segment in told:
            if gap(self._before, segment.text, segment.language):
                signs.append(Sign(" ", segment.start, segment.start))
            signs += signs_of(segment)
            sentences.append(_sentence(segment))
            self._before = segment.text or self._before
        text = "".join(sign.text for sign in signs)
        times = [list(token[1:]) for token in tokens(signs)]
        mode = "offline" if self.config.mode == "offline" else "2pass-offline"
        if not times:
            return self._message(mode, text, is_final)
        return self._message(mode, text, is_final, timestamp=orjson.dumps(times).decode(), stamp_sents=sentences)

    def _message(self, mode: str, text: str, is_final: bool, **times: Any) -> bytes:
        failure = self._failure() if is_final else {}
        return _encode(
            {"mode": mode, "wav_name": self.config.name, "text": text, "is_final": is_final, **times, **failure}
        )


class Sign(NamedTuple):
    """A sign of a text, and from when to when it was said, in seconds."""

    text: str
    start: float
    end: float


def signs_of(segment: Segment) -> list[Sign]:
    """The signs of a segment's text: each has a part of the time of its word, or is between two words."""
    found: list[Sign] = []
    at, now = 0, segment.start
    for word in segment.words:
        begin = segment.text.find(word.word, at)
        if begin < 0:
            continue
        found += [Sign(sign, now, word.start) for sign in segment.text[at:begin]]
        step = (word.end - word.start) / len(word.word)
        found += [
            Sign(sign, word.start + step * number, word.start + step * (number + 1))
            for number, sign in enumerate(word.word)
        ]
        at, now = begin + len(word.word), word.end
    return found + [Sign(sign, now, segment.end) for sign in segment.text[at:]]


def tokens(signs: Sequence[Sign]) -> Iterator[tuple[str, int, int]]:
    """What has a time of its own, with it, in milliseconds: a word in Latin letters, or any other sign.

    They are counted as FunASR's page counts them, which looks their times up by number.
    """
    text = "".join(sign.text for sign in signs)
    for part in _BORDERS.finditer(text):
        begin, end = part.span()
        spans = [(begin, end)] if _LATIN.fullmatch(part[0]) else [(at, at + 1) for at in range(begin, end)]
        for first, behind in spans:
            yield text[first:behind], round(1000 * signs[first].start), round(1000 * signs[behind - 1].end)


def _sentence(segment: Segment) -> dict[str, Any]:
    """A segment as an entry of `stamp_sents`."""
    found = list(tokens(signs_of(segment)))
    last = segment.text[-1:]
    return {
        "text_seg": " ".join(token[0] for token in found),
        "punc": "" if last.isalnum() else last,
        "start": round(1000 * segment.start),
        "end": round(1000 * segment.end),
        "ts_list": [list(token[1:]) for token in found],
    }
