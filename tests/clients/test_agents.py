"""The examples of docs/guides/agents.md, with the plugins of LiveKit and pipecat, where `make clients` puts them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.program import System
from tests.system.test_guides import ROOT, SAID, blocks

pytestmark = pytest.mark.slow

PYTHON = ROOT / "build" / "clients" / "bin" / "python"


@pytest.mark.parametrize(("number", "texts"), [(0, 2), (1, 1)])
def test_the_examples(start: Callable[..., System], tmp_path: Path, number: int, texts: int) -> None:
    if not PYTHON.exists():
        assert not os.environ.get("CI"), f"{PYTHON} is not there: run make clients"
        pytest.skip(f"{PYTHON} is not there: run make clients")
    system = start("run").wait_ready()
    example = tmp_path / "example.py"
    example.write_text(blocks("agents.md", "python")[number])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(PYTHON), str(example), f"http://127.0.0.1:{system.port}"],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [SAID["english-1.wav"]] * texts
