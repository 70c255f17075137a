"""Run the steps of conf/docker/Dockerfile without a container engine, and the image that they make, as root on Linux.

    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python-is-python3 bookworm build/base
    python tools/run_dockerfile.py --base build/base --arg MODEL=demo

Each stage is a copy of the base, in which RUN is a chroot with namespaces of its own. The result is started as an
engine starts it, with a read-only root, no capabilities and the image's user, or another --uid, until it has
transcribed a recording. This knows the instructions that our Dockerfile uses, and no others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "conf" / "docker" / "Dockerfile"

#: Seconds that the started image may take until it takes sessions.
READY_TIMEOUT = 180.0

#: Where the system's settings of pip and certificates are, which an engine would pass as a proxy's: for RUN only.
HOST_FILES = ("/etc/ssl/certs", "/etc/pip.conf", "/etc/resolv.conf")

PORT = 18080


@dataclass
class Stage:
    """A root file system that is being made, with what counts for the next RUN, and in the image."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    start: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def instructions() -> Iterator[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments, one line each."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name, rest.strip()


def fill(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values.get(found[1], ""), text)


def build(base: Path, work: Path, given: dict[str, str], mounts: list[str]) -> Stage:
    """Run all instructions; returns the last stage."""
    stages: dict[str, Stage] = {}
    stage = Stage(base)
    for name, rest in instructions():
        print(f"{name} {rest}", flush=True)
        known = {**stage.arguments, **stage.env}
        if name == "FROM":
            words = rest.split()
            stage = Stage(work / f"stage-{len(stages)}", {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"})
            subprocess.run(["cp", "-a", "--reflink=auto", f"{base}/.", stage.root], check=True)
            stages[words[-1]] = stage
        elif name == "ARG":
            key, _, default = rest.partition("=")
            stage.arguments[key] = given.get(key, default)
        elif name == "ENV":
            for key, value in (word.split("=", 1) for word in shlex.split(rest)):
                stage.env[key] = fill(value, known)
        elif name == "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            copy(stage, stages, rest.split())
        elif name == "RUN":
            run(stage, rest, mounts)
        elif name == "USER":
            stage.user = rest
        elif name in ("ENTRYPOINT", "CMD"):
            setattr(stage, "start" if name == "ENTRYPOINT" else "command", json.loads(rest))
        elif name != "EXPOSE":
            raise SystemExit(f"{name}: not known to this tool")
    return stage


def copy(stage: Stage, stages: dict[str, Stage], words: list[str]) -> None:
    """COPY, from the checkout or from another stage."""
    source = ROOT
    if words[0].startswith("--from="):
        source = stages[words.pop(0).partition("=")[2]].root
    *names, target = words
    for name in names:
        origin, goal = source / name.lstrip("/"), stage.root / os.path.join(stage.folder, target).lstrip("/")
        if not origin.is_dir() and target.endswith("/"):
            goal = goal / name
        ignored = shutil.ignore_patterns("__pycache__")
        if origin.is_dir():
            shutil.copytree(origin, goal, symlinks=True, dirs_exist_ok=True, ignore=ignored if source == ROOT else None)
        else:
            shutil.copy(origin, goal)


def run(stage: Stage, command: str, mounts: list[str]) -> None:
    """RUN, in a chroot: as root, with namespaces for mounts and processes, and the machine's network."""
    binds = " && ".join(
        f"mkdir -p {target.parent} && {{ test -d {path} && mkdir -p {target} || touch {target}; }} && "
        f"mount --rbind {path} {target}"
        for path in map(Path, mounts)
        for target in [stage.root / str(path).lstrip("/")]
        if path.exists()
    )
    environment = {**{key: value for key, value in os.environ.items() if key.startswith("PIP_")}, **stage.arguments}
    inside = shlex.join(["chroot", str(stage.root), "sh", "-c", f"cd {stage.folder} && {command}"])
    outside = f"mount --make-rprivate / && {binds} && mount -t proc proc {stage.root}/proc && exec {inside}"
    subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", outside],
        env={**environment, **stage.env, "HOME": "/root"},
        check=True,
    )


def start(stage: Stage, uid: int, command: list[str]) -> subprocess.Popen[bytes]:
    """Start the image as an engine does: read-only root, a writable data directory and /tmp, no capabilities."""
    data, tree = stage.env["ASRSERVER_DATA_DIR"], stage.root
    outside = (
        f"mount --make-rprivate / && mount --bind {tree} {tree} && mount -t tmpfs -o mode=1777 tmp {tree}/tmp && "
        f"mount --bind {tree}{data} {tree}{data} && mount -t proc proc {tree}/proc && mount --rbind /dev {tree}/dev && "
        f"mount -o remount,ro,bind {tree} && ! touch {tree}/file 2>/dev/null && exec "
    )
    drop = [
        "setpriv",
        f"--reuid={uid}",
        "--regid=0",
        "--clear-groups",
        "--no-new-privs",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]
    inside = ["chroot", str(tree), *drop, *stage.start, *command]
    return subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", outside + shlex.join(inside)],
        env={**stage.env, "HOME": data, "PORT": str(PORT), "ASRSERVER_ACCESS_CONTROL": "off"},
    )


def check(stage: Stage, uid: int, command: list[str]) -> None:
    """Start the image, wait until it takes sessions, let it transcribe a recording, and stop it."""
    process, began = start(stage, uid, command), time.monotonic()
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=5):
                    break
            except (OSError, urllib.error.HTTPError):
                if process.poll() is not None or time.monotonic() - began > READY_TIMEOUT:
                    raise SystemExit("the image does not serve: see above") from None
                time.sleep(0.2)
        print(f"ready after {time.monotonic() - began:.1f} s as uid {uid}", flush=True)
        recording = ROOT / "asrserver" / "data" / "recordings" / "english-1.wav"
        url = f"http://127.0.0.1:{PORT}/v1/audio/transcriptions"
        boundary = "b" * 20
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        model = f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1'
        body = head.encode() + recording.read_bytes() + f"{model}\r\n--{boundary}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        with urllib.request.urlopen(urllib.request.Request(url, body, kind), timeout=120) as answer:
            print(f"transcribed: {json.load(answer)['text']}", flush=True)
    finally:
        inner = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
        for pid in inner.split():
            os.kill(int(pid), signal.SIGTERM)
        print(f"stopped with {process.wait(120)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="root file system of the base image")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "image", help="where the stages are made")
    parser.add_argument("--arg", action="append", default=[], help="NAME=VALUE of a build argument")
    parser.add_argument("--mount", action="append", default=[], help="further paths of this machine that RUN sees")
    parser.add_argument("--uid", type=int, default=10001)
    parser.add_argument("command", nargs="*")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    given = dict(argument.split("=", 1) for argument in arguments.arg)
    stage = build(arguments.base.resolve(), arguments.work.resolve(), given, [*HOST_FILES, *arguments.mount])
    check(stage, arguments.uid, arguments.command or stage.command)


if __name__ == "__main__":
    main()
