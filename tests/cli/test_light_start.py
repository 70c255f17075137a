"""What a start does not load: `--help` must answer at once, and a supervisor runs for months beside everything else."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("processes")

#: What only gateways, workers, or other commands need. Each costs 10 to 100 ms and 5 to 50 MB.
HEAVY = {"tornado", "asyncio", "uvloop", "redis", "sqlalchemy", "aiopg", "numpy", "ctranslate2", "faster_whisper", "av"}


def loaded_by(modules: str) -> set[str]:
    script = f"import sys, {modules}; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_command_line_is_light() -> None:
    assert not loaded_by("asrserver.cli.main") & HEAVY


def test_the_supervisor_is_light() -> None:
    servers = "asrserver.embedded.redis, asrserver.embedded.postgres"
    loaded = loaded_by(f"asrserver.cli.main, asrserver.supervisor.supervisor, asrserver.supervisor.devices, {servers}")
    assert not loaded & (HEAVY | {"prometheus_client", "urllib.request"})
