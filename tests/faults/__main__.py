"""The command: see the package."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path

from asrserver.process.limits import raise_file_limit
from tests.faults.account import KINDS
from tests.faults.catalogue import BY_NAME, FAULTS
from tests.faults.harness import Options, run
from tests.faults.report import as_json, page
from tests.faults.schedule import BETWEEN
from tests.recordings import recorded, understood


def main() -> None:
    """Run the seeds one after another, and exit with 1 if an account of one is not clean."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Faults under load, and an account.")
    parser.add_argument("--seeds", default="1", help="N, or FIRST-LAST, or several with commas")
    parser.add_argument("--seconds", type=float, default=120.0, help="in which clients begin sessions")
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two chunks, at most")
    parser.add_argument("--between", type=float, default=BETWEEN, help="seconds between two faults, on average")
    parser.add_argument("--gateways", type=int, default=1, help="of each of the two machines")
    parser.add_argument("--workers", type=int, default=1, help="of each of the two machines")
    parser.add_argument("--only", default="", help=f"comma-separated: {', '.join(BY_NAME)}")
    parser.add_argument("--out", type=Path, default=Path("build/faults"), help="where reports are written")
    parser.add_argument("--keep", action="store_true", help="keep logs and data of clean runs too")
    asked = parser.parse_args()
    faults = [BY_NAME[name.strip()] for name in asked.only.split(",")] if asked.only else FAULTS
    asked.out.mkdir(parents=True, exist_ok=True)
    raise_file_limit()
    utterances = understood(recorded("utterances"))
    total: Counter[str] = Counter()
    for seed in _numbers(asked.seeds):
        options = Options(
            seed,
            asked.seconds,
            asked.clients,
            asked.pause,
            asked.gateways,
            asked.workers,
            between=asked.between,
            faults=faults,
            keep=asked.keep,
        )
        made = asyncio.run(run(options, utterances))
        text = page(made)
        print(text, end="\n\n", flush=True)
        (asked.out / f"seed-{seed}.txt").write_text(text + "\n")
        (asked.out / f"seed-{seed}.json").write_text(as_json(made) + "\n")
        total += made.account.wrong
        total["runs"] += 1
        total["clean"] += made.account.is_clean
    print(f"{total['clean']} of {total['runs']} runs clean: " + ", ".join(f"{kind} {total[kind]}" for kind in KINDS))
    sys.exit(total["clean"] != total["runs"])


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


if __name__ == "__main__":
    main()
