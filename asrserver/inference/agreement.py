"""LocalAgreement-2: what two decodings of a growing segment, one after the other, agree on is stable.

Macháček, Dabre, Bojar: Turning Whisper into Real-Time Transcription System (2023), §3; the policy is of Liu, Spanakis,
Niehues (2020). Here every decoding begins where the segment does, so the agreement is a common beginning.
"""

from __future__ import annotations

from itertools import takewhile

from asrserver.inference.text import clean, glue, words


class Agreement:
    """The stable beginning of one segment's text. `stable` only ever grows."""

    def __init__(self) -> None:
        self._stable: list[str] = []
        self._before: list[str] = []
        self.text = ""
        self.stable = ""

    def take(self, text: str, language: str) -> bool:
        """A new decoding of the segment so far; whether `text` or `stable` changed by it.

        `text` is the stable beginning and the decoding's guess at what follows it. Words are compared clean, without
        case and punctuation, and written as they were when they became stable.
        """
        found = words(text, language)
        common = _common(self._before, found)
        # The last word of a decoding may be half a word, heard the same way twice: it waits until one follows it.
        agreed = min(common, len(found) - 1, len(self._before) - 1)
        known = len(self._stable)
        if agreed > known and _common(self._stable, found) == known:
            self._stable += found[known:agreed]
        self._before = found
        after = found[len(self._stable) :]
        was = (self.text, self.stable)
        self.stable = glue(self._stable, language)
        self.text = glue(self._stable + after, language)
        return (self.text, self.stable) != was

    def revised(self, text: str, language: str) -> tuple[int, int]:
        """(how many stable words the final text does not begin with, how many were stable)."""
        return len(self._stable) - _common(self._stable, words(text, language)), len(self._stable)


def _common(one: list[str], other: list[str]) -> int:
    """How many words two texts have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: clean(pair[0]) == clean(pair[1]), pairs))
