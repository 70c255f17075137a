"""The base class of the embedded servers: child processes that listen on unix sockets inside `--data-dir`.

The supervisor uses them without an event loop: `with DataDir(path) as directory`, then
`EmbeddedRedis(directory).start()`. Linux only. The programs come from the wheels of `asrserver[embedded]`, else from
the system. No system user is added, and nothing outside the data directory is changed.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from asrserver.embedded.data_dir import lock_file
from asrserver.embedded.identity import Identity, chown_tree
from asrserver.embedded.locate import EmbeddedError
from asrserver.process.limits import die_with_parent

log = logging.getLogger("asrserver.embedded")

#: Seconds until a started server must answer; reading a large append-only file or WAL takes time.
START_TIMEOUT = 120.0

#: Seconds that a server of an earlier run gets to end: PostgreSQL writes a checkpoint first.
ORPHAN_TIMEOUT = 30.0

#: Seconds that a helper program such as `postgres --version` may take.
COMMAND_TIMEOUT = 60.0

#: Seconds between two checks whether a started server answers.
READY_CHECK_SECONDS = 0.02

#: Size of a log file in bytes from which it is renamed to *.1 at the next start.
LOG_LIMIT = 10_000_000

#: Free bytes below which the disk is taken to be why a server does not start; the programs hardly say so.
FULL_DISK = 100 << 20

#: Length in bytes of the longest path of a unix socket: sun_path in unix(7), less its terminating zero.
SOCKET_PATH_LIMIT = 107


class EmbeddedServer:
    """One server process with its directory, lock, socket and log file.

    Call `start()` from the main thread: the kernel ends the children with the *thread* that forked them.

    Attributes:
        name: Name of the server's directory and log file, and in log lines.
        socket_name: File name of the socket.
        environment: Environment variables of the process, beside LC_ALL, PATH and TZ.
        stop_signal: Requests a graceful end; the kernel also sends it when the parent dies.
        data_dir: The data directory.
        directory: The server's own directory, inside the data directory.
        version: The version of the program; known once `start()` returned.
    """

    name: str
    socket_name: str
    environment: ClassVar[dict[str, str]] = {}
    stop_signal: signal.Signals
    _prepare: Callable[[int], list[str]]  # prepares the directory under its lock; returns the command line
    _answers: Callable[[], bool]  # whether the server answers a request

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.directory = self.data_dir / self.name
        self.version = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: Identity | None = None  # None: our own
        self._sockets: Path | None = None
        self._log_path = self.data_dir / "log" / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The pid of the process; None before `start()`."""
        return self._process.pid if self._process else None

    @property
    def socket_path(self) -> Path:
        """The path of the unix socket: known once `start()` returned, and the same after a restart."""
        return (self._sockets or self.directory) / self.socket_name

    def start(self) -> None:
        """Start the server, or start it again after it died, and wait until it answers.

        Raises:
            EmbeddedError: It cannot be started, or does not answer within START_TIMEOUT.
        """
        started = time.monotonic()
        try:
            with self._exclusive() as lock:
                arguments = self._prepare(lock)
                log_start = self._spawn(arguments, lock)
            self._wait_until_ready(log_start)
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedError(f"cannot start {self.name}: {error}; choose another --data-dir") from error
        except EmbeddedError as error:
            raise EmbeddedError(f"{error}{self.lack_of_room()}") from error
        log.info(
            "%s %s ready after %.1f s, pid %d, socket %s",
            self.name,
            self.version,
            time.monotonic() - started,
            self.pid,
            self.socket_path,
        )

    def lack_of_room(self) -> str:
        """That the disk is full, if it is, as the end of a message: a server whose log is there cannot say it."""
        try:
            free = shutil.disk_usage(self.data_dir).free
        except OSError:  # it is gone
            return ""
        return f"; the disk of {self.data_dir} is full: {free >> 20} MiB are free" if free < FULL_DISK else ""

    def find_running(self) -> bool:
        """Whether another process runs the server of this directory; then `socket_path` is its."""
        for place in self._socket_places():
            self._sockets = place
            if self.socket_path.exists() and self._answers():
                return True
        self._sockets = None
        return False

    def _socket_places(self) -> list[Path]:
        """Where the socket of a running server may be."""
        return [self.directory]

    def poll(self) -> int | None:
        """The exit code of the process: negative for a signal, None while it runs and before `start()`."""
        return self._process.poll() if self._process else None

    def stop(self, timeout: float) -> None:
        """Stop the server. What it acknowledged is safe, even if it has to be killed.

        Args:
            timeout: Seconds until it is killed.
        """
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
        """Hold the server's own lock, which its processes inherit; yields the lock's descriptor.

        The lock is free only when every process of an earlier server has ended, lingering backends and rewriting forks
        included. No pid file has to be trusted, whose number may belong to another process by now.
        """
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.directory.chmod(0o700)  # whoever reaches the socket is trusted: the mode is the access control
        lock = lock_file(
            self.directory / "lock",
            ORPHAN_TIMEOUT,
            f"{self.directory} is still in use by {self.name} of an earlier run",
        )
        try:
            yield lock
        finally:
            os.close(lock)

    def _owner(self) -> Identity | None:
        """For root: the user that the directory belongs to, so that a server runs as the user who created its files."""
        owner = self.directory.stat()
        return Identity(owner.st_uid, owner.st_gid) if os.geteuid() == 0 and owner.st_uid != 0 else None

    def _choose_sockets(self) -> Path:
        """Choose the socket's place: in the server's directory, or in a private temporary one if its path is unusable.

        Returns:
            The directory of the socket.
        """
        if self._sockets is None:
            path = self.directory / self.socket_name
            self._sockets = self.directory
            # libpq reads a comma in a host as the separator of a list of hosts.
            if len(os.fsencode(path)) > SOCKET_PATH_LIMIT or "," in str(path):
                self._sockets = Path(tempfile.mkdtemp(prefix=f"asrserver-{self.name}-"))
                chown_tree(self._sockets, self._identity)
        return self._sockets

    def _run(
        self,
        arguments: Sequence[str | Path],
        identity: Identity | None,
        lock: int,
        program: Path | None = None,
        timeout: float = COMMAND_TIMEOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run a helper program to its end; the caller checks its exit status.

        Args:
            arguments: The command line.
            identity: The user to run it as; None: our own.
            lock: The descriptor of the server's lock, which the program inherits.
            program: The file to execute, if it is not the first argument.
            timeout: Seconds until it is killed.

        Raises:
            EmbeddedError: It did not end in time.
            OSError: It cannot be executed.
            subprocess.SubprocessError: The identity cannot be assumed, or cannot enter the data directory.
        """
        with _uninterrupted():
            process = subprocess.Popen(
                list(map(str, arguments)),
                executable=program,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                **self._child_options(identity, lock),
            )
        with process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                raise EmbeddedError(
                    f"{Path(arguments[0]).name} did not end within {timeout:g} s: this machine is overloaded, "
                    f"or the disk of {self.data_dir} is slow"
                ) from None
            finally:
                process.kill()  # also where Ctrl+C ends the wait; one that has ended is left alone
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def _version_of(self, program: Path, identity: Identity | None, lock: int) -> str:
        """Run `program --version`, which also proves that `identity` may execute it and enter the data directory.

        Returns:
            The version, such as "18.1".

        Raises:
            EmbeddedError: The program fails. What `_run` raises, too.
        """
        done = self._run([program, "--version"], identity, lock)
        found = re.search(r"\d+(\.\d+)*", done.stdout)
        if done.returncode or not found:
            raise EmbeddedError(f"{program} cannot run on this machine: {last_lines(done.stderr)}")
        return found[0]

    def _spawn(self, arguments: Sequence[str], lock: int) -> int:
        """Start the process; return the length of its log file before that, in bytes."""
        self._log_path.parent.mkdir(mode=0o700, exist_ok=True)
        if self._log_path.exists() and self._log_path.stat().st_size > LOG_LIMIT:
            self._log_path.replace(f"{self._log_path}.1")
        with self._log_path.open("ab") as output:
            length = output.tell()
            with _uninterrupted():
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    **self._child_options(self._identity, lock),
                )
            os.pwrite(lock, b"%-9d" % self._process.pid, 0)
        return length

    def _child_options(self, identity: Identity | None, lock: int) -> dict[str, Any]:
        parent = os.getpid()

        def setup() -> None:  # in the child, between fork and exec
            if identity:
                identity.assume()
            os.chdir(self.data_dir)  # fails now, not later, if the identity may not enter it
            signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a blocked stop signal would be inherited
            die_with_parent(parent, self.stop_signal)

        inherited = {key: os.environ[key] for key in ("PATH", "TZ") if key in os.environ}
        environment = {"LC_ALL": "C", **self.environment, **inherited}
        # In a new session: Ctrl+C in the terminal must not end it before its clients.
        return {"preexec_fn": setup, "env": environment, "pass_fds": [lock], "start_new_session": True}

    def _wait_until_ready(self, log_start: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            code = self.poll()
            if code is None and time.monotonic() < deadline:
                time.sleep(READY_CHECK_SECONDS)
                continue
            self._end(timeout=10)
            what = f"did not answer within {START_TIMEOUT:g} s" if code is None else f"ended with code {code}"
            with self._log_path.open("rb") as output:
                output.seek(log_start)
                tail = last_lines(output.read().decode(errors="replace"))
            raise EmbeddedError(f"{self.name} {what}: {tail} (full log: {self._log_path})")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl+C wait while Python forks: an exception that its handler raises in a callback of the fork is dropped.

    Then the start would go on as if nobody had pressed it. The child has none blocked: see `setup` above.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def last_lines(text: str) -> str:
    """The last three lines that are not blank, joined by " | "."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-3:])
