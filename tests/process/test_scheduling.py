"""A process that gets no CPU, one that hangs, and one that is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from asrserver.process import scheduling
from asrserver.process.scheduling import MAX_STEP, RunTime, StallMeter, is_stopped, waits
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


@pytest.fixture
def spinning(processes: None) -> Iterator[int]:
    """The pid of a process that three others with more rights to their CPU keep from running."""
    cpu = str(min(os.sched_getaffinity(0)))
    busy = [
        subprocess.Popen([sys.executable, "-c", SPIN, cpu, nice], stdout=subprocess.PIPE, text=True)
        for nice in ("0", "0", "0", "10")
    ]
    try:
        for one in busy:
            assert one.stdout is not None
            one.stdout.readline()
        yield busy[-1].pid
    finally:
        for each in busy:
            each.kill()
            each.communicate()


def test_who_waits_for_a_cpu_does_not_hang(spinning: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "STARVED_FACTOR", 2)
    begun = time.monotonic()
    meter = StallMeter(spinning)
    wait_until(lambda: meter.update(0.0, time.monotonic()) > 1.5)  # at last, because it must not be for ever
    assert time.monotonic() - begun > 2.5
    assert meter.waited > 1.0
    assert meter.is_innocent


def test_who_neither_moves_on_nor_waits_hangs(processes: None) -> None:
    hanging = subprocess.Popen([sys.executable, "-c", HANG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert hanging.stdout is not None
        hanging.stdout.readline()
        meter = StallMeter(hanging.pid)
        assert [meter.update(7.0, now) for now in (1.0, 2.0, 3.0)] == [0.0, 0.0, pytest.approx(1.0, abs=0.1)]
        assert not meter.is_innocent
        os.kill(hanging.pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(hanging.pid))
        assert meter.is_innocent
        assert meter.update(8.0, 4.0) == 0.0  # it moves on
    finally:
        hanging.kill()
        hanging.communicate()


def test_what_nobody_watched_does_not_count() -> None:
    """All processes of the machine were stopped for an hour, the watching one too."""
    assert RunTime(2**22 + 1, 1.0).update(3601.0) == MAX_STEP


def test_a_process_that_is_gone_waits_for_nothing() -> None:
    assert waits(2**22 + 1) == {}
    assert not is_stopped(2**22 + 1)
