"""The load tester's plan: its texts and their length, and figures computed from results."""

from __future__ import annotations

import itertools

import pytest

from asrserver.loadtest.plan import Plan, duration, parse_duration
from asrserver.loadtest.speech import Scripts, load
from asrserver.loadtest.stats import Histogram, Stats, total
from asrserver.text.wer import word_errors


def test_no_two_sessions_say_the_same() -> None:
    """Sessions that are open together have different texts, and another session's text is recognised as such."""
    plan = Plan(("ws://x",), connections=500, talk_ratio=0.3)
    scripts = Scripts(load(()), plan)
    assert scripts.told_apart
    for number in (0, 1, 17):
        begins = [tuple(one.text for one in scripts.first(connection, number)) for connection in range(500)]
        assert len(set(begins)) == 500
    for a, b in itertools.combinations(scripts.sentences, 2):
        assert word_errors(a.words, b.words) * 2 >= max(len(a.words), len(b.words))
    parts = list(scripts.script(3, 1))
    speech = sum(part.sentence.seconds for part in parts)
    whole = speech + sum(part.quiet for part in parts) / 10
    assert 20 <= whole < 40
    assert parts == list(scripts.script(3, 1))
    text = [word for part in parts for word in part.sentence.words]
    assert not scripts.is_of_another_session(text, 3, 1)
    assert scripts.is_of_another_session(text, 4, 1)
    assert scripts.is_of_another_session(text, 3, 2)
    everything = [part for number in range(40) for part in scripts.script(number, 0)]
    talk = sum(part.sentence.seconds for part in everything)
    assert talk / (talk + sum(part.quiet for part in everything) / 10) == pytest.approx(0.3, abs=0.05)


def test_histograms_add_up() -> None:
    one, other = Histogram(), Histogram()
    for value in range(1, 1001):
        (one if value % 2 else other).add(value / 1000)
    before = one.copy()
    one += other
    assert one.count == 1000
    for share in (0.5, 0.95, 0.99):
        assert one.percentile(share) == pytest.approx(share, rel=0.03)
    assert one.percentile(1.0) == one.longest == 1.0
    assert one.since(before).count == 500
    assert Histogram().percentile(0.5) != Histogram().percentile(0.5)  # not a number
    assert total([Stats(right=1), Stats(right=2, examples=[{}] * 50)]).right == 3
    assert len(total([Stats(examples=[{}] * 50)]).examples) == 20


def test_durations() -> None:
    values = {"30s": 30, "5m": 300, "1h": 3600, "1h30m": 5400, "90": 90, "2m30s": 150, "1.5m": 90}
    assert {text: parse_duration(text) for text in values} == values
    for text in ("", "s", "5 minutes", "-3s", "1s1h", "nan"):
        with pytest.raises(ValueError, match="is not a duration"):
            parse_duration(text)
    assert duration(1.0)("1s") == 1.0
