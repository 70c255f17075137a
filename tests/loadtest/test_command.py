"""The load tester as a command: its report, its exit status, errors in its arguments."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.program import NOBODY, System, cli
from tests.recordings import Utterance
from tests.waiting import wait_until


def test_the_command_passes(shared: System, tmp_path: Path) -> None:
    """It uses several processes; the report is complete, and the figures are written beside it."""
    written = tmp_path / "report.md"
    done = cli(
        *("loadtest", "--server", f"http://127.0.0.1:{shared.port}", "-c", "10", "-d", "3s", "--ramp", "1s"),
        *("--processes", "2", "--talk-ratio", "0.8", "--report", written, "--key", "s3cret"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("PASS: 10 of 10 sessions correct")
    text, numbers = written.read_text(), json.loads(written.with_suffix(".json").read_text())
    assert "s3cret" not in text + written.with_suffix(".json").read_text()
    run = numbers["run"]
    assert (run["passed"], run["right"], run["failed"], run["failures"]) == (True, 10, 0, {})
    assert run["times"]["finalisation"]["p95"] > 0
    processes = {name for sample in run["samples"] for name in sample["server"]}
    assert {"supervisor", "gateway 1", "worker 1", "redis", "postgres"} <= processes
    assert all(len(sample["tester"]) == 2 for sample in run["samples"])
    for words in ("**PASS", "gateway 1", "finalisation", "tester 2", "talk_ratio", numbers["machine"]["cpu"]):
        assert words in text
    before, after = run["redis"]["before"], run["redis"]["after"]
    assert after["keys"] > before["keys"]  # kept for clients that come late, for a while
    assert after["lasting_keys"] <= before["lasting_keys"]
    assert f"Redis keys without expiry: {before['lasting_keys']} before" in done.stdout
    assert run["memory_mib_a_minute"]["gateway 1"]["memory"] == "too short to say"
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 4
    assert all(picture.read_bytes().startswith(b"\x89PNG") and picture.name in text for picture in pictures)


def test_audio_of_ones_own(shared: System, tmp_path: Path, utterances: list[Utterance]) -> None:
    """It passes with the right transcript, and fails with any other."""
    recording, transcript = tmp_path / "own.wav", tmp_path / "own.txt"
    recording.write_bytes(utterances[0].wav)
    transcript.write_text(f"{utterances[0].text.title()}!\n")
    common = ["loadtest", "--server", f"127.0.0.1:{shared.port}", "-c", "2", "-d", "1s", "--burst", "--ramp", "0"]
    common += ["--sessions", "1", "--report", str(tmp_path / "r.md"), "--protocol-mode", "chunk"]
    done = cli(*common, "--audio", recording, f"@{transcript}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "too few recordings to distinguish sessions" in done.stderr
    done = cli(*common, "--audio", recording, "something else was said")
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL: no session was correct")
    assert "wrong_text" in (tmp_path / "r.md").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["run"]["failures"] == {"wrong_text": 2}


def test_ctrl_c(shared: System, tmp_path: Path) -> None:
    """The test ends early, with a report, and does not pass."""
    command = [sys.executable, "-m", "asrserver", "loadtest", "--server", f"127.0.0.1:{shared.port}", "-c", "2"]
    command += ["-d", "10m", "--mode", "long", "--ramp", "0", "--report", str(tmp_path / "r.md")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: "2 of 2 connected" in (tmp_path / "log").read_text(), 60, "they talk")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.wait()
    assert "FAIL: the test was interrupted" in (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["run"]["right"] == 2


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-d", "soon"), "not a duration"),
        (("-d", "0s"), "between 1 s and a day"),
        (("-d", "25h"), "between 1 s and a day"),
        (("-c", "0"), "--connections"),
        (("--talk-ratio", "0"), "--talk-ratio"),
        (("--talk-ratio", "1.5"), "--talk-ratio"),
        (("--mode", "huge"), "--mode"),
        (("--audio", "/does/not/exist", "text"), "/does/not/exist"),
        (("--audio", __file__, "text"), "--audio"),
        (("--audio", __file__, "@/does/not/exist"), "/does/not/exist"),
        (("--report", "/does/not/exist/report.md"), "--report"),
        (("--server-pid", "999999999"), "--server-pid"),
        (("--server", "http://"), "--server"),
        (("--server", NOBODY), "cannot connect to ws://127.0.0.1:9/ws/asr"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], words: str) -> None:
    done = cli("loadtest", *arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("processes")
def test_without_its_extra(tmp_path: Path) -> None:
    """An error of one line says what to install."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(name='rich')\n")
    done = cli("loadtest", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    told = "rich is not installed: asrserver loadtest needs the extra (pip install 'asrserver[loadtest]')"
    assert done.stderr == f"Error: {told}\n"
