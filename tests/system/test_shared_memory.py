"""The program where processes have no shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.program import System
from tests.system.without_shared_memory import IMPOSSIBLE

LAUNCHER = ("-m", "tests.system.without_shared_memory")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.usefixtures("processes")
def test_the_program_needs_no_shared_memory(
    start: Callable[..., System], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It runs, is watched, and has metrics; the doctor warns."""
    done = subprocess.run([sys.executable, *LAUNCHER, "doctor", "--model", "demo"], capture_output=True, text=True)
    if done.returncode == IMPOSSIBLE:
        pytest.skip("this container may not mount")
    assert "warn  shm " in done.stdout, done.stderr
    monkeypatch.setattr(System, "program", LAUNCHER)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    system = start("run").wait_ready()
    assert system.get("/health")["status"] == "ok"
    assert list(tmp_path.glob("asrserver-metrics-*/*.db"))
