"""highpass.py: a filter's definition, sample by sample, against what it computes by blocks."""

from __future__ import annotations

import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE
from asrserver.inference.highpass import BLOCK, CUTOFF, HighPass


def gain(hertz: float) -> float:
    """In decibels."""
    wave = np.sin(2 * np.pi * hertz * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    passed = HighPass().filter(wave)[SAMPLE_RATE:]
    return float(10 * np.log10(2 * np.mean(passed**2)))


def test_it_is_a_butterworth_filter_of_second_order() -> None:
    for hertz in (20, 50, CUTOFF, 120, 1000):
        assert gain(hertz) == pytest.approx(-10 * np.log10(1 + (CUTOFF / hertz) ** 4), abs=0.1)


def test_an_offset_from_the_beginning_makes_no_sound() -> None:
    assert np.abs(HighPass().filter(np.full(100 * BLOCK, 0.3, np.float32))).max() < 1e-5


def test_pieces_give_what_the_whole_gives() -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, 96 * BLOCK).astype(np.float32)
    pieces = HighPass()
    found = [pieces.filter(noise[at : at + 8 * BLOCK]) for at in range(0, len(noise), 8 * BLOCK)]
    np.testing.assert_allclose(np.concatenate(found), HighPass().filter(noise), atol=1e-6)


def test_one_that_begins_in_the_middle_soon_gives_the_same() -> None:
    """A next owner's filter is warm before the first sample that counts."""
    noise = (0.2 + np.random.default_rng(2).normal(0, 0.1, 2 * SAMPLE_RATE)).astype(np.float32)
    late = HighPass().filter(noise[100 * BLOCK :])
    np.testing.assert_allclose(late[-SAMPLE_RATE:], HighPass().filter(noise)[-SAMPLE_RATE:], atol=1e-5)
