"""The program as its users start it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import wait_until


class System:
    """A running program. `port` is where it listens."""

    #: How it is started; a test may put another launcher here.
    program = ("-m", "asrserver")

    def __init__(self, command: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.log = tempfile.NamedTemporaryFile("w+", prefix="asrserver-", suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, *self.program, command, *arguments],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            # Whatever models are installed: the tests know what the demo model understands.
            env={"ASRSERVER_MODEL": "demo", **os.environ, **(env or {})},
        )
        self.port = 0

    def output(self) -> str:
        return Path(self.log.name).read_text()

    def wait_ready(self, timeout: float = 60.0) -> System:
        def ready() -> re.Match[str] | None:
            if self.process.poll() is not None:
                pytest.fail(f"the program ended with {self.process.returncode}:\n{self.output()}")
            return re.search(
                r"^asrserver(?: listening on https?://\S+:(\d+)|: \d+ workers? ready)", self.output(), re.M
            )

        found = wait_until(ready, timeout, "the program is ready")
        self.port = int(found[1] or 0)
        return self

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/asr"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1{path}", timeout=10) as response:
            return json.load(response)

    def children(self, kind: str) -> list[psutil.Process]:
        """The living gateway or worker processes, as the log names them."""
        pids = re.findall(rf"{kind} \S+ started: pid (\d+)", self.output())
        return [
            psutil.Process(int(pid))
            for pid in pids
            if psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
        ]

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)

    def close(self) -> None:
        """Clean up after any end of the test: no process and no file is left."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


#: A port where nobody listens.
NOBODY = "ws://127.0.0.1:9"


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def cli(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "asrserver", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=150,  # asrserver bench needs 25 s of a machine that does nothing else
        check=False,
        env={**os.environ, **(env or {})},
    )


#: No servers: an empty value counts as none, so what the caller of the tests has set does not matter.
NONE = dict.fromkeys(("REDIS_URL", "REDIS_ADDR", "DATABASE_URL", "DB_HOST", "DB_USER", "DB_PASSWORD", "DB_NAME"), "")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
