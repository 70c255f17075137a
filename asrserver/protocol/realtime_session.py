"""Sessions of OpenAI's Realtime interface: what clients ask for, piece by piece, to options of a session.

`session.update` has the present shape, `transcription_session.update` the one before it; each is taken in both:

{"type": "transcription", "include": […], "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000},
    "transcription": {"model", "language", "languages", "prompt", "keywords"}, "turn_detection": {…} or null,
    "noise_reduction": {…} or null}}}
{"input_audio_format": "pcm16", "input_audio_transcription": {…}, "turn_detection": {…}, "include": […],
    "input_audio_noise_reduction": {…}}

POST /v1/realtime/client_secrets has the first one too. What is not present stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from asrserver.errors import BadRequest
from asrserver.protocol import languages
from asrserver.protocol.options import MAX_NAME, MAX_TEXT, Options, join_hotwords, whole_number

#: The formats of audio, and their names in the older shape.
FORMATS = {"audio/pcm": "pcm_s16le", "audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}
OLD_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}

#: Hertz of PCM where the client names no rate, and of G.711.
PCM_RATE = 24000
TELEPHONE_RATE = 8000

#: The model where the client names none: whichever there is.
DEFAULT_MODEL = "whisper-1"

#: OpenAI's models that detect no turns: their clients commit, and do not say so.
_WITHOUT_TURNS = ("gpt-realtime-whisper", "gpt-live-transcribe")

#: How turns are detected where the client does not say. Milliseconds of quiet that end one are within these bounds.
SERVER_VAD = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500}
DETECTIONS = ("server_vad", "semantic_vad")
MIN_SILENCE, MAX_SILENCE = 100, 5000

#: What can be included besides.
LOGPROBS = "item.input_audio_transcription.logprobs"

#: Words and languages that are kept, at most.
MAX_ITEMS = 100

#: Seconds for which a client secret is valid.
MIN_SECRET_SECONDS, MAX_SECRET_SECONDS, SECRET_SECONDS = 10, 7200, 600

#: The names of the older shape, and where each is in the present one.
_OLD = {
    "input_audio_format": "format",
    "input_audio_transcription": "transcription",
    "input_audio_noise_reduction": "noise_reduction",
    "turn_detection": "turn_detection",
}


@dataclass(frozen=True, slots=True)
class Setup:
    """What a client has asked for so far.

    Attributes:
        kind: The type of the session: transcription or realtime. There is no difference here.
        format: The audio's type and rate.
        transcription: Its fields, as far as they were given.
        turn_detection: How turns are detected; None: the client commits. `chosen` says whether it was given.
        noise_reduction: As it was given. Nothing comes of it.
        include: What was asked for besides.
    """

    kind: str = "transcription"
    format: Mapping[str, Any] = field(default_factory=lambda: {"type": "audio/pcm", "rate": PCM_RATE})
    transcription: Mapping[str, Any] = field(default_factory=dict)
    turn_detection: Mapping[str, Any] | None = field(default_factory=SERVER_VAD.copy)
    chosen: bool = False
    noise_reduction: Mapping[str, Any] | None = None
    include: tuple[str, ...] = ()

    def updated(self, session: Any) -> Setup:
        """The setup after an update.

        Args:
            session: As the client sent it, in either shape, or both.

        Raises:
            BadRequest: Something in it cannot be used; `option` in the details names it.
        """
        session = _object(session, "session")
        changes: dict[str, Any] = {}
        if session.get("type") in ("transcription", "realtime"):
            changes["kind"] = session["type"]
        if "include" in session:
            changes["include"] = tuple(
                _texts([] if session["include"] is None else session["include"], "session.include")
            )
        audio = _object(session.get("audio"), "session.audio", {})
        given = dict(_object(audio.get("input"), "session.audio.input", {}))
        paths = {name: f"session.audio.input.{name}" for name in given}
        for old, name in _OLD.items():
            if old in session:
                given[name], paths[name] = session[old], f"session.{old}"
        if given.get("format") is not None:
            changes["format"] = _format(given["format"], paths["format"])
        if "transcription" in given:
            changes["transcription"] = self._transcription(given["transcription"], paths["transcription"])
        if "turn_detection" in given:
            changes["turn_detection"] = self._turn_detection(given["turn_detection"], paths["turn_detection"])
            changes["chosen"] = True
        if "noise_reduction" in given:
            changes["noise_reduction"] = _noise_reduction(given["noise_reduction"], paths["noise_reduction"])
        return replace(self, **changes)

    def _transcription(self, given: Any, path: str) -> dict[str, Any]:
        if given is None:
            return {}
        given = _object(given, path)
        found = dict(self.transcription)
        if given.get("languages") is not None:
            found.pop("language", None)
        elif given.get("language") is not None:
            found.pop("languages", None)
        for name, read in _TRANSCRIPTION.items():
            if name in given and given[name] is None:
                found.pop(name, None)
            elif name in given:
                found[name] = read(given[name], f"{path}.{name}")
        return found

    def _turn_detection(self, given: Any, path: str) -> dict[str, Any] | None:
        if given is None:
            return None
        given = _object(given, path)
        kind = given.get("type") or "server_vad"
        if kind not in DETECTIONS:
            raise _bad(f"{path}.type", f"must be one of {', '.join(DETECTIONS)}, or turn detection null")
        silence = given.get("silence_duration_ms")
        if silence is not None and (isinstance(silence, bool) or not isinstance(silence, int | float)):
            raise _bad(f"{path}.silence_duration_ms", "must be a number of milliseconds")
        before = self.turn_detection or {}
        if before.get("type") != kind:
            before = SERVER_VAD if kind == "server_vad" else {}
        known = (*SERVER_VAD, "eagerness", "create_response", "interrupt_response", "idle_timeout_ms")
        values = {name: given[name] for name in known if isinstance(given.get(name), str | int | float)}
        return {**before, **values, "type": kind}

    # -- what it means -------------------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The name of the model that is asked for."""
        return str(self.transcription.get("model") or DEFAULT_MODEL)

    @property
    def turns(self) -> Mapping[str, Any] | None:
        """How turns are detected; None: the client commits."""
        if not self.chosen and self.model.startswith(_WITHOUT_TURNS):
            return None
        return self.turn_detection

    @property
    def logprobs(self) -> bool:
        """Whether results have the probabilities of their words."""
        return LOGPROBS in self.include

    def options(self, model: str | None) -> Options:
        """The options of a session.

        Args:
            model: The model that the server runs; None: whichever there is.

        Raises:
            BadRequest: They cannot be used; `option` in the details names which.
        """
        turns, asked = self.turns, self.transcription
        candidates = asked.get("languages", ())
        silence = (turns or {}).get("silence_duration_ms", SERVER_VAD["silence_duration_ms"])
        return Options.parse(
            {
                "mode": "stream",
                "format": FORMATS[self.format["type"]],
                "sample_rate": self.format.get("rate", TELEPHONE_RATE),
                "language": asked.get("language") or (candidates[0] if len(candidates) == 1 else None),
                "prompt": asked.get("prompt"),
                "hotwords": join_hotwords(asked.get("keywords", ())),
                "partials": True,
                "silence": None if turns is None else min(max(silence, MIN_SILENCE), MAX_SILENCE) / 1000,
                "speech_events": True,
                "word_timestamps": self.logprobs,
                "model": model,
            }
        )

    # -- as clients are told -------------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """The session in the present shape, without its id."""
        return {
            "type": self.kind,
            "object": "realtime.session" if self.kind == "realtime" else "realtime.transcription_session",
            "audio": {
                "input": {
                    "format": self.format,
                    "transcription": {"model": self.model, **self.transcription},
                    "noise_reduction": self.noise_reduction,
                    "turn_detection": self.turns,
                }
            },
            "include": list(self.include) or None,
        }

    def old_document(self) -> dict[str, Any]:
        """The session in the older shape, without its id."""
        names = {name: old for old, name in OLD_FORMATS.items()}
        return {
            "object": "realtime.transcription_session",
            "input_audio_format": names[self.format["type"]],
            "input_audio_transcription": {"model": self.model, **self.transcription},
            "input_audio_noise_reduction": self.noise_reduction,
            "turn_detection": self.turns,
            "include": list(self.include) or None,
        }


