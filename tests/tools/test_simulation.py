"""The simulation of workers and their streams (tools/simulation)."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import pytest
from simulation.costs import Call, CallCost, fit
from simulation.fleet import Machine, Outcome, sessions, simulate
from simulation.sizing import carried, largest, need

from asrserver.inference.profiles import TRAINED_ON_30_S
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.speech import Scripts, load

PLAN = Plan((), connections=4, duration=60.0, talk_ratio=0.7, session_seconds=8.0)

#: A call takes 0.2 s, whatever is in it: a worker decodes 5 rows a second, or 20 in calls of four.
MACHINE = Machine(1, CallCost(0.2, 0.0, 0.0, 0.0), TRAINED_ON_30_S, cores=2.0, beside=0.0)


def outcome(machine: Machine = MACHINE, **changes: object) -> Outcome:
    plan = replace(PLAN, **changes)  # type: ignore[arg-type]
    return simulate(machine, plan, Scripts(load(()), plan))


def test_cost_of_calls_is_found_from_their_times() -> None:
    cost = CallCost(0.01, 0.02, 0.03, 0.04)
    calls = [Call(n, w, s, cost(n, w, s)) for n in (1, 2, 4) for w in (4.0, 6.0, 8.0) for s in (1.0, 3.0)]
    found = fit(calls)
    assert (found.call, found.row, found.window, found.speech) == pytest.approx((0.01, 0.02, 0.03, 0.04))


def test_no_cost_is_negative() -> None:
    calls = [Call(1, window, 1.0, 0.5 - 0.01 * window) for window in (4.0, 6.0, 8.0)]
    assert min(astuple(fit(calls))) >= 0


def test_speech_with_short_pauses_is_one_segment() -> None:
    scripts = Scripts(load(()), PLAN)
    parted = [segment for session in sessions(PLAN, scripts, 0, silence=0.0) for segment in session]
    joined = [segment for session in sessions(PLAN, scripts, 0, silence=60.0) for segment in session]
    assert len(joined) < len(parted)
    assert all(segment.last for segment in joined)
    assert parted[-1].end == joined[-1].end


def test_lone_stream_waits_for_its_call_only() -> None:
    alone = outcome(connections=1)
    assert alone.late == 0
    assert alone.p95 == pytest.approx(0.2, abs=0.15)


def test_sessions_that_do_not_end_count_as_late() -> None:
    slow = replace(MACHINE, cost=CallCost(50.0, 0.0, 0.0, 0.0))
    found = outcome(slow)
    assert found.late > 0
    assert found.p95 == math.inf
    assert outcome(replace(MACHINE, beside=1.0)).late > 0  # four streams leave nothing of two cores


def test_results_are_later_with_more_streams_and_sooner_with_more_workers() -> None:
    few, many = outcome(connections=8), outcome(connections=64)
    assert few.p95 < many.p95
    assert outcome(replace(MACHINE, workers=2), connections=64).p95 < many.p95


def test_partial_results_become_rarer_where_streams_are_many() -> None:
    few, many = (outcome(connections=streams, partials=True) for streams in (2, 40))
    assert few.drafts / 2 > many.drafts / 40
    assert outcome(connections=2).drafts == 0


def test_twice_as_many_workers_carry_about_twice_as_many_streams() -> None:
    slow = replace(MACHINE, cost=CallCost(0.5, 0.0, 0.0, 0.0))
    plan = replace(PLAN, duration=20.0)
    one = carried(slow, plan)
    assert 1.5 * one < carried(replace(slow, workers=2), plan) < 2.5 * one


@pytest.mark.parametrize("bound", [0, 1, 7, 1000])
def test_largest_number_that_passes_is_found(bound: int) -> None:
    assert 0.96 * bound <= largest(lambda streams: streams <= bound) <= bound


def test_need_grows_with_the_streams() -> None:
    parts = {"gateway": 0.002, "Redis": 0.001, "PostgreSQL": 0.0003}
    few, many = (need(streams, 100, parts, 3.0, 0.5) for streams in (1000, 1_000_000))
    assert (few.workers, few.gateway_cores, few.shards) == (14, 4, 2)
    assert (many.workers, many.gateway_cores, many.shards) == (13334, 3334, 1667)
    assert many.client_gbit == pytest.approx(256.0)
