#!/usr/bin/env python3
"""Simulate streams and workers: how many a machine carries, and what many streams need.

    python tools/simulate.py measure COSTS [--model base]
    python tools/simulate.py check COSTS [--time 3m]
    python tools/simulate.py size COSTS [--streams 100,10000,1000000] [--cores 16] [--gpu TIMES] [--talk-ratio 0.5]
            [--prices machine=0.5,gpu=1.5,core=0.03]

measure   times the calls of the model's engines, one per worker of this machine and all at the same time, and the
          other parts of a stream (tools/bench_streams.py), in CPU time; writes them to the file COSTS. Three minutes.
check     simulates what `asrserver bench` does on this machine, with the same sentences, levels and limits, and then
          has it done. What this machine really carries lies between the largest number that it carried and the
          smallest that it did not: the exit status is 0 if the prediction is within a fifth of their geometric mean,
          without and with partial results. Stop everything else first.
size      simulates a machine with so many cores for workers only, or one GPU of which `asrserver bench` said so many
          times real time, and prints what numbers of streams need.

The simulation knows the length of every sentence and pause, the order in which an engine takes its jobs, what shares a
call, the rules by which partial results become rarer, and the CPU that a stream takes beside the engine. Which worker a
session goes to is left to chance. It does not know retries of unsure windows beyond those that were timed, nor segments
that wait longer for the rest of their sentence.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench_streams import BESIDE, parts, serving
from benching import about, about_line
from demo import clean_environment
from simulation.costs import CallCost, fit, time_calls
from simulation.fleet import Machine
from simulation.sizing import Need, carried, need, repeated

from asrserver.cli.bench import LEVEL_SHARE, LONGEST_LEVEL
from asrserver.cli.status import format_table
from asrserver.config import Settings
from asrserver.errors import AsrError
from asrserver.inference.profiles import profile_of
from asrserver.loadtest.plan import Plan, parse_duration
from asrserver.loadtest.sizing import SESSION_SECONDS
from asrserver.loadtest.speech import load
from asrserver.models import find_model
from asrserver.process.limits import available_cpus
from asrserver.supervisor.devices import worker_count

#: The parts beside the engine that a worker takes of its machine.
IN_WORKER = ("voice activity", "features", "worker, the rest")

#: By how much the prediction may be wrong.
TOLERANCE = 0.2

#: Seconds of simulated time, long enough that what falls behind is late.
SIMULATED = 120.0

#: Streams with which the parts are measured first; heavy models carry fewer, the demo model more.
FIRST_STREAMS = 20

#: Streams with which gateway, Redis and PostgreSQL are measured for fleets, where each process has hundreds.
CROWD = 300


def measure(path: Path, model: str) -> None:
    """Time engine and parts, and write them."""
    settings = Settings(device="cpu", model=find_model(model).name)
    workers = worker_count(settings)
    cost = fit(time_calls(settings, workers))
    found: dict[str, Any] = {"about": about(), "model": settings.model, "workers": workers, "call": asdict(cost)}
    streams = FIRST_STREAMS
    for _ in range(2):
        found |= {"streams": streams, "parts": parts(streams)}
        streams = max(FIRST_STREAMS, carried(_here(found), _bench_plan(60.0, partials=False)))
        if streams <= 1.5 * FIRST_STREAMS:
            break
    found["crowd"] = serving(CROWD)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(about_line(found["about"]))
    print(
        f"{settings.model}, {workers} workers: a call takes {1000 * cost.call:.1f} ms, {1000 * cost.row:.1f} a row, "
        f"{1000 * cost.window:.1f} a second of each window, {1000 * cost.speech:.1f} a second of the longest speech"
    )


def _here(costs: dict[str, Any]) -> Machine:
    """This machine, with everything on it."""
    beside = sum(costs["parts"][part] for part in (*IN_WORKER, *BESIDE))
    profile = profile_of(costs["model"])
    return Machine(costs["workers"], CallCost(**costs["call"]), profile, available_cpus(), beside)


def _bench_plan(seconds: float, partials: bool) -> Plan:
    """A level of `asrserver bench`."""
    level = min(LONGEST_LEVEL, LEVEL_SHARE * seconds)
    return Plan((), partials=partials, duration=level, ramp=level / 5, talk_ratio=0.7, session_seconds=SESSION_SECONDS)


def check(costs: dict[str, Any], time: str) -> bool:
    """Compare the simulation with `asrserver bench`; returns whether it is near enough."""
    machine = _here(costs)
    line = [sys.executable, "-m", "asrserver", "bench", "--json", "--model", costs["model"], "--time", time]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, env=clean_environment(), check=True)
    rows = []
    near = True
    for found in json.loads(done.stdout)["streams"]:
        plan = _bench_plan(parse_duration(time), found["partials"])
        predicted = carried(machine, plan)
        busy = repeated(machine, replace(plan, connections=found["carried"])).busy
        between = math.sqrt(max(1, found["carried"]) * (found["too_many"] or found["carried"]))
        ratio = predicted / between
        near &= abs(ratio - 1) <= TOLERANCE
        kind = "with partial results" if found["partials"] else "without"
        shares = (f"{busy:.0%}", f"{found['busy']:.0%}")
        rows.append((kind, str(predicted), str(found["carried"]), str(found["too_many"]), f"{ratio:.2f}", *shares))
    head = ("STREAMS", "PREDICTED", "CARRIED", "TOO MANY", "RATIO", "ENGINE BUSY, PREDICTED", "FOUND")
    print("\n".join(format_table(head, rows)))
    return near


def size(costs: dict[str, Any], options: argparse.Namespace) -> None:
    """Print what each number of streams needs."""
    beside = sum(costs["parts"][part] for part in IN_WORKER)
    profile = profile_of(costs["model"])
    if options.gpu:
        machine = Machine(1, CallCost.of_speed(options.gpu), profile, float("inf"), beside, gpu=True)
    else:
        machine = Machine(options.cores, CallCost(**costs["call"]), profile, options.cores, beside)
    plan = Plan((), duration=SIMULATED, talk_ratio=options.talk_ratio)
    one = {partials: carried(machine, replace(plan, partials=partials)) for partials in (False, True)}
    what = f"a GPU of {options.gpu:g} times real time" if options.gpu else f"a machine with {options.cores} cores"
    print(f"{costs['model']}: {what} carries {one[False]} streams, {one[True]} with partial results")
    sentences = load(())
    length = sum(sentence.seconds for sentence in sentences) / len(sentences)
    prices = dict(part.split("=") for part in options.prices.split(",")) if options.prices else {}
    needs = [need(int(n), one[True], costs["crowd"], length, options.talk_ratio) for n in options.streams.split(",")]
    print("\n".join(_table(needs, "GPUs" if options.gpu else "machines for workers", prices, bool(options.gpu))))


def _table(needs: list[Need], workers: str, prices: dict[str, str], gpu: bool) -> list[str]:
    """A column for each number of streams."""
    rows = [
        (workers, [f"{one.workers:,}" for one in needs]),
        ("cores for gateways", [f"{one.gateway_cores:,}" for one in needs]),
        ("Redis servers (shards)", [f"{one.shards:,}" for one in needs]),
        ("memory of Redis, GiB", [f"{one.redis_gib:,.1f}" for one in needs]),
        ("cores for PostgreSQL", [f"{one.postgres_cores:,}" for one in needs]),
        ("clients to gateways, Gbit/s", [f"{one.client_gbit:,.2f}" for one in needs]),
        ("Redis, all copies, Gbit/s", [f"{one.redis_gbit:,.2f}" for one in needs]),
        ("rows a second", [f"{one.rows:,.0f}" for one in needs]),
        ("history a day, GiB", [f"{one.history_gib:,.1f}" for one in needs]),
    ]
    if prices:
        each, core = float(prices["gpu" if gpu else "machine"]), float(prices["core"])
        cost = [one.workers * each + (one.gateway_cores + one.shards + one.postgres_cores) * core for one in needs]
        rows.append(("price an hour", [f"{price:,.2f}" for price in cost]))
        rows.append(
            ("price of a stream's hour", [f"{p / one.streams:,.4f}" for p, one in zip(cost, needs, strict=True)])
        )
    head = ("LIVE STREAMS", *(f"{one.streams:,}" for one in needs))
    return format_table(head, [(name, *values) for name, values in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("measure", "check", "size"):
        commands.add_parser(name).add_argument("costs", type=Path)
    commands.choices["measure"].add_argument("--model", default="auto")
    commands.choices["check"].add_argument("--time", default="3m")
    sizes = commands.choices["size"]
    sizes.add_argument("--streams", default="100,10000,1000000")
    sizes.add_argument("--cores", type=int, default=os.cpu_count())
    sizes.add_argument("--gpu", type=float, metavar="TIMES")
    sizes.add_argument("--talk-ratio", type=float, default=0.5)
    sizes.add_argument("--prices", metavar="machine=…,gpu=…,core=…")
    options = parser.parse_args()
    try:
        if options.command == "measure":
            measure(options.costs, options.model)
            return
        costs = json.loads(options.costs.read_text())
        if options.command == "size":
            size(costs, options)
        elif not check(costs, options.time):
            sys.exit(1)
    except AsrError as exc:
        raise SystemExit(str(exc)) from None


if __name__ == "__main__":
    main()
