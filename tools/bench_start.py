#!/usr/bin/env python3
"""Measure how long the program takes to start and how much memory it holds idle, against its bare parts.

    python tools/bench_start.py [--rounds 3] [--models demo,base]

In each round:

    help       `asrserver --help`, against `python -c 'import click'`
    MODEL      `asrserver run --model MODEL` with a data directory of its own, until its gateway accepts sessions and
               its worker has the model. Against the bare parts, one after another: the same Redis and PostgreSQL,
               started alone on the same directory, and a Python that imports Tornado, uvloop and CTranslate2, and
               loads the model. The start that creates the database (initdb) is printed, too.

Memory is the proportional set size (a page that n processes share counts as 1/n of a page in each) 5 s after the start;
a model's weights are a part of it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import psutil
from benching import about, about_line, add_json, family, wait_for, write_ratios
from demo import start

from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.loadtest.host import get
from asrserver.models import find_model

#: What a gateway and a worker cannot do without.
BARE_PYTHON = """
import sys
import ctranslate2, tornado.httpserver, tornado.web, uvloop
ctranslate2.models.Whisper(sys.argv[1], device="cpu", compute_type="int8")
"""

#: Seconds after a start until memory is read.
SETTLE_SECONDS = 5.0

#: Kinds of processes, by what is in their command line.
KINDS = {"valkey": "Redis", "redis": "Redis", "postgres": "PostgreSQL", "spawn_main": "gateway and worker"}


def timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def helps(rounds: int) -> list[tuple[float, float]]:
    """Seconds of `asrserver --help`, and of a Python that imports click."""
    program = str(Path(sys.executable).with_name("asrserver"))
    return [
        (timed(lambda: run(program, "--help")), timed(lambda: run(sys.executable, "-c", "import click")))
        for _ in range(rounds)
    ]


def ready(port: int) -> bool:
    """Whether sessions are accepted, and a worker has its model."""
    health = get(f"http://127.0.0.1:{port}", "/api/v1/health", "")
    return bool(health.get("status") == "ok" and health.get("workers"))


def program(directory: str, model: str, memory: dict[str, float] | None = None) -> float:
    """Start the program and stop it; seconds until it was ready. Fills `memory` with MiB of each kind of process."""
    begun = time.monotonic()
    process, port = start(directory, model=model)
    try:
        wait_for(lambda: ready(port), 60, "the start")
        seconds = time.monotonic() - begun
        if memory is not None:
            time.sleep(SETTLE_SECONDS)
            memory.update(proportional(psutil.Process(process.pid)))
    finally:
        process.terminate()
        process.wait(60)
    return seconds


def proportional(supervisor: psutil.Process) -> dict[str, float]:
    """The proportional set size of each kind of process, in MiB."""
    found: dict[str, float] = defaultdict(float)
    for process in family(supervisor):
        line = " ".join(process.cmdline())
        kind = next((kind for part, kind in KINDS.items() if part in line), "others")
        kind = "supervisor" if process == supervisor else kind
        found[kind] += process.memory_full_info().pss / 2**20
    return found


def bare(directory: str, model: str) -> float:
    """Seconds in which the parts start alone, one after another."""
    begun = time.monotonic()
    place = Path(directory, "data")
    redis, postgres = EmbeddedRedis(place), EmbeddedPostgres(place)
    for server in (redis, postgres):
        server.start()
    run(sys.executable, "-c", BARE_PYTHON, str(find_model(model).path))
    seconds = time.monotonic() - begun
    for server in (postgres, redis):
        server.stop(10)
    return seconds


def spread(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})"


def show(name: str, pairs: list[tuple[float, float]]) -> list[float]:
    """Print a line; return the ratios."""
    ours, other = ([pair[n] for pair in pairs] for n in (0, 1))
    ratios = [one / two for one, two in pairs]
    print(f"{name:10} {spread(ours, 's')}, bare parts {spread(other, 's')}, ratio {spread(ratios, '')}", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="demo", help="names, separated by commas")
    add_json(parser)
    options = parser.parse_args()
    print(about_line(about()))
    run(sys.executable, "-m", "asrserver", "--help")  # compiles, and fills the disk's cache
    ratios = {"asrserver --help to import click, time": show("help", helps(3 * options.rounds))}
    for model in options.models.split(","):
        memory: dict[str, float] = {}
        pairs = []
        with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as directory:
            os.chmod(directory, 0o755)
            first = program(directory, model, memory)
            for _ in range(options.rounds):
                pairs.append((program(directory, model), bare(directory, model)))
        ratios[f"start with {model} to its bare parts, time"] = show(model, pairs)
        parts = ", ".join(f"{kind} {size:.0f}" for kind, size in memory.items())
        print(f"{'':10} the first start {first:.2f} s; idle {sum(memory.values()):.0f} MiB ({parts})", flush=True)
    write_ratios(options, ratios)


if __name__ == "__main__":
    main()
