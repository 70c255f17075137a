"""The comparison of benchmarks with those of earlier commits (tools/bench.py)."""

from __future__ import annotations

import json
from pathlib import Path

import bench
import pytest

NAME = "typed events to dicts, time"

ABOUT = {"at": "2026-11-30T01:00:00+00:00", "commit": "abc", "cpu": "fast"}


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "RECORDS", tmp_path / "ratios.json")
    return tmp_path / "ratios.json"


def test_record_is_median_and_range_a_line_each(records: Path) -> None:
    bench.record(ABOUT, {"a": [3.0, 1.0, 2.0]})
    bench.record(ABOUT, {"a": [1.0]})
    assert [each["ratios"]["a"] for each in json.loads(records.read_text())] == [[2.0, 1.0, 3.0], [1.0, 1.0, 1.0]]
    assert len(records.read_text().splitlines()) == 4


def test_newest_record_of_the_same_processor_counts() -> None:
    bench.record(ABOUT, {"a": [5.0]})
    bench.record(ABOUT, {"a": [2.0]})
    bench.record({**ABOUT, "cpu": "slow"}, {"a": [3.0]})
    assert bench.recorded("a", "fast") == [2.0, 2.0, 2.0]
    assert bench.recorded("a", "another") is None
    assert bench.recorded("b", "fast") is None


def test_quarter_more_is_worse() -> None:
    bench.record(ABOUT, {"a": [0.9, 1.0, 1.1]})
    assert bench.worse({"a": [1.2, 1.2, 9.0], "new": [7.0]}, "fast") == []
    assert bench.worse({"a": [1.3, 1.3, 1.1]}, "fast") == []  # a round as it was
    assert bench.worse({"a": [1.3, 1.3, 1.2]}, "fast") == ["a"]
    assert bench.worse({"a": [1.3, 1.3, 1.2]}, "slow") == []


@pytest.mark.parametrize(("values", "lost"), [((2.0, 2.0, 1.1), []), ((2.0, 2.0, 1.3), [NAME])])
def test_best_of_three_tries_decides(
    values: tuple[float, ...], lost: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.record(ABOUT, {NAME: [1.0]})
    runs = iter(values)
    monkeypatch.setattr(bench, "run", lambda *_: {NAME: [next(runs)]})
    assert bench.check("events", "fast")[1] == lost
    assert next(runs, None) is None


@pytest.mark.usefixtures("processes")
def test_benchmark_writes_its_ratios() -> None:
    found = bench.run(bench.BENCHMARKS["events"], "--rounds 1")
    assert found["typed events to dicts, time"][0] > 0


@pytest.mark.usefixtures("processes")
def test_failing_benchmark_is_named() -> None:
    with pytest.raises(bench.Failed, match=r"bench_events\.py ended with status 2"):
        bench.run(bench.BENCHMARKS["events"], "--rounds nonsense")
