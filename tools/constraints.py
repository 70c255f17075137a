"""Resolve the dependencies within the ranges of setup.cfg, and write their versions to constraints.txt.

    make constraints                     the newest versions of everything
    make constraints KEEP=--keep         pinned versions stay: after adding a dependency or changing a range

Every installation of the Makefile uses these versions, including those of the build backend, so that today's checkout
still builds and passes its tests when its dependencies have changed. Each supported Python found on the path resolves
for itself; markers distinguish different results. The oldest and the newest supported Python are required. With pyenv:
PYENV_VERSION=3.11.7:3.12.1:3.13.0 make constraints.
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

#: Extras that are not resolved: the model can be trained with any build of torch.
UNPINNED = {"cuda", "model"}

#: Packages that build dependencies without a wheel, such as SQLAlchemy for Python 3.13.
BUILD = ("setuptools", "wheel")

HEADER = """\
# The versions that every installation by make uses (PIP_CONSTRAINT), so that today's checkout still works when its
# dependencies have changed. Written by `make constraints` on Python {pythons}: change the ranges in setup.cfg, not this
# file.
"""

#: A minor version of Python, such as (3, 11).
Minor = tuple[int, int]


def supported(config: configparser.ConfigParser) -> list[Minor]:
    """The Python versions that the package supports, oldest first."""
    named = re.findall(r"^Programming Language :: Python :: (\d+)\.(\d+)$", config["metadata"]["classifiers"], re.M)
    return sorted((int(major), int(minor)) for major, minor in named)


def has(python: str, minor: Minor) -> bool:
    """Whether a command runs this Python version; a shim of pyenv may exist and run none."""
    asked = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0 and done.stdout.split() == [str(number) for number in minor]


def resolve(python: str, extras: list[str], keep: bool) -> dict[str, str]:
    """The version of each distribution that pip would install for this Python."""
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
    """Normalise a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str, versions: dict[Minor, str]) -> list[str]:
    """The lines of one distribution.

    A Python between two that were resolved for uses the version of the older one, a newer one that of the newest.

    Args:
        name: The distribution.
        versions: Its version for each Python, oldest first.
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
    parser.add_argument("--keep", action="store_true", help="only add missing pins and remove unused ones")
    arguments = parser.parse_args()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = supported(config)
    pythons = {minor: f"python{dotted(minor)}" for minor in wanted}
    pythons = {minor: python for minor, python in pythons.items() if has(python, minor)}
    for minor in (wanted[0], wanted[-1]):
        if minor not in pythons:
            sys.exit(f"python{dotted(minor)} is not on the path: the oldest and the newest Python are required")
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
