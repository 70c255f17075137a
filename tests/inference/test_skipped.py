"""skipped.py: speech that a decoding skipped is found and put back."""

from __future__ import annotations

import numpy as np
import pytest

from asrserver.inference.decoding import Hypothesis
from asrserver.inference.skipped import fill, find_skipped
from asrserver.protocol.events import Word


def words(*spans: tuple[str, float, float]) -> list[Word]:
    return [Word(text, start, end, 0.9) for text, start, end in spans]


WINDOW = words(("exhibition,", 1.0, 2.0), ("and", 2.0, 6.0), ("it", 6.0, 6.2))


def features(quiet: slice = slice(0, 0)) -> np.ndarray:
    """8 s, as loud as speech but for `quiet` frames."""
    loud = np.full((80, 800), 0.8, np.float32)
    loud[:, quiet] = -0.5
    return loud


def test_a_word_that_takes_seconds_of_speech_hides_others() -> None:
    assert find_skipped(WINDOW, features(), 7.0) == 1


@pytest.mark.parametrize("found", [WINDOW[:1] + WINDOW[2:], []])
def test_words_of_usual_length_hide_nothing(found: list[Word]) -> None:
    assert find_skipped(found, features(), 7.0) is None


def test_a_pause_hides_nothing() -> None:
    assert find_skipped(WINDOW, features(quiet=slice(250, 600)), 7.0) is None


@pytest.mark.parametrize(
    ("skipped", "text"),
    [
        ([("He", 2.1, 2.5), ("might", 2.5, 4.0)], "exhibition, He might and it"),
        ([("He", 2.1, 2.5), ("might", 2.5, 4.0), ("and", 5.7, 6.0)], "exhibition, He might and it"),
        ([("and", 2.1, 2.5), ("more", 2.5, 4.0)], "exhibition, and more it"),
        ([("and", 2.1, 2.5)], "exhibition, and it"),
        ([], "exhibition, and it"),
    ],
)
def test_skipped_words_are_put_back_beside_the_word_that_hid_them(
    skipped: list[tuple[str, float, float]], text: str
) -> None:
    found = Hypothesis("exhibition, and it", "en", 1.0, 0.9, list(WINDOW))
    whole = fill(found, 1, Hypothesis("…", "en", 1.0, 0.9, words(*skipped)))
    assert whole.text == " ".join(word.word for word in whole.words) == text
    times = [time for word in whole.words for time in (word.start, word.end)]
    assert times == sorted(times)


def test_a_guess_is_not_put_back() -> None:
    found = Hypothesis("exhibition, and it", "en", 1.0, 0.9, list(WINDOW))
    guess = Hypothesis("Thank you.", "en", 1.0, 0.3, words(("Thank", 2.1, 2.5), ("you.", 2.5, 4.0)))
    assert fill(found, 1, guess) is found
