#!/usr/bin/env python3
"""How many streams of continuous speech this machine should bear, by the sum of the parts; and how many it bears.

    python tools/predict_capacity.py [--first 50] [--most 1000] [--duration 30] [--json FILE] [--parts FILE]
            [--no-search]

First each part alone, in cores a stream (tools/bench_streams.py says how): the machine's cores divided by their sum are
the streams that it should bear. A stream costs less where there are many, for frames, reads and network calls are
shared: the parts are measured with FIRST streams, then with as many as that predicts, until the prediction is within a
tenth of what it was measured at.

Then the whole, on the same machine in the same run: `asrserver run` with its defaults, and the search of `asrserver
loadtest --find-capacity --talk-ratio 1`: the tester is on the machine too, all sessions must be right, and 95 % of
them must have their last word within 2 s. Its first level is half of what was predicted. Beside each part is what the
same processes took at the capacity that was found: where the sum does not hold.

The exit status is 0 when the machine bears at least LEAST of what was predicted. It takes about seven minutes on two
cores; with --parts, the FILE of an earlier run, half of it.
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

#: Of the streams that the parts predict, the share that must be borne.
LEAST = 0.8

#: The search tries at most so many times what is predicted: more than the sum of the parts allows.
MARGIN = 1.25

#: The parts are measured again where the prediction differs by more than this from what they were measured at, but no
#: more often than PASSES times.
NEAR = 0.1
PASSES = 3


@dataclass
class Prediction:
    """Cores a stream of each part, measured with `streams` at once, on a machine of so many cores."""

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
        """Whether the parts were measured at what they predict."""
        return abs(self.predicted - self.streams) <= NEAR * self.streams

    @property
    def processes(self) -> dict[str, float]:
        """The same by process: the worker's parts together."""
        return {"worker": sum(self.parts[part] for part in OF_WORKER), **{part: self.parts[part] for part in BESIDE}}


def predict(measure: Callable[[int], dict[str, float]], first: int, most: int, cores: int) -> Prediction:
    """Measure with so many streams, and then with as many as that predicts."""
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
    """How many streams the whole bears, as the load tester's search finds it."""
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
    """A screen that names each level of the search when it begins."""

    def update(self, outcome: Outcome) -> None:
        if len(outcome.samples) == 1:
            print(f"  {outcome.plan.connections} streams …", flush=True)


def levels(capacity: Capacity) -> list[str]:
    """What came of each level, in order, and why it was too many if it was."""
    lines = []
    for level in capacity.levels:
        tester = f", the tester saturated: {level.saturated}" if level.saturated else ""
        said = "; ".join(level.why_not) or "pass"
        lines.append(f"{level.plan.connections:6} streams, finalisation p95 {level.finalisation:.2f} s{tester}: {said}")
    return lines


def split(prediction: Prediction, found: dict[str, float]) -> list[str]:
    """By process, what its parts alone took for a stream, and what it took at the capacity that was found."""
    lines = [f"{'':18}{'alone, millicores':>20}{'at capacity':>13}{'ratio':>8}"]
    alone = prediction.processes
    for part, before, after in [(p, alone[p], found[p]) for p in alone] + [
        ("sum", prediction.sum, sum(found.values()))
    ]:
        lines.append(f"{part:18}{1000 * before:20.2f}{1000 * after:13.2f}{after / before:8.2f}")
    return lines


def numbers(capacity: Capacity, used: dict[str, float]) -> dict[str, Any]:
    """Of the search, for the JSON."""
    return {
        "streams": capacity.streams,
        "too_many": capacity.limit,
        "cores_a_stream": used,
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
    parser.add_argument("--first", type=int, default=50, help="streams with which the parts are measured first")
    parser.add_argument("--most", type=int, default=1000, help="the most that are tried")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of a level of the search")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--parts", type=Path, help="take the parts from such a file")
    parser.add_argument("--no-search", action="store_true", help="only predict")
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
