"""partials.py: how often guesses are made."""

from __future__ import annotations

import pytest

from asrserver.inference.partials import LATE, LEAST, SHARE, SPAN, Pace

pytestmark = pytest.mark.gen_test(timeout=60)


def test_guesses_thin_out_before_finals_slow_down() -> None:
    """The interval is as asked until all growing segments together would take too much of the engine's time."""
    pace = Pace()
    assert pace.interval(0.5) == 0.5
    pace.growing = {str(n) for n in range(60)}
    for _ in range(100):
        pace.spent(0.01, 1, 0.01)
    assert pace.interval(0.5) == pytest.approx(60 * 0.01 / SHARE)
    for _ in range(40):
        pace.spent(0.0, 0, SPAN * SHARE / 80)
    assert pace.interval(0.5) == pytest.approx(60 * 0.01 / (SHARE / 2), rel=0.01)
    for to_be in ("read", "heard"):
        for _ in range(200):
            pace.waited(to_be, 1.0)
        assert pace.interval(0.5) == pytest.approx(LATE, rel=0.01)
        for _ in range(200):
            pace.waited(to_be, 0.0)
    pace.spent(0.0, 0, 0.01, 41 * 0.5)  # the 41 finals of the last seconds waited half a second on average
    assert pace.interval(0.5) == pytest.approx(LATE * 0.5, rel=0.01)
    for _ in range(100):
        pace.spent(0.0, 0, SPAN)
    assert pace.interval(0.5) == pytest.approx(60 * 0.01 / LEAST)
