"""Guards against invented text: when a decoding can be trusted, and the copies of a phrase that nobody spoke."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from asrserver.inference.profiles import Profile
from asrserver.protocol.events import Word
from asrserver.text.words import clean

#: Whisper's own limits (Radford et al. 2022, §4.5). A text with a higher compression ratio repeats itself; a lower mean
#: log-probability is a guess; a guess with at least this probability of <|nospeech|> is silence.
MAX_COMPRESSION = 2.4
MIN_LOGPROB = -1.0
NO_SPEECH = 0.6

#: A decoder loops when it repeats one token this often, or a phrase of 2 to MAX_PHRASE_TOKENS tokens this often, in a
#: row. The compression ratio finds only long loops.
TOKEN_LOOP = 10
PHRASE_LOOP = 5
MAX_PHRASE_TOKENS = 8

#: Mean log-probability below which a text is half a guess, and the number of copies of a token or a phrase that count
#: as a loop then: that is how a decoder fills time in which it hears speech that it does not understand.
GUESS_LOGPROB = math.log(0.5)
GUESSED_TOKEN_LOOP = 4
GUESSED_PHRASE_LOOP = 3

#: Words of a phrase whose repetition is examined. Speakers repeat single words all the time.
MIN_COPY_WORDS = 2
MAX_COPY_WORDS = 24

#: Seconds that a spoken word takes at least, as the median over a phrase. In a copied phrase most words take none: they
#: are aligned with one frame of the speech (base: 0.00 to 0.02 s a word, 0.2 s and more for the first copy). Not the
#: mean: in noise the last words of a copy get some of the first one's time.
MIN_WORD_SECONDS = 0.06

#: Probability below which a word that takes no time was not spoken. base and tiny.en gave invented ones 0.01 to 0.1.
MIN_ADDED_WORD = 0.3

#: Marks at the end of a text after which its sentence goes on, and those that end a sentence.
CONTINUING = ("...", "\u2026", ",", ";", ":", "-", "\uff0c", "\u3001", "\uff1b", "\uff1a")
ENDING = (".", "?", "!", "\u3002", "\uff1f", "\uff01")


class Attempt:
    """One decoding of one window, and whether it can be trusted.

    Attributes:
        text: Its text.
        tokens: The tokens that are text.
        encoded: The encoder's output that it was decoded from.
        number: Its row there.
        logprob: Mean log-probability of its tokens.
        silence: It is taken for silence.
        ended: Seconds of the window at which the decoder says that the text ends; None if it says nothing.
        read: The same where an unfinished phrase was left out behind it.
    """

    def __init__(
        self, result: Any, length: int, tokens: list[int], text: str, encoded: Any, number: int, profile: Profile
    ) -> None:
        """Judge a decoding.

        Args:
            result: CTranslate2's WhisperGenerationResult.
            length: Tokens generated.
            tokens: See the attributes.
            text: Their text.
            encoded: See the attributes.
            number: See the attributes.
            profile: The model's.
        """
        self.text = text
        self.encoded = encoded
        self.number = number
        self.tokens = tokens
        self.ended: float | None = None
        self.read: float | None = None
        self.logprob = result.scores[0] * length / (length + 1)  # the end token counts too, as in the reference
        self.silence = result.no_speech_prob > (NO_SPEECH if self.unlikely else profile.no_speech)

    @property
    def unlikely(self) -> bool:
        """Whether the text is a guess."""
        return bool(self.logprob < MIN_LOGPROB)

    @property
    def guessed(self) -> bool:
        """Whether half of the text may be a guess."""
        return bool(self.logprob < GUESS_LOGPROB)

    @property
    def confidence(self) -> float:
        """Mean probability of a token, 0 to 1."""
        return round(math.exp(min(0.0, self.logprob)), 4)

    @property
    def has_duplicates(self) -> bool:
        """Whether a token occurs twice. Most texts have none that does, and need no further look."""
        return len(set(self.tokens)) < len(self.tokens)

    @property
    def repeats(self) -> bool:
        """Whether the text repeats itself over and over."""
        return self.has_duplicates and (_compresses(self.text) or loops(self.tokens))

    @property
    def failed(self) -> bool:
        """Whether another attempt may do better."""
        return not self.silence and (self.repeats or self.unlikely)

    @property
    def good(self) -> bool:
        """Whether the text can be trusted."""
        return not (self.silence or self.repeats)

    def shorten(self, tokens: list[int], text: str, probabilities: Sequence[float]) -> None:
        """Keep only the beginning of the text.

        Args:
            tokens: The tokens that stay.
            text: Their text.
            probabilities: Of the tokens that stay.
        """
        self.tokens, self.text = tokens, text
        if probabilities:
            self.logprob = sum(math.log(max(p, 1e-9)) for p in probabilities) / len(probabilities)


def breaks_off(text: str, probability: float, sure: float) -> bool:
    """Whether a text ends in mid-sentence. A text without a mark at its end does not count: some have none.

    Args:
        text: The text.
        probability: Of its last token.
        sure: Probability from which on a mark that ends a sentence is believed; 0: marks say nothing.
    """
    return sure > 0 and (text.endswith(CONTINUING) or (text.endswith(ENDING) and probability < sure))


def find_copy(words: Sequence[str], start: int = 0) -> tuple[int, int] | None:
    """Find the first phrase that is repeated at once; case and punctuation do not count.

    At the end of the text the repetition need not be complete: a decoder that loops is stopped anywhere.

    Args:
        words: The words of a text.
        start: The word from which on to look.

    Returns:
        (number of the first word of the second copy, words in it); None if no phrase is repeated.
    """
    cleaned = [clean(word) for word in words]
    for begin in range(start, len(words)):
        for size in range(MIN_COPY_WORDS, min(MAX_COPY_WORDS, len(words) - begin - MIN_COPY_WORDS) + 1):
            second = cleaned[begin + size : begin + 2 * size]
            if cleaned[begin : begin + len(second)] == second:
                return begin + size, len(second)
    return None


def begins_another(words: Sequence[str]) -> bool:
    """Whether a single word without a mark follows the last sentence of a text: the beginning of another one."""
    return len(words) > 1 and words[-2].endswith(ENDING) and not words[-1].endswith((*ENDING, *CONTINUING))


def spoken(words: Sequence[Word]) -> list[int]:
    """The numbers of the words that were spoken: all but those in which the audio does not move on.

    A speaker takes time for a phrase that they say again. A decoder that loops stays at the same place of the audio:
    alignment gives that to one of the copies, or to the beginning of the first and the end of the second.
    """
    kept = list(range(len(words)))
    start = 0
    while (copy := find_copy([words[number].word for number in kept], start)) is not None:
        begin, size = copy
        first, second = kept[begin - size : begin], kept[begin : begin + size]
        if _word_seconds(words, second) < MIN_WORD_SECONDS:
            del kept[begin : begin + size]
        elif _is_same(words, first, second) and _word_seconds(words, first) < MIN_WORD_SECONDS:
            del kept[begin - size : begin]
        else:
            start = begin
    return kept[: spoken_until([words[number] for number in kept])]


def spoken_until(words: Sequence[Word]) -> int:
    """How many words of a text were spoken.

    A decoder that does not end with the speech goes on: with another sentence ("comparatively modern. In"), or with
    something improbable ("they take no account of the idea."). Alignment gives what it adds no time. Words that take
    none and are neither may be spoken, and aligned badly.
    """
    end = len(words)
    while end and words[end - 1].end - words[end - 1].start < MIN_WORD_SECONDS:
        end -= 1
    for number in range(max(1, end), len(words)):
        if words[number - 1].word.endswith(ENDING) or words[number].confidence < MIN_ADDED_WORD:
            return number
    return len(words)


def _is_same(words: Sequence[Word], first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two phrases have the same words: the second may be only the beginning of a copy."""
    return [clean(words[number].word) for number in first] == [clean(words[number].word) for number in second]


