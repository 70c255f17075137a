"""No few bytes can take a worker's memory or time: see bombs.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from asrserver.audio import files
from asrserver.audio.bounds import TooMuchWork
from tests.audio.bombs import BOMBS

#: Most seconds of CPU, beside 2 ms for each second of audio, and most MB. They cost up to 0.7 s and 40 MB.
CPU, MEMORY = 2.0, 50


@pytest.mark.usefixtures("processes")
def test_bombs_cost_next_to_nothing() -> None:
    """In a process of their own, whose peak of memory counts."""
    command = [sys.executable, "-m", "tests.audio.bombs"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=300)
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(costs) == 2 * len(BOMBS)
    for cost in costs:
        assert cost["cpu"] < CPU + 0.002 * cost["seconds"], cost
        assert cost["memory"] < MEMORY, cost
        assert cost["code"] or cost["name"] == "opus_silence", cost  # which has the audio that it claims


def test_an_index_of_too_many_boxes_is_not_read_again() -> None:
    """FFmpeg, which would read it otherwise, takes most of a second for it."""
    with pytest.raises(TooMuchWork, match="too many boxes"):
        files.decode_file(BOMBS["many_boxes"][0](), "mp4", 60)


@pytest.mark.usefixtures("processes")
def test_damaged_recordings_of_all_formats(tmp_path: Path) -> None:
    """Some of the mutants of `make fuzz`, always the same: a crash, a hang, or a cost beyond bounds fails."""
    tool = Path(__file__).parents[2] / "tools" / "fuzz_audio.py"
    command = [sys.executable, str(tool), "--mutants", "500", "--jobs", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
