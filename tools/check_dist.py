"""Build the sdist, and the wheel from it; install each where no checkout is, and have it serve and transcribe.

    make dist-check

The pins of constraints.txt hold for all that is installed, so pip's cache has most of it and the index is asked little.
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

#: Seconds that a command may take: installing from an empty cache takes the longest.
PATIENCE = 600.0

#: What lies in a checkout and is not built from.
NOT_SOURCE = (".git", ".venv", "build", "dist", "site", "*.egg-info", "__pycache__", ".*_cache")

#: What building adds to the files of the repository.
ADDED = ("PKG-INFO", "asrserver.egg-info/")


def run(*command: str | Path) -> str:
    """What a command writes; raises Failed, with its errors, if it ends with another status than 0."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it.

    From a copy without what earlier builds left: setuptools takes into an sdist what was in the one before.
    """
    source, dist = folder / "source", folder / "dist"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCE), symlinks=True)
    run(sys.executable, "-m", "build", "--outdir", dist, source)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return sdist, wheel


def check_contents(sdist: Path, wheel: Path) -> None:
    """The sdist has all files of the repository and no other, the wheel all of the package; raises Failed."""
    if not (ROOT / ".git").exists():
        print("contents are not compared: this is no git repository")
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
        raise Failed(f"{artefact.name} lacks {sorted(missing)}, and has {sorted(other)} that is not in the repository")


def install(folder: Path, *requirement: str | Path) -> None:
    """With this environment's pip: the new one needs none."""
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", *requirement)


def check_program(environment: Path, folder: Path, said: str) -> None:
    """What is installed there tells its version, and serves and transcribes; raises Failed."""
    python, program = environment / "bin" / "python", environment / "bin" / "asrserver"
    for command in ([program], [python, "-m", "asrserver"]):
        if (told := run(*command, "--version")) != f"asrserver, version {asrserver.__version__}\n":
            raise Failed(f"--version says {told!r}")
    package = Path(run(python, "-c", "import asrserver; print(asrserver.__path__[0])").strip())
    if environment not in package.parents:
        raise Failed(f"it is {package} that is run")
    process, port = start(str(folder), [str(program)])
    try:
        server = ("--server", f"ws://127.0.0.1:{port}")
        heard = run(program, "transcribe", *server, package / "data" / "recordings" / RECORDING).strip()
        run(program, "status", *server)
    finally:
        stop(process)
    if heard != said:
        raise Failed(f"{RECORDING}: said {said!r}, understood {heard!r}")
    print(f"{RECORDING}: {heard}")


def step(began: float, what: str) -> None:
    print(f"[{time.monotonic() - began:5.1f} s] {what}", flush=True)


def main() -> int:
    os.environ.pop("PYTHONPATH", None)  # nothing of the checkout may be found
    os.environ["PIP_CONSTRAINT"] = os.environ["PIP_BUILD_CONSTRAINT"] = (ROOT / "constraints.txt").as_uri()
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    said = json.loads(files("asrserver").joinpath("data", "recordings", "transcripts.json").read_text())[RECORDING]
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="asrserver-dist-"))
    folder.chmod(0o755)  # root's PostgreSQL is run by another user
    os.chdir(folder)
    try:
        sdist, wheel = build(folder)
        check_contents(sdist, wheel)
        step(began, f"{sdist.name} is built, and {wheel.name} from it: both are complete")
        environment = folder / "environment"
        run(sys.executable, "-m", "venv", "--without-pip", environment)
        install(environment, f"asrserver[embedded] @ {wheel.as_uri()}")
        step(began, "the wheel is installed")
        check_program(environment, folder, said)
        install(environment, "--force-reinstall", "--no-deps", sdist)
        step(began, "the sdist is installed in its place")
        check_program(environment, folder, said)
        step(began, "both serve and transcribe")
    except Exception as exc:  # whatever it was, its cause may be in the log
        print(f"FAILED: {exc}", file=sys.stderr)
        if (log := folder / "log").exists():
            print(log.read_text(), file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
