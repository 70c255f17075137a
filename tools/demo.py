#!/usr/bin/env python3
"""Demonstrate the whole system on real speech: start it, stream recordings to it, compare the results, and stop it.

    make demo

Starts `asrserver run` with its embedded Redis and PostgreSQL in a temporary directory and on a free port; streams the
recordings of the package over WebSocket as two kinds of clients do (a whole WAV as one chunk; 100 ms chunks of PCM in
real time); reads every session back from PostgreSQL through REST. Exits with status 0 only if every text was right and
no process is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from asrserver.audio import wav
from asrserver.client import Client
from asrserver.client.rest import open_url

RECORDINGS = Path(str(files("asrserver").joinpath("data", "recordings")))

#: Seconds that the system may take to stop.
STOP_TIMEOUT = 60.0

#: Seconds after its end within which all processes that it started must have ended.
REAP_TIMEOUT = 10.0

#: Seconds that a session may take, and an answer of REST.
SESSION_TIMEOUT = 60.0
REST_TIMEOUT = 10.0


class Failed(Exception):
    """Raised when a result is wrong, or a step fails."""


def start(directory: str, program: Sequence[str] = (sys.executable, "-m", "asrserver")) -> tuple[Popen[str], int]:
    """Start the system, with its data and its log in the directory; returns its process and its port."""
    command = [*program, "run", "--port", "0", "--data-dir", f"{directory}/data"]
    with open(f"{directory}/log", "w") as log:
        process = Popen(command, stdout=PIPE, stderr=log, text=True, env=clean_environment(), start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"listening on https?://\S+:(\d+)", line)
        if found:
            return process, int(found[1])
    raise Failed(f"asrserver did not start:\n{Path(directory, 'log').read_text()}")


def clean_environment() -> dict[str, str]:
    """The environment without the variables that would configure asrserver, and with the demo model."""
    ours = re.compile(r"ASRSERVER_|REDIS_|DATABASE_URL|DB_|PORT$|HOST$")
    kept = {name: value for name, value in os.environ.items() if not ours.match(name)}
    return {**kept, "ASRSERVER_MODEL": "demo"}


async def stream(client: Client, recording: bytes, live: bool) -> dict[str, Any]:
    """Send a WAV file, whole or in real time; returns its final result."""
    session = await client.start(user_id="demo")
    if live:
        header = wav.read_header(recording)
        assert header is not None
        samples, step = recording[header.offset :], header.format.bytes_per_second // 10
        for at in range(0, len(samples), step):
            await session.send(samples[at : at + step])
            await asyncio.sleep(0.1)
    else:
        await session.send(recording)
    return await session.finish()


def get(port: int, path: str) -> Any:
    with open_url(f"http://127.0.0.1:{port}/api/v1{path}", "", REST_TIMEOUT) as response:
        return json.load(response)


async def check(port: int, transcripts: dict[str, str], recordings: dict[str, bytes]) -> None:
    """Stream every recording, and compare the recognised and the stored text with the transcript."""
    wrong = 0
    async with await Client.connect(f"ws://127.0.0.1:{port}/ws/asr") as client:
        for name, said in transcripts.items():
            for live in (False, True) if name == "english-1.wav" else (name == "pauses.wav",):
                final = await asyncio.wait_for(stream(client, recordings[name], live), SESSION_TIMEOUT)
                stored = get(port, f"/session/{final['session_id']}")
                right = final["text"] == said == stored["text"] and stored["status"] == "done"
                wrong += not right
                print(f"{name}, {'100 ms chunks in real time' if live else 'one chunk'}, {final['duration']:.1f} s")
                print(f"  spoken      {said or '(nothing)'}")
                print(f"  recognised  {final['text'] or '(nothing)'}")
                print(f"  stored      {stored['text'] or '(nothing)'}   {'right' if right else 'WRONG'}")
    history = get(port, "/history")
    print(f"the history has {history['total']} sessions; health: {get(port, '/health')['status']}")
    if wrong:
        raise Failed(f"the text of {wrong} recordings is wrong, or was not stored")


def descendants(top: int) -> set[int]:
    """The pids of all living descendants of a process."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found: set[int] = set()
    new = {top}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return found


def stop(process: Popen[str]) -> None:
    """Stop the system; raises Failed unless it and all processes that it started have ended."""
    started = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    status = process.wait(STOP_TIMEOUT)
    deadline = time.monotonic() + REAP_TIMEOUT
    while (left := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    if status or left:
        raise Failed(f"asrserver ended with status {status} and left the processes {left}")
    print(f"stopped: {len(started) + 1} processes, none left")


def main() -> int:
    transcripts = json.loads((RECORDINGS / "transcripts.json").read_text())
    recordings = {name: (RECORDINGS / name).read_bytes() for name in transcripts}
    with tempfile.TemporaryDirectory(prefix="asrserver-demo-") as directory:
        try:
            print("starting asrserver with an embedded Redis and PostgreSQL …", flush=True)
            began = time.monotonic()
            process, port = start(directory)
            print(f"asrserver is ready on port {port} after {time.monotonic() - began:.1f} s")
            try:
                asyncio.run(check(port, transcripts, recordings))
            finally:
                stop(process)
        except Exception as exc:  # whatever failed, the log shows the cause
            print(f"FAILED: {exc!r}", file=sys.stderr)
            print(Path(directory, "log").read_text(), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
