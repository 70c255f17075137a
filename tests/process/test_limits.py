"""The number of CPUs that a process may use, by its affinity and by the quotas of control groups; and of open files."""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from asrserver.process.limits import OPEN_MAX, available_cpus, raise_file_limit


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


def test_without_control_groups_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == 64


@pytest.mark.parametrize("folder", ["sys/fs/cgroup/kubepods/pod1", "sys/fs/cgroup"])
def test_a_quota_of_version_2_also_of_a_group_above(tmp_path: Path, folder: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/kubepods/pod1/container\n")
    (tmp_path / "sys/fs/cgroup/kubepods/pod1/container").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/kubepods/pod1/container/cpu.max").write_text("max 100000\n")
    (tmp_path / folder / "cpu.max").write_text("50000 100000\n")
    assert available_cpus(tmp_path) == 0.5


def test_a_quota_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/x\n3:cpu,cpuacct:/docker/abc\n")
    group = tmp_path / "sys/fs/cgroup/cpu/docker/abc"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("150000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cpus(tmp_path) == 1.5


def test_no_quota(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert available_cpus(tmp_path) == 64


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("more", [0, 15])
def test_who_was_started_nicer_stays_so(more: int) -> None:
    """As a user who may not take it back: a worker that nice(1) had started ended with an error, again and again."""
    code = "import os; from asrserver.process.limits import set_niceness; set_niceness(10); print(os.nice(0))"
    may_not = ["setpriv", "--bounding-set", "-sys_nice"] if os.geteuid() == 0 else []
    command = ["nice", "-n", str(more), *may_not, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(max(10, min(19, os.nice(0) + more))), done.stderr


@pytest.mark.parametrize(
    ("soft", "hard", "refused", "found"),
    [
        (1024, 65536, False, 65536),
        (65536, 65536, False, 65536),  # systemd's LimitNOFILE= sets both
        (256, resource.RLIM_INFINITY, False, math.inf),
        (256, resource.RLIM_INFINITY, True, OPEN_MAX),  # macOS
        (20000, resource.RLIM_INFINITY, True, 20000),
    ],
)
def test_the_limit_of_files_is_raised_and_never_lowered(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, refused: bool, found: float
) -> None:
    limits = [(soft, hard)]

    def change(what: int, limit: tuple[int, int]) -> None:
        if refused and limit[0] == resource.RLIM_INFINITY:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(limit)

    monkeypatch.setattr(resource, "getrlimit", lambda what: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", change)
    assert raise_file_limit() == found
    assert raise_file_limit() == found
    assert limits[-1] == (resource.RLIM_INFINITY if found == math.inf else found, hard)
