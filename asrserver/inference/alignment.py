"""Word times: turns the token alignment of CTranslate2's align() into words with times and confidences."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asrserver.protocol.events import Word
from asrserver.text.words import UNSPACED_LANGUAGES

#: Seconds of one step of the encoder's output, the unit of an alignment.
STEP_SECONDS = 0.02


def timed_words(
    tokens: Sequence[int], alignment: Any, decode: Callable[[Sequence[int]], str], language: str
) -> list[Word]:
    """Time the words of a decoded window.

    The method is that of Whisper's timing.py: a token begins at the first step of the alignment path that belongs to
    it and ends where the next token begins; the alignment's last token is the end of the text.

    Args:
        tokens: The text tokens of the window.
        alignment: Their ctranslate2 WhisperAlignmentResult.
        decode: Turns tokens into text.
        language: Language code, which decides whether words are separated by spaces.

    Returns:
        The words in order. Their times are seconds from the start of the window.
    """
    pairs = np.array(alignment.alignments)
    if not len(pairs):
        return []
    first = np.concatenate([[True], np.diff(pairs[:, 0]) > 0])
    starts = dict(zip(pairs[first, 0].tolist(), (pairs[first, 1] * STEP_SECONDS).tolist(), strict=True))
    last = float(pairs[-1, 1] * STEP_SECONDS)
    found: list[Word] = []
    at = 0
    for text, count in split_words(tokens, decode, language):
        begin, end = starts.get(at, last), starts.get(at + count, last)
        confidence = float(np.mean(alignment.text_token_probs[at : at + count] or [0.0]))
        found.append(Word(text, round(begin, 2), round(max(begin, end), 2), round(confidence, 3)))
        at += count
    return found


def shifted(word: Word, seconds: float) -> Word:
    """The word `seconds` later."""
    return Word(word.word, round(word.start + seconds, 3), round(word.end + seconds, 3), word.confidence)


def split_words(tokens: Sequence[int], decode: Callable[[Sequence[int]], str], language: str) -> list[tuple[str, int]]:
    """(word, number of its tokens) in order; joined as their language is written, they make the text again.

    A character may take several tokens, a word several characters. A mark belongs to the word that it is written at:
    one that opens (¿ or “) to the word behind it; one that stands alone (–) to the word before it, with its space.
    """
    is_unspaced = language in UNSPACED_LANGUAGES
    words: list[tuple[str, int]] = []
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        text = decode(waiting)
        if not text.strip() or (text.endswith("\ufffd") and len(waiting) < 4):
            continue  # the rest of a character's UTF-8 is in the next token, and so is the word behind a lone space
        piece = text.strip()
        before = words[-1][0] if words else ""
        if is_unspaced:
            goes_on = _is_opening(before) or (_is_punctuation(piece) and not _is_opening(piece))
        else:
            goes_on = not text[0].isspace()
        if words and goes_on:
            words[-1] = (before + piece, words[-1][1] + len(waiting))
        else:
            words.append((piece, len(waiting)))
        waiting = []
    return words if is_unspaced else _without_lone_marks(words)


def _without_lone_marks(words: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Words with spaces between them, of which none is only punctuation if there is another."""
    found: list[tuple[str, int]] = []
    for word, count in words:
        if found and (_is_punctuation(word) or _is_punctuation(found[-1][0])):
            before, tokens = found.pop()
            word, count = f"{before} {word}", tokens + count
        found.append((word, count))
    return found


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(c)[0] == "P" for c in text)


def _is_opening(text: str) -> bool:
    """Whether there are only marks that open: brackets, and quotation marks of one direction."""
    return bool(text) and all(unicodedata.category(c) in ("Ps", "Pi") for c in text)
