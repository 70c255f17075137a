"""The markers unit, service, system and slow: what a test needs, derived from its fixtures.

unit      nothing but this process, and programs that convert or check a file (FFmpeg, promtool, systemd-analyze)
service   a real Redis or PostgreSQL
system    the program as processes: signals, several gateways, workers
slow      a soak that takes minutes: the only marker that is set by hand

Every test has exactly one of them. A fixture that starts servers requests the fixture `real_servers`, one that starts
processes requests `processes`: all tests that use them, even indirectly, are marked. A test that starts a process
itself has `@pytest.mark.usefixtures("processes")`; without it the test fails, because nothing can be started.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

KINDS = ("unit", "service", "system", "slow")

#: The kind of a test that has this fixture in its closure. pytest-tornado's server looks up the application, and with
#: it the gateway on its Redis and PostgreSQL, only when it is set up.
NEEDS = {"real_servers": "service", "http_server": "service", "processes": "system"}

#: Beginnings of the names of programs that a test of any kind may run.
TOOLS = ("ffmpeg", "promtool", "systemd-analyze")


class NeedsProcessesError(Exception):
    """Raised when a test starts a process that its fixtures do not declare."""


def kind_of(fixtures: Collection[str], marks: Collection[str]) -> str:
    """Derive the kind of a test.

    Args:
        fixtures: All fixtures that it uses, directly or not.
        marks: The kinds that it is marked with by hand.

    Raises:
        pytest.UsageError: It is marked by hand with a kind that is derived.
    """
    if derived := set(marks) - {"slow"}:
        raise pytest.UsageError(f"{', '.join(sorted(derived))}: derived from the fixtures, not to be set by hand")
    if marks:
        return "slow"
    return max((NEEDS[name] for name in fixtures if name in NEEDS), key=KINDS.index, default="unit")


def mark(item: pytest.Function) -> None:
    """Give a test the marker of its kind."""
    by_hand = {name for name in KINDS if item.get_closest_marker(name) is not None}
    kind = kind_of(item.fixturenames, by_hand)
    if kind not in by_hand:
        item.add_marker(kind)


def kinds(item: pytest.Item) -> list[str]:
    """The kinds that a test is marked with."""
    return [name for name in KINDS if item.get_closest_marker(name) is not None]


def _program(command: Any) -> str:
    """The name of the program that a command runs."""
    first = command if isinstance(command, (str, bytes, os.PathLike)) else command[0]
    return Path(os.fsdecode(first)).name


@contextmanager
def guarded(kind: str) -> Iterator[None]:
    """Raise NeedsProcessesError when a test of this kind starts a process that it may not start.

    Unit tests may start only TOOLS; service tests all programs but Python, which would be asrserver.
    """
    popen, start = subprocess.Popen.__init__, BaseProcess.start

    def checked(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        name = _program(args)
        if (kind == "unit" and not name.startswith(TOOLS)) or (kind == "service" and name.startswith("python")):
            raise NeedsProcessesError(f"a {kind} test starts {name}: it needs the fixture 'processes'")
        popen(self, args, *rest, **options)

    def refused(self: BaseProcess) -> None:
        raise NeedsProcessesError(f"a {kind} test starts {self.name}: it needs the fixture 'processes'")

    if kind not in ("unit", "service"):
        yield
        return
    with mock.patch.object(subprocess.Popen, "__init__", checked), mock.patch.object(BaseProcess, "start", refused):
        yield
    assert subprocess.Popen.__init__ is popen
    assert BaseProcess.start is start
