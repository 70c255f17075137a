"""Word times: from what CTranslate2's align() says of tokens to words with their times and confidences."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asrserver.text.words import UNSPACED

#: Seconds of one step of the encoder's output, in which the alignment counts.
STEP = 0.02

#: {"word", "start", "end", "confidence"}: seconds, and the mean probability of its tokens.
Word = dict[str, Any]


def timed_words(
    tokens: Sequence[int], alignment: Any, decode: Callable[[Sequence[int]], str], language: str
) -> list[Word]:
    """The words of `tokens` with their times in the window; `alignment` is a WhisperAlignmentResult.

    As in Whisper's timing.py: a token begins at the first step of the path that is its own, and ends where the next
    begins; the alignment's last token is the end of the text.
    """
    pairs = np.array(alignment.alignments)
    if not len(pairs):
        return []
    first = np.concatenate([[True], np.diff(pairs[:, 0]) > 0])
    starts = dict(zip(pairs[first, 0].tolist(), (pairs[first, 1] * STEP).tolist(), strict=True))
    last = float(pairs[-1, 1] * STEP)
    found: list[Word] = []
    at = 0
    for text, count in _words(tokens, decode, language):
        begin, end = starts.get(at, last), starts.get(at + count, last)
        confidence = float(np.mean(alignment.text_token_probs[at : at + count] or [0.0]))
        times = {"start": round(begin, 2), "end": round(max(begin, end), 2)}
        found.append({"word": text, **times, "confidence": round(confidence, 3)})
        at += count
    return found


def _words(tokens: Sequence[int], decode: Callable[[Sequence[int]], str], language: str) -> list[tuple[str, int]]:
    """(word, how many tokens it takes). A character may be several tokens, a word several characters."""
    words: list[tuple[str, int]] = []
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        text = decode(waiting)
        if text.endswith("\ufffd") and len(waiting) < 4:
            continue  # the rest of a character's UTF-8 is in the next token
        stripped = text.strip()
        begins = text[:1].isspace() or language in UNSPACED
        if words and (not begins or _is_punctuation(stripped)):
            word, count = words[-1]
            words[-1] = (word + stripped, count + len(waiting))
        else:
            words.append((stripped, len(waiting)))
        waiting = []
    return [(word, count) for word, count in words if count]


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(c)[0] == "P" for c in text)
