"""What makes a checkout a package: how it is started, what it depends on and what it says of itself."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from asrserver import __version__

#: What pip puts beside the interpreter.
SCRIPT = Path(sys.executable).parent / "asrserver"


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("program", [[str(SCRIPT)], [sys.executable, "-m", "asrserver"]], ids=["script", "module"])
def test_script_and_module_are_the_same_program(program: list[str]) -> None:
    """Version and usage call it asrserver, however it was started."""
    done = subprocess.run([*program, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"asrserver, version {__version__}\n"
    done = subprocess.run([*program, "dance"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: asrserver ")


def test_type_checkers_are_told_that_it_is_typed() -> None:
    """PEP 561: without this file they take every name of an installed asrserver for Any."""
    assert files("asrserver").joinpath("py.typed").is_file()
