#!/usr/bin/env python3
"""Demonstrate the whole system on real speech: start it, stream recordings to it, compare the results, and stop it.

    make demo

Starts `asrserver run` with its embedded Redis and PostgreSQL in a temporary directory and on a free port; streams
recordings over WebSocket as two kinds of clients do (a whole WAV as one chunk; 100 ms chunks of PCM in real time); and
reads every session back from PostgreSQL through REST. Exits with status 0 only if every text was right and no process
is left.

With Whisper base, where it is installed, the recordings are of a person, from a package of Debian's, where that can be
downloaded; otherwise the demo model recognises the synthesised recordings in the package.
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
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import real_voices

from asrserver import models
from asrserver.audio import wav
from asrserver.client import Client
from asrserver.client.rest import open_url
from asrserver.text.wer import word_errors

RECORDINGS = Path(str(files("asrserver").joinpath("data", "recordings")))

#: Seconds that the system may take to stop.
STOP_TIMEOUT = 60.0

#: Seconds after its end within which all processes that it started must have ended.
REAP_TIMEOUT = 10.0

#: Seconds that a session may take, and an answer of REST.
SESSION_TIMEOUT = 60.0
REST_TIMEOUT = 10.0

#: Share of the words that a real model may have wrong.
MAX_WORD_ERRORS = 0.2


class Failed(Exception):
    """Raised when a result is wrong, or a step fails."""


@dataclass(frozen=True)
class Recording:
    """A recording that is streamed: its name, what is said in it, the WAV file, and whether it is sent in real time."""

    name: str
    said: str
    data: bytes
    live: bool


def start(
    directory: str, program: Sequence[str] = (sys.executable, "-m", "asrserver"), model: str = "demo"
) -> tuple[Popen[str], int]:
    """Start the system, with its data and its log in the directory; returns its process and its port."""
    command = [*program, "run", "--port", "0", "--data-dir", f"{directory}/data", "--model", model]
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


def real_speech() -> list[Recording]:
    """A person who reads from a book; raises real_voices.Unavailable."""
    real_voices.fetch([real_voices.BOOK])
    format = wav.Format.of("pcm_s16le", 1, real_voices.RATE)
    return [
        Recording(voice.name, voice.text, wav.encode(format, voice.pcm), live)
        for voice, live in zip(real_voices.book(), (False, True, False), strict=False)
    ]


def synthesised() -> list[Recording]:
    """The recordings of the package, which the demo model knows."""
    return [
        Recording(name, said, (RECORDINGS / name).read_bytes(), live)
        for name, said in json.loads((RECORDINGS / "transcripts.json").read_text()).items()
        for live in ((False, True) if name == "english-1.wav" else (name == "pauses.wav",))
    ]


def choose() -> tuple[str, list[Recording]]:
    """The model and the recordings that it is to recognise."""
    if models.resolve("auto") != models.PREFERRED:
        print("Whisper base is not installed: this is the demo model, which knows only sentences like the following")
        return "demo", synthesised()
    try:
        return models.PREFERRED, real_speech()
    except real_voices.Unavailable as exc:
        print(f"there is no recording of a person here ({exc}): these are synthesised voices, and the demo model")
        return "demo", synthesised()


def is_right(said: str, text: str, allowed: float) -> bool:
    """Whether a text has at most this share of the words wrong; without any, also case and punctuation must agree."""
    wanted = real_voices.words(said)
    return text == said if not allowed else word_errors(wanted, real_voices.words(text)) <= allowed * len(wanted)


async def check(port: int, recordings: list[Recording], allowed: float) -> None:
    """Stream every recording, and compare the recognised and the stored text with what is said."""
    wrong = 0
    async with await Client.connect(f"ws://127.0.0.1:{port}/ws/asr") as client:
        for recording in recordings:
            final = await asyncio.wait_for(stream(client, recording.data, recording.live), SESSION_TIMEOUT)
            stored = get(port, f"/session/{final['session_id']}")
            right = is_right(recording.said, final["text"], allowed)
            right = right and final["text"] == stored["text"] and stored["status"] == "done"
            wrong += not right
            how = "in 100 ms chunks in real time" if recording.live else "as one chunk"
            print(f"{recording.name}, {how}, {final['duration']:.1f} s")
            print(f"  spoken      {recording.said or '(nothing)'}")
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
    model, recordings = choose()
    with tempfile.TemporaryDirectory(prefix="asrserver-demo-") as directory:
        try:
            print(f"starting asrserver with the model {model}, an embedded Redis and PostgreSQL …", flush=True)
            began = time.monotonic()
            process, port = start(directory, model=model)
            print(f"asrserver is ready on port {port} after {time.monotonic() - began:.1f} s")
            try:
                asyncio.run(check(port, recordings, 0.0 if model == "demo" else MAX_WORD_ERRORS))
            finally:
                stop(process)
        except Exception as exc:  # whatever failed, the log shows the cause
            print(f"FAILED: {exc!r}", file=sys.stderr)
            print(Path(directory, "log").read_text(), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
