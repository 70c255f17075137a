"""asrserver backup and restore: of a server that runs, into a new data directory, with its history and recordings."""

from __future__ import annotations

import json
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.program import NONE, System, cli
from tests.recordings import Utterance
from tests.system.support import overdue
from tests.waiting import until
from tests.ws_client import WsClient

Start = Callable[..., System]


def ask(system: System, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{system.port}/api/v1{path}", timeout=30) as answer:
        return bytes(answer.read())


@pytest.mark.usefixtures("processes")
@pytest.mark.gen_test(timeout=180)
async def test_a_backup_of_a_running_server_is_restored_elsewhere(
    start: Start, tmp_path: Path, utterances: list[Utterance]
) -> None:
    first, file, second = tmp_path / "first", tmp_path / "backup.tar", tmp_path / "second"
    options = ("--data-dir", first, "--save-audio", first / "audio")
    system = start("run", *map(str, options), "--workers", "1", "--resume-timeout", "2", env=NONE).wait_ready()
    async with await WsClient.open(system.url) as ws:
        await ws.stream("done", utterances[:1])
        await ws.start("open")  # its audio is in Redis alone
        await ws.chunk("open", 0, utterances[1].wav)
        await ws.find("open", "chunk_result", 0)
        await until(lambda: b"done" in ask(system, "/session/done") and bool(ask(system, "/session/done/audio")))
        done = cli("backup", file, *options)
        assert done.returncode == 0, done.stderr
    before = json.loads(ask(system, "/session/done"))
    audio = ask(system, "/session/done/audio")
    assert cli("backup", file, *options).stderr.endswith("exists: choose another name\n")
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as archive:
        assert {"redis.rdb", "postgres.dump"} < set(archive.getnames())
    system.stop()

    options = ("--data-dir", second, "--save-audio", second / "audio")
    done = cli("restore", file, *options)
    assert done.returncode == 0, done.stderr
    again = cli("restore", file, *options)
    assert again.returncode == 1
    assert "is not empty" in again.stderr
    system = start("run", *map(str, options), "--workers", "1", "--resume-timeout", "2", env=NONE).wait_ready()
    assert json.loads(ask(system, "/session/done")) == before
    assert ask(system, "/session/done/audio") == audio
    # The session that was open is ended as after a power failure, with what was recognised: at the second look.
    overdue(f"unix://{second / 'redis' / 'redis.sock'}", ["open"])
    await until(lambda: json.loads(ask(system, "/session/open"))["status"] == "interrupted", 60)
    assert json.loads(ask(system, "/session/open"))["text"] == utterances[1].text


@pytest.mark.usefixtures("processes")
def test_what_cannot_be_backed_up_or_restored_is_one_line(tmp_path: Path) -> None:
    nothing = cli("backup", tmp_path / "x.tar", "--data-dir", tmp_path)
    assert nothing.returncode == 1
    assert "has no embedded servers" in nothing.stderr
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.tar").write_bytes(b"no archive")
    broken = cli("restore", tmp_path / "x.tar", "--data-dir", tmp_path / "data")
    assert broken.returncode == 1
    assert "cannot restore" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert not (tmp_path / "data" / "postgres").exists()
