"""The embedded Redis."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from urllib.parse import quote

from asrserver.embedded import locate
from asrserver.embedded.locate import EmbeddedError
from asrserver.embedded.server import EmbeddedServer, log
from asrserver.process.memory import malloc_environment

#: Bytes at the end of the append-only file that a power failure may have damaged; more damage is not repaired.
TORN_TAIL_LIMIT = 1 << 20

#: Size in bytes from which Redis rewrites its append-only file. With Redis's default of 64 MiB, 500 streams cause a
#: rewrite every four seconds.
AOF_REWRITE_MIN_SIZE = 1 << 29

#: Freed memory in bytes that the server keeps for reuse; the wheel's program has no allocator of its own.
KEPT_MEMORY = 1 << 27

#: Seconds to wait for the answer to a PING.
PING_TIMEOUT = 2.0

#: Seconds that a snapshot may take, and between looks whether it is done.
SNAPSHOT_TIMEOUT = 600.0
SNAPSHOT_CHECK_SECONDS = 0.1


class EmbeddedRedis(EmbeddedServer):
    """A Redis server that refuses writes when its memory is full and keeps what it acknowledged.

    Args:
        data_dir: The data directory.
        maxmemory: Memory limit in bytes.
        appendfsync: Redis's setting: always, everysec or no.
    """

    name = "redis"
    socket_name = "redis.sock"
    environment = malloc_environment(KEPT_MEMORY)
    stop_signal = signal.SIGTERM

    def __init__(self, data_dir: Path, *, maxmemory: int = 1 << 30, appendfsync: str = "always") -> None:
        super().__init__(data_dir)
        self.maxmemory = maxmemory
        self.appendfsync = appendfsync

    @property
    def url(self) -> str:
        """The URL of the server, as REDIS_URL would have it."""
        return f"unix://{quote(str(self.socket_path))}"

    def start(self) -> None:
        """Start the server as EmbeddedServer does; if a power failure damaged the append-only file, repair it first."""
        try:
            super().start()
        except EmbeddedError as error:
            # A killed server leaves at most an incomplete last command, which aof-load-truncated tolerates. A power
            # failure may leave zeros or garbage there instead, which Redis 7 and Valkey 9 refuse.
            found = re.search(r"Bad file format reading the append only file ([^\s:]+)", str(error))
            if not found:
                raise
            self._cut_torn_tail(next(self.directory.rglob(found[1])))  # since Redis 7 it lies one directory deeper
            super().start()

    def _prepare(self, lock: int) -> list[str]:
        program = locate.redis()
        self._identity = self._owner()
        self.version = self._version_of(program, self._identity, lock)
        self._choose_sockets()
        options = {
            "port": 0, "unixsocket": self.socket_path, "unixsocketperm": 700, "dir": self.directory,
            "daemonize": "no", "save": "", "appendonly": "yes", "appendfsync": self.appendfsync,
            "aof-load-truncated": "yes", "auto-aof-rewrite-min-size": AOF_REWRITE_MIN_SIZE, "rdbcompression": "no",
            "maxmemory": self.maxmemory, "maxmemory-policy": "noeviction",
        }  # fmt: skip
        words = (word for key, value in options.items() for word in (f"--{key}", str(value)))
        return [str(program), *words]

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PING_TIMEOUT)
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")  # it answers -LOADING until its data is read
            except OSError:
                return False

    def _cut_torn_tail(self, aof: Path) -> None:
        """Move what is no command from the end of the append-only file into a file beside it, named *.torn.

        Raises:
            EmbeddedError: More than TORN_TAIL_LIMIT bytes are damaged.
        """
        with self._exclusive() as lock, aof.open("r+b") as file:
            # The server program is the checker too if called by that name; the wheel contains no other. It is not
            # given the manifest: Valkey 9.1's checker does not know the base files that Valkey 9.1 writes.
            done = self._run(["redis-check-aof", aof], self._identity, lock, program=locate.redis())
            found = re.search(r"ok_up_to=(\d+),.* diff=(\d+)", done.stdout)
            if not found or not 0 < int(found[2]) <= TORN_TAIL_LIMIT:
                raise EmbeddedError(
                    f"{aof} is damaged: restore {self.directory} from a backup, or move it away and lose its data"
                )
            file.seek(int(found[1]))
            aof.with_name(f"{aof.name}.torn").write_bytes(file.read())
            file.truncate(int(found[1]))
            os.fsync(file.fileno())
        log.warning("redis: cut %s damaged bytes off the end of %s", found[2], aof)


def snapshot(sockets: Path) -> Path:
    """Have a running server write all it has into a file in its directory; return the file.

    Args:
        sockets: The socket of the server.

    Raises:
        EmbeddedError: It cannot.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SNAPSHOT_TIMEOUT)
        connection.connect(str(sockets))
        answers = connection.makefile("rb")

        def ask(command: str) -> bytes:
            connection.sendall(f"{command}\r\n".encode())
            head = answers.readline()
            return answers.read(int(head[1:]) + 2) if head.startswith(b"$") else head

        def is_busy() -> bool:
            return b"rdb_bgsave_in_progress:1" in ask("INFO persistence")

        deadline = time.monotonic() + SNAPSHOT_TIMEOUT
        begun = ask("BGSAVE SCHEDULE")  # it may be rewriting its append-only file, and begins after that
        while begun.startswith(b"+") and time.monotonic() < deadline:
            time.sleep(SNAPSHOT_CHECK_SECONDS)
            if b"scheduled" in begun and not is_busy():
                begun = ask("BGSAVE SCHEDULE")
            elif not is_busy():
                break
        if not begun.startswith(b"+") or b"rdb_last_bgsave_status:ok" not in ask("INFO persistence"):
            raise EmbeddedError(f"redis cannot write a snapshot: {begun.decode(errors='replace').strip()}")
    return sockets.parent / "dump.rdb"


def restore_snapshot(file: Path, directory: Path) -> None:
    """Make a snapshot the data of a server that has none: the base of its append-only file, as a manifest says."""
    place = directory / "appendonlydir"
    place.mkdir(mode=0o700, parents=True)
    shutil.copyfile(file, place / "appendonly.aof.1.base.rdb")
    (place / "appendonly.aof.manifest").write_text("file appendonly.aof.1.base.rdb seq 1 type b\n")
