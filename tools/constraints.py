"""Resolve the dependencies anew, within setup.cfg's ranges, and write what was found into constraints.txt.

    make constraints                     the newest versions of everything
    make constraints KEEP=--keep         what is pinned stays: after a dependency was added or a range was changed

Every install of the Makefile takes the versions in that file, the build backend's too, so that a checkout of today
still builds and passes its tests when its dependencies have moved on. Each supported Python that is found on the path
resolves for itself; where they differ, markers say which takes which. The oldest and the newest must be there. With
pyenv: PYENV_VERSION=3.11.7:3.12.1:3.13.0 make constraints.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "constraints.txt"

#: Extras that are not resolved: any build of torch will do to train the model.
UNPINNED = {"model"}

#: What dependencies are built with that have no wheel: SQLAlchemy's for Python 3.13.
BUILD = ("setuptools", "wheel")

HEADER = """\
# What every install by make takes (PIP_CONSTRAINT), so that a checkout of today still works when its dependencies have
# moved on. Written by `make constraints`, on Python {pythons}: change setup.cfg's ranges, not this file.
"""

#: A minor version of Python, such as (3, 11).
Minor = tuple[int, int]


def supported(config: configparser.ConfigParser) -> list[Minor]:
    """The Pythons that the package says it runs on, oldest first."""
    named = re.findall(r"^Programming Language :: Python :: (\d+)\.(\d+)$", config["metadata"]["classifiers"], re.M)
    return sorted((int(major), int(minor)) for major, minor in named)


def has(python: str, minor: Minor) -> bool:
    """Whether this command runs that Python; a shim of pyenv may be there and run none."""
    asked = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0 and done.stdout.split() == [str(number) for number in minor]


def resolve(python: str, extras: list[str], keep: bool) -> dict[str, str]:
    """The version of each distribution that pip would install there."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_CONSTRAINT")}
    with tempfile.TemporaryDirectory(prefix="asrserver-constraints-") as folder:
        subprocess.run([python, "-m", "venv", folder], check=True, env=environment)
        report = Path(folder, "report.json")
        command = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--dry-run", "--ignore-installed", "--report", str(report), f".[{','.join(extras)}]", *BUILD]
        command += ["--constraint", str(FILE)] if keep else []
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        found = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    return {canonical(entry["name"]): entry["version"] for entry in found if canonical(entry["name"]) != "asrserver"}


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str, versions: dict[Minor, str]) -> list[str]:
    """The lines for one distribution, from the version that each Python found, oldest first.

    A Python between two that were asked takes what the older one does, and what is newer than all what the newest does.
    """
    lines = []
    runs: list[tuple[Minor, str]] = []  # the first Python of each run that agrees
    for minor, version in versions.items():
        if not runs or runs[-1][1] != version:
            runs.append((minor, version))
    for number, (minor, version) in enumerate(runs):
        since = [f'python_version >= "{dotted(minor)}"'] if number else []
        until = [f'python_version < "{dotted(runs[number + 1][0])}"'] if number + 1 < len(runs) else []
        marker = " and ".join(since + until)
        lines.append(f"{name}=={version}" + (f" ; {marker}" if marker else ""))
    return lines


def dotted(minor: Minor) -> str:
    return ".".join(map(str, minor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="only add what is not pinned yet, and drop what is unused")
    arguments = parser.parse_args()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = supported(config)
    pythons = {minor: f"python{dotted(minor)}" for minor in wanted}
    pythons = {minor: python for minor, python in pythons.items() if has(python, minor)}
    for minor in (wanted[0], wanted[-1]):
        if minor not in pythons:
            sys.exit(f"python{dotted(minor)} is needed on the path, to resolve for the oldest and the newest Python")
    extras = sorted(set(config["options.extras_require"]) - UNPINNED)
    found: dict[str, dict[Minor, str]] = {}
    for minor, python in pythons.items():
        print(f"resolving for Python {dotted(minor)} …", flush=True)
        for name, version in resolve(python, extras, arguments.keep).items():
            found.setdefault(name, {})[minor] = version
    lines = [line for name in sorted(found) for line in pins(name, found[name])]
    FILE.write_text(HEADER.format(pythons=", ".join(map(dotted, pythons))) + "\n".join(lines) + "\n")
    print(f"{FILE.name}: {len(found)} distributions")


if __name__ == "__main__":
    main()
