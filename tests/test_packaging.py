"""The package: how it is started, its dependencies and its metadata."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import constraints
import pytest
import yaml
from packaging.requirements import Requirement

from asrserver import __version__

ROOT = Path(__file__).parents[1]

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
    """PEP 561: without this file, type checkers take every name of an installed asrserver for Any."""
    assert files("asrserver").joinpath("py.typed").is_file()


# -- dependencies ----------------------------------------------------------------------------------------------------


def requirements() -> list[Requirement]:
    """All dependencies in setup.cfg, except those that train the model."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = [config["options"]["install_requires"]]
    lists += [value for extra, value in config["options.extras_require"].items() if extra not in constraints.UNPINNED]
    lines = [line for text in lists for line in text.splitlines() if line and not line.startswith("#")]
    return [Requirement(line) for line in lines]


def pinned(python: str) -> dict[str, str]:
    """The version of each distribution in constraints.txt for a Python."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            assert pin.name not in found, f"pinned twice for Python {python}"
            found[pin.name] = specifier.version
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_constraints_pin_what_setup_cfg_asks_for(python: str) -> None:
    """Each dependency has one version, within its range: otherwise `make constraints KEEP=--keep` was forgotten."""
    pins = pinned(python)
    asked = requirements()
    assert len(asked) > 20
    for requirement in asked:
        version = pins.get(constraints.canonical(requirement.name))
        assert version, f"{requirement.name} is not in constraints.txt"
        assert version in requirement.specifier, f"{requirement} does not allow the {version} of constraints.txt"
    assert "wheel" in pins  # not asked for: what sdists are built with
    assert "torch" not in pins


def test_pins_of_pythons_that_differ() -> None:
    """Exactly one line applies to each Python, also to one that was not resolved for."""
    versions = {(3, 11): "1.0", (3, 12): "2.0", (3, 13): "2.0", (3, 14): "3.0"}
    lines = constraints.pins("some", versions)
    assert lines == [
        'some==1.0 ; python_version < "3.12"',
        'some==2.0 ; python_version >= "3.12" and python_version < "3.14"',
        'some==3.0 ; python_version >= "3.14"',
    ]
    assert constraints.pins("some", {(3, 11): "1.0", (3, 13): "1.0"}) == ["some==1.0"]


# -- the repository --------------------------------------------------------------------------------------------------


def test_the_changelog_has_this_version() -> None:
    """Above it there is a section for later changes."""
    found = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert found[0] == "Unreleased"
    assert found[1] == __version__


def test_pre_commit_runs_what_the_environment_has() -> None:
    """Nothing is downloaded: each hook is a program in .venv, installed by the extra test."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    programs = [hook["entry"].split()[0] for hook in config["repos"][0]["hooks"]]
    assert {".venv/bin/ruff", ".venv/bin/mypy"} == set(programs)
    assert {Path(program).name for program in programs} <= {requirement.name for requirement in requirements()}
