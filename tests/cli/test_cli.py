"""The command line as operators and users use it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from asrserver import __version__
from asrserver.cli.live import Screen
from asrserver.config import COMMANDS, setting_rows
from asrserver.embedded import locate
from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.models import TOY_NOTICE
from tests.program import NOBODY, NONE, System, cli
from tests.recordings import Utterance
from tests.waiting import wait_until
from tests.ws_client import health, look, query, stored

Start = Callable[..., System]

#: What the command says of the model that the tests use.
NOTICE = f"Warning: {TOY_NOTICE}.\n"


@pytest.fixture
def files(tmp_path: Path, utterances: list[Utterance]) -> list[Path]:
    """Three recordings as WAV files."""
    paths = []
    for utterance in utterances[:3]:
        paths.append(tmp_path / f"{Path(utterance.name).stem}.wav")
        paths[-1].write_bytes(utterance.wav)
    return paths


# -- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "command", ["", "run", "gateway", "worker", "transcribe", "status", "bench", "loadtest", "keys", "keys create"]
)
def test_help(command: str) -> None:
    """-h describes each command and all its options, in lines that fit a terminal."""
    done = cli(*command.split(), "-h")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("Usage: ")
    assert max(map(len, done.stdout.splitlines())) <= 110
    for row in setting_rows():
        if row.group in COMMANDS.get(command, ()):
            assert row.flag in done.stdout
            assert row.env in done.stdout
    if not command:
        assert all(name in done.stdout for name in ("run", "gateway", "worker", "transcribe", "status", "loadtest"))
    assert cli(*command.split(), "--help").stdout == done.stdout


@pytest.mark.usefixtures("processes")
def test_version_and_unknown_command() -> None:
    """--version prints the version of the package; an unknown command is an error of one line."""
    assert __version__ in cli("--version").stdout
    done = cli("dance")
    assert done.returncode == 2
    assert "dance" in done.stderr


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
    done = cli("transcribe", "--json", "--language", "en", "--server", f"ws://127.0.0.1:{shared.port}", files[0])
    assert done.returncode == 0
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["type"] for event in events] == ["chunk_result"] * (len(events) - 1) + ["final_result"]
    assert events[-1]["text"] == utterances[0].text
    assert events[-1]["chunk_count"] == len(events) - 1


def test_transcribe_progress(shared: System, files: list[Path], utterances: list[Utterance]) -> None:
    """The bar goes to standard error: standard output stays the text."""
    done = cli("transcribe", "--progress", "--server", f"ws://127.0.0.1:{shared.port}", files[0])
    assert (done.returncode, done.stdout) == (0, utterances[0].text + "\n")
    assert files[0].name in done.stderr


def test_transcribe_goes_on_after_a_file_that_is_no_audio(
    shared: System, files: list[Path], utterances: list[Utterance], tmp_path: Path
) -> None:
    """A text file, an empty file and a cut one: one line each, status 1; the other files are transcribed."""
    text, empty = tmp_path / "text.wav", tmp_path / "empty.wav"
    text.write_text("This is no recording.\n" * 100)
    empty.write_bytes(b"")
    done = cli("transcribe", "--server", f"ws://127.0.0.1:{shared.port}", text, files[0], empty, files[1])
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{files[0]}: {utterances[0].text}",
        f"{files[1]}: {utterances[1].text}",
    ]
    assert [line.partition(":")[0] for line in done.stderr.replace(NOTICE, "").splitlines()] == [str(text), str(empty)]


def test_transcribe_live(shared: System, files: list[Path], utterances: list[Utterance]) -> None:
    """It takes as long as the recording; without a terminal, results contain no control characters."""
    began = time.monotonic()
    done = cli("transcribe", "--live", "--server", f"ws://127.0.0.1:{shared.port}", files[0])
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


@pytest.mark.usefixtures("processes")
def test_transcribe_needs_a_file_or_live() -> None:
    """Without either it is a usage error, which names --live."""
    done = cli("transcribe", "--server", NOBODY)
    assert done.returncode == 2
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


def test_transcribe_refused_by_the_server(shared: System, files: list[Path]) -> None:
    """The server's error message is printed."""
    done = cli("transcribe", "--language", "tlh", "--server", f"ws://127.0.0.1:{shared.port}", files[0])
    assert done.returncode == 1
    assert "bad_option" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("processes")
