"""What a client asks for: the id of the session, its user, and how its audio is to be recognised.

Every protocol translates its own start message into a `Start`; what is allowed is decided here, once for all of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from asrserver.errors import BadRequest
from asrserver.protocol import languages
from asrserver.text import numerals, script

#: An id is printed, logged, and part of Redis keys. So it has no braces, which mark hash slots; no whitespace and no
#: control characters, which would end a line or a word of a log; and none of the invisible characters that change the
#: direction of the text after them.
SESSION_ID = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069{}]{1,128}")

#: Seconds between partial results, by default.
PARTIAL_INTERVAL = 0.5

#: Longest prompt and list of hot words, in characters.
MAX_TEXT = 1000

#: Stands between hot words: the model reads them as a text that came before.
WORD_SEPARATOR = ", "

#: Values that mean true, in lower case.
TRUE = ("true", "1", "yes", "on")

#: Longest name of a model, in characters: a directory is one.
MAX_NAME = 1000

#: Characters of an unknown option's name that an error repeats.
MAX_QUOTED_NAME = 64

MODES = ("auto", "chunk", "stream")
FORMATS = ("auto", "file", "pcm_s16le", "pcm_f32le", "pcm_mulaw", "pcm_alaw", "opus")

#: Highest number of an audio track: no file that is decoded has more.
MAX_TRACK = 63

#: Bytes of a sample of headerless audio, where they are not 2.
_WIDTHS = {"pcm_f32le": 4, "pcm_mulaw": 1, "pcm_alaw": 1}

#: Bytes of a second of Opus, until it is known: as of all compressed audio (audio/chunking.py).
_OPUS_BYTES = 8000
CHANNEL_MODES = ("mix", "separate")

#: Most channels of headerless audio that are recognised separately; audio/selection.py has the same for all audio.
MAX_CHANNELS = 8

TASKS = ("transcribe", "translate")

#: The value that leaves a form to the model, whatever the server's setting says.
ANY = "any"

#: The forms of `normalise`: what each may be, and the languages that have it.
FORMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "script": ((*script.SCRIPTS, ANY), script.LANGUAGES),
    "numerals": ((*numerals.NUMERALS, ANY), numerals.LANGUAGES),
}


class Normalise(msgspec.Struct, frozen=True, omit_defaults=True):
    """The forms in which texts are written; None: not said.

    Attributes:
        script: Of Chinese: `hans` (simplified), `hant` (traditional) or ANY.
        numerals: `digits`, `words` or ANY.
    """

    script: str | None = None
    numerals: str | None = None

    @classmethod
    def parse(cls, given: Any) -> Normalise:
        """Take it from a client or the settings: an object, or a text such as script=hans,numerals=digits.

        Raises:
            BadRequest: `bad_option`.
        """
        if isinstance(given, Normalise):
            return given
        if isinstance(given, str):
            given = dict(part.strip().partition("=")[::2] for part in given.split(",") if part.strip())
        if not isinstance(given, Mapping):
            raise _bad("normalise", "must be an object, or a text such as script=hans,numerals=digits")
        for name, form in given.items():
            if name not in FORMS:
                raise _bad("normalise", f"has no {str(name)[:50]!r}, only {' and '.join(FORMS)}")
            if form is not None and form not in FORMS[name][0]:
                raise _bad("normalise", f"can have as {name} only {', '.join(FORMS[name][0])}")
        return cls(**given)

    def check(self, language: str | None) -> None:
        """Refuse a form that texts of a language cannot have; None: it is not known. Raises BadRequest."""
        for name, (_, possible) in FORMS.items():
            form = getattr(self, name)
            if form not in (None, ANY) and language is not None and language not in possible:
                raise _bad("normalise", f"cannot write {language} with {name}={form}, only {', '.join(possible)}")

    def or_else(self, other: Normalise) -> Normalise:
        """The same, with the forms of another one where this one has none."""
        return Normalise(self.script or other.script, self.numerals or other.numerals)


class Options(msgspec.Struct, frozen=True):
    """How a session's audio is recognised. Kept in the session's hash, where a worker reads it (codec.py).

    Attributes:
        mode: What a chunk is. `chunk`: an utterance of its own. `stream`: a piece of one recording. `auto`: a chunk
            that opens a container, or holds a second or more of raw PCM, is an utterance; any other continues the one
            before.
        format: Headerless audio is `pcm_s16le`, `pcm_f32le`, `pcm_mulaw` or `pcm_alaw` (G.711); `auto` finds containers
            by their first bytes and takes anything else for `pcm_s16le`. In stream mode also `file`: the session is one
            file, cut anywhere, and only its first bytes are looked at; and `opus`: each chunk is a packet of Opus.
        sample_rate: Of headerless audio, in hertz; 8000 to 48000.
        channels: Of headerless audio, interleaved; 1 or 2, or where they are recognised separately up to MAX_CHANNELS.
        channel_mode: `mix`: one text of all channels, mixed. `separate`: each channel is recognised by itself.
        track: Number of the audio track of a container, from 0; None: the default one.
        language: Code of what is spoken, as languages.py has it; None: detected.
        task: `transcribe`, or `translate` into English, where the model can.
        prompt: Text that is taken to precede the audio; at most MAX_TEXT characters.
        hotwords: Words that are likely, as one text; at most MAX_TEXT characters.
        partials: Whether partial results are wanted.
        partial_interval: Seconds between partial results of a segment; 0.1 to 10. Under load they come less often.
        silence: Seconds of quiet that end a segment; 0.1 to 5. None: the worker's setting.
        speech_events: Whether the beginning of speech is reported, before there is text, in stream mode.
        word_timestamps: Whether segments come with their words and their times.
        model: Name of the model that recognises it; None: that of whichever worker takes it.
        normalise: How texts are written.
    """

    mode: str = "auto"
    format: str = "auto"
    sample_rate: int = 16000
    channels: int = 1
    channel_mode: str = "mix"
    track: int | None = None
    language: str | None = None
    task: str = "transcribe"
    prompt: str = ""
    hotwords: str = ""
    partials: bool = False
    partial_interval: float = PARTIAL_INTERVAL
    silence: float | None = None
    word_timestamps: bool = False
    speech_events: bool = False
    model: str | None = None
    normalise: Normalise = Normalise()

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """Take options from a client.

        Args:
            given: Values by option name. What is missing or None has its default; other names are ignored.

        Raises:
            BadRequest: `bad_option`, with the option's name in the details.
        """
        values = {name: given[name] for name in cls.__struct_fields__ if given.get(name) is not None}
        if not isinstance(values.get("language", ""), str):
            raise _bad("language", "must be a code such as en or zh, or null")
        values["language"] = languages.parse(values.get("language"))
        values["normalise"] = Normalise.parse(values.get("normalise", {}))
        options = cls(**values)
        _one_of("mode", options.mode, MODES)
        _one_of("format", options.format, FORMATS)
        if options.format in ("file", "opus") and options.mode != "stream":
            raise _bad("format", f"can be {options.format} only in the mode stream")
        _one_of("task", options.task, TASKS)
        whole_number("sample_rate", options.sample_rate, 8000, 48000)
        _one_of("channel_mode", options.channel_mode, CHANNEL_MODES)
        whole_number("channels", options.channels, 1, MAX_CHANNELS if options.separate else 2)
        if options.track is not None:
            whole_number("track", options.track, 0, MAX_TRACK)
        _flag("partials", options.partials)
        _flag("word_timestamps", options.word_timestamps)
        _flag("speech_events", options.speech_events)
        seconds("partial_interval", options.partial_interval, 0.1, 10.0)
        if options.silence is not None:
            seconds("silence", options.silence, 0.1, 5.0)
        for name, value in (("prompt", options.prompt), ("hotwords", options.hotwords)):
            if not isinstance(value, str) or len(value) > MAX_TEXT or "\x00" in value:
                raise _bad(name, f"must be a text of at most {MAX_TEXT} characters")
        if options.model is not None and not (isinstance(options.model, str) and 0 < len(options.model) <= MAX_NAME):
            raise _bad("model", f"must be the name of a model, of at most {MAX_NAME} characters, or null")
        options.normalise.check(options.text_language)
        return options

    def has_same_audio(self, other: Options) -> bool:
        """Whether its audio is in the same format."""
        return (self.format, self.sample_rate, self.channels) == (other.format, other.sample_rate, other.channels)

    def of_model(self, name: str | None) -> Options:
        """The same for a model that the server runs; None: whichever there is."""
        return msgspec.structs.replace(self, model=name)

    @property
    def text_language(self) -> str | None:
        """Code of the language of the texts; None: that of what is spoken, which is detected."""
        return "en" if self.task == "translate" else self.language

    def with_hotwords(self, hotwords: str) -> Options:
        """The same with other hot words."""
        return msgspec.structs.replace(self, hotwords=hotwords)

    @property
    def separate(self) -> bool:
        """Whether channels are recognised separately."""
        return self.channel_mode == "separate"

    @property
    def bytes_per_second(self) -> int:
        """Of headerless audio."""
        return _OPUS_BYTES if self.format == "opus" else self.sample_rate * self.channels * _WIDTHS.get(self.format, 2)

    @property
    def cost_rate(self) -> float:
        """Bytes of headerless audio that cost as much as a second of one channel."""
        return self.bytes_per_second / (self.channels if self.separate else 1)

    @property
    def joinable(self) -> bool:
        """Whether chunks may be joined: where one ends means nothing."""
        return self.mode == "stream" and self.format not in ("auto", "opus")


@dataclass(frozen=True, slots=True)
class Start:
    """A new session.

    Attributes:
        session_id: Its id; empty where the client leaves it to the server.
        user_id: Whose session it is, in the client's words; may be empty.
        options: How its audio is recognised.
        resumable: Whether the client says that it resumes after a lost connection: a shutdown need not wait for it.
    """

    session_id: str
    user_id: str
    options: Options
    resumable: bool

    def changed(self, **options: Any) -> Start:
        """The same with other options."""
        return replace(self, options=msgspec.structs.replace(self.options, **options))


@dataclass(frozen=True, slots=True)
class Resume:
    """A session that is to go on on this connection.

    Attributes:
        session_id: Which.
        last_seq: `seq` of the last durable event that the client has; 0: none.
        adopted: Whether the client only goes on as if its connection had not been lost. Then the session must have lost
            it, and `last_seq` does not count.
    """

    session_id: str
    last_seq: int
    adopted: bool = False


def join_hotwords(words: Iterable[str]) -> str:
    """Hot words as one text, of MAX_TEXT characters at most."""
    return WORD_SEPARATOR.join(words)[:MAX_TEXT]


def track_number(text: str) -> int | None:
    """The `track` of a form or a query; None: none is named. Raises BadRequest."""
    if text and not (text.isascii() and text.isdigit()):
        message = "track must be the number of an audio track, from 0"
        raise BadRequest("bad_request", message, parameter="track")
    return int(text[:9]) if text else None


def hotwords_of(value: Any, name: str) -> list[str] | None:
    """The hot words of a message that changes them; None: it does not. Raises BadRequest, which names the field."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) and "\x00" not in one for one in value):
        raise BadRequest("bad_request", f"{name} must be a list of texts")
    return [word for one in value if (word := one.strip())]


