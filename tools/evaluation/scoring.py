"""Scoring a text against what was said: word errors, repeats, what was dropped, sentence ends, languages.

Texts are compared as the field does it: in English after Whisper's own normaliser (spelling, contractions, numbers), in
languages without spaces sign by sign (Mandarin in simplified ones), in others without case and punctuation.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from opencc import OpenCC
from rapidfuzz.distance import Levenshtein
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from asrserver.text.wer import spoken
from asrserver.text.words import UNSPACED_LANGUAGES

#: Fewest words of a phrase that counts as a clause when it is said twice at once.
CLAUSE_WORDS = 3

#: Fewest words in a row that count as a dropped stretch of speech; in languages without spaces, signs.
DROPPED_WORDS = 3
DROPPED_SIGNS = 5

#: A mark that ends a sentence, with closing quotes.
_END = re.compile(r"(?:[.?!…]+[\"'”’)\]]*(?=\s|$)|[。？！])")

#: What ends with a full stop and ends no sentence.
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|prof|jr|sr|vs|etc|[a-z])\.$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Token:
    """A normalised word.

    Attributes:
        word: As it is compared.
        ends: Whether a sentence ends with it.
    """

    word: str
    ends: bool = False


@dataclass
class Score:
    """Counts of one or more recordings; scores of several are added.

    Attributes:
        recordings: How many.
        seconds: Of audio.
        cost: Seconds of CPU that recognising took.
        words: In the references.
        substitutions: Words in the place of others.
        insertions: Words that nobody said.
        deletions: Words that are missing.
        repeats: Clauses that are there twice in a row and were said once.
        dropped: Stretches of several words that are missing, and recordings of speech without any text.
        ends: Sentence ends in the texts, but the last of each.
        false_ends: Those where no sentence ends.
        wrong_languages: Recordings of which a segment was taken for another language.
        noise_words: Words found where nobody speaks.
    """

    recordings: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    words: int = 0
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    repeats: int = 0
    dropped: int = 0
    ends: int = 0
    false_ends: int = 0
    wrong_languages: int = 0
    noise_words: int = 0

    @property
    def errors(self) -> int:
        """Word errors."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Word errors in per cent of the words; NaN if there are no words."""
        return 100 * self.errors / self.words if self.words else float("nan")

    def __add__(self, other: Score) -> Score:
        names = [field.name for field in dataclasses.fields(self)]
        return Score(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Score:
        """The score in a row that `asdict` made; other items are ignored."""
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls)})

    def asdict(self) -> dict[str, Any]:
        """The counts as JSON has them."""
        return dataclasses.asdict(self)


def tokens(text: str, language: str) -> list[Token]:
    """Normalise a text into words.

    Sentences are normalised one by one, because the normalisers remove the marks between them. Numbers that follow each
    other become one, so that "1, 2, 3" is "one two three".
    """
    found: list[Token] = []
    for sentence, ends in _sentences(text):
        words = _normalised(sentence, language)
        found += [Token(word) for word in words]
        if ends and found:
            found[-1] = Token(found[-1].word, True)
    return _numbers_joined(found)


def _sentences(text: str) -> list[tuple[str, bool]]:
    """(sentence, whether a mark ends it)."""
    found, begin = [], 0
    for match in _END.finditer(text):
        if not _ABBREVIATION.search(text[begin : match.end()]):
            found.append((text[begin : match.end()], True))
            begin = match.end()
    return [*found, (text[begin:], False)]


@cache
def _english() -> Any:
    return EnglishTextNormalizer()


@cache
def _basic() -> Any:
    return BasicTextNormalizer()


@cache
def _simplified() -> Any:
    return OpenCC("t2s")


def _normalised(sentence: str, language: str) -> list[str]:
    if language in ("en", ""):
        return list(_english()(sentence).split())
    if language == "zh":
        sentence = _simplified().convert(sentence)
    if language in UNSPACED_LANGUAGES:
        return spoken(_basic()(sentence))
    return list(_basic()(sentence).split())


