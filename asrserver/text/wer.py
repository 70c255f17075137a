"""Word errors: how far a recognised text is from what was said."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

#: Scripts that put no spaces between words: each character counts as a word (kana, Han, Thai, Lao, Burmese, Khmer).
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def word_errors(reference: str | Sequence[str], hypothesis: str | Sequence[str], limit: int | None = None) -> int:
    """Levenshtein distance in words; of more than `limit`, if given, only that it is more: limit + 1.

    With a limit the time is in proportion to it and not to the square of the texts (Ukkonen 1985).
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
    """The words of a text without what cannot be heard: case and punctuation."""
    words = (
        "".join(c for c in word if unicodedata.category(c)[0] not in "PS" or c == "'") for word in _WORD.findall(text)
    )
    return [word for word in (word.casefold().strip("'") for word in words) if word]
