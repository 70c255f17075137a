"""A real Redis with a replica, watched by three real sentinels."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from asrserver.embedded import locate
from tests.program import free_port
from tests.waiting import wait_until

#: What the sentinels call the primary.
NAME = "asr"

#: A sentinel takes a server for dead after so many milliseconds; one that is busy must not look dead.
DOWN_AFTER = 2000

#: `requirepass` of the sentinels.
SENTINEL_PASSWORD = "of-sentinels"

POLICY = (
    "--repl-diskless-sync-delay",
    "0",
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--save",
    "",
    "--maxmemory-policy",
    "noeviction",
)


class Watched:
    """Two servers, the first of which begins as the primary, and three sentinels, on the loopback address."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ports = [free_port(), free_port()]
        self.sentinels = [free_port() for _ in range(3)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}  # by port

    @property
    def url(self) -> str:
        """As REDIS_URL has it."""
        places = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis+sentinel://{places}/{NAME}?sentinel_password={SENTINEL_PASSWORD}"

    def open(self) -> None:
        self.start(0)
        self.start(1, "--replicaof", "127.0.0.1", str(self.ports[0]))
        with self.client(1) as replica:
            wait_until(lambda: replica.info("replication")["master_link_status"] == "up", 30, "the replica has all")
        for port in self.sentinels:
            self._start_sentinel(port)
        wait_until(lambda: all(map(self._knows_all, self.sentinels)), 30, "the sentinels know each other")

    def start(self, number: int, *options: str) -> None:
        """Start a server; without options it takes itself for a primary."""
        port = self.ports[number]
        folder = self._directory / str(number)
        folder.mkdir(exist_ok=True)
        self._run(port, [*POLICY, "--port", str(port), "--bind", "127.0.0.1", *options], folder)

    def _start_sentinel(self, port: int) -> None:
        folder = self._directory / f"sentinel-{port}"
        folder.mkdir()
        lines = (
            f"port {port}",
            "bind 127.0.0.1",
            f"requirepass {SENTINEL_PASSWORD}",
            f"sentinel monitor {NAME} 127.0.0.1 {self.ports[0]} 2",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER}",
            f"sentinel failover-timeout {NAME} 20000",
        )
        (folder / "sentinel.conf").write_text("\n".join(lines))
        self._run(port, ["sentinel.conf", "--sentinel"], folder)

    def _run(self, port: int, arguments: Sequence[str], folder: Path) -> None:
        command = [str(locate.redis()), *arguments]
        with (folder / "log").open("ab") as log:
            self._processes[port] = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        password = SENTINEL_PASSWORD if port in self.sentinels else None
        with redis.Redis(port=port, password=password) as client:
            wait_until(lambda: _answers(client), 30, "it answers")

    def _knows_all(self, port: int) -> bool:
        with redis.Redis(port=port, password=SENTINEL_PASSWORD, decode_responses=True, protocol=2) as client:
            state = client.sentinel_master(NAME)
            return (state["num-slaves"], state["num-other-sentinels"]) == (1, 2)

    def client(self, number: int) -> redis.Redis:
        """A client of one of the servers."""
        return redis.Redis(port=self.ports[number], decode_responses=True, protocol=2)

    def role(self, number: int) -> str:
        """What a server takes itself for: master or slave."""
        with self.client(number) as client:
            return str(client.info("replication")["role"])

    def kill(self, number: int) -> None:
        """Kill a server, as the kernel would."""
        process = self._processes[self.ports[number]]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:  # also while it reads its append-only file
        return False


@contextmanager
def watched(directory: Path) -> Iterator[Watched]:
    """Run all five."""
    with ExitStack() as stack:
        made = Watched(directory)
        stack.callback(made.close)
        made.open()
        yield made
