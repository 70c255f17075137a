"""agreement.py and text/words.py: which words are stable, and how languages separate words."""

from __future__ import annotations

import itertools

import pytest

from asrserver.inference.agreement import (
    MIN_CONFIDENCE,
    MIN_SEGMENT_SECONDS,
    MIN_SPACING_SECONDS,
    MIN_WORD_CONFIDENCE,
    SURE_CONFIDENCE,
    SURE_LAG_SECONDS,
    Agreement,
)
from asrserver.protocol.events import Word
from asrserver.text.words import clean, glue, join, words


def decodings(
    *texts: str, language: str = "en", start: float = MIN_SEGMENT_SECONDS, step: float = MIN_SPACING_SECONDS
) -> list[tuple[str, str]]:
    """(text, stable) after each decoding of a segment that grows by `step` seconds."""
    agreement = Agreement()
    found = []
    for number, text in enumerate(texts):
        agreement.update(text, language, 1.0, start + number * step)
        found.append((agreement.text, agreement.stable))
    return found


def test_what_two_decodings_agree_on_is_stable_except_the_last_word() -> None:
    """The last word may be half a word: it waits until another follows."""
    assert decodings("turn on", "turn on the", "turn on the kitchen light") == [
        ("turn on", ""),
        ("turn on the", "turn"),
        ("turn on the kitchen light", "turn on"),
    ]


def test_stable_words_stay() -> None:
    """Whatever later decodings say; the hypothesis continues behind them."""
    texts = ["make a call to david", "make a call to anna", "take a ball", "take a ball", "make a call to anna now"]
    found = decodings(*texts)
    assert [stable for _, stable in found] == ["", *["make a call to"] * 3, "make a call to"]
    assert found[2][0] == "make a call to"
    assert found[4][0] == "make a call to anna now"


@pytest.mark.parametrize(
    ("confidence", "start", "step"),
    [(MIN_CONFIDENCE - 0.01, MIN_SEGMENT_SECONDS, MIN_SPACING_SECONDS), (1, 0, 0.1), (1, MIN_SEGMENT_SECONDS, 0.1)],
)
def test_unreliable_decodings_agree_with_nothing(confidence: float, start: float, step: float) -> None:
    """Those with low confidence, of too little audio, or of nearly the same audio."""
    agreement = Agreement()
    for number in range(5):
        agreement.update("four five six seven", "en", confidence, start + number * step)
    assert (agreement.text, agreement.stable) == ("four five six seven", "")


def test_a_decoding_in_between_that_disagrees_prevents_agreement() -> None:
    found = decodings("one two three", "one two three", "five six seven", "one two three", step=MIN_SPACING_SECONDS / 3)
    assert {stable for _, stable in found} == {""}


def test_case_and_punctuation_do_not_count() -> None:
    """A word keeps the spelling that it had when it became stable."""
    found = decodings("Hello. How are", "Hello, how are you", "hello how are you today")
    assert found[-1] == ("Hello, how are you today", "Hello, how are")


def test_languages_without_spaces_agree_by_characters() -> None:
    found = decodings("打开厨", "打开厨房的", "打开厨房的灯", language="zh")
    assert found[-1] == ("打开厨房的灯", "打开厨房")


def test_update_returns_whether_anything_changed() -> None:
    agreement = Agreement()
    assert agreement.update("one two", "en", 1.0, 1.0)
    assert not agreement.update("one two", "en", 0.5, 1.1)
    assert agreement.update("one two", "en", 1.0, 2.0) is False
    assert agreement.update("one two", "en", 1.0, 2.0 + MIN_SPACING_SECONDS)


def test_revised_words_are_counted() -> None:
    agreement = Agreement()
    for seconds in (MIN_SEGMENT_SECONDS, MIN_SEGMENT_SECONDS + MIN_SPACING_SECONDS):
        agreement.update("turn on the radio please", "en", 1.0, seconds)
    assert agreement.stable == "turn on the radio"
    assert agreement.revised("turn on the radio please", "en") == (0, 4)
    assert agreement.revised("Turn on, the light", "en") == (1, 4)
    assert agreement.revised("", "en") == (4, 4)


