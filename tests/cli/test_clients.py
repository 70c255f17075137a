"""Commands that are clients of a running server: transcribe, status."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from asrserver.cli import watch
from asrserver.cli.files import FileTranscriber, warn_of_toy
from asrserver.cli.live import Screen
from asrserver.cli.main import main
from asrserver.cli.outputs import Outputs
from asrserver.client import ConnectionLost, ServerError
from asrserver.errors import AudioError
from asrserver.models import TOY_NOTICE
from tests.program import NOBODY, System, cli
from tests.recordings import Utterance
from tests.waiting import until, wait_until

#: What the command says of the model that the tests use.
NOTICE = f"Warning: {TOY_NOTICE}.\n"


@pytest.fixture(autouse=True)
def _notice() -> None:
    """Let the command tell of the model again: it does so once in a process."""
    warn_of_toy.cache_clear()


def run(server: System | str, *arguments: str | Path) -> Result:
    """Run `asrserver transcribe` in this process, which is quicker."""
    url = server if isinstance(server, str) else f"127.0.0.1:{server.port}"
    return CliRunner().invoke(main, ["transcribe", "--server", url, *map(str, arguments)])


# -- transcribe ------------------------------------------------------------------------------------------------------


def test_transcribe_one_file(shared: System, files: list[Path], utterances: list[Utterance]) -> None:
    """Standard output has the text and nothing else, so that scripts can read it."""
    done = cli("transcribe", "--server", shared.url.removesuffix("/ws/asr"), files[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, utterances[0].text + "\n", NOTICE)


def test_transcribe_several_files(shared: System, files: list[Path], utterances: list[Utterance]) -> None:
    """Each text follows its file's name; the server is given by http URL or environment; the user is stored."""
    server = f"http://127.0.0.1:{shared.port}"
    done = cli("transcribe", "--user", "operator", *files, env={"ASRSERVER_SERVER": server})
    assert (done.returncode, done.stderr) == (0, NOTICE)
    expected = [f"{path}: {utterance.text}" for path, utterance in zip(files, utterances, strict=False)]
    assert done.stdout.splitlines() == expected

    def users() -> set[str]:
        return {record["user_id"] for record in shared.get("/history?limit=3")["records"]}

    wait_until(lambda: users() == {"operator"}, what="the sessions are stored")


def test_transcribe_realtime(shared: System, files: list[Path], utterances: list[Utterance]) -> None:
    """--realtime takes at least as long as the recording."""
    started = time.monotonic()
    done = cli("transcribe", "--realtime", "--server", f"127.0.0.1:{shared.port}", files[0])
    assert (done.returncode, done.stdout) == (0, utterances[0].text + "\n")
    assert time.monotonic() - started >= len(utterances[0].pcm) / 32000


def test_transcribe_json(shared: System, files: list[Path], utterances: list[Utterance]) -> None:
    """--json prints every event as a line, the final result last."""
    done = run(shared, "--json", "--language", "en", files[0])
    assert done.exit_code == 0
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["type"] for event in events] == ["segment_result"] * (len(events) - 1) + ["final_result"]
    assert " ".join(event["text"] for event in events[:-1]) == events[-1]["text"] == utterances[0].text


def test_transcribe_progress(shared: System, files: list[Path], utterances: list[Utterance]) -> None:
    """The bar goes to standard error: standard output stays the text."""
    done = run(shared, "--progress", files[0])
    assert (done.exit_code, done.stdout) == (0, utterances[0].text + "\n")
    assert files[0].name in done.stderr


def test_transcribe_goes_on_after_a_file_that_is_no_audio(
    shared: System, files: list[Path], utterances: list[Utterance], tmp_path: Path
) -> None:
    """A text file, an empty file and a cut one: one line each, status 1; the other files are transcribed."""
    text, empty = tmp_path / "text.wav", tmp_path / "empty.wav"
    text.write_text("This is no recording.\n" * 100)
    empty.write_bytes(b"")
    done = run(shared, text, files[0], empty, files[1])
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        f"{files[0]}: {utterances[0].text}",
        f"{files[1]}: {utterances[1].text}",
    ]
    assert [line.partition(":")[0] for line in done.stderr.replace(NOTICE, "").splitlines()] == [str(text), str(empty)]


