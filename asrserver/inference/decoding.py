"""What a model is asked about a window, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from asrserver.protocol.events import Word
from asrserver.telemetry.worker_traces import Call


@dataclass(frozen=True, slots=True)
class Request:
    """How a window is to be recognised.

    Attributes:
        language: Language code; None: detect it.
        task: "transcribe" or "translate".
        prompt: Text that primes the decoder.
        hotwords: Words that are likely to occur, before the prompt.
        previous: The text just before the window, as context.
        prefix: The beginning of the window's text, which is certain: the decoder continues it.
        timestamps: The decoder writes when sentences begin and end; it skips fewer sentences of a long window so.
        goes_on: The speech goes on behind the window: with timestamps, a phrase that is not finished at its end is left
            out, see `Hypothesis.read`.
        words: Time each word.
        draft: The window is a segment that is still growing: decode it once and never retry.
    """

    language: str | None = None
    task: str = "transcribe"
    prompt: str = ""
    hotwords: str = ""
    previous: str = ""
    prefix: str = ""
    timestamps: bool = False
    goes_on: bool = False
    words: bool = False
    draft: bool = False


@dataclass(slots=True)
class Hypothesis:
    """What was recognised in one window.

    Attributes:
        text: The text; empty if nothing was said or the decoding cannot be trusted.
        language: Language code, requested or detected.
        language_probability: 0 to 1; 1 if the language was requested.
        confidence: Mean probability of a token, 0 to 1.
        words: The words, if requested. Their times are seconds from the start of the window.
        breaks_off: The text ends as if its sentence went on. Only known if the words are.
        read: Seconds of the window up to which this is the text, if the speech goes on behind it and the decoder left a
            phrase there unfinished.
        took: Seconds of the engine's time, without retries. Set by the engine.
        call: When the engine had the window. Set by the engine.
    """

    text: str
    language: str
    language_probability: float
    confidence: float
    words: list[Word] = field(default_factory=list)
    breaks_off: bool = False
    read: float | None = None
    took: float = 0.0
    call: Call | None = None
