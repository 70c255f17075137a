"""WhisperLive's protocol (github.com/collabora/WhisperLive, whisper_live/client.py and server.py): options and audio to
a session, events to messages.

C {"uid":"…","language":null,"task":"transcribe","model":"small",…}
                        S {"uid":"…","message":"SERVER_READY","backend":"faster_whisper"}
C binary frames: samples of 16 kHz, 32-bit floats unless `audio_format` says otherwise
                        S {"uid":"…","language":"en","language_prob":0.9}       once, if the client named none
                        S {"uid":"…","segments":[{"start":"0.000","end":"1.200","text":" …","completed":true},…]}
C binary END_OF_AUDIO   S {"uid":"…","message":"DISCONNECT"}, and the end of the connection
S {"uid":"…","status":"WAIT"|"ERROR","message":…}

The last of the segments may be growing (`completed` is false). The clients keep the last such one: at the end they
write it behind all others unless the last completed one has the same text. So each segment is told as growing first,
with its last text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from asrserver.errors import BadRequest
from asrserver.protocol import languages
from asrserver.protocol.events import ErrorEvent, Final, Partial, Refusal, Segment, SegmentResult, SessionEvent, Word
from asrserver.protocol.options import MAX_TEXT, Options, join_hotwords
from asrserver.protocol.pathless import UrlOptions

#: A binary frame that is no audio.
END_OF_AUDIO = b"END_OF_AUDIO"

#: `audio_format` → the format of the session.
FORMATS = {"float32": "pcm_f32le", "int16": "pcm_s16le", "uint8": "pcm_s16le"}

#: Segments that each message repeats, unless the client asks for another number; and the most.
LAST_SEGMENTS = 10
MAX_LAST_SEGMENTS = 100

#: Characters of a `uid` at most: each message repeats it.
MAX_UID = 200

#: From samples without sign to samples with one.
_SIGNED = bytes(value ^ 0x80 for value in range(256))

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class WhisperLiveRequest:
    """A client's first message.

    Attributes:
        model: The model that is asked for; may be empty.
        options: How the audio is recognised.
        is_8_bit: Whether its audio must be widened.
        last_segments: Segments that each message repeats.
    """

    model: str
    options: Options
    is_8_bit: bool
    last_segments: int


def uid_of(message: Mapping[str, Any]) -> str | int:
    """What a client calls itself in its first message; raises BadRequest."""
    uid = message.get("uid")
    if not isinstance(uid, str | int) or len(str(uid)) > MAX_UID:
        raise BadRequest("bad_request", f"uid must be a text of at most {MAX_UID} characters")
    return uid


def parse(message: Mapping[str, Any], url: UrlOptions) -> WhisperLiveRequest:
    """Read a client's first message; what is unknown is ignored. Raises BadRequest."""
    model = url.model or message.get("model") or ""
    language = message.get("language") or None
    if not isinstance(model, str) or not isinstance(language, str | None):
        raise BadRequest("bad_request", "model and language must be texts")
    format = message.get("audio_format") or "float32"
    if not isinstance(format, str) or format not in FORMATS:
        raise BadRequest("bad_request", f"audio_format must be one of {', '.join(FORMATS)}")
    hotwords = message.get("hotwords") or ""
    given = {
        "mode": "stream",
        "format": FORMATS[format],
        "language": languages.parse(language) or url.language or ("en" if model.endswith(".en") else None),
        "task": message.get("task"),
        "prompt": str(message.get("initial_prompt") or "")[-MAX_TEXT:],
        "hotwords": join_hotwords(map(str, hotwords if isinstance(hotwords, list) else [hotwords])),
        "partials": True,
        "word_timestamps": message.get("word_timestamps") is True,
    }
    last = message.get("send_last_n_segments")
    last = last if isinstance(last, int) and not isinstance(last, bool) else LAST_SEGMENTS
    last = min(max(last, 1), MAX_LAST_SEGMENTS)
    return WhisperLiveRequest(model, Options.parse(given), format == "uint8", last)


def widened(data: bytes) -> bytes:
    """8-bit samples without sign as 16-bit samples with one."""
    wide = bytearray(2 * len(data))
    wide[1::2] = data.translate(_SIGNED)
    return bytes(wide)


class WhisperLiveResults:
    """The messages of one client.

    Attributes:
        uid: What the client calls itself: it drops messages without it. None: it has not said.
    """

    def __init__(self) -> None:
        self.uid: str | int | None = None
        self._last_segments = LAST_SEGMENTS
        self._completed: list[dict[str, Any]] = []  # the last ones
        self._end = 0.0  # of the last one
        self._language_owed = True

    def ready(self, asked: WhisperLiveRequest) -> bytes:
        """The message that a session has begun."""
        self._last_segments = asked.last_segments
        self._language_owed = asked.options.language is None
        # Of another backend the client keeps no segments.
        return self._message(message="SERVER_READY", backend="faster_whisper")

    def messages(self, event: SessionEvent) -> Iterator[bytes]:
        """Make the messages of an event."""
        match event:
            case Partial(text=""):  # it was none
                yield from self._settled()
            case Partial():
                start = max(self._end, event.start)
                yield self._segments(_segment(start, max(start, event.end), event.text, []))
            case SegmentResult():
                for segment in event.segments:
                    yield from self._result(segment)
            case ErrorEvent():
                yield self.failure(event.message)
            case Refusal():
                yield self.failure(event.message, event.retry_after)
            case Final():
                yield self.goodbye()

    def failure(self, message: str, retry_after: float | None = None) -> bytes:
        """The message of an error; `retry_after`: seconds after which to try again, if that makes sense."""
        if retry_after is not None:
            return self._message(status="WAIT", message=max(1, math.ceil(retry_after / 60)))
        return self._message(status="ERROR", message=message)

    def goodbye(self) -> bytes:
        """The last message."""
        return self._message(message="DISCONNECT")

    def _result(self, segment: Segment) -> Iterator[bytes]:
        if self._language_owed and segment.language:
            self._language_owed = False
            # How sure the language is is not known: that of its first words is the nearest to it.
            yield self._message(language=segment.language, language_prob=segment.confidence)
        start = max(self._end, segment.start)  # the client drops a segment that begins before the last one's end
        self._end = max(start, segment.end)
        made = _segment(start, self._end, segment.text, segment.words)
        self._completed = [*self._completed, made | {"completed": True}][-self._last_segments :]
        yield from self._settled()

    def _settled(self) -> Iterator[bytes]:
        """The last completed segment, as growing and then as it is."""
        if self._completed:
            *before, last = self._completed
            yield self._message(segments=[*before, last | {"completed": False}])
            yield self._message(segments=self._completed)

    def _segments(self, growing: dict[str, Any]) -> bytes:
        return self._message(segments=[*self._completed, growing][-self._last_segments :])

    def _message(self, **fields: Any) -> bytes:
        return _encode({"uid": self.uid, **fields})


def _segment(start: float, end: float, text: str, words: list[Word]) -> dict[str, Any]:
    """A growing segment. Its text begins with a blank, as Whisper's do: clients put nothing between them."""
    made: dict[str, Any] = {**_times(start, end), "text": f" {text}", "completed": False}
    if words:
        made["words"] = [
            {"word": f" {one.word}", **_times(one.start, one.end), "probability": one.confidence} for one in words
        ]
    return made


def _times(start: float, end: float) -> dict[str, str]:
    return {"start": f"{start:.3f}", "end": f"{end:.3f}"}
