"""The embedded Redis."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from urllib.parse import quote

from asrserver.embedded import locate
from asrserver.embedded.locate import EmbeddedError
from asrserver.embedded.server import EmbeddedServer, log
from asrserver.process.memory import keeping

TORN_TAIL_LIMIT = 1 << 20  # bytes; what a loss of power may spoil at the end of the append-only file
REWRITE_FROM = 1 << 29  # bytes of append-only file; from Redis's 64 MiB on, 500 streams rewrite it every four seconds


class EmbeddedRedis(EmbeddedServer):
    """A Redis that refuses writes when full and keeps what it acknowledged. `maxmemory` is in bytes."""

    name = "redis"
    socket_name = "redis.sock"
    environment = keeping(1 << 27)  # the wheel's has no allocator of its own
    stop_signal = signal.SIGTERM

    def __init__(self, data_dir: Path, *, maxmemory: int = 1 << 30, appendfsync: str = "always") -> None:
        super().__init__(data_dir)
        self.maxmemory = maxmemory
        self.appendfsync = appendfsync

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket_path))}"

    def start(self) -> None:
        try:
            super().start()
        except EmbeddedError as error:
            # A kill leaves at most a short last command, and aof-load-truncated forgives that. A loss of
            # power may leave zeros or garbage there instead, and those Redis 7 and Valkey 9 refuse.
            found = re.search(r"Bad file format reading the append only file ([^\s:]+)", str(error))
            if not found:
                raise
            self._cut_torn_tail(next(self.directory.rglob(found[1])))  # since Redis 7 one deeper
            super().start()

    def _prepare(self, lock: int) -> list[str]:
        program = locate.redis()
        self._identity = self._owner()
        self.version = self._version_of(program, self._identity, lock)
        self._choose_sockets()
        options = {
            "port": 0, "unixsocket": self.socket_path, "unixsocketperm": 700, "dir": self.directory,
            "daemonize": "no", "save": "", "appendonly": "yes", "appendfsync": self.appendfsync,
            "aof-load-truncated": "yes", "auto-aof-rewrite-min-size": REWRITE_FROM, "rdbcompression": "no",
            "maxmemory": self.maxmemory, "maxmemory-policy": "noeviction",
        }  # fmt: skip
        words = (word for key, value in options.items() for word in (f"--{key}", str(value)))
        return [str(program), *words]

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")  # -LOADING until its data is read
            except OSError:
                return False

    def _cut_torn_tail(self, aof: Path) -> None:
        """Cut what is no command off the end of the append-only file; it is kept beside, as *.torn."""
        with self._exclusive() as lock, aof.open("r+b") as file:
            # The server is the checker too if called by that name: the wheel brings no other. Not given the
            # manifest: Valkey 9.1's checker does not know the base files that Valkey 9.1 writes.
            done = self._run(["redis-check-aof", aof], self._identity, lock, program=locate.redis())
            found = re.search(r"ok_up_to=(\d+),.* diff=(\d+)", done.stdout)
            if not found or not 0 < int(found[2]) <= TORN_TAIL_LIMIT:
                raise EmbeddedError(
                    f"{aof} is damaged: restore {self.directory} from a backup, or move it away and lose what is in it"
                )
            file.seek(int(found[1]))
            aof.with_name(f"{aof.name}.torn").write_bytes(file.read())
            file.truncate(int(found[1]))
            os.fsync(file.fileno())
        log.warning("redis: cut %s damaged bytes off the end of %s", found[2], aof)
