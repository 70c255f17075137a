"""The Redis and PostgreSQL of a machine that was given none: children on unix sockets inside `--data-dir`.

The supervisor, synchronously: `with DataDir(path) as directory`, then `EmbeddedRedis(directory).start()`.
Linux only. The servers come from the wheels of `asrserver[embedded]`, else from the system. No system user
is added and nothing outside the data directory is changed.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import psycopg2

from asrserver.embedded import locate
from asrserver.embedded.locate import EmbeddedError
from asrserver.process.limits import die_with_parent
from asrserver.process.memory import keeping

__all__ = ["DataDir", "EmbeddedError", "EmbeddedPostgres", "EmbeddedRedis", "EmbeddedServer"]

log = logging.getLogger("asrserver.embedded")

START_TIMEOUT = 120.0  # seconds until a server must answer; a large append-only file or WAL takes time
ORPHAN_TIMEOUT = 30.0  # seconds an earlier run's server gets to go: PostgreSQL writes a checkpoint first
COMMAND_TIMEOUT = 60.0  # seconds for `--version` and for initdb (0.7 s, measured)
LOG_LIMIT = 10_000_000  # bytes; a longer log is set aside as *.1 at the next start
SOCKET_PATH_LIMIT = 107  # bytes: sun_path in unix(7), less its closing zero
TORN_TAIL_LIMIT = 1 << 20  # bytes; what a loss of power may spoil at the end of the append-only file
REWRITE_FROM = 1 << 29  # bytes of append-only file; from Redis's 64 MiB on, 500 streams rewrite it every four seconds
POSTGRES_PORT = 5432  # only part of the socket's name

_CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be imported between fork and exec


class EmbeddedServer:
    """What both servers share.

    Call `start()` from the main thread: the kernel ends the children with the *thread* that forked them.
    """

    name: str  # of the directory, the log file and the log lines
    socket_name: str
    environment: ClassVar[dict[str, str]] = {}
    stop_signal: signal.Signals  # the graceful end; also what the kernel sends when the parent dies
    _prepare: Callable[[int], list[str]]  # makes the directory ready under its lock; returns the command line
    _answers: Callable[[], bool]

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.directory = self.data_dir / self.name
        self.version = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: _Identity | None = None  # None: as ourselves
        self._sockets: Path | None = None
        self._log_path = self.data_dir / "log" / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def socket_path(self) -> Path:
        """Known from `start()` on, the same after a restart."""
        return (self._sockets or self.directory) / self.socket_name

    def start(self) -> None:
        """Start the server and wait until it answers; again, after it died. Raises EmbeddedError."""
        started = time.monotonic()
        try:
            with self._exclusive() as lock:
                arguments = self._prepare(lock)
                log_start = self._spawn(arguments, lock)
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedError(f"cannot start {self.name}: {error}; choose another --data-dir") from error
        self._wait_until_ready(log_start)
        log.info(
            "%s %s ready after %.1f s, pid %d, socket %s",
            self.name,
            self.version,
            time.monotonic() - started,
            self.pid,
            self.socket_path,
        )

    def poll(self) -> int | None:
        """The exit code if it died, negative for a signal."""
        return self._process.poll() if self._process else None

    def stop(self, timeout: float) -> None:
        """Ask it to end; kill it after `timeout` seconds. What was acknowledged is safe either way."""
        self._end(timeout)
        if self._sockets and self._sockets != self.directory:
            shutil.rmtree(self._sockets, ignore_errors=True)
        self._sockets = None

    def _end(self, timeout: float) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                log.warning("%s did not stop within %.1f s: killed", self.name, timeout)
                self._process.kill()
                self._process.wait(COMMAND_TIMEOUT)
            log.info("%s stopped", self.name)

    @contextmanager
    def _exclusive(self) -> Iterator[int]:
        """Hold the server's own lock, which its processes inherit.

        So it is free only when every process of an earlier server is gone, lingering backends and rewriting
        forks too, and no pid file, whose number may be another's by now, needs to be believed.
        """
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.directory.chmod(0o700)  # who reaches the socket is trusted: the mode is the access control
        lock = _lock(
            self.directory / "lock",
            ORPHAN_TIMEOUT,
            f"{self.directory} is still in use by {self.name} of an earlier run",
        )
        try:
            yield lock
        finally:
            os.close(lock)

    def _owner(self) -> _Identity | None:
        """Root runs a server as the user its directory belongs to: it starts again the way it was made."""
        owner = self.directory.stat()
        return _Identity(owner.st_uid, owner.st_gid) if os.geteuid() == 0 and owner.st_uid != 0 else None

    def _choose_sockets(self) -> Path:
        """Put the socket in the directory, or in a private temporary one if its path is not usable."""
        if self._sockets is None:
            path = self.directory / self.socket_name
            self._sockets = self.directory
            # libpq takes a comma in a host for a list of hosts.
            if len(os.fsencode(path)) > SOCKET_PATH_LIMIT or "," in str(path):
                self._sockets = Path(tempfile.mkdtemp(prefix=f"asrserver-{self.name}-"))
                _chown_tree(self._sockets, self._identity)
        return self._sockets

    def _run(
        self, arguments: Sequence[str | Path], identity: _Identity | None, lock: int, program: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, arguments)),
            executable=program,
            timeout=COMMAND_TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            **self._child_options(identity, lock),
        )

    def _version_of(self, program: Path, identity: _Identity | None, lock: int) -> str:
        """Ask the program for its version; proof, too, that `identity` may run it and reach the data."""
        done = self._run([program, "--version"], identity, lock)
        found = re.search(r"\d+(\.\d+)*", done.stdout)
        if done.returncode or not found:
            raise EmbeddedError(f"{program} does not run here: {_one_line(done.stderr)}")
        return found[0]

    def _spawn(self, arguments: Sequence[str], lock: int) -> int:
        """Start the server; return the length of its log before, in bytes."""
        self._log_path.parent.mkdir(mode=0o700, exist_ok=True)
        if self._log_path.exists() and self._log_path.stat().st_size > LOG_LIMIT:
            self._log_path.replace(f"{self._log_path}.1")
        with self._log_path.open("ab") as output:
            length = output.tell()
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                **self._child_options(self._identity, lock),
            )
            os.pwrite(lock, b"%-9d" % self._process.pid, 0)
        return length

    def _child_options(self, identity: _Identity | None, lock: int) -> dict[str, Any]:
        parent = os.getpid()

        def setup() -> None:  # in the child, between fork and exec
            if identity:
                identity.assume()
            os.chdir(self.data_dir)  # fails now, not later, if the identity may not come here
            signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a blocked stop signal would be inherited
            die_with_parent(parent, self.stop_signal)

        inherited = {key: os.environ[key] for key in ("PATH", "TZ") if key in os.environ}
        environment = {"LC_ALL": "C", **self.environment, **inherited}
        # A session of its own: Ctrl+C in the terminal must not end it before its clients.
        return {"preexec_fn": setup, "env": environment, "pass_fds": [lock], "start_new_session": True}

    def _wait_until_ready(self, log_start: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            code = self.poll()
            if code is None and time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            self._end(timeout=10)
            what = "did not answer in time" if code is None else f"ended with code {code}"
            with self._log_path.open("rb") as output:
                output.seek(log_start)
                tail = _one_line(output.read().decode(errors="replace"))
            raise EmbeddedError(f"{self.name} {what}: {tail} (all of it: {self._log_path})")


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


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL with one database and one role, both `asrserver`; the role is no superuser."""

    name = "postgres"
    socket_name = f".s.PGSQL.{POSTGRES_PORT}"
    stop_signal = signal.SIGINT  # "fast": open connections are no reason to wait

    @property
    def dsn(self) -> str:
        return self._dsn("asrserver")

    def _dsn(self, name: str) -> str:
        host = str(self.socket_path.parent)
        return str(psycopg2.extensions.make_dsn(host=host, port=POSTGRES_PORT, user=name, dbname=name))

    def _prepare(self, lock: int) -> list[str]:
        programs = self._choose_identity(locate.postgres(), lock)
        _chown_tree(self.directory, self._identity)
        cluster = self.directory / "data"
        if not cluster.exists():
            self._init_cluster(programs / "initdb", cluster, lock)
        made_by, major = (cluster / "PG_VERSION").read_text().strip(), self.version.split(".")[0]
        if made_by != major:
            raise EmbeddedError(
                f"{cluster} was made by PostgreSQL {made_by}, but this is {self.version}: "
                f"install PostgreSQL {made_by}, or dump and restore into another --data-dir"
            )
        (cluster / "postmaster.pid").unlink(missing_ok=True)  # our lock says that nobody is there
        sockets = '"{}"'.format(str(self._choose_sockets()).replace('"', '""'))
        (self.socket_path.parent / f"{self.socket_name}.lock").unlink(missing_ok=True)
        settings = {
            "listen_addresses": "", "unix_socket_directories": sockets, "unix_socket_permissions": "0700",
            "port": POSTGRES_PORT, "max_connections": 50, "shared_buffers": "64MB", "fsync": "on",
            "synchronous_commit": "on", "dynamic_shared_memory_type": "posix", "log_checkpoints": "off",
            # Statements and DETAIL quote rows, and rows are transcripts.
            "log_min_error_statement": "panic", "log_error_verbosity": "terse",
        }  # fmt: skip
        options = (word for key, value in settings.items() for word in ("-c", f"{key}={value}"))
        return [str(programs / "postgres"), "-D", str(cluster), *options]

    def _choose_identity(self, programs: Path, lock: int) -> Path:
        """Decide whom to run as, and return where the programs are that this identity may run.

        PostgreSQL refuses uid 0 and, in initdb, a uid without a name. First choice is a user namespace in
        which we are called nobody: the files stay ours, so no private parent directory and no venv under
        /root is in the way, and no owner changes. All capabilities are lost with it. Where namespaces are
        forbidden (a container's seccomp, user.max_user_namespaces=0) root gives the directory to the real
        nobody, whose it stays.
        """
        self.version = self._version_of(programs / "postgres", None, lock)
        for identity in self._identities():
            if identity and not identity.namespace and self.data_dir.stat().st_uid == os.geteuid():
                self.data_dir.chmod(0o711)  # to pass through, not to list
            self._identity = identity
            try:
                self._version_of(programs / "postgres", identity, lock)
                return programs
            except PermissionError:  # the programs are out of its reach, the data directory is not
                if copy := self._copy_programs(programs, identity):
                    self._version_of(copy / "postgres", identity, lock)
                    return copy
            except subprocess.SubprocessError:  # before exec: it may not be that, or not come here
                continue
        raise EmbeddedError(
            f"PostgreSQL refuses uid {os.geteuid()}, user namespaces are forbidden, and "
            f"nobody cannot reach {self.data_dir} or {programs}: choose a --data-dir under "
            "/var/lib, run as an ordinary user, or give DATABASE_URL"
        )

    def _identities(self) -> list[_Identity | None]:
        if owner := self._owner():
            return [owner]
        me = os.geteuid()
        with suppress(KeyError):
            if me != 0 and pwd.getpwuid(me):
                return [None]
        with suppress(KeyError):
            _, _, uid, gid, *_ = pwd.getpwnam("nobody")
            disguised, real = _Identity(uid, gid, namespace=True), _Identity(uid, gid)
            return [disguised, real] if me == 0 else [disguised]
        return []

    def _copy_programs(self, programs: Path, identity: _Identity | None) -> Path | None:
        """Copy the wheel's PostgreSQL (40 MB) out of a private venv, once a version."""
        package = programs.parent.parent
        libraries = package.with_name(f"{package.name}.libs")  # where auditwheel's rpath looks
        if not libraries.is_dir():
            return None  # the system's own: not one tree, and for all to run
        copy = self.data_dir / f"postgresql-{self.version}"
        if not copy.exists():
            unfinished = self.data_dir / f"{copy.name}.new"
            shutil.rmtree(unfinished, ignore_errors=True)
            for tree in (package, libraries):
                shutil.copytree(tree, unfinished / tree.name, symlinks=True)
            unfinished.rename(copy)
        _chown_tree(copy, identity)
        return copy / programs.relative_to(package.parent)

    def _init_cluster(self, initdb: Path, cluster: Path, lock: int) -> None:
        unfinished = cluster.with_name("data.new")  # a killed initdb leaves no half cluster
        for locale in ("C.UTF-8", "C"):  # glibc before 2.35 may lack the first
            shutil.rmtree(unfinished, ignore_errors=True)
            done = self._run([initdb, "-D", unfinished, "-U", "postgres", "-E", "UTF8", f"--locale={locale}",
                              "--auth=trust", "--no-instructions"], self._identity, lock)  # fmt: skip
            if done.returncode == 0:
                unfinished.rename(cluster)
                return
        raise EmbeddedError(f"initdb failed: {_one_line(done.stderr)}")

    def _answers(self) -> bool:
        """Whether the database is there: the first time, it is created here."""
        try:
            with closing(psycopg2.connect(self._dsn("postgres"), connect_timeout=2)) as connection:
                connection.autocommit = True  # CREATE DATABASE is not for transactions
                cursor = connection.cursor()
                cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = 'asrserver'")
                if not cursor.fetchone():
                    cursor.execute("CREATE ROLE asrserver LOGIN CREATEDB")
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = 'asrserver'")
                if not cursor.fetchone():
                    cursor.execute("CREATE DATABASE asrserver OWNER asrserver")
        except psycopg2.Error:
            return False  # no socket yet, or still recovering; if it stays so, the log's end says more
        return True