@pytest.mark.parametrize("step", [0.1, 0.3, 0.5, 1.0])
def test_the_stable_text_only_grows(step: float) -> None:
    vocabulary = itertools.cycle(["a", "b", "a b", "a b c", "b c", "a b c d e", "a b d"])
    agreement = Agreement()
    before = ""
    for number in range(100):
        agreement.update(next(vocabulary), "en", 1.0, 1 + number * step)
        assert agreement.stable.startswith(before)
        assert agreement.text.startswith(agreement.stable)
        before = agreement.stable


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("turn on  the light.", "en", ["turn", "on", "the", "light."]),
        ("打开灯", "zh", ["打", "开", "灯"]),
        ("打开 iPhone 15 的灯", "zh", ["打", "开", "iPhone", "15", "的", "灯"]),
        ("打开 café à 北京 и привет мир", "zh", ["打", "开", "café", "à", "北", "京", "и", "привет", "мир"]),
        ("don’t 停", "zh", ["don’t", "停"]),
        ("ที่นี่", "th", ["ที่", "นี่"]),
        ("", "en", []),
    ],
)
def test_words(text: str, language: str, expected: list[str]) -> None:
    found = words(text, language)
    assert found == expected
    assert words(glue(found, language), language) == found


def test_texts_are_joined_with_or_without_spaces_by_language() -> None:
    assert join([("hello", "en"), ("", "en"), ("world", "en")]) == "hello world"
    assert join([("打开", "zh"), ("灯", "zh")]) == "打开灯"
    assert glue(["iPhone", "15", "的"], "zh") == "iPhone 15的"
    assert glue(["在", "café", "à", "北", "京"], "zh") == "在café à北京"


def test_words_are_compared_without_case_and_punctuation() -> None:
    written = ("Hello,", "“yes”", "don't", "...", "灯。")
    assert [clean(word) for word in written] == ["hello", "yes", "don't", "...", "灯"]


def timed(text: str, step: float = 0.3, confidence: float = 0.9) -> list[Word]:
    """Words of `step` seconds each, one after another."""
    return [Word(word, n * step, (n + 1) * step, confidence) for n, word in enumerate(text.split())]


def test_timed_words_that_two_decodings_agree_on_are_stable_unless_the_audio_ends_with_them() -> None:
    agreement = Agreement()
    assert agreement.update_timed(timed("turn on"), "en", 0.6)
    assert agreement.stable == ""
    agreement.update_timed(timed("turn on the light"), "en", 1.2)
    assert agreement.stable == "turn on"
    agreement.update_timed(timed("turn on the light"), "en", 1.2)
    assert agreement.stable == "turn on the"
    agreement.update_timed(timed("turn on the light"), "en", 1.2, paused=True)
    assert (agreement.text, agreement.stable) == ("turn on the light", "turn on the light")


def test_a_probable_timed_word_of_long_ago_is_stable_at_once() -> None:
    agreement = Agreement()
    agreement.update_timed(timed("turn on the light", confidence=SURE_CONFIDENCE), "en", 0.65 + SURE_LAG_SECONDS)
    assert agreement.stable == "turn on"


def test_an_improbable_timed_word_holds_back_what_follows_it() -> None:
    agreement = Agreement()
    words = timed("this passing as an example", confidence=0.9)
    words[2] = Word("as", 0.6, 0.9, MIN_WORD_CONFIDENCE - 0.01)
    for _ in range(3):
        agreement.update_timed(words, "en", 3.0)
    assert agreement.stable == "this passing"


def test_timed_words_that_are_stable_stay() -> None:
    agreement = Agreement()
    agreement.update_timed(timed("call david"), "en", 3.0)
    agreement.update_timed(timed("tall david now"), "en", 3.0)
    assert (agreement.text, agreement.stable) == ("call david now", "call david")
    agreement.update_timed(timed("tall david now"), "en", 3.0)
    assert agreement.stable == "call david"  # a decoding that contradicts it adds nothing to it


def test_the_mark_behind_the_last_stable_word_is_decided_by_what_follows() -> None:
    agreement = Agreement()
    agreement.update_timed(timed("Good morning, Steve."), "en", 3.0)
    assert (agreement.text, agreement.stable) == ("Good morning, Steve.", "Good morning, Steve")
    agreement.update_timed(timed("Good morning, Steve, how"), "en", 1.2)
    assert (agreement.text, agreement.stable) == ("Good morning, Steve, how", "Good morning, Steve")
    agreement.update_timed(timed("Good morning, Steve, how are"), "en", 3.0)
    assert agreement.stable == "Good morning, Steve, how are"