def _word_seconds(words: Sequence[Word], numbers: Sequence[int]) -> float:
    """The median word of a phrase, without the last word: it gets what is left of the window."""
    return median(words[later].start - words[number].start for number, later in pairwise(numbers))


def unlooped(tokens: Sequence[int]) -> list[int]:
    """The places of the tokens of a guessed text that stay: of a token or a phrase that loops, the first copy."""
    kept, at = list[int](), 0
    while at < len(tokens):
        size, end = _loop_at(tokens, at)
        kept += range(at, at + size)
        at = end
    return kept


def _loop_at(tokens: Sequence[int], at: int) -> tuple[int, int]:
    """(tokens of the phrase that begins at a place, the place behind its copies, one that is not complete included)."""
    for size in range(1, MAX_PHRASE_TOKENS + 1):
        phrase, end = tokens[at : at + size], at + size
        while tokens[end : end + size] == phrase:
            end += size
        rest = tokens[end:]
        broken_off = rest == phrase[: len(rest)]
        copies = (end - at) // size + (broken_off and len(rest) > 0)
        if copies >= (GUESSED_TOKEN_LOOP if size == 1 else GUESSED_PHRASE_LOOP):
            return size, len(tokens) if broken_off else end
    return 1, at + 1


def _compresses(text: str) -> bool:
    """Whether the text repeats itself so much that it compresses well."""
    raw = text.encode()
    return len(raw) > MAX_COMPRESSION * len(zlib.compress(raw))


def loops(tokens: list[int]) -> bool:
    """Whether a token or a phrase is repeated over and over."""
    for size in range(1, MAX_PHRASE_TOKENS + 1):
        limit = size * ((TOKEN_LOOP if size == 1 else PHRASE_LOOP) - 1)
        if len(tokens) < size + limit:
            continue
        same = 0
        for one, other in zip(tokens, tokens[size:], strict=False):
            same = same + 1 if one == other else 0
            if same >= limit:
                return True
    return False
