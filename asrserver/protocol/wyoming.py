"""The Wyoming protocol of Home Assistant: bytes to its events, and the answers to them.

Its specification is the README of the package `wyoming` (1.10). An event is a line of JSON, then `data_length` bytes of
JSON, then `payload_length` bytes; `data` in the line and in the bytes after it are one. For speech to text:

    C describe                                               S info
    C transcribe {name?, language?, transcript_names?, transcript_terms?}
    C audio-start {rate, width, channels}
    C audio-chunk {rate, width, channels} + samples …        S transcript-start, transcript-chunk {text} …
    C audio-stop                                             S transcript {text, language?}, transcript-stop
    C ping {text?}                                           S pong {text?}
                                                             S error {text, code}

Unknown events are skipped. Home Assistant skips all answers but the one it waits for, and takes the end of the
connection for a failure: so every audio-stop is answered by a transcript.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from asrserver.errors import BadRequest
from asrserver.protocol.events import Segment
from asrserver.protocol.json_messages import parse_object
from asrserver.protocol.options import MAX_TEXT, WORD_SEPARATOR, Options
from asrserver.text.words import join

#: The version of the protocol that is spoken.
VERSION = "1.10.0"

#: Bytes of a line, and of the data behind it, at most. The names of a large house are the most that anybody sends.
#: Python's clients read lines of 64 KiB at most.
MAX_LINE = 1 << 16
MAX_DATA = 1 << 18

#: Seconds of quiet that end a segment: an utterance is one command, whose end the client finds, and a command with a
#: pause in it is understood better as a whole. Speech before a pause is decoded during the pause in any case.
SILENCE = 2.0


@dataclass(frozen=True, slots=True)
class WireEvent:
    """An event as it came.

    Attributes:
        type: Its type.
        data: Its data.
        payload: Of an audio-chunk: samples. A large one comes in several events with the same data. The payloads of
            other events are skipped.
    """

    type: str
    data: dict[str, Any]
    payload: bytes = b""


class EventParser:
    """Takes a client's bytes, cut anywhere, apart. It keeps at most a line and its data.

    Args:
        max_payload: Bytes of a payload at most.
    """

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer that have no end of a line
        self._line: dict[str, Any] | None = None  # whose data is still to come
        self._event = WireEvent("", {})  # whose payload is still to come
        self._left = 0  # bytes of that payload

    @property
    def in_event(self) -> bool:
        """Whether the rest of an event is still to come."""
        return bool(self._buffer) or self._line is not None or self._left > 0

    @property
    def kept(self) -> int:
        """Bytes that are kept of an event that is not whole."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[WireEvent]:
        """Return the events that these bytes complete.

        Raises:
            BadRequest: These are no events, or one is too large; nothing after it can be understood.
        """
        self._buffer += data
        while True:
            if self._left:
                piece = self._take(min(self._left, len(self._buffer)))
                self._left -= len(piece)
                if not piece:
                    return
                if self._event.type == "audio-chunk":
                    yield replace(self._event, payload=piece)
            elif (event := self._head()) is None:
                return
            elif event.type != "audio-chunk" or not self._left:
                yield event

    def _head(self) -> WireEvent | None:
        """Return the next event without its payload, if it is complete."""
        line = self._line or self._next_line()
        if line is None:
            return None
        length = _length(line, "data_length", MAX_DATA)
        if len(self._buffer) < length:
            self._line = line
            return None
        self._line = None
        kind, data = line.get("type"), line.get("data")
        if not isinstance(kind, str) or not isinstance(data, dict | None):
            raise BadRequest("bad_request", "an event has a type, which is a text, and data, which is an object")
        self._left = _length(line, "payload_length", self._max_payload)
        self._event = WireEvent(kind, (data or {}) | (_parsed(self._take(length)) if length else {}))
        return self._event

    def _next_line(self) -> dict[str, Any] | None:
        end = self._buffer.find(b"\n", self._searched)
        if (len(self._buffer) if end < 0 else end) > MAX_LINE:
            raise BadRequest("message_too_large", f"a line has at most {MAX_LINE} bytes")
        if end < 0:
            self._searched = len(self._buffer)
            return None
        self._searched = 0
        return _parsed(self._take(end + 1))

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _parsed(data: bytes) -> dict[str, Any]:
    return parse_object(data.decode(errors="replace"))


def _length(line: dict[str, Any], name: str, most: int) -> int:
    value = line.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRequest("bad_request", f"{name} must be a whole number from 0")
    if value > most:
        raise BadRequest("message_too_large", f"{name} is {value}; at most {most} bytes are taken")
    return value


