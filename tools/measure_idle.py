#!/usr/bin/env python3
"""Measure the CPU of all processes of an idle system, as a share of one core.

python tools/measure_idle.py [--seconds 30]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from demo import descendants, start, stop

TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pids: set[int]) -> dict[int, tuple[str, float]]:
    """The name and the CPU seconds of each process."""
    used = {}
    for pid in pids:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        user, system = rest.split()[11:13]
        used[pid] = (name.partition("(")[2], (int(user) + int(system)) / TICKS)
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="asrserver-idle-") as directory:
        process, _ = start(directory)
        try:
            time.sleep(5)  # until the work after a start is done
            pids = descendants(process.pid) | {process.pid}
            before = cpu(pids)
            time.sleep(seconds)
            after = cpu(pids)
        finally:
            stop(process)
    total = 0.0
    for pid, (name, used) in sorted(after.items(), key=lambda item: before[item[0]][1] - item[1][1]):
        share = (used - before[pid][1]) / seconds
        total += share
        print(f"  {name:<16} {share:7.2%}")
    print(f"idle system: {total:.2%} of a core")


if __name__ == "__main__":
    main()
