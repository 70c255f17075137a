"""Word errors: the edit distance in words between a recognised text and a reference."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from asrserver.text.unicode_ranges import UNSPACED

#: In scripts without spaces each sign counts as a word.
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def word_errors(reference: str | Sequence[str], hypothesis: str | Sequence[str], limit: int | None = None) -> int:
    """Return the Levenshtein distance in words.

    Args:
        reference: A text whose words are separated by spaces, or a sequence of words.
        hypothesis: The same, of the text to be judged.
        limit: If given, a greater distance is returned as limit + 1, and the time is proportional to the limit and not
            to the square of the length (Ukkonen 1985).
    """
    wanted = reference.split() if isinstance(reference, str) else reference
    found = hypothesis.split() if isinstance(hypothesis, str) else hypothesis
    same = next(
        (i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), min(len(wanted), len(found))
    )
    wanted, found = wanted[same:], found[same:]
    bound = max(len(wanted), len(found)) if limit is None else limit
    if abs(len(wanted) - len(found)) > bound:
        return bound + 1
    row = list(range(len(found) + 1))
    for i, word in enumerate(wanted, 1):
        first, last = max(1, i - bound), min(len(found), i + bound)
        diagonal = row[first - 1]
        row[first - 1] = i if first == 1 else bound + 1
        for j in range(first, last + 1):
            above = row[j] if j < i + bound else bound + 1
            diagonal, row[j] = row[j], min(above + 1, row[j - 1] + 1, diagonal + (word != found[j - 1]))
    return min(row[-1], bound + 1)


def spoken(text: str) -> list[str]:
    """Return the words of a text without what cannot be heard: case and punctuation."""
    words = (
        "".join(c for c in word if unicodedata.category(c)[0] not in "PS" or c == "'") for word in _WORD.findall(text)
    )
    return [word for word in (word.casefold().strip("'") for word in words) if word]
