"""Scoring: what counts as a word error, a repeated clause, a dropped stretch, a false sentence end."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation.corpus import make_take
from evaluation.limits import broken_limits
from evaluation.recognition import Recognition, judge
from evaluation.scoring import Score, score, tokens

SAID = ["Good morning, Steve. Have you heard about the new feature?", "No, tell me more."]
TEXT = " ".join(SAID)


def test_spelling_case_contractions_and_numbers_are_no_errors() -> None:
    assert (
        score(["The colour won't be 1 2 3, Mr. Smith"], "the color will not be one two three mister smith", "en").rate
        == 0
    )


def test_substitutions_insertions_and_deletions_are_told_apart() -> None:
    found = score(["open the big green door now"], "please open a big door now", "en")
    assert (found.words, found.substitutions, found.insertions, found.deletions) == (6, 1, 1, 1)
    assert found.rate == 50


def test_signs_count_as_words_in_languages_without_spaces() -> None:
    found = score(["今天天气怎么样"], "今天天汽怎么样？", "zh")
    assert (found.words, found.substitutions, found.ends) == (7, 1, 0)


def test_mandarin_is_compared_in_simplified_signs() -> None:
    assert score(["今天天气怎么样"], "今天天氣怎麼樣?", "zh").errors == 0


def test_other_languages_lose_only_case_and_punctuation() -> None:
    assert [token.word for token in tokens("¿Cuál es la Distancia?", "es")] == ["cuál", "es", "la", "distancia"]


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        (TEXT, 0),
        (TEXT + " Tell me more.", 1),
        (TEXT + " Tell me more. Tell me more.", 2),
        (TEXT + " me more", 0),  # two words are no clause
        ("Good morning, Steve. Tell me more. " + TEXT, 0),  # not in a row
    ],
)
def test_a_clause_is_repeated_if_it_is_there_twice_in_a_row(text: str, repeats: int) -> None:
    assert score(SAID, text, "en").repeats == repeats


def test_a_clause_that_was_said_twice_is_not_repeated() -> None:
    said = ["row your boat, row your boat"]
    assert score(said, said[0], "en").repeats == 0
    assert score(said, said[0] + " row your boat", "en").repeats == 1


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        (TEXT, 0),
        ("Good morning, Steve. No, tell me more.", 1),
        ("Steve. Have you heard about the new feature? No", 1),  # two words at the beginning are no stretch
        ("", 1),
    ],
)
def test_a_stretch_of_words_that_is_missing_was_dropped(text: str, dropped: int) -> None:
    assert score(SAID, text, "en").dropped == dropped


@pytest.mark.parametrize(
    ("text", "ends", "false"),
    [
        (TEXT, 2, 0),
        ("Good morning. Steve. Have you heard? About the new feature. No, tell me. More.", 5, 3),
        (
            "Good morning. Have you heard about the new feature? No, tell me more",
            2,
            0,
        ),  # the name is missing, the end right
        ("Good morning, Dr. Steve. Have you heard about the 3.5 new feature? No, tell me more", 2, 0),
        ("Good morning, Steve, yes. Have you heard about the new feature. No, tell me more.", 2, 0),
        ("Yes. Good morning, Steve, have you heard about the new feature, no, tell me more.", 1, 1),
        (TEXT.replace("?", "."), 2, 0),
        ("Nothing. At. All.", 2, 2),
    ],
)
def test_a_sentence_end_is_false_where_none_was_said(text: str, ends: int, false: int) -> None:
    found = score(SAID, text, "en")
    assert (found.ends, found.false_ends) == (ends, false)


def test_an_utterance_ends_a_sentence_without_a_mark() -> None:
    assert score(["open the door", "close the window"], "Open the door. Close the window.", "en").false_ends == 0
    assert score(["open the door close the window"], "Open the door. Close the window.", "en").false_ends == 1


def test_a_recording_is_judged_by_what_is_known_of_it() -> None:
    sound = np.ones(16000, np.float32)
    spoken = judge(make_take("a", sound, "tell me more", language="en"), Recognition("tell me", ["en", "de"]))
    assert (spoken.words, spoken.deletions, spoken.wrong_languages, spoken.noise_words) == (3, 1, 1, 0)
    assert (spoken.recordings, spoken.seconds) == (1, 1.0)
    silent = judge(make_take("b", sound, "", speech=False), Recognition("Thank you.", ["en"]))
    assert (silent.words, silent.noise_words, silent.wrong_languages, silent.dropped) == (0, 2, 0, 0)
    unknown = judge(make_take("c", sound, "", language="zh"), Recognition("", []))
    assert (unknown.words, unknown.dropped, unknown.noise_words) == (0, 1, 0)


def test_scores_are_added() -> None:
    both = Score(words=10, substitutions=1, repeats=1) + Score(words=10, deletions=1, cost=0.5)
    assert both == Score(words=20, substitutions=1, deletions=1, repeats=1, cost=0.5)
    assert both.rate == 10


def test_the_server_may_stand_a_little_behind_offline() -> None:
    offline = Score(words=1000, substitutions=30, dropped=1, false_ends=10)
    near = Score(words=1000, substitutions=30, deletions=5, dropped=1, false_ends=13)
    assert broken_limits({("clean", "offline"): offline, ("clean", "auto"): near, ("clean", "stream"): near}) == []


@pytest.mark.parametrize(
    ("score", "line"),
    [
        (Score(words=1000, insertions=36), "clean, stream: 3.60 % word errors, offline 3.00 %"),
        (Score(words=1000, repeats=1), "clean, stream: 1 repeated clauses"),
        (Score(words=1000, dropped=2), "stream: 2 stretches dropped, offline 1"),
        (Score(words=1000, false_ends=14), "stream: 14 false sentence ends, offline 10"),
        (Score(noise_words=1), "clean, stream: 1 words where nobody speaks"),
    ],
)
def test_each_limit_can_be_broken(score: Score, line: str) -> None:
    offline = Score(words=1000, substitutions=30, dropped=1, false_ends=10, repeats=3, noise_words=3)
    assert broken_limits({("clean", "offline"): offline, ("clean", "stream"): score}) == [line]


def test_without_offline_there_is_little_to_compare() -> None:
    assert broken_limits({("clean", "auto"): Score(words=10, substitutions=9, repeats=1)}) == [
        "clean, auto: 1 repeated clauses"
    ]