def test_transcribe_live(shared: System, files: list[Path], utterances: list[Utterance]) -> None:
    """It takes as long as the recording; without a terminal, results contain no control characters."""
    began = time.monotonic()
    done = cli("transcribe", "--live", "--server", f"{NOBODY},ws://127.0.0.1:{shared.port}", files[0])
    assert time.monotonic() - began >= len(utterances[0].pcm) / 32000
    assert done.returncode == 0, done.stderr
    *guesses, last = done.stdout.splitlines()
    assert re.fullmatch(rf"\[00:0\d\.\d\] {utterances[0].text}", last)
    assert guesses
    assert all(guess.startswith("... ") for guess in guesses)
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("module", "cure", "other"),
    [
        ("raise ModuleNotFoundError('No module named sounddevice')", "make mic", "libportaudio2"),
        ("raise OSError('PortAudio library not found')", "apt install libportaudio2", "asrserver[mic]"),
        (
            "class PortAudioError(Exception): pass\n"
            "def RawInputStream(*_args, **_kwargs): raise PortAudioError('Error querying device -1')",
            "Error querying device -1",
            "install",
        ),
    ],
    ids=["package", "library", "device"],
)
def test_transcribe_live_without_a_microphone(
    shared: System, tmp_path: Path, module: str, cure: str, other: str
) -> None:
    """One line that names what is missing and nothing else: the Python package, PortAudio, or a device."""
    (tmp_path / "sounddevice.py").write_text(module)
    server = f"ws://127.0.0.1:{shared.port}"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = cli("transcribe", "--live", "--server", server, env={"PYTHONPATH": path})
    assert done.returncode == 1
    told = done.stderr.replace(NOTICE, "")
    assert cure in told
    assert other not in told
    assert len(told.splitlines()) == 1


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    done = run(NOBODY, tmp_path)
    assert done.exit_code == 2
    assert f"{tmp_path} is a directory: name its files, or --watch it" in done.stderr
    done = run(NOBODY, "https://example.org/talk.mp3")
    assert "https://example.org/talk.mp3 is no file: download it first" in done.stderr


def test_transcribe_needs_a_file_or_live() -> None:
    """Without either it is a usage error, which names --live."""
    done = run(NOBODY)
    assert done.exit_code == 2
    assert "--live" in done.stderr


def test_text_as_it_forms_on_a_terminal() -> None:
    """One line that is redrawn: stable text in bold, the rest dim, never wider than the terminal."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    screen = Screen(out)
    screen.show({"type": "partial_result", "text": "turn on the chicken", "stable": "turn on"})
    screen.show({"type": "partial_result", "text": "word " * 100, "stable": "word " * 90})
    screen.show({"type": "segment_result", "text": "turn on the kitchen light", "start": 63.25})
    screen.end()
    first, second, third, last = out.getvalue().removeprefix("\r\x1b[K").split("\r\x1b[K")
    assert first == "\x1b[1mturn on\x1b[0m\x1b[2m the chicken\x1b[0m"
    assert len(re.sub(r"\x1b\[\dm", "", second)) < 500
    assert third == "[01:03.2] turn on the kitchen light\n"
    assert last == ""


def test_transcribe_of_what_has_no_speech(shared: System) -> None:
    silence = Path(str(importlib.resources.files("asrserver") / "data" / "recordings" / "silence.wav"))
    done = run(shared, silence)
    assert (done.exit_code, done.stdout) == (0, "\n")
    assert done.stderr.replace(NOTICE, "") == f"{silence}: no speech was found in it\n"


def test_transcribe_refused_by_the_server(shared: System, files: list[Path]) -> None:
    """The server's error message is printed."""
    done = run(f"ws://127.0.0.1:{shared.port}", "--language", "tlh", files[0])
    assert done.exit_code == 1
    assert "bad_option" in done.stderr
    assert "Traceback" not in done.stderr


