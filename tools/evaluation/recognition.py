"""What a recogniser made of a recording, whichever it was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from evaluation.corpus import Take
from evaluation.scoring import Score, score, tokens


@dataclass
class Recognition:
    """The text of one recording.

    Attributes:
        text: The whole text.
        languages: Code of each segment's language.
        cost: Seconds of CPU that it took.
        messages: Of a live stream: each message of the server with the seconds since the first sample.
    """

    text: str
    languages: list[str]
    cost: float = 0.0
    messages: list[tuple[float, dict[str, Any]]] = field(default_factory=list)


#: Recognises one recording.
Recognise = Callable[[Take], Awaitable[Recognition]]


def judge(take: Take, found: Recognition) -> Score:
    """Score what was recognised in a recording.

    Where nobody speaks every word is wrong; where it is not known what is said, only the language is judged.
    """
    if not take.speech:
        result = Score(noise_words=len(tokens(found.text, "")))
    elif take.said:
        result = score([one.text for one in take.said], found.text, take.language)
    else:
        result = Score(dropped=not found.text)
    if take.language:
        result.languages = any(language != take.language for language in found.languages)
    result.recordings, result.seconds, result.cost = 1, take.seconds, found.cost
    return result