def secret_request(body: Mapping[str, Any]) -> tuple[int, Setup]:
    """Read the body of a request for a client secret.

    Returns:
        The seconds for which it is to be valid, and the setup of its sessions.

    Raises:
        BadRequest: Something in it cannot be used; `option` in the details names it.
    """
    after = _object(body.get("expires_after"), "expires_after", {})
    if after.get("anchor", "created_at") != "created_at":
        raise _bad("expires_after.anchor", "must be created_at")
    seconds = after.get("seconds", SECRET_SECONDS)
    whole_number("expires_after.seconds", seconds, MIN_SECRET_SECONDS, MAX_SECRET_SECONDS)
    return seconds, Setup().updated(_object(body.get("session"), "session", {}))


# -- values ----------------------------------------------------------------------------------------------------------


def _format(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, str):
        value = {"type": OLD_FORMATS.get(value, value)}
    value = _object(value, path)
    kind = value.get("type", "audio/pcm")
    if not isinstance(kind, str) or kind not in FORMATS:
        raise _bad(f"{path}.type" if path.endswith("input.format") else path, f"must be one of {', '.join(FORMATS)}")
    if kind != "audio/pcm":
        return {"type": kind}
    rate = value.get("rate") or PCM_RATE
    whole_number(f"{path}.rate", rate, 8000, 48000)
    return {"type": kind, "rate": rate}


def _noise_reduction(value: Any, path: str) -> dict[str, Any] | None:
    return None if value is None else {"type": _text(_object(value, path).get("type"), f"{path}.type")}


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _bad(path, "must be a text")
    return value[-MAX_TEXT:].replace("\x00", "")


def _texts(value: Any, path: str) -> list[str]:
    if not isinstance(value, list):
        raise _bad(path, "must be a list of texts")
    return [_text(item, path) for item in value[:MAX_ITEMS]]


def _model(value: Any, path: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise _bad(path, "must be the name of a model")
    return value


def _language(value: Any, path: str) -> str:
    text = _text(value, path)
    try:
        languages.parse(text)
    except BadRequest as exc:
        raise BadRequest("bad_option", exc.message, option=path) from None
    return text


def _languages(value: Any, path: str) -> list[str]:
    return [_language(item, path) for item in _texts(value, path)]


#: The fields of `transcription`.
_TRANSCRIPTION: dict[str, Callable[[Any, str], Any]] = {
    "model": _model,
    "language": _language,
    "languages": _languages,
    "prompt": _text,
    "keywords": _texts,
    "delay": _text,
}


def _object(value: Any, path: str, absent: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    value = absent if value is None else value
    if not isinstance(value, Mapping):
        raise _bad(path, "must be an object")
    return value


def _bad(path: str, must: str) -> BadRequest:
    return BadRequest("bad_option", f"{path} {must}", option=path)
