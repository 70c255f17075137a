"""fragments.py: the demo model's evaluation counts errors on speech that was cut inside a word."""

from __future__ import annotations

import itertools
import random

import pytest
from fragments import Said, audible, by_half, errors, whole

from asrserver.text.wer import word_errors

SAID = [Said("green", 0.4), Said("song"), Said("call"), Said("henry", 0.7)]


@pytest.mark.parametrize(
    ("heard", "wrong"),
    [
        ("song call", 0),  # fragments may be left out
        ("green song call", 0),  # and may be written, each for itself
        ("song call henry", 0),
        ("green song call henry", 0),
        ("thirty song call", 1),  # another word in a fragment's place is an error
        ("thirty song call charlie", 2),
        ("green call", 1),  # so is a whole word that is left out
        ("song", 1),
        ("green sung call", 1),  # that is another
        ("song the call", 1),  # or that nobody said
        ("green green song call", 1),  # a fragment is one word
        ("song call henry henry", 1),
        ("henry song call green", 2),  # and has its place
        ("", 2),
    ],
)
def test_fragments_may_be_left_out_and_nothing_else(heard: str, wrong: int) -> None:
    assert errors(SAID, heard.split()) == wrong


def test_characters_count_like_words() -> None:
    said = [Said("星", 0.3), Said("期"), Said("六", 0.9)]
    assert [errors(said, text) for text in ("期", "星期", "期六", "七期", "星六", "期六六")] == [0, 0, 0, 1, 1, 1]


def test_errors_are_those_of_the_best_transcript() -> None:
    """The best of all transcripts with and without each fragment counts; without fragments these are word errors."""
    rng = random.Random(3)
    for _ in range(300):
        said = [Said(rng.choice("abc"), rng.choice([1.0, 1.0, 0.5])) for _ in range(rng.randrange(7))]
        heard = [rng.choice("abc") for _ in range(rng.randrange(7))]
        choices = itertools.product(*([[one.word], []] if one.fragment else [[one.word]] for one in said))
        assert errors(said, heard) == min(word_errors(list(itertools.chain(*words)), heard) for words in choices)


def test_what_is_a_fragment() -> None:
    words = [("call", 0.0, 0.3), ("henry", 0.3, 0.7), ("at", 0.7, 0.8), ("two", 0.8, 1.2)]

    def cut(begin: float, end: float) -> list[tuple[str, bool]]:
        return [(one.word, one.fragment) for one in audible(words, begin, end)]

    assert cut(0, 1.2) == [("call", False), ("henry", False), ("at", False), ("two", False)]
    assert cut(0.2, 0.5) == [("call", True), ("henry", True)]
    assert cut(0.35, 0.6) == [("henry", True)]  # cut on both sides
    assert cut(0.015, 1.19) == cut(0, 1.2)  # two frames missing are none,
    assert cut(0.285, 0.715) == [("henry", False)]  # and two frames there are none
    said = audible(words, 0.1, 0.45)
    assert [one.share for one in said] == pytest.approx([2 / 3, 3 / 8])
    assert whole(said) == 0
    assert by_half(said) == ["call"]
