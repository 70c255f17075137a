"""The program as a user of Redis that may do no more than the documentation says it must, or less."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.program import System
from tests.recordings import Utterance
from tests.waiting import wait_until

PAGE = Path(__file__).parents[2] / "docs/reference/redis.md"


@pytest.fixture
def db(redis_url: str) -> Iterator[Any]:
    """A client that may do everything; at the end it removes the user that a test has made."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.execute_command("ACL", "LOG", "RESET")
        yield client
        client.execute_command("ACL", "DELUSER", "asrserver")


def documented() -> list[str]:
    """The arguments of the command in the documentation."""
    found = re.search(r"redis-cli (ACL SETUSER asrserver (?:.*\\\n)*.*)", PAGE.read_text())
    assert found
    return shlex.split(found[1].replace("\\\n", " "))


def transcribed(system: System, wav: Path) -> str:
    command = [sys.executable, "-m", "asrserver", "transcribe", str(wav), "--server", f"http://127.0.0.1:{system.port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def refusals(db: Any) -> list[tuple[str, str]]:
    return [(entry["object"], entry["client-info"]) for entry in db.execute_command("ACL", "LOG")]


def test_the_documented_rights_are_enough(
    start: Callable[..., System], db: Any, redis_url: str, utterances: list[Utterance], tmp_path: Path
) -> None:
    """Also after a worker's death, and for a worker that is drained."""
    assert db.execute_command(*documented()) in (True, "OK")
    wav = tmp_path / "hello.wav"
    wav.write_bytes(utterances[0].wav)
    url = f"{redis_url}?username=asrserver&password=SECRET"
    system = start("run", "--workers", "2", env={"REDIS_URL": url}).wait_ready()
    assert transcribed(system, wav) == utterances[0].text
    first = system.children("worker")[0]
    first.kill()

    def both() -> list[str]:
        living = {child.pid for child in system.children("worker")} - {first.pid}
        found = [each["name"] for each in system.get("/health")["workers"] if each["pid"] in living]
        return found if len(found) == 2 else []

    name = wait_until(both, 60, "two workers again")[0]
    drain = [sys.executable, "-m", "asrserver", "drain", name, "--redis-url", url]
    done = subprocess.run(drain, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert transcribed(system, wav) == utterances[0].text
    assert system.stop() == 0
    assert refusals(db) == []
    assert "may not send" not in system.output()


def test_without_info_and_config_it_runs_and_says_so_once(
    start: Callable[..., System], db: Any, redis_url: str, utterances: list[Utterance], tmp_path: Path
) -> None:
    """It did not start."""
    db.execute_command(*documented(), "-info", "-config")
    wav = tmp_path / "hello.wav"
    wav.write_bytes(utterances[0].wav)
    system = start("run", env={"REDIS_URL": f"{redis_url}?username=asrserver&password=SECRET"}).wait_ready()
    assert transcribed(system, wav) == utterances[0].text
    health = system.get("/health")
    assert (health["status"], "keys" in health["redis"]) == ("ok", False)
    assert [line for line in health["redis"]["warnings"] if "+info and +config|get" in line]
    assert system.stop() == 0
    assert system.output().count("may not send") == 1
    assert "Traceback" not in system.output()
