"""Words and texts as their languages write them: joined, split, and normalised for comparison."""

from __future__ import annotations

import re
import unicodedata

from asrserver.text.unicode_ranges import UNSPACED

#: Languages whose texts have no spaces between words.
UNSPACED_LANGUAGES = frozenset({"zh", "ja", "yue", "th", "lo", "my", "km", "bo"})

#: A word in a text of such a language: one sign; or, of another script that is quoted there ("iPhone"), a whole word.
_WORD = re.compile(rf"(?:[^\W{UNSPACED}]|['’])+|\S")

_UNSPACED_SIGN = re.compile(f"[{UNSPACED}]")

#: Unicode categories of vowel signs and tone marks (of Thai, Lao, Burmese, Khmer): they belong to the sign before them.
_MARKS = ("Mn", "Mc", "Me")


def join(parts: list[tuple[str, str]]) -> str:
    """Join texts, given as (text, language), with a space before each text of a language that has spaces.

    A detected language may be wrong. So there is always a space between two Latin letters, or between a full stop and a
    Latin letter, whatever the languages.
    """
    text = ""
    for part, language in parts:
        if part:
            text += gap(text, part, language) + part
    return text


def gap(before: str, text: str, language: str) -> str:
    """The space, if any, between two texts, as `join` has it; nothing if one of them is empty."""
    if not before or not text:
        return ""
    latin = _is_spaced(text[0]) and (before[-1].isascii() or _is_spaced(before[-1]))
    return " " if latin or language not in UNSPACED_LANGUAGES else ""


def words(text: str, language: str) -> list[str]:
    """Split a text into its words; `glue` makes the text again."""
    if language not in UNSPACED_LANGUAGES:
        return text.split()
    found: list[str] = []
    for match in _WORD.finditer(text):
        word = match[0]
        if found and unicodedata.category(word[0]) in _MARKS:
            found[-1] += word
        else:
            found.append(word)
    return found


def glue(items: list[str], language: str) -> str:
    """Join words into a text.

    In a language without spaces there is one only between two words of other scripts.
    """
    if language not in UNSPACED_LANGUAGES:
        return " ".join(items)
    text = ""
    for word in items:
        text += f" {word}" if spaced(text, word, language) else word
    return text


def spaced(text: str, word: str, language: str) -> bool:
    """Whether there is a space between a text, which may be empty, and the word that follows it."""
    if not text or language not in UNSPACED_LANGUAGES:
        return bool(text)
    return _is_spaced(text[-1]) and _is_spaced(word[0])


def _is_spaced(character: str) -> bool:
    return character.isalnum() and not _UNSPACED_SIGN.match(character)


def bare(word: str) -> str:
    """Return a word without the punctuation around it; unchanged if it is nothing but punctuation."""
    return word.strip(" " + "".join(c for c in set(word) if unicodedata.category(c)[0] in "PS")) or word


def clean(word: str) -> str:
    """Return a word without what differs between recognitions of the same word: case, and punctuation around it."""
    return bare(word.casefold())
