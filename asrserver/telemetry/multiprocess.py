"""Where the children of one supervisor count together, and the port of its own that tells it to Prometheus.

Here and not in metrics.py because prometheus_client decides when it is imported whether it counts for itself alone.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: The directory that all of them write in, and the name under which this process does.
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
SLOT = "ASRSERVER_METRICS_SLOT"

#: Bytes that a process's files have from the start: writing into a mapped file beyond what its disk holds is a SIGBUS.
ALLOCATED = 1 << 18

_PREFIX = "asrserver-metrics-"
_LOCK = ".held"

_KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemostrecent")


@contextmanager
def directory() -> Iterator[None]:
    """The directory, in memory where the system has a place for that; raises OSError.

    Its supervisor holds a lock in it: what has one that nobody holds was left by a supervisor that was killed.
    """
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    for path in glob.glob(os.path.join(glob.escape(place), f"{_PREFIX}*", _LOCK)):
        with suppress(OSError), open(path, "r+") as left:  # another user's, or held
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(os.path.dirname(path), ignore_errors=True)
    made = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
    os.environ[DIRECTORY], os.environ[SLOT] = made, "supervisor"
    lock = os.open(os.path.join(made, ".new"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(os.path.join(made, ".new"), os.path.join(made, _LOCK))  # never seen without its holder
        yield
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def allocate(slot: str) -> bool:
    """Make a process's files; False if there is no room: then its metrics are missing, but it runs."""
    try:
        for kind in _KINDS:
            path = os.path.join(os.environ[DIRECTORY], f"{kind}_{slot}.db")
            if os.path.exists(path):
                continue
            with open(f"{path}.new", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, ALLOCATED)
            os.rename(file.name, path)  # never seen empty: whoever reads all files (0.26) fails by one without a byte
    except OSError:
        return False
    return True


def forget_gauges(slot: str) -> None:
    """A child is dead: what it had open is not open any more. What it counted stays counted."""
    where = glob.escape(os.path.join(os.environ.get(DIRECTORY, ""), ""))
    for path in glob.glob(f"{where}gauge_live*_{glob.escape(slot)}.db"):
        with suppress(OSError):
            os.remove(path)


@contextmanager
def port(host: str, number: int) -> Iterator[None]:
    """Answer /metrics on a port of its own, from a thread; raises OSError."""
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, os.environ[DIRECTORY])  # type: ignore[no-untyped-call]
    server, thread = start_http_server(number, host, registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
