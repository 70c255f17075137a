"""The directory in which all children of one supervisor keep their metrics.

This is apart from metrics.py because prometheus_client decides at import whether its metrics are shared: the directory
must be known before.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Environment variables: the shared directory (prometheus_client's name), and the name of this process in it.
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
SLOT = "ASRSERVER_METRICS_SLOT"

#: Bytes allocated for each file of a process: a write into a mapped file for which the disk has no room is a SIGBUS.
FILE_BYTES = 1 << 18

#: The file of the supervisor's own figures.
CHILDREN = "children.json"

_PREFIX = "asrserver-metrics-"
_LOCK = ".held"

_KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemostrecent")


@contextmanager
def directory() -> Iterator[None]:
    """Create the shared directory, in memory where the system has /dev/shm, and remove it at the end.

    The supervisor holds a lock on a file in it. A directory whose lock nobody holds was left by a supervisor that was
    killed, and is removed.

    Raises:
        OSError: There is no place for it.
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
    """Create the files of a process.

    Returns:
        False if the disk has no room: then the metrics of this process are missing, but it runs.
    """
    try:
        for kind in _KINDS:
            path = os.path.join(os.environ[DIRECTORY], f"{kind}_{slot}.db")
            if os.path.exists(path):
                continue
            with open(f"{path}.new", "wb") as file:
                file.write(bytes(FILE_BYTES))
            os.rename(file.name, path)  # never seen empty: prometheus_client 0.26 fails on an empty file
    except OSError:
        return False
    return True


def forget_gauges(slot: str) -> None:
    """Remove the gauges of a dead child, which has nothing open any more. Its counters stay."""
    where = glob.escape(os.path.join(os.environ.get(DIRECTORY, ""), ""))
    for path in glob.glob(f"{where}gauge_live*_{glob.escape(slot)}.db"):
        with suppress(OSError):
            os.remove(path)


class ChildCounts:
    """The supervisor's figures about its children, in a file that the scraped process reads.

    It does without prometheus_client, which would be an eighth of the supervisor's memory.
    """

    def __init__(self) -> None:
        self._figures: dict[str, dict[str, int]] = {"restarts": {}, "children": {}}
        self._is_written = False

    def restarted(self, kind: str) -> None:
        """Count a restart."""
        restarts = self._figures["restarts"]
        restarts[kind] = restarts.get(kind, 0) + 1
        self._write()

    def ready(self, counts: dict[str, int]) -> None:
        """Note how many children are ready, by kind."""
        if counts != self._figures["children"] or not self._is_written:
            self._figures["children"] = counts
            self._write()

    def _write(self) -> None:
        if DIRECTORY not in os.environ:
            return
        path = os.path.join(os.environ[DIRECTORY], CHILDREN)
        self._is_written = False
        with suppress(OSError):  # no room: the figures are old until the next call
            with open(f"{path}.new", "w") as file:
                json.dump(self._figures, file)
            os.rename(f"{path}.new", path)  # never seen half written
            self._is_written = True


def child_counts() -> dict[str, dict[str, int]]:
    """The supervisor's figures, by metric and kind; {} if there are none."""
    try:
        with open(os.path.join(os.environ.get(DIRECTORY, ""), CHILDREN)) as file:
            found: dict[str, dict[str, int]] = json.load(file)
            return found
    except FileNotFoundError:
        return {}
