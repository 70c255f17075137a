"""The load tester's parts: verdicts, memory, capacity, the dashboard."""

from __future__ import annotations

import io
import math
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asrserver.loadtest import report, runner
from asrserver.loadtest.dashboard import Dashboard
from asrserver.loadtest.host import Cost
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.processes import ClientProcesses
from asrserver.loadtest.report import memory_trend, trend
from asrserver.loadtest.runner import Capacity, Outcome, Sample
from asrserver.loadtest.stats import Stats
from tests.program import NOBODY
from tests.waiting import wait_until


@pytest.mark.usefixtures("processes")
def test_a_process_that_dies() -> None:
    """Its sessions count as failed, and those of the others are still counted."""
    plan = Plan((NOBODY,), connections=2, duration=1, ramp=0, timeout=2, processes=2)
    clients = ClientProcesses(plan)
    try:
        clients.begin()
        os.kill(clients.pids[0], signal.SIGKILL)

        def done() -> bool:
            clients.listen(0.2)
            return clients.done

        wait_until(done, 60, "all processes are done")
        assert clients.stats.failures["tester"] == 1
        assert clients.stats.failures["no_connection"] >= 1
        assert "died with status -9" in clients.told[0].error
        assert Outcome(plan, stats=clients.stats).why_not
    finally:
        clients.close()


def outcome(plan: Plan, **changes: Any) -> Outcome:
    """An outcome that passes, except for the given changes of its statistics."""
    stats = Stats(sessions=5, right=5, connected=plan.connections, audio_done=50.0)
    for name, value in changes.items():
        setattr(stats, name, value)
    made = Outcome(plan, stats=stats, seconds=10.0)
    made.samples = [Sample(1.0, 5, 5, 0, 0, 5.0, float("nan"), [0.5], {"worker 1": Cost(0.5, 1 << 20)})]
    return made


def test_the_verdict() -> None:
    plan = Plan(("ws://x",), connections=5, max_finalisation=1.0)
    good = outcome(plan)
    assert good.why_not == ["finalisation p95 is nan s, above 1 s"]
    good.stats.times["finalisation"].add(0.5)
    assert good.passed
    assert good.throughput == 5.0
    assert not good.saturated
    good.samples[0].tester = [0.2, 0.95]
    assert "0.95 cores" in good.saturated
    plan = Plan(("ws://x",), connections=5)
    assert outcome(plan).passed
    assert outcome(plan, sessions=0, right=0).why_not == ["no session was correct"]
    assert outcome(plan, right=4).why_not == ["1 of 5 sessions failed"]
    assert outcome(plan, connected=4).why_not == ["4 of 5 connections were established"]
    assert not outcome(plan, failures=Counter(lost_connection=1)).passed


def test_memory_is_flat_or_grows() -> None:
    """Noise does not count as growth, even if it is correlated; growth does, under the same noise."""
    dice = random.Random(1)
    times = [float(n) for n in range(400)]
    noise = [dice.gauss(0, 1) for _ in times]
    assert trend(times, noise).word == "flat"
    wander = [math.sin(n / 40) for n in range(400)]
    assert trend(times, wander).word == "flat"
    assert trend(times, [value + n / 200 for n, value in enumerate(noise)]).word == "**grows**"
    assert trend(times, [5.0 * n for n in range(400)]).slope == pytest.approx(5.0)
    assert trend(times, [7.0] * 400).word == "flat"
    assert trend(times, noise[::-1]).noise > 0
    assert trend(times[:5], noise[:5]).word == "too short to say"
    assert trend([], []).word == "too short to say"
    one = [1.02 * (n >= 200) for n in range(400)]
    assert trend(times, one).word == "**grows**"
    assert trend(times, one, step=1.0).word == "flat to a MiB"
    assert trend(times, [n // 100 for n in range(400)], step=1.0).word == "**grows**"
    assert trend(times, [0.005 * n for n in range(400)], step=1.0).word == "**grows**"


def test_memory_is_looked_at_when_it_has_warmed_up() -> None:
    """Memory that was allocated in the first half, and one MiB in the second, does not count as growth."""

    def word(*mib: float) -> str:
        run = outcome(Plan(("ws://x",), connections=5))
        each = 100 // len(mib)
        run.samples = [
            Sample(float(n), 0, 0, 0, 0, 0.0, 0.0, [], {"gateway": Cost(0.1, int(mib[n // each] * 2**20))})
            for n in range(each * len(mib))
        ]
        return memory_trend(run, "gateway").word

    assert word(50, 60, 70, 80, 80, 80) == "flat"
    assert word(50, 60, 70, 80, 81, 81) == "flat to a MiB"
    assert word(50, 60, 70, 80, 81, 82) == "**grows**"


def test_keys_that_stay_are_told(tmp_path: Path) -> None:
    made = outcome(Plan(("ws://x",), connections=5))
    keys = {"keys": 10, "lasting_keys": 4, "memory_bytes": 2**20}
    made.redis = (keys, keys)
    assert "4 after: none left over" in "\n".join(report.notes(made))
    made.redis = (keys, {**keys, "lasting_keys": 9})
    assert "**5 left over**" in "\n".join(report.notes(made))
    report.write(tmp_path / "report.md", made, {}, "asrserver loadtest")
    assert "| keys without expiry | 4 | 9 |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("limit", [0, 1, 7, 8, 9, 100, 497, 1000])
def test_find_capacity(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """The largest number of streams that passes, to a tenth, and never more than allowed."""
    tried: list[int] = []

    def run(plan: Plan, *_: Any) -> Outcome:
        tried.append(plan.connections)
        return outcome(plan, right=5 if plan.connections <= limit else 4)

    monkeypatch.setattr(runner, "run", run)
    capacity = runner.find_capacity(Plan(("ws://x",), connections=500), None, None)  # type: ignore[arg-type]
    assert min(limit, 500) / 1.1 - 1 <= capacity.streams <= min(limit, 500)
    assert max(tried) <= 500
    assert len(tried) == len(set(tried)) < 16
    assert capacity.shown.passed == (limit > 0)
    assert isinstance(capacity, Capacity)


def test_the_search_ends_in_time_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the deadline no level begins once one has passed; until then, smaller ones do."""
    tried: list[int] = []

    def run(plan: Plan, *_: Any) -> Outcome:
        tried.append(plan.connections)
        return outcome(plan, right=5 if plan.connections <= 3 else 4)

    monkeypatch.setattr(runner, "run", run)
    plan = Plan(("ws://x",), connections=500)
    capacity = runner.find_capacity(plan, None, None, first=16, deadline=0.0)  # type: ignore[arg-type]
    assert tried == [16, 8, 4, 2]
    assert (capacity.streams, capacity.limit) == (2, 4)


def test_the_dashboard() -> None:
    """The output on a terminal."""
    shown = outcome(Plan(("ws://x",), connections=5), right=4)
    shown.stats.failures["wrong_text"] += 1
    shown.stats.times["ack"].add(0.005)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(Dashboard.drawn(shown))
    text = console.export_text()
    for words in ("sessions correct", "wrong_text 1", "ack", "5 ms", "worker 1", "tester 1"):
        assert words in text
