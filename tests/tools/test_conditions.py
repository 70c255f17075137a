"""Conditions: what is made of a clean recording."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation.conditions import CONDITIONS, joined, noisy, reverberant, telephone
from evaluation.corpus import Take, make_take

RATE = 16_000


def tone(hertz: float, seconds: float = 1.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def power(samples: np.ndarray) -> float:
    return float(np.mean(samples.astype(np.float64) ** 2))


def random() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture
def corpus() -> list[Take]:
    return [
        make_take("a", tone(500), "one", language="en"),
        make_take("b", tone(600, 2.0), "two", language="en"),
        make_take("c", tone(700), "三", language="zh"),
        make_take("d", tone(800), "four", language="en", checked=False),
        make_take("e", tone(900), "", language="en"),
        make_take("f", random().standard_normal(RATE // 2).astype(np.float32), "", speech=False),
    ]


@pytest.mark.parametrize("ratio", [10.0, 5.0])
def test_noise_has_the_power_that_was_asked_for(ratio: float) -> None:
    clean, noise = tone(500, 2.0, 0.1), random().standard_normal(RATE).astype(np.float32)
    mixed = noisy(clean, noise, ratio, random())
    assert 10 * np.log10(power(clean) / power(mixed - clean)) == pytest.approx(ratio, abs=0.2)


def test_pauses_do_not_make_the_noise_weaker() -> None:
    clean = np.concatenate([tone(500, 1.0, 0.1), np.zeros(3 * RATE, np.float32)])
    mixed = noisy(clean, random().standard_normal(RATE).astype(np.float32), 10.0, random())
    assert 10 * np.log10(power(clean[:RATE]) / power(mixed - clean)) == pytest.approx(10, abs=0.2)


def test_noise_does_not_clip() -> None:
    clicks = np.zeros(RATE, np.float32)
    clicks[::4000] = 1
    assert np.abs(noisy(tone(500), clicks, 5.0, random())).max() <= 1


def test_an_echo_follows_the_sound_and_fades() -> None:
    impulse = np.zeros(RATE, np.float32)
    impulse[100] = 0.5
    heard = reverberant(impulse, random())
    assert np.abs(heard).argmax() == 100
    assert np.abs(heard[:100]).max() < 1e-6
    assert power(heard[200:2000]) > 30 * power(heard[5000:6800]) > 0
    assert len(heard) > len(impulse)


def test_a_telephone_keeps_speech_and_nothing_above_its_band() -> None:
    for hertz, least, most in [(100, 0, 0.05), (1000, 0.8, 1.2), (3000, 0.6, 1.2), (5000, 0, 0.01)]:
        share = power(telephone(tone(hertz))) / power(tone(hertz))
        assert least <= share <= most, hertz


def test_a_telephone_line_has_eight_bits() -> None:
    assert len({round(float(value), 5) for value in telephone(tone(1000, level=0.001))[::2]}) < 200
    assert power(telephone(tone(1000)) - tone(1000)) > 1e-6


def test_joined_takes_keep_their_places(corpus: list[Take]) -> None:
    recording = joined(corpus[:2], 0.5, (0.2, 0.6), random())
    assert recording.seconds >= 30
    assert {one.text for one in recording.said} == {"one", "two"}
    for one in recording.said:
        begin, end = int(one.start * RATE), int(one.end * RATE)
        assert np.abs(recording.samples[begin:end]).max() > 0.2
    gaps = [after.start - before.end for before, after in zip(recording.said, recording.said[1:], strict=False)]
    assert 0.15 < min(gaps) < max(gaps) < 0.65


def test_each_condition_takes_what_it_can_use(corpus: list[Take]) -> None:
    names = {name: [take.name for take in make(corpus, [0.1])] for name, make in CONDITIONS.items()}
    assert names["clean"] == names["noise5"] == names["reverb"] == ["a", "b", "c", "d", "e"]
    assert names["none"] == ["f"]
    (recording,) = CONDITIONS["joined-long"](corpus, [0.5])
    assert {one.text for one in recording.said} == {"one", "two"}, "one language, checked"


def test_a_condition_is_the_same_at_every_run(corpus: list[Take]) -> None:
    for make in CONDITIONS.values():
        for first, second in zip(make(corpus, [0.1]), make(corpus, [0.1]), strict=True):
            assert np.array_equal(first.samples, second.samples)


def test_without_noises_none_can_be_added(corpus: list[Take]) -> None:
    assert CONDITIONS["noise10"](corpus[:2], []) == []
