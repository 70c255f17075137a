"""The program without /proc, and without what only Linux and glibc have, as on macOS.

No Mac is at hand. This is as near as Linux comes to one: what a Mac has and does otherwise, it does not know.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.audio.signals import encode_file
from tests.inference.support import samples
from tests.program import System, cli
from tests.recordings import Utterance
from tests.waiting import wait_until

#: What each Python process runs at its start.
LESS = """
import builtins, ctypes, io, os

for name in ("sched_getaffinity", "posix_fallocate"):
    delattr(os, name)


class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name in ("prctl", "mallopt", "malloc_trim", "adjtimex"):
            raise AttributeError(name)
        return super().__getattr__(name)


def without(function):
    def called(path=".", *arguments, **options):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return function(path, *arguments, **options)
    return called


ctypes.CDLL = Library
builtins.open = io.open = without(io.open)
os.listdir, os.scandir, os.stat = without(os.listdir), without(os.scandir), without(os.stat)
os.path.isdir = lambda path, old=os.path.isdir: not str(path).startswith("/proc") and old(path)
"""


@pytest.fixture
def less(processes: None, tmp_path: Path, redis_url: str, database_url: str) -> dict[str, str]:
    """The environment of a machine with servers of its own, as Homebrew's."""
    (tmp_path / "sitecustomize.py").write_text(LESS)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "REDIS_URL": redis_url, "DATABASE_URL": database_url}


def test_it_serves_and_leaves_no_process(less: dict[str, str], utterances: list[Utterance], tmp_path: Path) -> None:
    wav, caf = tmp_path / "hello.wav", tmp_path / "hello.caf"
    wav.write_bytes(utterances[0].wav)
    caf.write_bytes(encode_file(samples(utterances[0]), "-f caf", tmp_path))  # decoded in a process of its own
    system = System("run", "--port", "0", env=less)
    try:
        system.wait_ready()
        for file in (wav, caf):
            done = cli("transcribe", str(file), "--server", f"http://127.0.0.1:{system.port}", env=less)
            assert done.stdout.strip() == utterances[0].text, done.stderr
        children = psutil.Process(system.process.pid).children(recursive=True)
        system.process.send_signal(signal.SIGKILL)
        system.process.wait(20)
        wait_until(lambda: not any(child.is_running() for child in children), 30, "its children end with it")
    finally:
        system.close()


def test_doctor_knows_what_it_does_not_know(less: dict[str, str]) -> None:
    done = cli("doctor", "--for", "worker", env=less)
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout
    assert "clock       the kernel does not tell" in done.stdout
