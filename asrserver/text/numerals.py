"""Numerals as digits or as words: "twenty-five" and 25."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from asrserver.text import mandarin
from asrserver.text.edits import TextEdit, TextEdits
from asrserver.text.words import UNSPACED_LANGUAGES

NUMERALS = ("digits", "words")


class _Language(NamedTuple):
    """What is special in a language.

    Attributes:
        inside: Words inside of numbers that are none by themselves.
        percent: The sign in words.
        point: The sign before a fraction.
    """

    inside: frozenset[str]
    percent: str
    point: str = ","


_SPACED = {
    "da": _Language(frozenset({"og", "komma"}), "procent"),
    "de": _Language(frozenset({"und", "komma"}), "Prozent"),
    "en": _Language(frozenset({"a", "and", "point"}), "percent", "."),
    "es": _Language(frozenset({"y", "coma", "punto"}), "por ciento"),
    "fr": _Language(frozenset({"et", "virgule"}), "pour cent"),
    "it": _Language(frozenset({"e", "virgola"}), "per cento"),
    "nl": _Language(frozenset({"en", "komma"}), "procent"),
    "pt": _Language(frozenset({"e", "vírgula"}), "por cento"),
}

#: Languages whose numerals can be changed.
LANGUAGES = tuple(sorted([*_SPACED, "yue", "zh"]))

#: A number up to this stays a word where it stands alone: "one" is a pronoun too.
MAX_PLAIN_WORD = 3.0

#: "A hundred people", "thousands": alone these are no numbers.
_MULTIPLIERS = (100.0, 1e3, 1e6, 1e9, 1e12)

#: "Nineteen ninety-nine", "twenty twenty-six": two numbers that are a year.
_CENTURIES = range(11, 21)
_YEARS = range(10, 100)

#: Digits of a number that is written in words, at most.
MAX_DIGITS = 15

_TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\W|[\d_]+")
_BETWEEN = (" ", "-")

#: A number by itself, in a text without spaces, and what may become another one at the end of a text.
_ALONE = re.compile(r"(?<![!-~])([0-9]+(?:\.[0-9]+)?)(%?)(?:(?![!-~])|(?=[,.!?:;](?![0-9])))")
_OPEN = re.compile(r"[0-9][!-~]*$")

_SINGLE = str.maketrans("0123456789", "零一二三四五六七八九")

_ORDINAL = {"st", "nd", "rd", "th"}


def edits(text: str, numerals: str, language: str) -> TextEdits:
    """What is to be changed in a text so that its numerals are `digits` or `words`.

    Args:
        text: The text.
        numerals: One of NUMERALS.
        language: One of LANGUAGES.
    """
    if language in UNSPACED_LANGUAGES:
        return mandarin.edits(text) if numerals == "digits" else _mandarin_words(text)
    return _digits(text, language) if numerals == "digits" else _words(text, language)


# -- digits ----------------------------------------------------------------------------------------------------------


class _Token(NamedTuple):
    """A piece of a text, as text2num 3 wants it."""

    value: str
    start: int

    def text(self) -> str:
        return self.value

    def nt_separated(self, _previous: object) -> bool:
        return False

    def not_a_number_part(self) -> bool:
        return False


def _digits(text: str, language: str) -> TextEdits:
    """Only runs of words that can be numbers are given to the library: what it makes of one depends on nothing else."""
    tokens = [_Token(match[0], match.start()) for match in _TOKEN.finditer(text)]
    found: list[TextEdit] = []
    settled = len(text)
    for first, last in _runs(tokens, language):
        run = tokens[first:last]
        if last == len(tokens) or (last == len(tokens) - 1 and tokens[last].value in _BETWEEN):
            settled = run[0].start  # the next word may go on
        if not _follows_digits(tokens, first):
            found += _run_edits(run, language)
    return TextEdits([edit for edit in found if edit.text != text[edit.start : edit.end]], settled)


def _runs(tokens: list[_Token], language: str) -> Iterator[tuple[int, int]]:
    """(first, after the last) of the longest stretches of words that can be in numbers."""
    first = -1
    for number, token in enumerate(tokens):
        if _is_number_word(token.value.casefold(), language):
            if first < 0:
                first = number
            last = number + 1
        elif first >= 0 and not (token.value in _BETWEEN and number == last):
            yield first, last
            first = -1
    if first >= 0:
        yield first, last


def _follows_digits(tokens: list[_Token], first: int) -> bool:
    """Whether digits stand before a word: "2.5 million" is no million."""
    before = tokens[first - 2 : first] if first > 1 else []
    return bool(before) and before[1].value in _BETWEEN and before[0].value.isdigit()


@lru_cache(1 << 12)
def _is_number_word(word: str, language: str) -> bool:
    from text_to_num import find_numbers

    if word in _SPACED[language].inside:
        return True
    return word[0].isalpha() and bool(find_numbers([_Token(word, 0)], language, threshold=0.0))


def _run_edits(run: list[_Token], language: str) -> list[TextEdit]:
    from text_to_num import find_numbers

    found: list[TextEdit] = []
    year = ""
    numbers = find_numbers(run, language, threshold=MAX_PLAIN_WORD)
    for number in numbers:
        first, last = number.start, number.end
        if last - first == 1 and number.value in _MULTIPLIERS:
            continue
        if language == "en" and first >= 2 and run[first - 2].value.casefold() == "a":  # "a hundred and five"
            first -= 2
        found.append(TextEdit(run[first].start, run[last - 1].start + len(run[last - 1].value), number.text))
    if language == "en" and len(numbers) == len(found) == 2 and numbers[1].start - numbers[0].end == 1:
        century, rest = (edit.text for edit in found)
        if century.isdigit() and rest.isdigit() and int(century) in _CENTURIES and int(rest) in _YEARS:
            year = century + rest
    return [TextEdit(found[0].start, found[1].end, year)] if year else found


# -- words -----------------------------------------------------------------------------------------------------------


def _words(text: str, language: str) -> TextEdits:
    """Only what is a number from one space to the next is changed: no prices, dates, times, or names such as B2B."""
    found: list[TextEdit] = []
    settled = len(text)
    for match in re.finditer(r"\S+", text):
        if match.end() == len(text) and re.search(r"\d", match[0]):
            settled = match.start()
        core = match[0].strip("()[]\"'“”‘’«»„¿¡.,?!;:…")
        start = match.start() + match[0].index(core) if core else 0
        if core and (new := _spelled(core, language)):
            found.append(TextEdit(start, start + len(core), new))
    return TextEdits(found, settled)


def _spelled(core: str, language: str) -> str | None:
    """A number in words; None: it is none."""
    known = _SPACED[language]
    point, group = known.point, "," if known.point == "." else "."
    match = re.fullmatch(
        rf"(\d{{1,3}}(?:{re.escape(group)}\d{{3}})+|\d+)(?:{re.escape(point)}(\d+))?(%|[a-z]{{2}})?", core, re.ASCII
    )
    if match is None:
        return None
    whole, fraction, suffix = match[1].replace(group, ""), match[2], match[3] or ""
    if suffix not in ("", "%") and (language != "en" or suffix not in _ORDINAL or fraction):
        return None
    if len(whole) > 1 and whole[0] == "0" and not fraction:
        return None if suffix else " ".join(_spell(digit, language) or "" for digit in whole)
    new = _spell(f"{whole}.{fraction}" if fraction else whole, language, ordinal=suffix not in ("", "%"))
    return f"{new} {known.percent}" if new and suffix == "%" else new


def _mandarin_words(text: str) -> TextEdits:
    found: list[TextEdit] = []
    for match in _ALONE.finditer(text):
        number, percent = match.groups()
        read_singly = number[0] == "0" or (len(number) == 4 and text.startswith("年", match.end()))
        if read_singly and number.isdigit():
            new: str | None = number.translate(_SINGLE)
        else:
            new = _spell(number, "zh")
        if new:
            found.append(TextEdit(*match.span(), f"百分之{new}" if percent else new))
    growing = _OPEN.search(text)
    return TextEdits(found, growing.start() if growing else len(text))


@lru_cache(1 << 10)
def _spell(number: str, language: str, ordinal: bool = False) -> str | None:
    from num2words2 import num2words

    if len(number) > MAX_DIGITS:
        return None
    new = str(num2words(number, lang=language, to="ordinal" if ordinal else "cardinal"))
    return new.replace(",", "") if language == "en" else new
