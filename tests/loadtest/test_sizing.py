"""`asrserver bench`: figures that are there and plausible, not of a certain size."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, wav
from asrserver.cli.bench import _Measurement
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.runner import Capacity, Outcome
from asrserver.loadtest.sizing import Speed, Streams, first_level
from asrserver.loadtest.speech import MOST_PIECE, Scripts, load, pieces
from tests.program import cli
from tests.recordings import Utterance
from tests.waiting import wait_until

FORMAT = wav.Format.of("pcm_s16le", 1, SAMPLE_RATE)


@pytest.mark.usefixtures("processes")
def test_the_command(tmp_path: Path, utterances: list[Utterance]) -> None:
    """It measures a server of its own, whatever servers the environment names, with a recording of the user's."""
    recording = tmp_path / "own.wav"
    recording.write_bytes(wav.encode(FORMAT, b"".join(one.pcm for one in utterances[:12])))
    options = ("--model", "demo", "--workers", "1", "--time", "10s", "--max-streams", "2", "--audio", recording)
    elsewhere = {"REDIS_URL": "redis://127.0.0.1:9", "DATABASE_URL": "postgresql://127.0.0.1:9/x", "PORT": "1"}
    done = cli("bench", *options, "--json", env=elsewhere)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["device"], found["audio"]) == ("demo", "cpu", str(recording))
    assert f"measured with {recording}" in done.stderr
    assert found["worker_memory_bytes"] > 20 * 2**20
    (files,) = found["files"]
    assert (files["workers"], files["threads"]) == (1, 1)
    assert files["times_real_time"] > 1
    assert [streams["partials"] for streams in found["streams"]] == [False, True]
    for streams in found["streams"]:
        assert 0 <= streams["carried"] <= 2
        assert 0 < streams["busy"] <= 1.5
        assert 0 <= streams["thrown_away"] <= 1
        assert set() < {level["streams"] for level in streams["levels"]} <= {1, 2}
        assert all(level["finalisation_p95"] > 0 for level in streams["levels"])


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--time", "1s"), "between 10 s and a day"),
        (("--talk-ratio", "0"), "--talk-ratio"),
        (("--audio", "/does/not/exist"), "/does/not/exist"),
        (("--audio", __file__), "--audio"),
        (("--model", "base,demo"), "one model is measured at a time"),
        (("--model", "smol"), "model 'smol' is neither a directory nor a known name; at hand: demo"),
        (("--model", str(Path(__file__).parent)), "it has no model.bin"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], words: str) -> None:
    done = cli("bench", *arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("processes")
def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"no weights")
    done = cli("bench", "--model", str(tmp_path))
    assert done.returncode == 1
    assert "the server does not start" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("processes")
def test_ctrl_c(tmp_path: Path) -> None:
    """It tells what it has, and leaves no server behind."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "asrserver", "bench", "--model", "demo", "--time", "1h", "--workers", "1"]
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--max-streams", "1"], stdout=output, stderr=output)
    try:
        wait_until(lambda: "1 stream …" in log.read_text(), 60, "it talks to its server")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    assert "Interrupted: the figures are not complete." in log.read_text()


def test_a_recording_is_cut_where_it_is_quiet(tmp_path: Path) -> None:
    """Nothing is lost, and no piece is long."""
    rate = SAMPLE_RATE
    tone = (8000 * np.sin(np.arange(5 * rate) / 10)).astype("<i2")
    quiet = np.zeros(rate // 2, "<i2")
    path = tmp_path / "long.wav"
    path.write_bytes(wav.encode(FORMAT, np.concatenate([tone, quiet] * 4).tobytes()))
    found = [len(wav_of(piece)) / 2 / rate for piece in pieces(path)]
    assert sum(found) == pytest.approx(4 * 5.5)
    assert found == pytest.approx([5, 5.5, 5.5, 6], abs=0.2)
    path.write_bytes(wav.encode(FORMAT, tone.tobytes() * 4))  # without a pause
    assert max(len(wav_of(piece)) / 2 / rate for piece in pieces(path)) <= MOST_PIECE
    path.write_bytes(wav.encode(FORMAT, b""))
    assert pieces(path) == []


def wav_of(data: bytes) -> bytes:
    header = wav.read_header(data)
    assert header is not None
    return data[header.offset :]


def test_texts_that_are_not_compared_need_no_transcript(tmp_path: Path, utterances: list[Utterance]) -> None:
    path = tmp_path / "own.wav"
    path.write_bytes(utterances[0].wav)
    sentences = load(((str(path), ""),) * 3, compared=False)
    plan = Plan((), connections=100, compared=False, session_seconds=5.0)
    assert plan.length == 5.0
    assert Scripts(sentences, plan).distinct == 1


def streams(carried: int, limit: int, **given: Any) -> Streams:
    """Streams of which so many are carried, and so many are too many (0: no such number was found)."""
    levels = [Outcome(Plan((), connections=carried))] if carried else []
    levels += [Outcome(Plan((), connections=limit))] if limit else []
    for level in levels:
        level.stats.connected = level.plan.connections
        level.stats.sessions = level.stats.right = level.plan.connections
        level.stats.right -= level.plan.connections == limit
    figures = {"partials": False, "busy": 0.5, "wasted": math.nan, "memory": 2**20}
    return Streams(**{**figures, **given}, capacity=Capacity(levels))


def test_the_report() -> None:
    """What is not known is not claimed."""
    measured = _Measurement(Path(), {"workers": 0, "threads": 1}, Plan((), talk_ratio=0.5), 0.0, 60.0)
    measured.speeds = [Speed(2, 1, 8.0, 300 * 2**20, "cpu"), Speed(1, 2, 9.5, 300 * 2**20, "cpu")]
    measured.streams = [streams(8, 9), streams(4, 0, partials=True, wasted=0.04)]
    text = "\n".join(measured.report("base"))
    assert text.startswith("base on cpu, ")
    for words in (
        "300 MiB per worker",
        "2 workers of 1 thread",
        "Faster for files: --workers 1 --threads 2.",
        "Streams without partial results: 8 that speak 50% of the time. With a quarter in reserve, plan for 6;",
        "100 streams need 17 such machines",
        "Streams with partial results: at least 4",
        "  4%",
    ):
        assert words in text
    assert "measured with the synthesised sentences in the package" in text
    assert "--audio" not in text  # they are made for the packaged model
    measured.streams = [streams(0, 1), streams(0, 1, partials=True)]
    assert "Streams with partial results: none." in measured.report("base")
    assert measured._layouts(2) != []
    measured._options = {"workers": 2, "threads": 1}
    assert measured._layouts(2) == []


@pytest.mark.parametrize("audio", [None, Path("calls.wav")])
def test_the_report_says_what_was_measured_with(audio: Path | None) -> None:
    """A real model is unsure of synthesised sentences: its figures need a person's voice."""
    plan = Plan((), compared=False)
    measured = _Measurement(Path(), {"workers": 0, "threads": 1}, plan, 0.0, 60.0, audio)
    measured.speeds = [Speed(2, 1, 8.0, 300 * 2**20, "cpu")]
    text = "\n".join(measured.report("base"))
    assert ("models like base are unsure" in text) == (audio is None)
    assert ("Measure yours: --audio FILE" in text) == (audio is None)
    assert f"measured with {audio or 'the synthesised sentences in the package'}" in text


def test_the_search_begins_below_what_the_speed_allows() -> None:
    assert first_level(Speed(2, 1, 10.0, 0, "cpu"), 0.5) == 12
    assert first_level(Speed(2, 1, 0.1, 0, "cpu"), 1.0) == 1