def test_transcribe_without_server_or_file(files: list[Path], tmp_path: Path) -> None:
    """Each is an error of one line, with a status that is not 0."""
    done = run(NOBODY, files[0])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert NOBODY in line
    assert "is it running (asrserver run)" in line
    assert "'ftp://x' is not a URL of ws://" in run("ftp://x", files[0]).stderr
    done = run(NOBODY, tmp_path / "nowhere.wav")
    assert done.exit_code == 2
    assert "nowhere.wav" in done.stderr


# -- results in files


def test_transcribe_to_one_file(shared: System, files: list[Path], utterances: list[Utterance], tmp_path: Path) -> None:
    """Its name says the format, unless --format does; nothing else is left in the directory."""
    out = tmp_path / "out"
    out.mkdir()
    for name, given, beginning in (
        ("a.txt", [], utterances[0].text + "\n"),
        ("b.srt", [], "1\n00:00:0"),
        ("c.vtt", [], "WEBVTT\n\n00:00:0"),
        ("d.srt", ["--format", "vtt"], "WEBVTT\n\n00:00:0"),
    ):
        done = run(shared, "-o", out / name, *given, files[0])
        assert (done.exit_code, done.stdout) == (0, ""), done.stderr
        assert (out / name).read_text().startswith(beginning)
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "b.srt", "c.vtt", "d.srt"]
    assert run(shared, "-o", "-", files[0]).stdout == utterances[0].text + "\n"
    assert run(shared, "-o", f"{out}/new/", files[0]).exit_code == 0
    assert (out / "new" / "000.txt").read_text() == utterances[0].text + "\n"


def test_transcribe_to_a_directory(
    shared: System, files: list[Path], utterances: list[Utterance], tmp_path: Path
) -> None:
    """It is made; a file that is no recording costs no other its result."""
    bad, out = tmp_path / "bad.wav", tmp_path / "new" / "texts"
    bad.write_bytes(b"no recording")
    done = run(shared, "--format", "json", "--words", "--output", out, files[0], bad, files[1])
    assert done.exit_code == 1
    assert f"{bad}: " in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["000.json", "001.json"]
    found = json.loads((out / "000.json").read_text())
    assert found.keys() == {"file", "session_id", "text", "duration", "language", "segments"}
    assert (found["file"], found["text"], found["language"]) == (str(files[0]), utterances[0].text, "en")
    words = [word["word"] for segment in found["segments"] for word in segment["words"]]
    assert " ".join(words) == utterances[0].text
    assert found["duration"] == pytest.approx(len(utterances[0].pcm) / 32000, abs=0.05)
    printed = run(shared, "--format", "json", *files[:2])
    assert [json.loads(line)["text"] for line in printed.stdout.splitlines()] == [one.text for one in utterances[:2]]


