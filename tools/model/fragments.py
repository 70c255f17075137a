"""Count errors in speech that begins or ends inside a word, where it is undecidable whether half a word is a word.

NIST's rule for such fragments: it is right to write the word that a fragment is part of, and right to write nothing;
another word in its place is an error (sclite's options -F and -D, doc/options.htm of github.com/usnistgov/SCTK, and
the scoring of its evaluations, catalog.ldc.upenn.edu/docs/LDC2001S91/h4ne97sc.htm). Complete words count as usual.

This is stricter than NIST in two respects: sclite accepts any word that is spelled like the fragment, “seven” for
“-en”, while here only the word itself is accepted; and NIST includes fragments in the number of words, while rates here
refer to complete words only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Seconds of a word that may be missing, or there, without it being a fragment: two frames. Synthesisers tell when a
#: word is spoken to the millisecond, but sounds run into each other for as long as that.
TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Said:
    """A word of the reference; of a fragment, `share` is how much of it can be heard."""

    word: str
    share: float = 1.0

    @property
    def fragment(self) -> bool:
        return self.share < 1


def audible(words: Sequence[tuple[str, float, float]], begin: float, end: float) -> list[Said]:
    """The words between two positions, from words with their times in seconds."""
    said = []
    for word, start, stop in words:
        there = min(stop, end) - max(start, begin)
        if there > 0 and there >= stop - start - TOLERANCE:
            said.append(Said(word))
        elif there > TOLERANCE:
            said.append(Said(word, there / (stop - start)))
    return said


def errors(said: Sequence[Said], heard: Sequence[str]) -> int:
    """The fewest words written wrongly, left out or added that make what was said into what was heard."""
    row = list(range(len(heard) + 1))
    for one in said:
        left_out = 0 if one.fragment else 1
        diagonal, row[0] = row[0], row[0] + left_out
        for place, word in enumerate(heard, 1):
            diagonal, row[place] = (
                row[place],
                min(row[place] + left_out, row[place - 1] + 1, diagonal + (word != one.word)),
            )
    return row[-1]


def whole(said: Sequence[Said]) -> int:
    """The number of words that a rate refers to."""
    return sum(not one.fragment for one in said)


def by_half(said: Sequence[Said]) -> list[str]:
    """The transcript as it is without fragments: of what was cut, the words of which half is there."""
    return [one.word for one in said if one.share >= 0.5]