def test_transcribe_without_server_or_file(files: list[Path], tmp_path: Path) -> None:
    """Each is an error of one line, with a status that is not 0."""
    done = cli("transcribe", "--server", NOBODY, files[0])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert NOBODY in line
    done = cli("transcribe", tmp_path / "nowhere.wav")
    assert done.returncode == 2
    assert "nowhere.wav" in done.stderr
    assert cli("transcribe").returncode == 2


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


@pytest.mark.usefixtures("processes")
def test_status_of_what_is_not_there() -> None:
    """No server, and a server of another kind: one line, status 1."""
    done = cli("status", "--server", NOBODY)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "127.0.0.1:9" in line


def test_status_without_worker(start: Start) -> None:
    """A gateway alone is degraded: status 1, and the table says that there is no worker."""
    system = start("gateway").wait_ready()
    done = cli("status", "--server", f"ws://127.0.0.1:{system.port}")
    assert done.returncode == 1
    assert re.search(r"^status +degraded$", done.stdout, re.M)
    assert "no worker is alive" in done.stdout


# -- gateway and worker ----------------------------------------------------------------------------------------------


def test_gateway_and_worker_apart(start: Start, files: list[Path], utterances: list[Utterance]) -> None:
    """Two commands on one Redis are one system; sessions that started before the worker are not lost."""
    gateway = start("gateway").wait_ready()
    command = [sys.executable, "-m", "asrserver", "transcribe", "--server", f"127.0.0.1:{gateway.port}"]
    with subprocess.Popen([*command, str(files[0])], stdout=subprocess.PIPE, text=True) as early:
        wait_until(lambda: health(gateway.port)["queue"]["waiting"] == 1, what="a session waits")
        worker = start("worker", "--workers", "2").wait_ready()
        assert early.communicate(timeout=60)[0] == utterances[0].text + "\n"
        assert early.returncode == 0
    assert "asrserver: 2 workers ready" in worker.output()
    done = cli("transcribe", "--server", f"127.0.0.1:{gateway.port}", files[1])
    assert done.stdout == utterances[1].text + "\n"
    assert worker.stop() == 0
    wait_until(lambda: not health(gateway.port)["workers_ready"], what="the gateway knows")
    assert gateway.stop() == 0


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("command", "env", "missing"),
    [
        ("gateway", {}, "REDIS_URL"),
        ("worker", {}, "REDIS_URL"),
        ("gateway", {"REDIS_URL": "redis://127.0.0.1:9"}, "DATABASE_URL"),
    ],
)
def test_gateway_and_worker_need_servers(command: str, env: dict[str, str], missing: str) -> None:
    """Only run starts servers; the others name what is missing, in one line."""
    done = cli(command, env={**NONE, **env})
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert missing in line


# -- real servers on TCP ---------------------------------------------------------------------------------------------


@dataclass
class Tcp:
    """Redis and PostgreSQL on TCP ports, as an operator runs them: programs of the system, else of the wheels."""

    redis_port: int
    postgres_port: int


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def tcp(processes: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tcp]:
    ports = Tcp(free_port(), free_port())

    class TcpRedis(EmbeddedRedis):
        def _prepare(self, lock: int) -> list[str]:
            return [*super()._prepare(lock), "--port", str(ports.redis_port), "--bind", "127.0.0.1"]

    class TcpPostgres(EmbeddedPostgres):
        socket_name = f".s.PGSQL.{ports.postgres_port}"

        def _prepare(self, lock: int) -> list[str]:
            return [*super()._prepare(lock), "-c", "listen_addresses=127.0.0.1"]

    monkeypatch.setattr("asrserver.embedded.postgres.POSTGRES_PORT", ports.postgres_port)
    if system_redis := shutil.which("redis-server"):
        monkeypatch.setattr(locate, "redis", lambda: Path(system_redis))
    if system_postgres := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        monkeypatch.setattr(locate, "postgres", lambda: system_postgres[-1].parent)
    directory = Path(tempfile.mkdtemp(prefix="asrserver-tcp-"))
    redis, postgres = TcpRedis(directory, appendfsync="no"), TcpPostgres(directory)
    try:
        redis.start()
        postgres.start()
        yield ports
    finally:
        postgres.stop(10)
        redis.stop(10)
        shutil.rmtree(directory, ignore_errors=True)


