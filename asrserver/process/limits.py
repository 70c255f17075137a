"""Limits of a process: its end with its parent, its open files, its priority, its CPUs.

They are meant for Linux. What other systems lack, such as macOS, is done in a simpler way, or left out.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1

#: Seconds between checks for the parent where the kernel does not report its end.
PARENT_CHECK_SECONDS = 1.0

#: Open files that macOS allows a process; it takes no "unlimited".
OPEN_MAX = 10240

_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be imported between fork and exec


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the *thread* that started it ends.

    Call it after any change of credentials, which clears it.

    Args:
        parent: The pid of the parent before the fork.
        number: The signal.

    Raises:
        OSError: The kernel refuses.
    """
    if not hasattr(_libc, "prctl"):  # not Linux, where this is never called between fork and exec
        threading.Thread(target=_end_after, args=(parent, number), name="parent", daemon=True).start()
    elif _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number)):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(1)


def _end_after(parent: int, number: signal.Signals) -> None:
    """Send this process a signal when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), number)


def raise_file_limit() -> float:
    """Raise the soft limit of open files to the hard one: each connection is a file, and the default is often 1024.

    Returns:
        The new limit; infinity where there is none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (hard, resource.RLIM_INFINITY):
        return _limit(soft)
    for limit in (hard, max(soft, OPEN_MAX)):
        with suppress(ValueError):  # macOS refuses a hard limit that is infinite
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return _limit(limit)
    return _limit(soft)


def _limit(files: int) -> float:
    return math.inf if files == resource.RLIM_INFINITY else files


def set_niceness(value: int) -> None:
    """Set the niceness of all threads of this process, which those that they start inherit.

    A higher niceness stays: after nice(1) only root may lower it.
    """
    # Not Linux: one niceness for all threads.
    threads = os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["0"]
    for thread in map(int, threads):
        with suppress(ProcessLookupError):  # it has ended
            if os.getpriority(os.PRIO_PROCESS, thread) < value:
                os.setpriority(os.PRIO_PROCESS, thread, value)


def available_cpus(root: Path = Path("/")) -> float:
    """The CPUs that this process may use: its affinity mask, or less where its control group has a CPU quota.

    A container with a quota of half a core on a machine with 64 still sees all 64 in its affinity mask.

    Args:
        root: The root of the file system that holds proc/ and sys/.

    Returns:
        A number of CPUs, perhaps a fraction.
    """
    cpus = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for quota in _cgroup_quotas(root):
        cpus = min(cpus, quota)
    return cpus


def _cgroup_quotas(root: Path) -> Iterator[float]:
    """The CPU quotas of this process's control group and of those above it; cgroups(7), both versions."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ["cpu.max"]
        elif "cpu" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        group = base / path.lstrip("/")
        # In a container with its own cgroup namespace the path may name what is not mounted: the mount is the group.
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            with suppress(OSError, ValueError):
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                if quota not in ("max", "-1"):
                    yield int(quota) / int(period)
