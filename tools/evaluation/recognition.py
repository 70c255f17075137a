"""What a recogniser made of a recording, whichever it was, and how that is judged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
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
        messages: Of a live stream: each message of the server with the seconds since the first sample.
    """

    text: str
    languages: list[str]
    messages: list[tuple[float, dict[str, Any]]] = field(default_factory=list)


@dataclass
class Mode:
    """A way to recognise recordings, whatever stands behind it.

    Attributes:
        recognise: Recognises one.
        cpu: Seconds of CPU that it has taken so far.
        at_once: How many it may recognise at the same time.
        decoding: Seconds that the engine has decoded so far, and those for what was thrown away; None: not known.
    """

    recognise: Callable[[Take], Awaitable[Recognition]]
    cpu: Callable[[], float] = time.process_time
    at_once: int = 1
    decoding: Callable[[], tuple[float, float]] | None = None

    async def recognise_all(self, takes: Sequence[Take]) -> tuple[list[Recognition], float]:
        """Recognise recordings; returns what was found in each, in order, and the seconds of CPU that it took."""
        room = asyncio.Semaphore(self.at_once)

        async def one(take: Take) -> Recognition:
            async with room:
                return await self.recognise(take)

        began = self.cpu()
        found = await asyncio.gather(*map(one, takes))
        return found, self.cpu() - began


def judge(take: Take, found: Recognition) -> Score:
    """Score what was recognised in a recording.

    Where nobody speaks every word is wrong. Where it is not known what is said, only the language is judged, and
    whether there is any text.
    """
    if not take.speech:
        result = Score(noise_words=len(tokens(found.text, "")))
    elif take.said:
        result = score([one.text for one in take.said], found.text, take.language)
    else:
        result = Score(dropped=not found.text)
    if take.language:
        result.wrong_languages = any(language != take.language for language in found.languages)
    result.recordings, result.seconds = 1, take.seconds
    return result