def test_run_on_real_servers(tcp: Tcp, files: list[Path], utterances: list[Utterance], tmp_path: Path) -> None:
    """With REDIS_ADDR and DB_* no server is started; the named database is created, and the session is in it."""
    data_dir = tmp_path / "data"
    settings = {
        **NONE,
        "REDIS_ADDR": f"127.0.0.1:{tcp.redis_port}",
        "DB_HOST": "127.0.0.1",
        "DB_PORT": str(tcp.postgres_port),
        "DB_USER": "asrserver",
        "DB_PASSWORD": "p@ss/w rd%",
        "DB_NAME": "speech & more",
    }
    system = System("run", "--port", "0", "--data-dir", str(data_dir), env=settings)
    try:
        system.wait_ready()
        done = cli("transcribe", "--server", f"127.0.0.1:{system.port}", *files)
        assert done.returncode == 0, done.stderr
        assert [line.partition(": ")[2] for line in done.stdout.splitlines()] == [u.text for u in utterances[:3]]
        assert health(system.port)["status"] == "ok"
        assert not data_dir.exists()
        # They are stored behind the client's back: the last may still be on its way when it has gone.
        wait_until(lambda: system.get("/history")["total"] == 3, what="three sessions in the history")
        sids = [record["session_id"] for record in system.get("/history")["records"]]
        assert len(sids) == 3
        dsn = psycopg2.extensions.make_dsn(
            host="127.0.0.1", port=tcp.postgres_port, user="asrserver", dbname="speech & more"
        )
        wait_until(lambda: all(stored(dsn, sid) for sid in sids))
        assert query(dsn, "SELECT count(*) FROM asr_sessions") == [(3,)]
        with look(f"redis://127.0.0.1:{tcp.redis_port}") as client:
            assert client.exists(*[f"asr_session:{{{sid}}}" for sid in sids]) == 3
        assert system.stop() == 0
    finally:
        system.close()


# -- configuration file ----------------------------------------------------------------------------------------------


def test_configuration_file(start: Start, tmp_path: Path) -> None:
    """--config sets defaults; the environment and flags take precedence."""
    config = tmp_path / "asrserver.toml"
    config.write_text('workers = 2\nlog_level = "debug"\nhang_timeout = 25.5\nport = 1\n')
    system = start("run", "--config", str(config), env={"ASRSERVER_LOG_LEVEL": "info"}).wait_ready()
    assert len(system.children("worker")) == 2
    assert " DEBUG " not in system.output()
    assert system.port != 1
    assert system.stop(signal.SIGINT) == 0


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("workers = 'many'\n", "workers"),
        ("wrokers = 2\n", "wrokers is not a setting"),
        ("workers = \n", "--config"),
        ("[server]\nport = 1\n", "server is not a setting"),
        ("port = [1]\n", "port must be one value"),
    ],
)
def test_bad_configuration_file(tmp_path: Path, text: str, words: str) -> None:
    """An error of one line names the key or the file."""
    config = tmp_path / "asrserver.toml"
    config.write_text(text)
    done = cli("run", env={"ASRSERVER_CONFIG": str(config)})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert words in line


@pytest.mark.usefixtures("processes")
def test_missing_configuration_file(tmp_path: Path) -> None:
    done = cli("run", "--config", tmp_path / "none.toml")
    assert done.returncode in (1, 2)
    assert "none.toml" in done.stderr
    assert len(done.stderr.splitlines()) <= 1 or done.returncode == 2


@pytest.mark.usefixtures("processes")
def test_console_script() -> None:
    """The program is installed under its name."""
    program = Path(sys.executable).with_name("asrserver")
    done: Any = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
