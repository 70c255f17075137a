#!/usr/bin/env python3
"""Run the benchmarks, and compare their ratios with those of earlier commits.

    make bench                               # all of them, in some ten minutes, on a machine that does nothing else
    python tools/bench.py gateway worker     # some
    python tools/bench.py --record           # all, and add their medians to the table of the documentation
    python tools/bench.py --check            # those of CPU, short; status 1 if a ratio got worse by more than 25 %
    python tools/bench.py --check --record   # record what these are

Each benchmark prints its own figures, and its ratios to bare parts that were measured in the same run. At the end
stand all ratios beside the last that were recorded on a processor of the same kind (docs/inside/ratios.json), and
build/bench/ratios.json has every round. --check knows nothing of a processor that none were recorded on. A ratio is
worse if its median is, by a quarter, and each round is worse than each recorded one; it is measured twice again then,
and its best counts: what runs beside a benchmark can only make it worse.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benching import about, about_line

ROOT = Path(__file__).resolve().parent.parent

RECORDS = ROOT / "docs" / "inside" / "ratios.json"

#: How many times worse a ratio may be than the recorded one.
ALLOWED = 1.25

#: Times that --check measures a ratio that is worse.
TRIES = 3

#: Seconds that one benchmark may take.
TIMEOUT = 600.0

#: Ratios by name, each with the values of its rounds.
Ratios = dict[str, list[float]]


@dataclass(frozen=True)
class Benchmark:
    """A script with the options it is run with; and with those of --check, if it has a part in that.

    Decoding and voice activity detection have none. Where other programs use the same caches their ratios double: they
    make many small calls, and what they are compared with makes few large ones.
    """

    script: str
    options: str = ""
    check: str | None = None


BENCHMARKS = {
    "events": Benchmark("bench_events.py", check="--rounds 5"),
    "audio": Benchmark("bench_audio.py", "--minutes 0.5 --rounds 5 wav webm ogg-opus flac-44k-stereo mp3 mp4"),
    "vad": Benchmark("bench_vad.py", "--minutes 1"),
    "worker": Benchmark("bench_worker.py", "--rounds 3", check="--utterances 60 --rounds 3"),
    "broker": Benchmark("bench_broker.py", check="--turns 150"),
    "storage": Benchmark("bench_storage.py", check="--batches 5"),
    "gateway": Benchmark("bench_gateway.py", "--seconds 6"),
    "few": Benchmark("bench_gateway.py", "--connections 100 --seconds 6", check="--connections 100 --seconds 4"),
    "connect": Benchmark("bench_connect.py"),
    "start": Benchmark("bench_start.py", "--models demo,base"),
    "rest": Benchmark("bench_rest.py", "--requests 100"),
    "protocols": Benchmark("bench_protocols.py", "--streams 20 --seconds 6 --rounds 1"),
}


class Failed(Exception):
    """Raised when a benchmark fails; the message says which."""


def run(benchmark: Benchmark, options: str) -> Ratios:
    """Run a benchmark, which prints its figures; returns its ratios."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, str(ROOT / "tools" / benchmark.script), *options.split(), "--json", file.name]
        print(f"\n$ {benchmark.script} {options}", flush=True)
        try:
            status = subprocess.run(command, timeout=TIMEOUT, check=False).returncode
        except subprocess.TimeoutExpired:
            raise Failed(f"{benchmark.script} took longer than {TIMEOUT:g} s") from None
        if status:
            raise Failed(f"{benchmark.script} ended with status {status}")
        found: Ratios = json.loads(Path(file.name).read_bytes())
        return found


def records() -> list[dict[str, Any]]:
    """What was recorded, oldest first: circumstances, and `ratios`, each with its median, minimum and maximum."""
    found: list[dict[str, Any]] = json.loads(RECORDS.read_text()) if RECORDS.exists() else []
    return found


def recorded(name: str, cpu: str) -> list[float] | None:
    """Median, minimum and maximum of a ratio when it was last recorded on such a processor; None: never."""
    found = [each["ratios"][name] for each in records() if each["cpu"] == cpu and name in each["ratios"]]
    return found[-1] if found else None


def record(where: Mapping[str, Any], found: Ratios) -> None:
    """Add the medians and ranges to the records."""
    ratios = {
        name: [round(value, 3) for value in (statistics.median(each), min(each), max(each))]
        for name, each in found.items()
    }
    lines = [json.dumps(each) for each in [*records(), {**where, "ratios": ratios}]]
    RECORDS.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def show(found: Ratios, cpu: str) -> None:
    """Print all ratios beside the recorded ones."""
    print(f"\n{'ratio':75}{'median':>8}{'range':>16}{'recorded':>10}")
    for name, each in found.items():
        before = recorded(name, cpu)
        recent = f"{before[0]:10.2f}" if before is not None else f"{'-':>10}"
        print(f"{name:75}{statistics.median(each):8.2f}{f'{min(each):.2f} to {max(each):.2f}':>16}{recent}")


def worse(found: Ratios, cpu: str) -> list[str]:
    """The names of the ratios that got worse by more than is allowed."""
    return [
        name
        for name, each in found.items()
        if (before := recorded(name, cpu)) is not None
        and statistics.median(each) > ALLOWED * before[0]
        and min(each) > before[2]
    ]


def check(name: str, cpu: str) -> tuple[Ratios, list[str]]:
    """Run a short benchmark and compare it with the records; returns its ratios, and the names of the worse."""
    benchmark = BENCHMARKS[name]
    if benchmark.check is None:
        return {}, []
    best = run(benchmark, benchmark.check)
    for _ in range(TRIES - 1):
        if worse(best, cpu):
            again = run(benchmark, benchmark.check)
            best = {key: min(each, again[key], key=statistics.median) for key, each in best.items()}
    return best, worse(best, cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--record", action="store_true", help="add the medians to docs/inside/ratios.json")
    parser.add_argument("--check", action="store_true", help="fail if a ratio got worse")
    options = parser.parse_args()
    where = about()
    print(about_line(where))
    names = options.names or list(BENCHMARKS)
    found: Ratios = {}
    failures = []
    for name in names:
        try:
            if options.check:
                ratios, lost = check(name, where["cpu"])
                found |= ratios
                failures += [f"worse by more than {ALLOWED - 1:.0%}: {each}" for each in lost if not options.record]
            else:
                found |= run(BENCHMARKS[name], BENCHMARKS[name].options)
        except Failed as exc:  # the others are still worth knowing
            failures.append(str(exc))
    show(found, where["cpu"])
    out = ROOT / "build" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "ratios.json").write_text(json.dumps({**where, "ratios": found}, indent=2))
    if options.record:
        record(where, found)
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