def valid_id(value: Any, name: str) -> str:
    """A session or user id that may be used in keys, rows and logs; raises BadRequest."""
    if not isinstance(value, str) or not SESSION_ID.fullmatch(value):
        must = "must be 1 to 128 characters without whitespace, braces, control characters or directional marks"
        raise BadRequest("bad_id", f"{name} {must}")
    return value


def unknown_option(name: str, known: Collection[str], field: str = "option") -> BadRequest:
    """Make the error for an option that is none of the `known` ones: a misspelt one, or one of a later release.

    Args:
        name: As the client wrote it.
        known: What it may have meant.
        field: Which of the error's details names it.
    """
    nearest = difflib.get_close_matches(name[:MAX_QUOTED_NAME], known, 1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"allowed: {', '.join(sorted(known)) or 'none'}"
    quoted = name[:MAX_QUOTED_NAME]
    return BadRequest("unknown_option", f"{quoted!r} is unknown ({hint})", **{field: quoted})


def whole_number(name: str, value: Any, low: int, high: int) -> None:
    """Check an option; raises BadRequest naming it."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _bad(name, f"must be a whole number from {low} to {high}")


def seconds(name: str, value: Any, low: float, high: float) -> None:
    """Check an option; raises BadRequest naming it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _bad(name, f"must be a number of seconds from {low:g} to {high:g}")


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise _bad(name, f"must be one of {', '.join(allowed)}")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _bad(name, "must be true or false")


def _bad(name: str, must: str) -> BadRequest:
    return BadRequest("bad_option", f"{name} {must}", option=name)