class DataDir:
    """The data directory, made if need be and held by one process: `with DataDir(path) as directory`.

    The lock is the kernel's (flock): it goes with the process, however that ends. Raises EmbeddedError.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).resolve()

    def __enter__(self) -> Path:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(self.path / "lock", 0, f"{self.path} is in use by another asrserver")
        except OSError as error:
            raise EmbeddedError(f"{error}: choose another --data-dir") from error
        return self.path

    def __exit__(self, *exception: object) -> None:
        os.close(self._lock)


@dataclass(frozen=True)
class _Identity:
    """Whom a child runs as. In a namespace it is that only to itself, and who we are to all others."""

    uid: int
    gid: int
    namespace: bool = False

    def assume(self) -> None:
        """In the child, between fork and exec."""
        if not self.namespace:
            os.setgroups([])
            os.setgid(self.gid)
            os.setuid(self.uid)
            return
        uid, gid = os.geteuid(), os.getegid()  # asked before: inside, both are the overflow id until mapped
        if _libc.unshare(_CLONE_NEWUSER):
            raise OSError(ctypes.get_errno(), "unshare")
        # Without CAP_SETGID outside, gid_map is refused until setgroups is denied (user_namespaces(7)).
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"{self.gid} {gid} 1")
        Path("/proc/self/uid_map").write_text(f"{self.uid} {uid} 1")


def _chown_tree(top: Path, identity: _Identity | None) -> None:
    """Hand a tree over, its top last: one that was interrupted is done again."""
    if not identity or identity.namespace or top.stat().st_uid == identity.uid:
        return
    for directory, folders, files in os.walk(top):
        for name in (*folders, *files):
            os.chown(os.path.join(directory, name), identity.uid, identity.gid, follow_symlinks=False)
    os.chown(top, identity.uid, identity.gid)


def _lock(path: Path, timeout: float, refusal: str) -> int:
    """Return a locked descriptor of the file; raise `refusal`, with its holder's pid, after `timeout` s."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(lock, b"%-9d" % os.getpid(), 0)
            return lock
        except BlockingIOError:
            if time.monotonic() >= deadline:
                refusal += f" (pid {os.pread(lock, 9, 0).decode().strip()})"
                os.close(lock)
                raise EmbeddedError(f"{refusal}: end that, or choose another --data-dir") from None
            time.sleep(0.05)


def _one_line(text: str) -> str:
    """The last three lines that say something, as one."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-3:])
