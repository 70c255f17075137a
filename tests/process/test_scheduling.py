"""A process that gets no CPU, and one that hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from asrserver.process.scheduling import StarvationMeter, waits
from tests.waiting import wait_until

SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.nice(int(sys.argv[2]))
print(flush=True)
while True:
    pass
"""

HANG = "print(flush=True); input()"


def test_who_waits_for_a_cpu_is_starved_and_who_hangs_is_not(processes: None) -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    busy = [
        subprocess.Popen([sys.executable, "-c", SPIN, cpu, nice], stdout=subprocess.PIPE, text=True)
        for nice in ("0", "0", "0", "19")
    ]
    hanging = subprocess.Popen([sys.executable, "-c", HANG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        for one in (*busy, hanging):
            assert one.stdout is not None
            one.stdout.readline()
        starved, idle = StarvationMeter(busy[-1].pid, time.monotonic()), StarvationMeter(hanging.pid, time.monotonic())
        before = max(waits(busy[-1].pid).values())
        wait_until(lambda: max(waits(busy[-1].pid).values()) > before + 0.5)
        assert starved.is_starved(time.monotonic())
        assert not idle.is_starved(time.monotonic())
    finally:
        for each in (*busy, hanging):
            each.kill()
            each.communicate()


def test_a_process_that_is_gone_waits_for_nothing() -> None:
    assert waits(2**22 + 1) == {}
    assert not StarvationMeter(2**22 + 1, 0.0).is_starved(1.0)
