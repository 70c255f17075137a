"""Build the sdist and from it the wheel; install each outside the checkout, and let it serve and transcribe.

    make dist-check

The versions in constraints.txt apply to all installations, so that pip's cache already contains most packages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from importlib.resources import files
from pathlib import Path

from demo import Failed, start, stop

import asrserver

ROOT = Path(__file__).resolve().parents[1]
RECORDING = "english-1.wav"

#: Seconds that a command may take: an installation with an empty cache takes the longest.
COMMAND_TIMEOUT = 600.0

#: Patterns of files in a checkout that are not sources.
NOT_SOURCE = (".git", ".venv", "build", "dist", "site", "*.egg-info", "__pycache__", ".*_cache")

#: Files that the build adds to those of the repository.
ADDED = ("PKG-INFO", "asrserver.egg-info/")


def run(*command: str | Path) -> str:
    """Run a command and return its output; raises Failed, with its errors, if its exit status is not 0."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from the sdist.

    The source is a copy without the files of earlier builds: setuptools adds the contents of an earlier sdist.
    """
    source, dist = folder / "source", folder / "dist"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCE), symlinks=True)
    run(sys.executable, "-m", "build", "--outdir", dist, source)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return sdist, wheel


def check_contents(sdist: Path, wheel: Path) -> None:
    """Check that the sdist has exactly the files of the repository, the wheel those of the package; raises Failed."""
    if not (ROOT / ".git").exists():
        print("not a git repository: skipping the comparison of contents")
        return
    tracked = {name for name in repository("--cached") if (ROOT / name).exists()}
    allowed = tracked | repository("--cached", "--others", "--exclude-standard")
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    packed = {name for name in packed if not name.startswith(ADDED)}
    compare(sdist, tracked - packed, packed - allowed)
    package = {name for name in tracked if name.startswith("asrserver/")} | {"asrserver/schema.sql"}
    with zipfile.ZipFile(wheel) as archive_:
        packed = {name for name in archive_.namelist() if ".dist-info/" not in name}
    compare(wheel, package - packed, packed - allowed - package)


def repository(*options: str) -> set[str]:
    return set(run("git", "-C", ROOT, "ls-files", "-z", *options).split("\0")) - {""}


def compare(artefact: Path, missing: set[str], other: set[str]) -> None:
    if missing or other:
        raise Failed(
            f"{artefact.name} lacks {sorted(missing)}, and contains {sorted(other)}, which are not in the repository"
        )


def install(folder: Path, *requirement: str | Path) -> None:
    """Install with the pip of this environment: the new one has none."""
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", *requirement)


def check_program(environment: Path, folder: Path, said: str) -> None:
    """Check that the installed program prints its version, serves and transcribes; raises Failed."""
    python, program = environment / "bin" / "python", environment / "bin" / "asrserver"
    for command in ([program], [python, "-m", "asrserver"]):
        if (told := run(*command, "--version")) != f"asrserver, version {asrserver.__version__}\n":
            raise Failed(f"--version says {told!r}")
    package = Path(run(python, "-c", "import asrserver; print(asrserver.__path__[0])").strip())
    if environment not in package.parents:
        raise Failed(f"the imported package is {package}, not the installed one")
    process, port = start(str(folder), [str(program)])
    try:
        server = ("--server", f"ws://127.0.0.1:{port}")
        heard = run(program, "transcribe", *server, package / "data" / "recordings" / RECORDING).strip()
        run(program, "status", *server)
    finally:
        stop(process)
    if heard != said:
        raise Failed(f"{RECORDING}: expected {said!r}, recognised {heard!r}")
    print(f"{RECORDING}: {heard}")


def step(began: float, what: str) -> None:
    print(f"[{time.monotonic() - began:5.1f} s] {what}", flush=True)


def main() -> int:
    os.environ.pop("PYTHONPATH", None)  # the checkout must not be importable
    os.environ["PIP_CONSTRAINT"] = os.environ["PIP_BUILD_CONSTRAINT"] = (ROOT / "constraints.txt").as_uri()
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    said = json.loads(files("asrserver").joinpath("data", "recordings", "transcripts.json").read_text())[RECORDING]
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="asrserver-dist-"))
    folder.chmod(0o755)  # for root, PostgreSQL runs as another user
    os.chdir(folder)
    try:
        sdist, wheel = build(folder)
        check_contents(sdist, wheel)
        step(began, f"{sdist.name} and {wheel.name} are built and complete")
        environment = folder / "environment"
        run(sys.executable, "-m", "venv", "--without-pip", environment)
        install(environment, f"asrserver[embedded] @ {wheel.as_uri()}")
        step(began, "the wheel is installed")
        check_program(environment, folder, said)
        install(environment, "--force-reinstall", "--no-deps", sdist)
        step(began, "the sdist is installed instead")
        check_program(environment, folder, said)
        step(began, "both serve and transcribe")
    except Exception as exc:  # whatever failed, the log may show the cause
        print(f"FAILED: {exc}", file=sys.stderr)
        if (log := folder / "log").exists():
            print(log.read_text(), file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
