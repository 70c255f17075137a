"""The names by which clients ask for a model: they often cannot be changed, and are seldom the model's own.

A client of a hosted service asks for that service's models; what it gets is the model that this server runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from asrserver.errors import Refused

#: OpenAI's transcription models, with the dates and forms in which they are released.
OPENAI = re.compile(
    r"whisper-1|gpt-(?:4o-|4o-mini-|live-)?transcribe(?:-diarize)?(?:-\d{4}-\d\d-\d\d|-latest)?|gpt-realtime-whisper"
)

#: Deepgram's models, with the domains for which they have variants. Those of Whisper have their own names here.
DEEPGRAM = re.compile(
    r"(?:\d-)?(?:nova(?:-\d)?|enhanced|base|general|flux|whisper)(?:-[a-z]+)*|meeting|phonecall|voicemail"
)

#: No names besides those of the models that there are: of protocols whose clients name none.
NONE = re.compile(r"(?!)")

#: Vosk's models are directories, which its clients name by their paths.
VOSK = re.compile(r"(?:.*/)?(?:vosk-)?model(?:-[\w.-]+)?")

#: AssemblyAI's models for streams.
ASSEMBLYAI = re.compile(r"universal(?:-[a-z0-9]+)*|u\d(?:-[a-z0-9]+)*|whisper-rt")

#: OpenAI's models of Whisper as WhisperLive's clients name them: by size, or as converted by somebody.
WHISPER = re.compile(
    r"(?:[\w.-]+/)?(?:faster-)?(?:distil-)?(?:whisper-)?(?:distil-)?(?:tiny|base|small|medium|large|turbo)"
    r"(?:-v\d(?:\.\d)?)?(?:-turbo)?(?:\.en)?(?:-ct2)?"
)

#: How others name Whisper's models: with their publisher, or with the format.
_PREFIX = re.compile(r"(?:(?:openai|systran|guillaumekln)/)?(?:faster-)?(?:distil-)?whisper-", re.IGNORECASE)

#: Characters of an unknown name that an error repeats.
_MAX_QUOTED = 100


def aliases(text: str) -> dict[str, str]:
    """Read the setting served-model-names: names, each with the model it means; empty: whichever there is."""
    pairs = (item.partition("=") for item in text.split(","))
    return {name.strip(): model.strip() for name, _, model in pairs if name.strip()}


def resolve(name: str, loaded: Collection[str], known: Mapping[str, str], served: re.Pattern[str]) -> str | None:
    """Find the model that a name means.

    Args:
        name: As a client gave it.
        loaded: The models that the workers run.
        known: The operator's aliases, as `aliases` reads them.
        served: The names of the service that the protocol comes from.

    Returns:
        A loaded model; None: whichever there is.

    Raises:
        Refused: unknown_model (404); there is no such model.
    """
    if name in loaded:
        return name
    short = _PREFIX.sub("", name)
    if name in known:
        wanted = known[name]
        if not wanted or wanted in loaded:
            return wanted or None
    if short in loaded:
        return short
    if name not in known and served.fullmatch(name):
        return None
    have = ", ".join([*loaded, *known]) or "none yet"
    message = f"the model {ascii(name)[1:-1][:_MAX_QUOTED]!r} does not exist here (models: {have})"
    raise Refused(404, "unknown_model", message, parameter="model")
