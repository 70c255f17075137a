"""What the embedded servers share: children on unix sockets inside `--data-dir`.

The supervisor, synchronously: `with DataDir(path) as directory`, then `EmbeddedRedis(directory).start()`.
Linux only. The servers come from the wheels of `asrserver[embedded]`, else from the system. No system user
is added and nothing outside the data directory is changed.
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

START_TIMEOUT = 120.0  # seconds until a server must answer; a large append-only file or WAL takes time
ORPHAN_TIMEOUT = 30.0  # seconds an earlier run's server gets to go: PostgreSQL writes a checkpoint first
COMMAND_TIMEOUT = 60.0  # seconds for `--version` and for initdb (0.7 s, measured)
LOG_LIMIT = 10_000_000  # bytes; a longer log is set aside as *.1 at the next start
SOCKET_PATH_LIMIT = 107  # bytes: sun_path in unix(7), less its closing zero


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
        self._identity: Identity | None = None  # None: as ourselves
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
        """Root runs a server as the user its directory belongs to: it starts again the way it was made."""
        owner = self.directory.stat()
        return Identity(owner.st_uid, owner.st_gid) if os.geteuid() == 0 and owner.st_uid != 0 else None

    def _choose_sockets(self) -> Path:
        """Put the socket in the directory, or in a private temporary one if its path is not usable."""
        if self._sockets is None:
            path = self.directory / self.socket_name
            self._sockets = self.directory
            # libpq takes a comma in a host for a list of hosts.
            if len(os.fsencode(path)) > SOCKET_PATH_LIMIT or "," in str(path):
                self._sockets = Path(tempfile.mkdtemp(prefix=f"asrserver-{self.name}-"))
                chown_tree(self._sockets, self._identity)
        return self._sockets

    def _run(
        self, arguments: Sequence[str | Path], identity: Identity | None, lock: int, program: Path | None = None
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

    def _version_of(self, program: Path, identity: Identity | None, lock: int) -> str:
        """Ask the program for its version; proof, too, that `identity` may run it and reach the data."""
        done = self._run([program, "--version"], identity, lock)
        found = re.search(r"\d+(\.\d+)*", done.stdout)
        if done.returncode or not found:
            raise EmbeddedError(f"{program} does not run here: {last_lines(done.stderr)}")
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

    def _child_options(self, identity: Identity | None, lock: int) -> dict[str, Any]:
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
                tail = last_lines(output.read().decode(errors="replace"))
            raise EmbeddedError(f"{self.name} {what}: {tail} (all of it: {self._log_path})")


def last_lines(text: str) -> str:
    """The last three lines that say something, as one."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-3:])
