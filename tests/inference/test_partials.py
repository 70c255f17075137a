"""partials.py: how often growing segments are decoded."""

from __future__ import annotations

from typing import Literal

import pytest

from asrserver.inference.partials import (
    DELAY_FACTOR,
    FREE_SPECULATION_SECONDS,
    MAX_SPECULATION_INTERVAL,
    MAX_SPECULATION_WASTE,
    MAX_WAITING_SHARE,
    MEMORY_SECONDS,
    MIN_DRAFT_SHARE,
    SPAN_SECONDS,
    PartialScheduler,
    SpeculationBudget,
)
from asrserver.inference.profiles import DEMO


def test_drafts_become_rarer_before_finals_become_slow() -> None:
    """The interval is the requested one until all growing segments together would take too much engine time."""
    partials = PartialScheduler()
    assert partials.interval(0.5) == 0.5
    for number in range(60):
        partials.opened(f"s{number}")
    for _ in range(100):
        partials.call_ended(0.01, 1, 0.01)
    assert partials.drafts == 100
    assert partials.interval(0.5) == pytest.approx(60 * 0.01 / DEMO.draft_share)
    for _ in range(40):
        partials.call_ended(0.0, 0, SPAN_SECONDS * DEMO.draft_share / 80)
    assert partials.interval(0.5) == pytest.approx(60 * 0.01 / (DEMO.draft_share / 2), rel=0.01)
    stages: tuple[Literal["read"], Literal["vad"]] = ("read", "vad")
    for stage in stages:
        for _ in range(200):
            partials.delayed(stage, 1.0)
        assert partials.interval(0.5) == pytest.approx(DELAY_FACTOR, rel=0.01)
        for _ in range(200):
            partials.delayed(stage, 0.0)
    partials.call_ended(0.0, 0, 0.01, 41 * 0.5)  # the 41 calls of the last seconds waited half a second on average
    assert partials.interval(0.5) == pytest.approx(DELAY_FACTOR * 0.5, rel=0.01)
    for _ in range(100):
        partials.call_ended(0.0, 0, SPAN_SECONDS)
    assert partials.interval(0.5) == pytest.approx(60 * 0.01 / MIN_DRAFT_SHARE)


def test_only_growing_segments_share_the_engine() -> None:
    """A session that closed its segment no longer counts, and one that opened it twice counts once."""
    partials = PartialScheduler()
    for number in range(60):
        partials.opened(f"s{number}")
        partials.opened("s0")
    partials.call_ended(0.1, 1, 0.1)
    assert partials.interval(0.5) == pytest.approx(60 * 0.1 / DEMO.draft_share)
    for number in range(50):
        partials.closed(f"s{number}")
    partials.closed("unknown")
    assert partials.interval(0.5) == pytest.approx(10 * 0.1 / DEMO.draft_share)


def test_speculation_stops_where_streams_are_read_rarely() -> None:
    partials = PartialScheduler()
    for seconds, allowed in ((0.04, True), (MAX_SPECULATION_INTERVAL, False), (1.5, False), (0.04, True)):
        partials.read_every(seconds)
        assert partials.may_speculate(SpeculationBudget()) is allowed


def test_speculation_stops_where_it_was_for_nothing_too_often() -> None:
    partials, other = PartialScheduler(), SpeculationBudget()
    partials.charge_waste(SpeculationBudget(), FREE_SPECULATION_SECONDS)
    assert partials.may_speculate(other)
    for _ in range(3):
        partials.charge_waste(SpeculationBudget(), 0.4)
    assert not partials.may_speculate(other)
    for _ in range(31):  # finals that were not for nothing
        partials.call_ended(0.0, 0, 1.0)
    assert partials.may_speculate(other)
    for _ in range(round(10 * MEMORY_SECONDS)):
        partials.call_ended(0.0, 0, 1.0)
    hours_do_not_count = FREE_SPECULATION_SECONDS + MAX_SPECULATION_WASTE * MEMORY_SECONDS
    partials.charge_waste(SpeculationBudget(), hours_do_not_count)
    assert not partials.may_speculate(other)


def test_a_hesitant_speaker_leaves_others_their_part() -> None:
    """Two streams that decode as much: at each pause one goes on, the other ends."""
    partials, hesitant, other = PartialScheduler(), SpeculationBudget(), SpeculationBudget()
    for _ in range(300):
        assert partials.may_speculate(other)
        if partials.may_speculate(hesitant):
            partials.charge_waste(hesitant, 0.3)
        for stream in (hesitant, other):
            partials.call_ended(0.0, 0, 0.3)
            stream.decode(0.3)
    assert not partials.may_speculate(hesitant)


def test_segments_wait_for_their_sentence_only_where_the_engine_has_time() -> None:
    partials = PartialScheduler(0.8)
    assert partials.may_wait
    partials.call_ended(0.0, 0, 0.7 * MAX_WAITING_SHARE * SPAN_SECONDS)
    assert partials.may_wait
    partials.call_ended(2.0, 1, 2.0)  # a draft, which gives way
    assert partials.may_wait
    partials.call_ended(0.0, 0, 0.2 * MAX_WAITING_SHARE * SPAN_SECONDS)
    assert not partials.may_wait
