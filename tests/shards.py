"""Several real Redis servers for a test."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from asrserver.broker.keys import session_key
from asrserver.embedded.redis import EmbeddedRedis


class ShardServers:
    """Running Redis servers, each with an append-only file that is synced at every write."""

    def __init__(self, servers: list[EmbeddedRedis]) -> None:
        self.servers = servers

    @property
    def url(self) -> str:
        """All addresses, as REDIS_URL has them."""
        return ",".join(server.url for server in self.servers)

    def names(self) -> list[str]:
        """Their names in health and metrics."""
        return [str(server.socket_path) for server in self.servers]

    def of(self, sid: str) -> list[int]:
        """The numbers of the servers that have a session; one that is away has none."""
        return [number for number in range(len(self.servers)) if self._has(number, sid)]

    def _has(self, number: int, sid: str) -> bool:
        with redis.Redis.from_url(self.servers[number].url) as client:
            try:
                return bool(client.exists(session_key(sid)))
            except redis.ConnectionError:
                return False

    def clear(self) -> None:
        """Empty them; start those again that a test has left dead."""
        for server in self.servers:
            if server.poll() is not None:
                server.start()
            with redis.Redis.from_url(server.url) as client:
                client.flushall()

    def kill(self, number: int) -> None:
        """Kill one, as the kernel would."""
        pid = self.servers[number].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.servers[number]._process.wait()  # type: ignore[union-attr]


@contextmanager
def running(count: int) -> Iterator[ShardServers]:
    """Run so many Redis servers."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="asrserver-shards-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        servers = []
        for number in range(count):
            (directory / str(number)).mkdir()
            server = EmbeddedRedis(directory / str(number))
            server.start()
            stack.callback(server.stop, 10)
            servers.append(server)
        yield ShardServers(servers)
