"""Shared by the tools for live streams: recordings made of utterances, a source in real time, a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from asrserver.audio import SAMPLE_RATE, files
from asrserver.audio.pcm import Samples
from asrserver.client import Client

UTTERANCES = Path(__file__).resolve().parent.parent / "tests" / "data" / "utterances"

#: Seconds of audio in a chunk.
CHUNK_SECONDS = 0.1


@dataclass
class Utterance:
    """A sentence in a recording, with the positions of its first and last loud sample in seconds."""

    text: str
    start: float
    end: float


@dataclass
class Recording:
    """A recording, and the utterances in it."""

    samples: Samples
    said: list[Utterance] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(one.text for one in self.said)

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass
class Heard:
    """The messages for a recording, each with the seconds since its first sample, and the final result."""

    messages: list[tuple[float, dict[str, Any]]]
    final: dict[str, Any]


def load(names: Sequence[str] = ()) -> list[tuple[str, Samples]]:
    """The (text, samples) of the test utterances with these names, or of all."""
    transcripts = json.loads((UTTERANCES / "transcripts.json").read_text())
    return [
        (text, files.decode((UTTERANCES / name).read_bytes(), "ogg", 60))
        for name, text in transcripts.items()
        if not names or name in names
    ]


def make(said: Sequence[tuple[str, Samples]], seconds: float, pauses: tuple[float, float], seed: int) -> Recording:
    """Make a recording of some seconds: utterances in random order, with pauses between them."""
    random = np.random.default_rng(seed)
    parts, utterances, at = [], list[Utterance](), 0.0
    while at < seconds:
        text, samples = said[int(random.integers(len(said)))]
        loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
        pause = np.zeros(int(random.uniform(*pauses) * SAMPLE_RATE), np.float32)
        utterances.append(Utterance(text, at + loud[0] / SAMPLE_RATE, at + loud[-1] / SAMPLE_RATE))
        parts += [samples, pause]
        at += (len(samples) + len(pause)) / SAMPLE_RATE
    return Recording(np.concatenate([*parts, np.zeros(SAMPLE_RATE, np.float32)]), utterances)


async def speak(client: Client, recording: Recording, speed: float = 1.0, **options: Any) -> Heard:
    """Send a recording in real time, or `speed` times as fast, and record the messages with their times."""
    session = await client.start(mode="stream", **options)
    pcm = (recording.samples * 32767).astype("<i2").tobytes()
    begun = time.monotonic()
    messages: list[tuple[float, dict[str, Any]]] = []

    async def send() -> None:
        step = int(CHUNK_SECONDS * SAMPLE_RATE) * 2
        for at in range(0, len(pcm), step):
            piece = pcm[at : at + step]
            await asyncio.sleep(max(0.0, begun + (at + len(piece)) / (2 * SAMPLE_RATE * speed) - time.monotonic()))
            await session.send(piece)
        await session.end()

    sending = asyncio.ensure_future(send())
    async for event in session.events():
        messages.append(((time.monotonic() - begun) * speed, event))
        if event["type"] == "error":
            print(event, file=sys.stderr)
    await sending
    return Heard(messages, messages[-1][1])


@dataclass
class Server:
    """A running server.

    Attributes:
        port: Its port.
        process: Its supervisor.
        log: Its log.
        data: The directory of its Redis and PostgreSQL.
    """

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    data: Path

    @property
    def url(self) -> str:
        """Of the native WebSocket."""
        return f"ws://127.0.0.1:{self.port}/ws/asr"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it as an operator does, and wait for that."""
        self.process.terminate()
        self.process.wait(120)

    def processes(self, kind: str) -> list[psutil.Process]:
        """The living gateways or workers, as the log names them."""
        pids = map(int, re.findall(rf"{kind} \S+ started: pid (\d+)", self.log.read_text(errors="replace")))
        return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


@contextlib.contextmanager
def server(*arguments: str, log: str = "") -> Iterator[Server]:
    """Run a server with these options; `log` is a file for its log that is to stay."""
    with tempfile.TemporaryDirectory(prefix="asrserver-live-") as folder:
        kept, data = Path(log or f"{folder}/log"), Path(f"{folder}/data")
        command = [sys.executable, "-m", "asrserver", "run", "--port", "0", "--data-dir", str(data)]
        with kept.open("w") as output:
            process = subprocess.Popen(
                [*command, "--embedded-fsync", "no", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"ASRSERVER_MODEL": "demo", **os.environ},
            )
        running = Server(0, process, kept, data)
        try:
            ready = re.compile(r"^asrserver listening on http://\S+:(\d+)", re.M)
            while not (found := ready.search(kept.read_text())):
                if process.poll() is not None:
                    raise SystemExit(kept.read_text())
                time.sleep(0.1)
            running.port = int(found[1])
            yield running
        finally:
            running.stop()


def percentile(values: Sequence[float], share: float) -> float:
    """The percentile by nearest rank; NaN if there are no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def delays(recording: Recording, heard: Heard) -> tuple[list[float], list[float]]:
    """The delays in seconds: of first partial results after the start of speech, and of segments after its end."""
    first, final = [], []
    partials: dict[float, float] = {}
    for when, message in heard.messages:
        if message["type"] == "partial_result" and message["text"]:
            partials.setdefault(message["start"], when)
        elif message["type"] == "segment_result":
            begin, end = message["start"] - 0.1, message["end"] + 0.1
            inside = [one for one in recording.said if begin <= one.start and one.end <= end]
            if inside:
                final.append(when - inside[-1].end)
                if message["start"] in partials:
                    first.append(partials[message["start"]] - inside[0].start)
    return first, final