def _numbers_joined(found: Sequence[Token]) -> list[Token]:
    """Join each run of numbers. Whisper's normaliser writes "one" for a 1 that stands alone."""
    joined: list[Token] = []
    for is_number, run in itertools.groupby(found, lambda token: token.word.isdecimal() or token.word == "one"):
        numbers = list(run)
        if is_number and any(token.word != "one" for token in numbers):
            word = "".join("1" if token.word == "one" else token.word for token in numbers)
            numbers = [Token(word, numbers[-1].ends)]
        joined += numbers
    return joined


def reference(texts: Sequence[str], language: str) -> list[Token]:
    """The words of utterances that follow each other: a sentence may end with each."""
    found: list[Token] = []
    for text in texts:
        said = tokens(text, language)
        found += [*said[:-1], Token(said[-1].word, True)] if said else []
    return found


def score(said: Sequence[str], text: str, language: str) -> Score:
    """Score a text against the utterances that were said, which follow each other."""
    wanted, heard = reference(said, language), tokens(text, language)
    result = Score(words=len(wanted))
    run_length = DROPPED_SIGNS if language in UNSPACED_LANGUAGES else DROPPED_WORDS
    for kind, begin, end, first, last in _opcodes(wanted, heard):
        if kind == "replace":
            result.substitutions += end - begin
        elif kind == "insert":
            result.insertions += last - first
        elif kind == "delete":
            result.deletions += end - begin
            result.dropped += bool(heard) and end - begin >= run_length
    result.dropped += bool(wanted) and not heard
    result.repeats = repeats(wanted, heard)
    result.ends, result.false_ends = false_ends(wanted, heard)
    return result


def _opcodes(wanted: Sequence[Token], heard: Sequence[Token]) -> list[tuple[str, int, int, int, int]]:
    found = Levenshtein.opcodes([token.word for token in wanted], [token.word for token in heard])
    return [(code.tag, code.src_start, code.src_end, code.dest_start, code.dest_end) for code in found]


def repeats(wanted: Sequence[Token], heard: Sequence[Token]) -> int:
    """Clauses that are in a text twice in a row, unless they were said twice in a row."""
    words = [token.word for token in heard]
    said = [token.word for token in wanted]
    found = at = 0
    while at < len(words):
        length = next(
            (
                size
                for size in range(CLAUSE_WORDS, (len(words) - at) // 2 + 1)
                if words[at : at + size] == words[at + size : at + 2 * size]
                and not _contains(said, words[at : at + 2 * size])
            ),
            0,
        )
        found += length > 0
        at += length or 1
    return found


def _contains(words: Sequence[str], phrase: Sequence[str]) -> bool:
    size = len(phrase)
    return any(words[at : at + size] == phrase for at in range(len(words) - size + 1))


def false_ends(wanted: Sequence[Token], heard: Sequence[Token]) -> tuple[int, int]:
    """(sentence ends in a text, those where no sentence ends in what was said); the end of the text is none."""
    if not wanted:
        return 0, 0
    allowed = _allowed_ends(wanted, heard)
    ends = [at for at, token in enumerate(heard[:-1]) if token.ends]
    return len(ends), sum(not allowed[at] for at in ends)


def _allowed_ends(wanted: Sequence[Token], heard: Sequence[Token]) -> list[bool]:
    """For each word of a text, whether a sentence that was said ends between it and the next word.

    Words that are missing after it count: with "Good morning." for "good morning Steve." the end is right.
    """
    at = [0] * len(heard)  # words said before or with each
    for _, begin, end, first, last in _opcodes(wanted, heard):
        for number in range(first, last):
            at[number] = begin + min(number - first + 1, end - begin)
    nexts = [*at[1:], len(wanted) + 1]
    allowed = []
    for number, count in enumerate(at):
        between = wanted[max(0, count - 1) : max(count, nexts[number] - 1)]
        allowed.append(any(token.ends for token in between))
    return allowed