def test_a_result_that_cannot_be_written(shared: System, files: list[Path], tmp_path: Path) -> None:
    """The message names it, not the recording alone; a directory that is missing is told before anything is sent."""
    done = run(NOBODY, "-o", tmp_path / "missing" / "a.txt", files[0])
    assert (done.exit_code, done.stderr) == (
        1,
        f"Error: --output {tmp_path}/missing/a.txt: there is no directory {tmp_path}/missing\n",
    )
    full = Path("/proc/a.txt")  # no file can be made there
    done = run(shared, "-o", full, files[0])
    assert done.exit_code == 1
    assert f"{files[0]}: {full} cannot be written: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "srt", "A", "B"], "--output DIR"),
        (["-o", "OUT", "A", "SAME"], "the same result"),
        (["--json", "-o", "x", "A"], "--json prints"),
        (["--live", "--format", "srt", "A"], "--live prints"),
        (["--watch", "DIR", "A"], "no FILE"),
        (["--json", "--watch", "DIR"], "--json prints"),
        (["--format", "docx", "A"], "docx"),
        (["--task", "dance", "A"], "dance"),
        (["--watch", "A"], "is a file"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "dir").mkdir()
    places = {"A": tmp_path / "a.wav", "B": tmp_path / "b.wav", "SAME": tmp_path / "dir" / "a.mp3"}
    for place in places.values():
        place.touch()
    places |= {"DIR": tmp_path, "OUT": tmp_path / "out"}
    done = CliRunner().invoke(main, ["transcribe", *(str(places.get(one, one)) for one in arguments)])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_options_reach_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those that are not given are left to it."""
    file, asked = tmp_path / "a.wav", []
    file.touch()
    made = FileTranscriber.__init__

    def init(self: FileTranscriber, urls: list[str], key: str, options: dict[str, Any], **how: Any) -> None:
        asked.append(options)
        made(self, urls, key, options, **how)

    monkeypatch.setattr(FileTranscriber, "__init__", init)
    given = {"prompt": "Minutes.", "hotwords": "Zoë", "task": "translate", "model": "base", "language": "de"}
    given["normalise"] = "numerals=digits"
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    for more in [], [*options, "--words", "--user", "me"], ["--format", "srt"]:
        CliRunner().invoke(main, ["transcribe", "--server", NOBODY, *more, str(file)])
    assert asked == [{}, given | {"user_id": "me", "word_timestamps": True}, {"word_timestamps": True}]


# -- a folder that is watched


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.02)


@contextlib.asynccontextmanager
async def watching(folder: Path, transcriber: Any, outputs: Outputs) -> Any:
    task = asyncio.create_task(watch.watch_folder(folder, transcriber, outputs))
    try:
        yield task
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.usefixtures("processes")
def test_ctrl_c_ends_the_watch_without_an_error(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "asrserver", "transcribe", "--watch", str(tmp_path)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("watching")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.gen_test(timeout=60)
async def test_recordings_are_transcribed_as_they_appear(
    shared: System, files: list[Path], utterances: list[Utterance], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside themselves, when they are whole, whatever else lies there; what has a result is left alone."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for name, data in (
        ("done.wav", utterances[0].wav),
        ("done.srt", b"by hand"),
        ("bad.mp3", b"no recording"),
        ("notes.doc", utterances[0].wav),
        (".hidden.wav", utterances[0].wav),
    ):
        (inbox / name).write_bytes(data)
    transcriber = FileTranscriber([shared.url], "", {"word_timestamps": True})
    async with watching(inbox, transcriber, Outputs("srt", None, (), inbox)):
        with (inbox / "new one.wav").open("wb") as slow:
            slow.write(utterances[1].wav[:-20_000])
            slow.flush()
            (inbox / "other.wav").write_bytes(utterances[2].wav)
            await until((inbox / "other.srt").exists, 30)
            assert not (inbox / "new one.srt").exists()  # somebody writes it, though it was the same for a while
            slow.write(utterances[1].wav[-20_000:])
        await until((inbox / "new one.srt").exists, 30)
    results = {path.name: path.read_text() for path in inbox.glob("*.srt")}
    assert results.keys() == {"done.srt", "other.srt", "new one.srt"}
    assert results["done.srt"] == "by hand"
    assert results["new one.srt"].splitlines()[2] == utterances[1].text
    said = capsys.readouterr()
    assert f"{inbox / 'new one.wav'}: {inbox / 'new one.srt'}\n" in said.out
    assert said.err.count("bad.mp3") == 1


class Fake:
    """Transcribes without a server: each call does what the next of `outcomes` says."""

    def __init__(self, *outcomes: Exception | Callable[[], object]) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[str] = []

    @contextlib.asynccontextmanager
    async def _client(self) -> Any:
        yield None

    async def connect(self) -> Any:
        if self.outcomes and isinstance(refusal := self.outcomes[0], click.ClickException):
            del self.outcomes[0]
            raise refusal
        return self._client()

    async def transcribe(self, _client: None, path: Path) -> dict[str, Any]:
        self.calls.append(path.name)
        outcome = self.outcomes.pop(0) if self.outcomes else lambda: None
        if isinstance(outcome, Exception):
            raise outcome
        outcome()
        return self._transcript(path)

    def _transcript(self, path: Path) -> dict[str, Any]:
        return {"text": f"text of {path.stat().st_size} bytes", "segments": []}


@pytest.mark.usefixtures("quick")
@pytest.mark.gen_test(timeout=60)
async def test_a_watcher_survives_its_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What may pass is tried again; what is the file's fault is not, until the file changes."""
    inbox, out = tmp_path / "inbox", tmp_path / "out"
    inbox.mkdir()
    (inbox / "a.wav").write_bytes(b"1234")
    overloaded = ServerError({"code": "overloaded", "message": "no room", "retry_after": 1})
    bad = AudioError("not_audio", "it is a song")
    fake = Fake(click.ClickException("cannot connect"), overloaded, ConnectionLost("gone"), bad)
    async with watching(inbox, fake, Outputs(None, str(out), (), inbox)):
        await until(lambda: len(fake.calls) == 3)
        (inbox / "b.wav").write_bytes(b"12")
        await until((out / "b.txt").exists)
        assert fake.calls == ["a.wav", "a.wav", "a.wav", "b.wav"]
        (inbox / "a.wav").write_bytes(b"123")
        await until((out / "a.txt").exists)
    assert (out / "a.txt").read_text() == "text of 3 bytes\n"
    errors = capsys.readouterr().err
    assert all(word in errors for word in ("cannot connect", "overloaded", "gone", "it is a song"))
    assert errors.count(f"{inbox / 'a.wav'}: ") == 3


