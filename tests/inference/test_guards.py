"""guards.py: loops, and copies of phrases that nobody spoke."""

from __future__ import annotations

from itertools import pairwise

import pytest

from asrserver.inference.guards import breaks_off, find_copy, loops, spoken, unlooped
from asrserver.protocol.events import Word


@pytest.mark.parametrize(
    ("tokens", "is_loop"),
    [
        ([1] * 9, False),
        ([1] * 10, True),
        ([1, 2] * 4, False),
        ([9, *[1, 2] * 5, 7], True),
        ([1, 2, 3, 4, 5, 6] * 5, True),
        (list(range(50)), False),
        ([], False),
    ],
)
def test_a_repeated_token_or_phrase_is_a_loop(tokens: list[int], is_loop: bool) -> None:
    assert loops(tokens) is is_loop


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        ([1, 1, 1], [1, 1, 1]),
        ([9, 1, 1, 1, 1, 7], [9, 1, 7]),
        ([1, 2, 1, 2, 7], [1, 2, 1, 2, 7]),
        ([9, 1, 2, 1, 2, 1, 2, 7], [9, 1, 2, 7]),
        ([9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2], [9, 1, 2, 3]),  # the last copy was cut off
        ([9, 1, 2, 3, 1, 2, 3, 1], [9, 1, 2, 3]),  # and it counts
        ([9, 1, 2, 3, 1, 2, 3], [9, 1, 2, 3, 1, 2, 3]),
        ([], []),
    ],
)
def test_of_a_loop_in_a_guessed_text_one_copy_stays(tokens: list[int], kept: list[int]) -> None:
    assert [tokens[place] for place in unlooped(tokens)] == kept


@pytest.mark.parametrize(
    ("text", "copy"),
    [
        ("ask not what your country can do", None),
        ("no no no", None),  # two words at least
        ("Well, good luck with that. Well, good luck with that.", (5, 5)),
        ("and so and so on", (2, 2)),
        ("good morning Steve good morning Katie", None),  # not at once
        ("Drop the two when you add. Drop the two", (6, 3)),
        ("Good morning, Steve. Good morning", (3, 2)),
        ("Good morning, Steve. Good", None),
        ("", None),
    ],
)
def test_a_phrase_that_is_repeated_at_once_is_found(text: str, copy: tuple[int, int] | None) -> None:
    assert find_copy(text.split()) == copy


@pytest.mark.parametrize(
    ("text", "probability", "expected"),
    [
        ("Good morning.", 0.95, False),
        ("And so, my fellow Americans.", 0.6, True),
        ("Thomas Piketty in his book,", 0.95, True),
        ("takes no account of...", 0.95, True),
        ("\u4eca\u5929\u5929\u6c14\u600e\u4e48\u6837\uff1f", 0.9, False),
        ("\u8857\u9053\u65c1\u7684\u94f6\u674f\u6811\uff0c", 0.9, True),
        ("turn on the light", 0.3, False),  # models that write no marks say nothing by that
        ("", 0.0, False),
    ],
)
def test_a_text_breaks_off_where_its_last_mark_says_so(text: str, probability: float, expected: bool) -> None:
    assert breaks_off(text, probability, 0.85) is expected
    assert not breaks_off(text, probability, 0.0)


def timed(*words: tuple[str, float]) -> list[Word]:
    """Words that begin where the word before them ends, each with its length in seconds."""
    found, at = [], 0.0
    for word, seconds in words:
        found.append(Word(word, round(at, 2), round(at + seconds, 2), 0.9))
        at += seconds
    return found


def kept(words: list[Word]) -> str:
    """What stays of a text."""
    return " ".join(words[number].word for number in spoken(words))


def test_a_copy_in_which_the_audio_does_not_move_on_was_not_spoken() -> None:
    """As base aligned it: the copies' words take no time, but for the last of them, which ends with the speech."""
    first = timed(("What", 0.32), ("can", 0.22), ("I", 0.2), ("do?", 0.3))
    copied = timed(("What", 0.0), ("can", 0.0), ("I", 0.0), ("do?", 0.12))
    after = timed(("Nothing.", 0.4))
    at = first[-1].end
    later = [Word(word.word, word.start + at, word.end + at, 0.9) for word in (*copied, *copied, *after)]
    assert kept([*first, *later]) == "What can I do? Nothing."


def test_in_noise_a_copy_takes_some_of_the_time() -> None:
    """As base aligned a sentence of 2.5 s at 5 dB that it wrote twice: three words of the copy take none."""
    starts = [0.0, 0.72, 0.98, 1.44, 1.78, 1.78, 1.78, 1.78, 1.78, 1.78, 1.86, 2.08, 2.5]
    texts = ["Ethan's", "stripe", "runs", "down", "the", "middle."] * 2
    words = [Word(text, *times, 0.9) for text, times in zip(texts, pairwise(starts), strict=True)]
    assert kept(words) == "Ethan's stripe runs down the middle."


def test_a_sentence_may_be_aligned_with_two_of_its_copies() -> None:
    """As tiny.en aligned a sentence that it wrote six times: from its fourth word on the second copy has the time."""
    texts = ["of", "first", "importance", "that", "the", "letter", "be", "fine."]
    starts = [0.0, 0.36, 0.7, *[0.98] * 8, 1.18, 1.66, 2.24, 2.6, 3.3, *[4.8] * 9]
    words = [Word(text, *times, 0.9) for text, times in zip(texts * 3, pairwise(starts), strict=True)]
    assert kept(words) == " ".join(texts)
    assert kept(words[:20]) == " ".join(texts)  # the last copy was cut off


def test_what_a_speaker_says_twice_stays() -> None:
    words = timed(*[(word, 0.25) for word in ["row", "your", "boat", "row", "your", "boat", "gently"]])
    assert kept(words) == "row your boat row your boat gently"


def test_a_copy_after_a_real_repetition_is_found() -> None:
    real = timed(*[(word, 0.25) for word in ["row", "your", "boat", "row", "your", "boat"]])
    end = real[-1].end
    copied = [Word(word, end, end, 0.9) for word in ["row", "your", "boat"]]
    assert kept([*real, *copied]) == "row your boat row your boat"


def test_what_follows_the_speech_and_takes_no_time_was_not_spoken() -> None:
    """As tiny.en aligned a clip of 1.9 s from a telephone, and a lecture cut in mid-sentence."""
    sentence = timed(("in", 0.2), ("being", 0.32), ("comparatively", 0.72), ("modern.", 0.64))
    end = sentence[-1].end
    assert kept([*sentence, Word("In", end, end, 0.859)]) == "in being comparatively modern."
    assert kept([*sentence, Word("In", end, end + 0.2, 0.859)]) == "in being comparatively modern. In"
    clause = timed(("take", 0.36), ("no", 0.36), ("account", 0.6), ("of", 1.8))
    end = clause[-1].end
    assert kept([*clause, Word("the", end, end, 0.054), Word("idea.", end, end, 0.079)]) == "take no account of"
    assert kept([*clause, Word("the", end, end, 0.054)]) == "take no account of"
    assert kept([*clause, Word("it.", end, end, 0.9)]) == "take no account of it."  # it may be real
    assert kept([*clause, Word("it.", end, end, 0.9), Word("Or", end, end, 0.9)]) == "take no account of it."
    assert kept([Word("The", 0.0, 0.0, 0.1)]) == "The"
