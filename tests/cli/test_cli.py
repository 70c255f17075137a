"""The command line as operators and users use it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from asrserver import __version__
from asrserver.cli.help import TITLES
from asrserver.config import COMMANDS, setting_rows
from asrserver.embedded import locate
from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.models import TOY_NOTICE
from tests.program import NOBODY, NONE, System, cli, free_port
from tests.recordings import Utterance
from tests.waiting import wait_until
from tests.ws_client import health, look, query, stored

Start = Callable[..., System]

#: What the command says of the model that the tests use.
NOTICE = f"Warning: {TOY_NOTICE}.\n"


# -- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    "command",
    [
        "",
        "run",
        "gateway",
        "worker",
        "transcribe",
        "status",
        "bench",
        "loadtest",
        "keys",
        "keys create",
        "db",
        "db status",
    ],
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
    assert "..." not in done.stdout.split("\nOptions:")[-1]  # what a list of commands says of each, to the end
    assert cli(*command.split(), "--help").stdout == done.stdout


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("command", ["run", "gateway", "worker", "doctor"])
def test_settings_are_found_by_the_title_of_their_group(command: str) -> None:
    """A hundred settings in a row are read by nobody: each stands under its group's title, as in the documentation."""
    sections = re.split(r"(?m)^(\S.*):$", cli(command, "-h").stdout)
    below = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert below.keys() == {"Options", *(TITLES[group] for group in COMMANDS[command])}
    for row in setting_rows():
        if row.group in COMMANDS[command]:
            assert row.flag in re.findall(r"(?m)^  (--[\w-]+)", below[TITLES[row.group]])


@pytest.mark.usefixtures("processes")
def test_version_and_unknown_command() -> None:
    """--version prints the version of the package; an unknown command is an error of one line."""
    assert __version__ in cli("--version").stdout
    done = cli("dance")
    assert done.returncode == 2
    assert "dance" in done.stderr
    assert "Did you mean 'transcribe'?" in cli("transcibe", "x.wav").stderr


# -- status ----------------------------------------------------------------------------------------------------------


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
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert missing in line


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("command", ["gateway", "worker"])
def test_a_redis_url_that_cannot_be_used_ends_the_start_with_a_line(command: str, database_url: str) -> None:
    """It was a traceback."""
    servers = {**NONE, "DATABASE_URL": database_url, "REDIS_URL": "redis://:s3cret@127.0.0.1:9/0?nonsense=1"}
    done = cli(command, env={**servers, "PORT": str(free_port()), "ASRSERVER_MODEL": "demo"})
    assert done.returncode == 3
    assert "REDIS_URL, 127.0.0.1:9: there is no option 'nonsense'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr


# -- real servers on TCP ---------------------------------------------------------------------------------------------


@dataclass
class Tcp:
    """Redis and PostgreSQL on TCP ports, as an operator runs them: programs of the system, else of the wheels."""

    redis_port: int
    postgres_port: int


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
    assert done.returncode == 2
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
