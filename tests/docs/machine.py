"""A machine of its own for the commands of a page: with its own ports, /etc, /var/lib, home directory and processes.

Linux namespaces make it, without a container engine: as root, or as a user who may have user namespaces. The page's
commands run on it as they are written, on port 8080 and with files in /etc/asrserver, beside whatever else runs here.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import psutil

from tests.docs.pages import ROOT
from tests.waiting import wait_until

#: Where the reader is: a copy of the checkout with its environment in .venv/, as `make` leaves it.
HOME = "/reader"
CHECKOUT = f"{HOME}/asrserver"

#: Machines that pages name: each is an address of this one.
_HOSTS = """127.0.0.1 redis.internal db.internal asr.example.org
127.0.0.2 redis1
127.0.0.3 redis2
"""

#: For pages that use it; it is in no Python package.
_REDIS_CLI = """#!/usr/bin/env python
import redis, sys
match sys.argv[1:]:
    case ["-h", host, *words]:
        server = redis.Connection(host)
    case ["-s", path, *words]:
        server = redis.UnixDomainSocketConnection(path)
    case words:
        server = redis.Connection("127.0.0.1")
server.send_command(*words)
print(server.read_response())
"""

#: Seconds that a command may take, and a server until it listens; here, a hang and not a slow machine.
TIMEOUT = 120.0

#: Makes the root: /etc, /var/lib and the reader's home are new, all else is what it is outside.
_SETUP = f"""set -e
mount -t tmpfs -o mode=755 tmpfs "$1"; cd "$1"
for entry in $(ls -A /); do
    if [ -L "/$entry" ]; then cp -P "/$entry" .
    elif [ -d "/$entry" ]; then mkdir "$entry"; [ "$entry" = etc ] || mount --rbind "/$entry" "$entry"
    fi
done
cp -a /etc/. etc 2>/dev/null || true
mount -t tmpfs tmpfs var/lib
mkdir -p .{CHECKOUT} .{HOME}/bin old
for entry in "$2"/*; do [ "${{entry##*/}}" = build ] || cp -a "$entry" .{CHECKOUT}; done
ln -s "$3" .{CHECKOUT}/.venv
echo "$4" >> etc/hosts
echo 'exec "$@"' > .{HOME}/bin/sudo
command -v redis-cli >/dev/null || echo "$5" > .{HOME}/bin/redis-cli
chmod +x .{HOME}/bin/*
pivot_root . old; umount -l old; rmdir old
mount -t proc proc /proc
"$3"/bin/python -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP'
echo ready; exec sleep infinity
"""


class Failed(AssertionError):
    """A command of a page did not do what the page says."""


class Server:
    """A command that goes on: `run`, `gateway` or `worker`."""

    def __init__(self, command: str, process: subprocess.Popen[str], log: IO[str]) -> None:
        self.command, self.process, self.log = command, process, log

    def output(self) -> str:
        return Path(self.log.name).read_text()

    def wait_ready(self) -> None:
        """Wait until it says that it can be used.

        Raises:
            Failed: It ended before.
        """

        def ready() -> bool:
            if self.process.poll() is not None:
                raise Failed(f"{self.command}\nended with {self.process.returncode}:\n{self.output()}")
            return re.search(r"^asrserver(?: listening on |: \d+ workers? ready)", self.output(), re.M) is not None

        wait_until(ready, TIMEOUT, f"{self.command} is ready")

    def stop(self) -> None:
        """Ctrl+C.

        Raises:
            Failed: It ended otherwise than it should, or says of a defect.
        """
        program = next(
            process
            for process in psutil.Process(self.process.pid).children(recursive=True)
            if process.name() == "asrserver"  # the script, and not the shell that it is typed into
        )
        program.send_signal(signal.SIGINT)
        status = self.process.wait(TIMEOUT)
        if status or re.search(r" (ERROR|CRITICAL) |^Traceback", self.output(), re.M):
            raise Failed(f"{self.command}\nended with {status}:\n{self.output()}")

    def close(self) -> None:
        self.log.close()


class Machine:
    """A machine, to be closed; `run` and `serve` are its terminals.

    Raises:
        OSError: The kernel makes no namespaces for this user.
    """

    def __init__(self, env: dict[str, str]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="asrserver-docs-")
        os.chmod(self.folder.name, 0o755)  # PostgreSQL's user passes through it
        self.servers: list[Server] = []
        self.timeout = TIMEOUT
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not re.match("ASRSERVER_|REDIS_|DATABASE_URL|DB_|VIRTUAL_ENV", name)
        }
        path = f"{HOME}/bin:{CHECKOUT}/.venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        self.env = {**inherited, "HOME": HOME, "PATH": path, "ASRSERVER_MODEL": "demo", **env}
        self._start()

    def _start(self) -> None:
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self.process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),  # whatever becomes of the tests, it goes with them
                *("unshare", *user, "--mount", "--net", "--pid", "--fork", "--kill-child"),
                *("sh", "-c", _SETUP, "sh", self.folder.name, str(ROOT), sys.prefix, _HOSTS, _REDIS_CLI),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if self.process.stdout.readline() != "ready\n":
            reason = self.process.stderr.read()
            self.close()
            raise OSError(reason.strip())
        [inside] = psutil.Process(self.process.pid).children()
        self._enter = ["nsenter", f"--target={inside.pid}", "--mount", "--net", "--pid", f"--wdns={CHECKOUT}"]
        if user:
            self._enter += ["--user", "--preserve-credentials"]

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all its processes, and remove it."""
        self.process.kill()
        self.process.communicate()
        for server in self.servers:
            server.process.wait()
            server.close()
        self.folder.cleanup()

    def run(self, command: str) -> str:
        """Run a shell command; what it prints, its errors included.

        Raises:
            Failed: Its exit status is not 0, or it takes longer than `timeout` says.
        """
        done = subprocess.run(
            [*self._enter, "timeout", "-s", "KILL", str(self.timeout), "bash", "-o", "pipefail", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.env,
        )
        if done.returncode:
            logs = "".join(f"\n--- {server.command}\n{server.output()[-3000:]}" for server in self.servers)
            raise Failed(f"{command}\nended with {done.returncode}:\n{done.stdout}{logs}")
        return done.stdout

    def serve(self, command: str) -> Server:
        """Start a server in a terminal of its own; return when it is ready."""
        log = tempfile.NamedTemporaryFile("w+", prefix="asrserver-", suffix=".log")  # noqa: SIM115
        process = subprocess.Popen(
            [*self._enter, "bash", "-c", command], stdout=log, stderr=subprocess.STDOUT, text=True, env=self.env
        )
        self.servers.append(Server(command, process, log))
        self.servers[-1].wait_ready()
        return self.servers[-1]

    def stop_servers(self) -> None:
        """Stop them with Ctrl+C, the last first."""
        while self.servers:
            server = self.servers.pop()
            try:
                server.stop()
            finally:
                server.close()

    def write(self, name: str, data: bytes) -> None:
        """Write a file; relative names are in the checkout."""
        quoted = shlex.quote(name)
        subprocess.run(
            [*self._enter, "bash", "-c", f"mkdir -p $(dirname {quoted}); cat > {quoted}"],
            input=data,
            env=self.env,
            check=True,
            timeout=TIMEOUT,
        )
