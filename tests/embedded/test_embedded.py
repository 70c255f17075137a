"""The embedded Redis and PostgreSQL: they start, stop, survive kills and damage, and refuse with a useful message."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import psycopg2
import pytest

from asrserver.embedded import locate
from asrserver.embedded.data_dir import DataDir
from asrserver.embedded.locate import EmbeddedError
from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.embedded.server import EmbeddedServer
from tests.embedded.support import Run, both, client, kill, modes, query, remember, remembered
from tests.waiting import wait_until

PARENT = """
import signal, sys
from asrserver.embedded.data_dir import DataDir
from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis
with DataDir(sys.argv[1]) as directory:
    servers = EmbeddedRedis(directory), EmbeddedPostgres(directory)
    for server in servers:
        server.start()
    print(*(server.pid for server in servers), flush=True)
    signal.pause()
"""

#: Presses Ctrl+C while Python forks, before the last callback of the fork: at the time of the kernel's own work.
FORKED = """
import os, signal, sys
from asrserver.embedded.data_dir import DataDir
from asrserver.embedded.redis import EmbeddedRedis
with DataDir(sys.argv[1]) as directory:
    server = EmbeddedRedis(directory)
    os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        server.start()
        print("started")
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        server.stop(10)
"""


@both
def test_starts_within_seconds_answers_and_stops(
    directory: Path, run: Run, kind: type[EmbeddedServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asrserver.embedded")
    started = time.monotonic()
    server = run(kind)
    assert time.monotonic() - started < 15
    remember(server, "hello")
    assert remembered(server) == ["hello"]
    assert server.poll() is None
    assert server.pid is not None
    assert psutil.pid_exists(server.pid)
    assert os.getsid(server.pid) == server.pid  # out of reach of Ctrl+C
    server.stop(10)
    assert server.poll() == 0
    begin, end = (record.getMessage() for record in caplog.records)
    assert begin.startswith(f"{kind.name} {server.version} ready after")
    assert kind.socket_name in begin
    assert end == f"{kind.name} stopped"


@both
def test_the_same_directory_keeps_its_data(run: Run, kind: type[EmbeddedServer]) -> None:
    first = run(kind)
    remember(first, "one")
    first.stop(10)
    second = run(kind)
    remember(second, "two")
    assert remembered(second) == ["one", "two"]


@both
def test_killed_server_has_what_it_acknowledged_after_a_restart(run: Run, kind: type[EmbeddedServer]) -> None:
    server = run(kind)
    for turn in range(3):
        remember(server, f"{turn}")
        kill(server)
        server.start()
        assert remembered(server) == [f"{each}" for each in range(turn + 1)]


def test_redis_is_durable_bounded_and_on_no_port(directory: Path, run: Run) -> None:
    with client(run(EmbeddedRedis)) as connection:
        config = {
            key: value
            for name in ("appendonly", "appendfsync", "maxmemory*", "port", "save")
            for key, value in connection.config_get(name).items()
        }
    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "always"
    assert config["maxmemory"] == str(1 << 30)
    assert config["maxmemory-policy"] == "noeviction"
    assert config["port"] == "0"
    assert config["save"] == ""


def test_postgres_role_owns_its_database_and_is_no_superuser(run: Run) -> None:
    server = run(EmbeddedPostgres)
    assert query(server, "SHOW fsync") == query(server, "SHOW synchronous_commit") == [("on",)]
    assert query(server, "SHOW listen_addresses") == [("",)]
    assert query(
        server,
        "SELECT current_user::text, current_database()::text, rolsuper FROM pg_roles WHERE rolname = current_user",
    ) == [("asrserver", "asrserver", False)]
    assert query(server, "SHOW server_encoding") == [("UTF8",)]


def test_nobody_else_reaches_the_sockets_and_nothing_outside_is_changed(
    tmp_path: Path, directory: Path, run: Run
) -> None:
    passwd, before = Path("/etc/passwd").read_bytes(), modes(directory)
    for kind in (EmbeddedRedis, EmbeddedPostgres):
        server = run(kind)
        assert server.socket_path.parent.stat().st_mode & 0o777 == 0o700
    assert Path("/etc/passwd").read_bytes() == passwd
    assert modes(directory) == before
    assert {path.name for path in directory.iterdir()} == {"lock", "log", "postgres", "redis"}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("again", ["at once", "after they are gone"])
def test_killed_parent_takes_its_servers_along(tmp_path: Path, again: str) -> None:
    path = tmp_path / "data"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(path)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        children = [psutil.Process(pid) for pid in pids]
        parent.kill()
    if again == "after they are gone":
        wait_until(lambda: not any(child.is_running() for child in children), 10)
    with DataDir(path) as directory:
        for server in (EmbeddedRedis(directory), EmbeddedPostgres(directory)):
            try:
                server.start()
                remember(server, "still here")
            finally:
                server.stop(10)
    wait_until(lambda: not any(child.is_running() for child in children), 10)  # init has yet to reap them


def test_orphan_that_stays_is_named(directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asrserver.embedded.server.ORPHAN_TIMEOUT", 0.2)
    orphan = run(EmbeddedRedis)
    with pytest.raises(EmbeddedError, match=rf"still in use by redis .*\(pid {orphan.pid}\)"):
        run(EmbeddedRedis)


def test_lingering_backend_is_waited_for(run: Run) -> None:
    server = run(EmbeddedPostgres)
    with closing(psycopg2.connect(server.dsn)) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # it cannot notice that its postmaster dies
        kill(server)
        waker = subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {backend}"])
        server.start()
        assert waker.wait(60) == 0
    assert query(server, "SELECT 1") == [(1,)]


def test_foreign_pid_in_a_stale_pid_file_does_not_matter(directory: Path, run: Run) -> None:
    """Pids repeat in a container: the number in postmaster.pid may soon belong to another process of ours."""
    server = run(EmbeddedPostgres)
    kill(server)
    pid_file = directory / "postgres" / "data" / "postmaster.pid"
    pid_file.write_text("\n".join([str(os.getpid()), *pid_file.read_text().splitlines()[1:]]) + "\n")
    server.start()
    assert query(server, "SELECT 1") == [(1,)]


def test_second_holder_is_refused_with_the_first_ones_pid(directory: Path) -> None:
    with pytest.raises(EmbeddedError, match=rf"in use by another asrserver \(pid {os.getpid()}\)"):
        DataDir(directory).__enter__()


def test_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match=r"Not a directory.*; choose another --data-dir"):
        DataDir(tmp_path / "file" / "data").__enter__()


@both
def test_too_deep_path(tmp_path: Path, run: Run, kind: type[EmbeddedServer]) -> None:
    with DataDir(tmp_path / ("d" * 100)) as deep:
        server = run(kind, deep)
        remember(server, "deep")
        assert remembered(server) == ["deep"]
        sockets = server.socket_path.parent
        assert not sockets.is_relative_to(deep)
        assert sockets.stat().st_mode & 0o777 == 0o700
        server.stop(10)
        assert not sockets.exists()


@both
@pytest.mark.parametrize("name", ["a 'b' # 100%", '"c"', "d,e"])
def test_odd_path(tmp_path: Path, run: Run, kind: type[EmbeddedServer], name: str) -> None:
    with DataDir(tmp_path / name) as odd:
        remember(server := run(kind, odd), "odd")
        assert remembered(server) == ["odd"]
        server.stop(10)


@both
def test_private_parent(tmp_path: Path, run: Run, kind: type[EmbeddedServer]) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with DataDir(private / "data") as directory:
        before = modes(directory)
        remember(server := run(kind, directory), "private")
        assert modes(directory) == before
        server.stop(10)


def append_only_file(directory: Path) -> Path:
    (path,) = directory.glob("redis/appendonlydir/*.incr.aof")
    return path


def test_truncated_append_only_file_starts(directory: Path, run: Run) -> None:
    server = run(EmbeddedRedis)
    remember(server, "whole")
    remember(server, "cut")
    kill(server)
    os.truncate(append_only_file(directory), append_only_file(directory).stat().st_size - 5)
    server.start()
    assert remembered(server) == ["whole"]


@pytest.mark.parametrize("torn", [b"\0" * 4096, b"*3\r\n$4\r\nXA\xff\xfe garbage"])
def test_torn_append_only_file_starts(directory: Path, run: Run, torn: bytes) -> None:
    server = run(EmbeddedRedis)
    remember(server, "whole")
    kill(server)
    path = append_only_file(directory)
    with path.open("ab") as file:
        file.write(torn)
    server.start()
    assert remembered(server) == ["whole"]
    remember(server, "next")
    kill(server)
    server.start()
    assert remembered(server) == ["whole", "next"]


def test_damage_in_the_middle_of_the_append_only_file_is_not_cut(
    directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asrserver.embedded.redis.TORN_TAIL_LIMIT", 10)
    server = run(EmbeddedRedis)
    remember(server, "whole")
    kill(server)
    with (path := append_only_file(directory)).open("ab") as file:
        file.write(b"x" * 4096)
    size = path.stat().st_size
    with pytest.raises(EmbeddedError, match="is damaged: restore"):
        server.start()
    assert path.stat().st_size == size


def test_cluster_of_another_major_version(directory: Path, run: Run) -> None:
    server = run(EmbeddedPostgres)
    server.stop(10)
    (directory / "postgres" / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedError, match=r"created by PostgreSQL 12, but the installed version is \d+"):
        server.start()


@pytest.mark.usefixtures("real_servers")
def test_initdb_that_takes_too_long_is_named_with_its_limit(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another data directory may be no quicker: the message names the limit and what may be slow."""
    for name, command in (("postgres", "echo 'postgres (PostgreSQL) 18.0'"), ("initdb", "exec sleep 600")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{command}\n")
        program.chmod(0o755)
    monkeypatch.setattr(locate, "postgres", lambda: tmp_path)
    monkeypatch.setattr("asrserver.embedded.postgres.INITDB_TIMEOUT", 0.2)
    with pytest.raises(EmbeddedError, match=r"^initdb did not end within 0\.2 s: this machine is overloaded") as caught:
        EmbeddedPostgres(directory).start()
    assert "--data-dir" not in str(caught.value)
    assert not (directory / "postgres" / "data").exists()


def test_interrupted_initdb_is_done_again(directory: Path, run: Run) -> None:
    half = directory / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    assert query(run(EmbeddedPostgres), "SELECT 1") == [(1,)]
    assert not half.exists()


@pytest.mark.parametrize(("kind", "setting"), [(EmbeddedRedis, "REDIS_URL"), (EmbeddedPostgres, "DATABASE_URL")])
def test_no_programs(
    directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[EmbeddedServer], setting: str
) -> None:
    monkeypatch.setattr(locate, "wheel_files", lambda package, pattern: [])
    monkeypatch.setattr(locate, "SYSTEM_POSTGRES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedError, match=rf"install asrserver\[embedded\] or .*, or set {setting}"):
        run(kind)


@both
def test_programs_of_the_system_serve_where_the_wheels_are_missing(
    directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch, kind: type[EmbeddedServer]
) -> None:
    monkeypatch.setattr(locate, "wheel_files", lambda package, pattern: [])
    try:
        locate.redis(), locate.postgres()
    except EmbeddedError as error:
        pytest.skip(str(error))
    remember(server := run(kind), "system")
    assert remembered(server) == ["system"]


@pytest.mark.usefixtures("real_servers")
def test_failed_start_tells_the_end_of_the_log(directory: Path) -> None:
    server = EmbeddedRedis(directory, appendfsync="sometimes")
    with pytest.raises(EmbeddedError, match=r"redis ended with code 1: .*argument.*redis\.log"):
        server.start()
    assert server.poll() == 1


def test_long_log_is_set_aside(directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asrserver.embedded.server.LOG_LIMIT", 10)
    for _ in range(2):
        run(EmbeddedRedis).stop(10)
    assert (directory / "log" / "redis.log.1").stat().st_size > 10


def test_postgres_needs_no_shared_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none it uses files in its directory."""
    first = run(EmbeddedPostgres)
    assert query(first, "SHOW dynamic_shared_memory_type") == [("posix",)]
    first.stop(10)
    monkeypatch.setattr("asrserver.process.places.SHARED_MEMORY", "/nowhere")
    server = run(EmbeddedPostgres)
    assert query(server, "SHOW dynamic_shared_memory_type") == [("mmap",)]
    remember(server, "one")


@pytest.mark.usefixtures("processes")
def test_an_interrupt_while_a_program_is_started_is_not_lost(tmp_path: Path) -> None:
    """Python drops what is raised in the callbacks of a fork, so the start would go on."""
    done = subprocess.run([sys.executable, "-c", FORKED, str(tmp_path / "data")], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


@pytest.mark.usefixtures("processes")
def test_a_full_disk_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server does not start: initdb says no more than that something was aborted."""
    server = EmbeddedRedis(directory)
    monkeypatch.setattr(server, "_prepare", lambda lock: ["false"])
    with pytest.raises(EmbeddedError, match=r"redis\.log\)$"):
        server.start()
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 3 << 20}))
    with pytest.raises(EmbeddedError, match=f"; the disk of {directory} is full: 3 MiB are free$"):
        server.start()
