"""Measures the host: the machine, versions, CPU and memory of the server's processes."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
import urllib.error
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from asrserver.client.rest import open_url

#: Timeout in seconds of a request to the server's REST interface.
REST_TIMEOUT = 5.0

#: Seconds after the last session within which the server should have stored all sessions.
SETTLE_TIMEOUT = 10.0

#: The names of the embedded servers' programs.
_SERVERS = {"valkey-server": "redis", "redis-server": "redis", "postgres": "postgres", "postgresql": "postgres"}


def get(server: str, path: str, key: str) -> Any:
    """A JSON document of the server's REST interface; {} if it cannot be fetched."""
    try:
        with open_url(server + path, key, REST_TIMEOUT) as response:
            return json.load(response)
    except urllib.error.HTTPError as exc:
        try:
            return json.loads(exc.read())  # an unhealthy server sends its health with status 503
        except ValueError:
            return {}
    except (OSError, ValueError):
        return {}


def is_here(server: str) -> bool:
    """Whether a server's address belongs to this machine."""
    host = urlsplit(server).hostname or ""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return bool(found & own) or any(address.startswith("127.") or address == "::1" for address in found)


def hardware() -> dict[str, Any]:
    """The machine, and its load before the test."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "load_before": os.getloadavg()[0],
    }


def describe(server: str, key: str) -> dict[str, Any]:
    """The machine, and the versions of server and tester."""
    document = get(server, "/api/v1/openapi.json", key)
    health = get(server, "/api/v1/health", key)
    workers = health.get("workers") or []
    return {
        "machine": hardware(),
        "versions": {
            "server": document.get("info", {}).get("version", "unknown"),
            "asrserver": version("asrserver"),
            "python": platform.python_version(),
            "tornado": version("tornado"),
        },
        "server": {
            "url": server,
            "gateways": len(health.get("gateways") or []),
            "workers": len(workers),
            "models": sorted({f"{w.get('model')} on {w.get('device')}" for w in workers}),
        },
    }


@dataclass
class Cost:
    """The cost of one process, or of several of a kind: cores used since the last sample, and private resident bytes.

    Shared memory is not counted: PostgreSQL's buffers, which fill up over time, would count in each of its processes.
    """

    cores: float
    memory: int


class ServerProcesses:
    """The processes of a server on this machine: given ones or those in its health document, with their children."""

    def __init__(self, server: str, key: str, pids: tuple[int, ...]) -> None:
        self._server, self._key = server, key
        self._given = pids
        self._names: dict[int, str] = {}
        self._before: dict[int, tuple[float, float]] = {}
        self._known: dict[int, psutil.Process] = {}
        self.why_not = ""
        self._roots: set[int] = set(pids)
        if not pids and not is_here(server):
            self.why_not = "the server is on another machine: run the test there, or see its /metrics"
            return
        health = get(server, "/api/v1/health", key)
        for kind in ("gateway", "worker"):
            for number, state in enumerate(health.get(f"{kind}s") or [], 1):
                self._add(kind, number, state)
        if not self._roots:
            self.why_not = "the server's health names no processes: set --server-pid"

    def _add(self, kind: str, number: int, state: dict[str, Any]) -> None:
        pid = state.get("pid")
        if not isinstance(pid, int) or not str(state.get("name", "")).startswith(socket.gethostname()):
            return  # on another machine
        try:
            parent = psutil.Process(pid).parent()
        except psutil.Error:
            return
        self._names[pid] = f"{kind} {number}"
        if parent is not None and parent.pid > 1:  # its supervisor, whose children are measured too
            self._names[parent.pid] = "supervisor"
            self._roots.add(parent.pid)

    def redis(self) -> dict[str, int]:
        """The state of the server's Redis: keys, keys without expiry, bytes; {} if it is not known."""
        state = get(self._server, "/api/v1/health", self._key).get("redis") or {}
        return {name: state[name] for name in ("keys", "lasting_keys", "memory_bytes") if name in state}

    def redis_after(self, before: dict[str, int]) -> dict[str, int]:
        """The state of Redis once no more keys lack an expiry than `before`, or after SETTLE_TIMEOUT."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while (now := self.redis()) and now["lasting_keys"] > before.get("lasting_keys", 0):
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        return now

    def sample(self) -> dict[str, Cost]:
        """The cost of each process since the last sample; processes that ended are left out."""
        costs: dict[str, Cost] = {}
        for process in self._all():
            try:
                with process.oneshot():
                    times, memory, now = process.cpu_times(), process.memory_info(), time.monotonic()
                    name = self._name(process)
            except psutil.Error:
                continue
            used = times.user + times.system
            before, then = self._before.get(process.pid, (used, now - 1e9))
            self._before[process.pid] = (used, now)
            cost = costs.setdefault(name, Cost(0.0, 0))
            cost.cores += (used - before) / (now - then)
            cost.memory += memory.rss - memory.shared
        return costs

    def _all(self) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for pid in self._roots:
            try:
                root = self._known.setdefault(pid, psutil.Process(pid))
                for process in (root, *root.children(recursive=True)):
                    found[process.pid] = self._known.setdefault(process.pid, process)
            except psutil.Error:
                continue
        return [process for _, process in sorted(found.items())]

    def _name(self, process: psutil.Process) -> str:
        name = self._names.get(process.pid)
        if name is None:
            program = process.name()
            name = next((kind for key, kind in _SERVERS.items() if program.startswith(key)), "")
            name = name or ("other" if process.pid not in self._given else f"{program} {process.pid}")
            self._names[process.pid] = name
        return name
