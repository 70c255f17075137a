#!/usr/bin/env python3
"""Predict how many streams of continuous speech this machine can serve, from the cost of the parts; then measure it.

    python tools/predict_capacity.py [--first 50] [--most 1000] [--duration 30] [--json FILE] [--parts FILE]
            [--no-search]

First it measures each part alone, in cores per stream (see tools/bench_streams.py): the prediction is the number of
cores divided by the sum. Streams are cheaper in large numbers, because they share frames, reads and network calls;
therefore the parts are measured with FIRST streams, then with the predicted number, until the prediction is within a
tenth of the number it was measured with.

Then it measures the whole system on the same machine: `asrserver run` with its defaults, and the search of `asrserver
loadtest --find-capacity --talk-ratio 1`. The tester runs on the same machine, all sessions must be right, and 95 % of
them must have their final result within 2 s. The search begins with half of the prediction. The table compares each
process alone with the same process at the measured capacity: it shows where the sum is wrong.

The exit status is 0 if the capacity is at least LEAST of the prediction. It takes about seven minutes on two cores, or
half of that with --parts, the FILE that an earlier run wrote with --json.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from bench_streams import BESIDE, OF_WORKER, parts, table
from benching import a_stream, about, about_line, processes, servers, system

from asrserver.cli.loadtest import CAPACITY_BOUND
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.runner import Capacity, Outcome, find_capacity

#: The share of the predicted streams that the machine must be able to serve.
LEAST = 0.8

#: The search tries at most this multiple of the prediction: more than the sum of the parts allows.
MARGIN = 1.25

#: The parts are measured again while the prediction differs by more than this share from the number of streams that
#: they were measured with, but not more than PASSES times.
NEAR = 0.1
PASSES = 3


@dataclass
class Prediction:
    """The cores per stream of each part, measured with `streams` at once, on a machine with `cores`."""

    streams: int
    cores: int
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def sum(self) -> float:
        return sum(self.parts.values())

    @property
    def predicted(self) -> int:
        return int(self.cores / self.sum)

    @property
    def near(self) -> bool:
        """Whether the parts were measured with about as many streams as they predict."""
        return abs(self.predicted - self.streams) <= NEAR * self.streams

    @property
    def processes(self) -> dict[str, float]:
        """The cores per stream of each process: the sum of the worker's parts, and the others."""
        return {"worker": sum(self.parts[part] for part in OF_WORKER), **{part: self.parts[part] for part in BESIDE}}


def predict(measure: Callable[[int], dict[str, float]], first: int, most: int, cores: int) -> Prediction:
    """Measure the parts with `first` streams, and then with as many as that predicts."""
    streams = min(first, most)
    for _ in range(PASSES):
        found = Prediction(streams, cores, measure(streams))
        print(
            f"with {streams} streams: {1000 * found.sum:.2f} millicores each, {found.predicted} predicted", flush=True
        )
        if found.near or streams == (streams := max(1, min(found.predicted, most))):
            break
    return found


def search(predicted: int, most: int, duration: float) -> Capacity:
    """Measure the capacity of the whole system with the load tester's search."""
    with servers() as own, system(own, "run") as server:
        asked = Plan(
            urls=(f"ws://127.0.0.1:{server.port}/ws/asr",),
            connections=min(most, max(2, int(MARGIN * predicted))),
            duration=duration,
            talk_ratio=1.0,
            max_finalisation=CAPACITY_BOUND,
        )
        return find_capacity(asked, processes(server, own), Levels(), first=max(1, predicted // 2))


class Levels:
    """A dashboard that prints each level of the search when it begins."""

    def update(self, outcome: Outcome) -> None:
        if len(outcome.samples) == 1:
            print(f"  {outcome.plan.connections} streams …", flush=True)


def levels(capacity: Capacity) -> list[str]:
    """The result of each level, in order, with the reasons if it failed."""
    lines = []
    for level in capacity.levels:
        tester = f", the tester was saturated: {level.saturated}" if level.saturated else ""
        said = "; ".join(level.why_not) or "pass"
        lines.append(f"{level.plan.connections:6} streams, finalisation p95 {level.finalisation:.2f} s{tester}: {said}")
    return lines


def split(prediction: Prediction, found: dict[str, float]) -> list[str]:
    """The table: cores per stream of each process, measured alone and at the capacity."""
    lines = [f"{'':18}{'alone, millicores':>20}{'at capacity':>13}{'ratio':>8}"]
    alone = prediction.processes
    for part, before, after in [(p, alone[p], found[p]) for p in alone] + [
        ("sum", prediction.sum, sum(found.values()))
    ]:
        lines.append(f"{part:18}{1000 * before:20.2f}{1000 * after:13.2f}{after / before:8.2f}")
    return lines


def numbers(capacity: Capacity, used: dict[str, float]) -> dict[str, Any]:
    """The figures of the search, for the JSON file."""
    return {
        "streams": capacity.streams,
        "too_many": capacity.limit,
        "cores_per_stream": used,
        "levels": [
            {
                "streams": level.plan.connections,
                "finalisation_p95": level.finalisation,
                "why_not": level.why_not,
                "tester_saturated": level.saturated,
            }
            for level in capacity.levels
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=50, help="streams of the first measurement of the parts")
    parser.add_argument("--most", type=int, default=1000, help="maximum of streams")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds per level of the search")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--parts", type=Path, help="file of an earlier run with the figures of the parts")
    parser.add_argument("--no-search", action="store_true", help="predict only")
    options = parser.parse_args()
    found: dict[str, Any] = {"about": about()}
    print(about_line(found["about"]))
    if options.parts:
        prediction = Prediction(**orjson.loads(options.parts.read_bytes())["prediction"])
    else:
        prediction = predict(parts, options.first, options.most, len(os.sched_getaffinity(0)))
    print("\n".join(table(prediction.parts, prediction.cores)))
    found["prediction"] = asdict(prediction)
    share = 1.0
    if not options.no_search:
        capacity = search(prediction.predicted, options.most, options.duration)
        used = a_stream(capacity.shown)
        share = capacity.streams / prediction.predicted
        print("\n".join([*levels(capacity), "", *split(prediction, used), ""]))
        print(
            f"predicted {prediction.predicted} streams ({prediction.cores} cores / {1000 * prediction.sum:.2f} "
            f"millicores), found {capacity.streams}: {share:.2f} (limit {LEAST})"
        )
        found["capacity"] = {**numbers(capacity, used), "of_predicted": share}
    if options.json:
        options.json.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.exit(0 if share >= LEAST else 1)


if __name__ == "__main__":
    main()
