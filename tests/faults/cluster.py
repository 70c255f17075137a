"""The system under test: Redis, PostgreSQL, and two machines with gateways and workers, each part behind a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg2
import redis

from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.process.limits import die_with_parent
from asrserver.telemetry.multiprocess import DIRECTORY
from tests.faults import program
from tests.faults.proxy import Proxy
from tests.program import NONE, free_port

T = TypeVar("T")

#: Bytes of the disks of Redis, PostgreSQL and the recordings, where they can be mounted: they are to be filled, but by
#: their fault only. What a run writes in a second must find room as well: Redis rewrites its file not before
#: AOF_REWRITE_MIN_SIZE, and ended in the first soak when its 400 MiB were full.
DISK_BYTES = 400 << 20
DISK_BYTES_PER_SECOND = 256 << 10

#: Seconds after which a recording is deleted.
AUDIO_KEEP_SECONDS = 300.0

#: Seconds that a machine may take to start, and between two starts of it.
START_TIMEOUT = 120.0
RESTART_PAUSE = 0.5


class Machine:
    """One supervisor with its gateways and workers, started again when it ends, as systemd would."""

    def __init__(self, name: str, place: Path, environment: dict[str, str], options: list[str]) -> None:
        self.name = name
        self.port = free_port()
        self.log = place / f"{name}.log"
        self.log.touch()
        self.statuses: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.wanted = True
        self._clock = place / f"{name}.clock"
        self._command = [sys.executable, program.__file__, "run", "--port", str(self.port), *options]
        self._environment = {**environment, program.CLOCK: str(self._clock)}
        self.step_clock(0.0)

    def start(self) -> None:
        """Start the supervisor; the kernel ends it with this thread."""
        parent = os.getpid()
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                preexec_fn=lambda: die_with_parent(parent),
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        """Whether all its processes were ready once."""
        return "asrserver listening on" in self.log.read_text(errors="replace")

    def step_clock(self, seconds: float) -> None:
        """Set the offset of the clock of all its processes."""
        if not self._clock.exists():
            self._clock.write_bytes(bytes(8))
        with self._clock.open("r+b") as file:
            file.write(struct.pack("d", seconds))

    def children(self, kind: str) -> list[psutil.Process]:
        """Its living gateways or workers."""
        if self.process is None:
            return []
        pids = set(map(int, re.findall(rf"{kind} \S+ started: pid (\d+)", self.log.read_text(errors="replace"))))
        with contextlib.suppress(psutil.NoSuchProcess):
            return [
                child
                for child in psutil.Process(self.process.pid).children()
                if child.pid in pids and child.status() != psutil.STATUS_ZOMBIE
            ]
        return []

    def family(self) -> list[psutil.Process]:
        """The supervisor and all its processes."""
        if self.process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []


class Cluster:
    """All parts. Everything that starts a process does so in one thread, with which the processes end.

    Attributes:
        place: The directory of all their files.
        disks: Whether the disks are of their own, and can be filled.
        seen: Processes of the system that were seen, by pid; and what they shared.
    """

    def __init__(self, place: Path, *options: str, machines: int = 2, disks: int = 0) -> None:
        """Give each machine these options of `asrserver run`.

        With `disks`, mount disks of their own of so many bytes, where this user may.
        """
        self.place = place
        self.redis_disk, self.postgres_disk, self.audio_disk = (place / name for name in ("redis", "pg", "audio"))
        for disk in (self.redis_disk, self.postgres_disk, self.audio_disk):
            disk.mkdir(parents=True)
        self.disks = bool(disks) and self._mount(disks)
        self.redis = EmbeddedRedis(self.redis_disk)
        self.postgres = EmbeddedPostgres(self.postgres_disk)
        self.machines: list[Machine] = []
        self.redis_proxy = self.postgres_proxy = Proxy("")
        self.client_proxies: list[Proxy] = []
        self.seen: dict[int, psutil.Process] = {}
        self.shared: set[str] = set()
        self._options = options
        self._count = machines
        self._starter = ThreadPoolExecutor(1, "starter")
        self._keepers: list[asyncio.Task[None]] = []

    # -- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start everything, and wait until it is ready."""
        await self.in_starter(self.redis.start)
        await self.in_starter(self.postgres.start)
        self.redis_proxy = Proxy(str(self.redis.socket_path))
        self.postgres_proxy = Proxy(str(self.postgres.socket_path))
        for proxy in (self.redis_proxy, self.postgres_proxy):
            await proxy.open()
        temporary = self.place / "tmp"
        for folder in (temporary, self.place / "hung"):
            folder.mkdir()
        environment = {
            **os.environ,
            **NONE,
            "ASRSERVER_MODEL": "demo",
            "REDIS_URL": f"redis://127.0.0.1:{self.redis_proxy.port}/0",
            "DATABASE_URL": f"host=127.0.0.1 port={self.postgres_proxy.port} user=asrserver dbname=asrserver",
            "TMPDIR": str(temporary),
            program.HUNG: str(self.place / "hung"),
        }
        options = ["--drain-timeout", "5", "--hang-timeout", "10", "--call-timeout", "5"]
        options += ["--save-audio", str(self.audio_disk), "--audio-keep-days", f"{AUDIO_KEEP_SECONDS / 86400:.6f}"]
        options += self._options
        for name in "abcdef"[: self._count]:
            machine = Machine(name, self.place, environment, options)
            self.machines.append(machine)
            proxy = Proxy(machine.port)
            await proxy.open()
            self.client_proxies.append(proxy)
            self._keepers.append(asyncio.create_task(self._keep(machine)))
        for machine in self.machines:
            await self.until(machine.is_ready, START_TIMEOUT, f"machine {machine.name} is ready")

    async def stop(self) -> list[str]:
        """Stop the machines as an operator would; return what was wrong with that."""
        wrong = []
        for machine in self.machines:
            machine.wanted = False
        for machine in self.machines:
            if machine.process is not None and machine.process.poll() is None:
                machine.process.send_signal(signal.SIGTERM)
        for machine in self.machines:
            if machine.process is None:
                continue
            try:
                status = await self.in_thread(machine.process.wait, 60)
                if status:
                    wrong.append(f"machine {machine.name} ended with status {status} after SIGTERM")
            except subprocess.TimeoutExpired:
                wrong.append(f"machine {machine.name} did not end within 60 s of SIGTERM")
        return wrong

    async def close(self) -> None:
        """End what is left, and remove the disks."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for machine in self.machines:
            for process in reversed(machine.family()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if machine.process is not None:
                await self.in_thread(machine.process.wait)
        for proxy in (*self.client_proxies, self.redis_proxy, self.postgres_proxy):
            if proxy.port:
                await proxy.close()
        for server in (self.postgres, self.redis):
            with contextlib.suppress(ProcessLookupError):
                await self.in_starter(server.stop, 20)
        self._starter.shutdown()
        await self.in_thread(self._unmount)

    async def _keep(self, machine: Machine) -> None:
        """Start a machine, again and again."""
        while True:
            if machine.wanted and (machine.process is None or machine.process.poll() is not None):
                if machine.process is not None:
                    machine.statuses.append(machine.process.returncode)
                await self.in_starter(machine.start)
            self.look()
            await asyncio.sleep(RESTART_PAUSE)

    def look(self) -> None:
        """Note the processes that there are, and what they share."""
        for machine in self.machines:
            for process in machine.family():
                if process.pid not in self.seen:
                    self.seen[process.pid] = process
                    with contextlib.suppress(psutil.Error, OSError):
                        if folder := process.environ().get(DIRECTORY):
                            self.shared.add(folder)

    def _mount(self, size: int) -> bool:
        """Mount disks of so many bytes, where this user may."""
        mounted: list[Path] = []
        if os.geteuid() != 0 or shutil.which("mount") is None:
            return False
        for disk in (self.redis_disk, self.postgres_disk, self.audio_disk):
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "faults", str(disk)],
                capture_output=True,
                check=False,
            )
            if done.returncode:
                break
            mounted.append(disk)
        if len(mounted) == 3:
            return True
        for disk in mounted:
            subprocess.run(["umount", str(disk)], check=True)
        return False

    def _unmount(self) -> None:
        for disk in (self.redis_disk, self.postgres_disk, self.audio_disk) if self.disks else ():
            subprocess.run(["umount", str(disk)], check=False)

    # -- threads -----------------------------------------------------------------------------------------------------

    async def in_starter(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the thread that starts all processes."""
        return await asyncio.get_running_loop().run_in_executor(self._starter, function, *arguments)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that waits in a thread."""
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)

    async def until(self, condition: Callable[[], Any], timeout: float, what: str) -> Any:
        """Wait for a condition; raises TimeoutError that says what did not come."""
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout:.0f} s: {what}")
            await asyncio.sleep(0.1)
        return found

    # -- for faults --------------------------------------------------------------------------------------------------

    def look_into_redis(self) -> redis.Redis:
        """A client of Redis, past the proxy."""
        return redis.Redis.from_url(self.redis.url, decode_responses=True, socket_timeout=10)

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of PostgreSQL, past the proxy."""
        with contextlib.closing(psycopg2.connect(self.postgres.dsn, connect_timeout=10)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return list(cursor.fetchall()) if cursor.description else []

    def as_superuser(self, *statements: str) -> None:
        """Execute statements that only PostgreSQL's superuser may."""
        dsn = self.postgres.dsn.replace("user=asrserver", "user=postgres")
        with contextlib.closing(psycopg2.connect(dsn, connect_timeout=10)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)

    async def restart(self, server: EmbeddedRedis | EmbeddedPostgres) -> None:
        """Start a server that has ended."""
        await self.in_thread(self._wait_ended, server)
        await self.in_starter(server.start)

    def _wait_ended(self, server: EmbeddedRedis | EmbeddedPostgres) -> None:
        assert server._process is not None
        server._process.wait(60)

    def processes(self, kind: str) -> list[psutil.Process]:
        """The living processes of a part: gateway, worker, supervisor, redis or postgres."""
        if kind in ("redis", "postgres"):
            pid = (self.redis if kind == "redis" else self.postgres).pid
            assert pid is not None
            try:
                top = psutil.Process(pid)
                return [top, *top.children(recursive=True)]
            except psutil.NoSuchProcess:
                return []
        if kind == "supervisor":
            return [machine.family()[0] for machine in self.machines if machine.family()]
        return [child for machine in self.machines for child in machine.children(kind)]

    def remove(self) -> None:
        """Delete all files."""
        shutil.rmtree(self.place, ignore_errors=True)
