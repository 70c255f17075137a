"""Speech that a decoding skipped: found by the times of the words, and put back into the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from asrserver.inference.decoding import Hypothesis
from asrserver.inference.features import FRAMES_PER_SECOND, Features
from asrserver.protocol.events import Word
from asrserver.text.words import clean, glue

#: A word that takes this long hides others. Where base left a sentence out, the alignment gave 3.8 s to an "and".
LONGEST_WORD_SECONDS = 2.0

#: This share of the frames of a skipped stretch must be as loud as speech: quieter than the median of the window by no
#: more than this, in Whisper's normalised units (0.25 for 10 dB).
LOUD_SHARE = 0.5
LOUD_DISTANCE = 0.5

#: Minimum probability of what is recognised in a skipped stretch: below it, it is the long word again, misheard.
MIN_CONFIDENCE = 0.7


def find_skipped(words: Sequence[Word], features: Features, seconds: float) -> int | None:
    """Find the longest word of a window that hides speech.

    Args:
        words: The words, with times from the start of the window.
        features: The window's, [n_mels, frames].
        seconds: Speech in it.

    Returns:
        The word's number; None if no word is too long, or only because the speaker paused.
    """
    lengths = [word.end - word.start for word in words]
    if not lengths or max(lengths) < LONGEST_WORD_SECONDS:
        return None
    number = lengths.index(max(lengths))
    loudness = features[:, : round(seconds * FRAMES_PER_SECOND)].max(axis=0)
    first, last = (round(at * FRAMES_PER_SECOND) for at in (words[number].start, words[number].end))
    loud = loudness[first:last] > np.median(loudness) - LOUD_DISTANCE
    return number if len(loud) and float(loud.mean()) >= LOUD_SHARE else None


def fill(found: Hypothesis, number: int, skipped: Hypothesis) -> Hypothesis:
    """Put the words of a skipped stretch where they belong.

    Args:
        found: What was recognised in the window.
        number: Number of the word that hides the stretch.
        skipped: What was recognised in the stretch, with times from the start of the window.

    Returns:
        Both together; `found` if nothing in the stretch can be trusted.
    """
    words, hiding = list(skipped.words), found.words[number]
    if skipped.confidence < MIN_CONFIDENCE or not words:
        return found
    if clean(words[0].word) == clean(hiding.word):
        middle = words
    else:
        if clean(words[-1].word) == clean(hiding.word):
            words.pop()
        begin = words[-1].end if words else hiding.start
        middle = [*words, Word(hiding.word, min(begin, hiding.end), hiding.end, hiding.confidence)]
    whole = [*found.words[:number], *middle, *found.words[number + 1 :]]
    return replace(found, text=glue([word.word for word in whole], found.language), words=whole)
