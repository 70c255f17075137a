"""Edits of a text: what a normalisation changes, and where.

Edits, and not just a new text, so that words keep their times: `align` says which words an edit replaces. And a text
that is still growing can be shown normalised: `TextEdits.settled` says how much of it no continuation can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import NamedTuple

from asrserver.text.words import spaced, words


class TextEdit(NamedTuple):
    """Replaces the characters from `start` to before `end` by `text`."""

    start: int
    end: int
    text: str


class TextEdits(NamedTuple):
    """What is changed in a text.

    Attributes:
        edits: In order; they do not overlap.
        settled: Characters of the text whose edits are the same whatever follows. No edit crosses this place.
    """

    edits: list[TextEdit]
    settled: int

    def apply(self, text: str) -> str:
        """The text with the edits."""
        return _apply(text, 0, len(text), self.edits)

    def apply_settled(self, text: str) -> str:
        """The part of the text that is settled, with its edits."""
        return _apply(text, 0, self.settled, [edit for edit in self.edits if edit.end <= self.settled])


class Aligned(NamedTuple):
    """Words `first` to before `last` became the words `texts`."""

    first: int
    last: int
    texts: list[str]


def place(items: Sequence[str], language: str) -> tuple[str, list[int]]:
    """Join words into a text as `words.glue` does; also where each of them begins in it."""
    text, starts = "", []
    for item in items:
        text += " " if spaced(text, item, language) else ""
        starts.append(len(text))
        text += item
    return text, starts


def align(items: Sequence[str], language: str, edits: Sequence[TextEdit]) -> list[Aligned]:
    """What becomes of words by edits of their text, see `place`. Words that one edit touches become one group."""
    text, starts = place(items, language)
    ends = [start + len(item) for start, item in zip(starts, items, strict=True)]
    inside = [any(edit.start < start < edit.end for edit in edits) for start in starts]  # words that go on an edit
    borders = [number for number in range(len(items)) if not (number and inside[number])]
    found = []
    for first, last in pairwise(chain(borders, [len(items)])):
        begin, end = starts[first], ends[last - 1]
        own = [edit for edit in edits if begin <= edit.start < end]
        new = _apply(text, begin, max([end, *(edit.end for edit in own)]), own)
        split = words(new, language)
        grown = len(split) > max(last - first, len(words(text[begin:end], language)))
        found.append(Aligned(first, last, split if grown else [new]))
    return found


def _apply(text: str, begin: int, end: int, edits: Sequence[TextEdit]) -> str:
    parts, at = [], begin
    for edit in edits:
        parts += [text[at : edit.start], edit.text]
        at = edit.end
    return "".join([*parts, text[at:end]])