@pytest.mark.usefixtures("quick")
@pytest.mark.gen_test(timeout=60)
async def test_what_grows_is_transcribed_again(tmp_path: Path) -> None:
    """Whether it does so while it is transcribed or later; its first result is replaced."""
    file = tmp_path / "a.wav"
    file.write_bytes(b"1")
    fake = Fake(lambda: file.write_bytes(b"12"))
    async with watching(tmp_path, fake, Outputs(None, None, (), tmp_path)):
        await until((tmp_path / "a.txt").exists)
        assert (tmp_path / "a.txt").read_text() == "text of 2 bytes\n"
        file.write_bytes(b"123")
        await until(lambda: (tmp_path / "a.txt").read_text() == "text of 3 bytes\n")
    assert fake.calls == ["a.wav"] * 3


@pytest.mark.usefixtures("quick")
@pytest.mark.gen_test(timeout=60)
async def test_one_file_cannot_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is given up after some tries; and two of one name have one result."""
    for name in "a.wav", "b.wav", "b.mp3":
        (tmp_path / name).write_bytes(b"1")
        os.utime(tmp_path / name, (1, 1))
    lost = ServerError({"code": "session_gone", "message": "gone"})
    fake = Fake(*[lost] * watch.MAX_TRIES)
    async with watching(tmp_path, fake, Outputs(None, None, (), tmp_path)):
        await until((tmp_path / "b.txt").exists)
        await until(lambda: "rename" in capsys.readouterr().err)
    assert fake.calls == ["a.wav"] * watch.MAX_TRIES + ["b.mp3"]


# -- status ----------------------------------------------------------------------------------------------------------


def test_status(shared: System) -> None:
    """Tables for humans, the health document for programs; status 0 while all parts work. A proxy is not asked."""
    proxy = {"http_proxy": NOBODY.replace("ws:", "http:"), "no_proxy": ""}
    done = cli("status", "--server", f"ws://127.0.0.1:{shared.port}", env=proxy)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^status +ok$", done.stdout, re.M)
    assert re.search(r"^redis +ready, [\d.]+ ms$", done.stdout, re.M)
    assert re.search(r"^postgres +ready, [\d.]+ ms$", done.stdout, re.M)
    for process in (*shared.children("gateway"), *shared.children("worker")):
        assert re.search(rf" {process.pid} ", done.stdout)
    done = cli("status", "--json", "--server", f"http://127.0.0.1:{shared.port}")
    assert json.loads(done.stdout)["status"] == "ok"
