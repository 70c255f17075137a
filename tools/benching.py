"""Shared by the benchmarks: a Redis, a PostgreSQL and an asrserver of their own, and measurements of processes."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from demo import clean_environment

from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.loadtest.host import ServerProcesses, get, hardware
from asrserver.loadtest.runner import Outcome
from asrserver.process.limits import raise_file_limit


@dataclass
class Servers:
    """A Redis and a PostgreSQL for one benchmark, empty."""

    redis: EmbeddedRedis
    postgres: EmbeddedPostgres

    @property
    def environment(self) -> dict[str, str]:
        return {"REDIS_URL": self.redis.url, "DATABASE_URL": self.postgres.dsn}

    @property
    def settings(self) -> dict[str, Any]:
        return {"redis_url": self.redis.url, "database_url": self.postgres.dsn}


@contextmanager
def servers() -> Iterator[Servers]:
    """Run both servers in a temporary directory, after raising the limit of open files, which children inherit."""
    raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as place, ExitStack() as stack:
        os.chmod(place, 0o755)  # PostgreSQL runs as another user where we are root
        redis = EmbeddedRedis(Path(place), maxmemory=4 << 30, appendfsync="no")
        postgres = EmbeddedPostgres(Path(place))
        for server in (redis, postgres):
            server.start()
            stack.callback(server.stop, 10)
        yield Servers(redis, postgres)


@dataclass
class System:
    """A running `asrserver run` or `asrserver gateway`: its port, the process of its supervisor, its log file."""

    port: int
    supervisor: psutil.Process
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def children(self, kind: str) -> list[psutil.Process]:
        """The processes of its gateways or workers, as listed in its health document."""
        states = get(self.url, "/api/v1/health", "")[f"{kind}s"]
        return [psutil.Process(state["pid"]) for state in states]


@contextmanager
def system(servers: Servers, command: str, *options: str) -> Iterator[System]:
    """Run `asrserver COMMAND` on the servers until the block ends."""
    line = [sys.executable, "-m", "asrserver", command, "--port", "0", "--log-level", "warning", *options]
    with tempfile.NamedTemporaryFile("w", prefix="asrserver-bench-", suffix=".log") as log:
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=log, text=True, env={**clean_environment(), **servers.environment}
        )
        try:
            assert process.stdout is not None
            found = re.search(r"https?://\S+:(\d+)", process.stdout.readline())
            if found is None:
                raise SystemExit(f"asrserver {command} does not start:\n{Path(log.name).read_text()}")
            yield System(int(found[1]), psutil.Process(process.pid), Path(log.name))
        finally:
            process.terminate()
            process.wait(60)


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants."""
    return [process, *process.children(recursive=True)]


def cpu(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds of the processes, and of their children that ended."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def server_process(server: Any) -> psutil.Process:
    """The process of an embedded server."""
    return psutil.Process(server._process.pid)


#: Kinds of processes in a load test, and the names that ServerProcesses gives them.
KINDS = {"gateway": "gateway", "worker": "worker", "Redis": "redis", "PostgreSQL": "postgres"}


class Silent:
    """A load test's dashboard that shows nothing."""

    def update(self, outcome: Outcome) -> None:
        pass


def processes(system: System, servers: Servers) -> ServerProcesses:
    """The processes of a system and of its Redis and PostgreSQL, which are not its children here."""
    found = ServerProcesses(system.url, "", ())
    found._roots |= {server_process(server).pid for server in (servers.redis, servers.postgres)}
    return found


def a_stream(outcome: Outcome) -> dict[str, float]:
    """Cores per stream for each kind of process: CPU seconds per second of audio that was sent."""
    used = dict.fromkeys([*KINDS, "tester"], 0.0)
    then = 0.0
    for sample in outcome.samples:
        seconds, then = sample.at - then, sample.at
        used["tester"] += seconds * sum(sample.tester)
        for kind, name in KINDS.items():
            used[kind] += seconds * sum(cost.cores for key, cost in sample.server.items() if key.startswith(name))
    return {kind: each / outcome.stats.audio_sent for kind, each in used.items()}


def quantile(times: Sequence[float], part: float) -> float:
    return sorted(times)[min(len(times) - 1, int(part * len(times)))]


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait until the condition returns something true, and return it; exit after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"timeout: {what} took more than {seconds:g} s")
        time.sleep(0.05)
    return found


def about() -> dict[str, Any]:
    """Time, commit and machine of a measurement: without them the figures mean nothing."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=Path(__file__).parent, check=False).stdout.strip()
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        **hardware(),
    }


def about_line(about: dict[str, Any]) -> str:
    """The measurement's circumstances in one line."""
    return (
        f"{about['at']}, commit {about['commit']}, {about['cores']} cores of {about['cpu']}, "
        f"{about['memory_bytes'] / 2**30:.0f} GiB, load before {about['load_before']:.1f}"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option by which bench.py gets the ratios of a benchmark."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios of each round there")


def write_ratios(options: argparse.Namespace, ratios: Mapping[str, Sequence[float]]) -> None:
    """Write the ratios of each round, by what is compared with what, if the options say where."""
    if options.json is not None:
        options.json.write_text(json.dumps(ratios))