# -- what clients ask for --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """The format of a chunk of samples.

    Attributes:
        rate: Samples a second of each channel.
        width: Bytes of a sample: 8 bits are unsigned, more are signed, as in WAV.
        channels: Channels, interleaved.
    """

    rate: int = 16000
    width: int = 2
    channels: int = 1

    @classmethod
    def parse(cls, *given: Mapping[str, Any]) -> AudioFormat:
        """Read it from the data of an audio-chunk, then of its audio-start; raises BadRequest."""
        default = cls()
        values = {
            name: next((data[name] for data in given if data.get(name)), getattr(default, name))
            for name in ("rate", "width", "channels")
        }
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadRequest("bad_request", f"{name} must be a whole number from 1")
        if values["width"] > 4:
            raise BadRequest("bad_request", f"width is {values['width']}; samples have 1 to 4 bytes")
        return cls(**values)

    @property
    def is_native(self) -> bool:
        """Whether it needs no header to be understood: a session's options can say it."""
        return self.width == 2 and self.channels <= 2 and 8000 <= self.rate <= 48000


@dataclass(frozen=True, slots=True)
class TranscribeRequest:
    """`transcribe`: how the next utterance is to be recognised.

    Attributes:
        model: The model that it names; empty: none.
        language: As the client named it; None: it is to be detected.
        hotwords: The words that are likely, as one text.
    """

    model: str = ""
    language: Any = None
    hotwords: str = ""

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> TranscribeRequest:
        """Read it. What has another type than it should have is left out."""
        model = data.get("name")
        return cls(
            model if isinstance(model, str) else "",
            data.get("language"),
            _hotwords(_texts(data.get("transcript_names")), _texts(data.get("transcript_terms"))),
        )

    def options(self, format: AudioFormat) -> Options:
        """Make the options of a session, without a model, for audio of a format; raises BadRequest.

        Unless the format is native, a WAV header must come first.
        """
        native = {"format": "pcm_s16le", "sample_rate": format.rate, "channels": format.channels}
        audio = native if format.is_native else {"format": "file"}
        given = {"mode": "stream", "silence": SILENCE, "language": self.language, "hotwords": self.hotwords}
        return Options.parse(given | audio)


def _texts(given: Any) -> list[str]:
    items = given if isinstance(given, list) else []
    return [text for item in items if isinstance(item, str) and (text := item.replace("\x00", "").strip())]


def _hotwords(names: Sequence[str], terms: Sequence[str]) -> str:
    """Join as many words as there is room for; names count before terms.

    Names are the last of the text: where it is too long for a model's prompt, its beginning is cut off.
    """
    taken: list[str] = []
    left = MAX_TEXT
    for word in dict.fromkeys([*names, *terms]):
        if len(word) <= left:
            taken.append(word)
            left -= len(word) + len(WORD_SEPARATOR)
    return WORD_SEPARATOR.join(reversed(taken))


# -- what clients get ------------------------------------------------------------------------------------------------


def _message(kind: str, data: dict[str, Any] | None = None) -> bytes:
    """An event as the package writes it: the data behind the line."""
    line: dict[str, Any] = {"type": kind, "version": VERSION}
    if not data:
        return orjson.dumps(line) + b"\n"
    body = orjson.dumps(data)
    return orjson.dumps(line | {"data_length": len(body)}) + b"\n" + body


def info(models: Sequence[Mapping[str, Any]], version: str) -> bytes:
    """Make the answer to describe.

    Args:
        models: Those that the server offers, the default one first: `name` and `languages` of each. Home Assistant lets
            its users choose among the languages of all.
        version: The server's.
    """
    program = {
        "name": "asrserver",
        "description": "Streaming speech recognition with Whisper models",
        "attribution": {"name": "asrserver", "url": ""},
        "installed": True,
        "version": version,
        "models": [
            {
                "name": model["name"],
                "description": model["name"],
                "attribution": {"name": "Whisper", "url": "https://github.com/openai/whisper"},
                "installed": True,
                "version": None,
                "languages": list(model["languages"]),
            }
            for model in models
        ],
        "supports_transcript_streaming": True,
        "requires_external_vad": True,
    }
    others: dict[str, Any] = {name: [] for name in ("tts", "handle", "intent", "wake", "mic", "snd")}
    return _message("info", {"asr": [program], **others})


def pong(text: Any) -> bytes:
    """Make the answer to ping."""
    return _message("pong", {"text": text if isinstance(text, str) else None})


def error(code: str, message: str) -> bytes:
    """Make an error; a transcript may follow."""
    return _message("error", {"text": message, "code": code})


def transcript_start(language: str | None) -> bytes:
    """Make what comes before the first transcript-chunk."""
    return _message("transcript-start", {"language": language} if language else None)


def transcript_chunk(segments: Sequence[Segment], told: int) -> bytes:
    """Make the chunk with the segments from the number `told` on; the chunks together are the transcript."""
    return _message("transcript-chunk", {"text": text_of(segments)[len(text_of(segments[:told])) :]})


def transcript(text: str, language: str | None) -> bytes:
    """Make the answer to audio-stop; the end of the streamed answer is behind it."""
    return _message("transcript", {"text": text} | ({"language": language} if language else {})) + _message(
        "transcript-stop"
    )


def text_of(segments: Sequence[Segment]) -> str:
    """Join the texts of segments."""
    return join([(segment.text, segment.language) for segment in segments])
