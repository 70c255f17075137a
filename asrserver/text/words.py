"""Texts as their languages write them: joined, and cut into the words that are compared."""

from __future__ import annotations

import re
import unicodedata

#: How languages that do not put spaces between words are joined.
UNSPACED = frozenset({"zh", "ja", "yue", "th", "lo", "my", "km", "bo"})

#: A word of an unspaced language is a character; of a script that is spaced, in such a text ("iPhone"), a whole word.
_UNSPACED_WORD = re.compile(r"[0-9A-Za-z\u00c0-\u024f'’]+|\S")

#: Vowel signs and tone marks of Thai, Lao, Burmese and Khmer are no words: they belong to the character before them.
_MARKS = ("Mn", "Mc", "Me")


def join(parts: list[tuple[str, str]]) -> str:
    """(text, language) pairs as one text, spaced as the languages space words."""
    text = ""
    for part, language in parts:
        if part:
            text += part if not text or language in UNSPACED else " " + part
    return text


def words(text: str, language: str) -> list[str]:
    """The words of a text as they are written; `glue` makes the text of them again."""
    if language not in UNSPACED:
        return text.split()
    found: list[str] = []
    for match in _UNSPACED_WORD.finditer(text):
        word = match[0]
        if found and unicodedata.category(word[0]) in _MARKS:
            found[-1] += word
        else:
            found.append(word)
    return found


def glue(items: list[str], language: str) -> str:
    """Words as one text; between two words of a spaced script, in an unspaced text too, there is a space."""
    if language not in UNSPACED:
        return " ".join(items)
    text = ""
    for word in items:
        spaced = text and text[-1].isascii() and text[-1].isalnum() and word[0].isascii() and word[0].isalnum()
        text += f" {word}" if spaced else word
    return text


def clean(word: str) -> str:
    """A word without what a recogniser changes its mind about: case, and the punctuation around it."""
    return word.casefold().strip("".join(c for c in set(word) if unicodedata.category(c)[0] in "PS")) or word
