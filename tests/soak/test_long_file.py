"""An hour of MP3 through OpenAI's interface: text, memory of the gateway, and what is left when the client leaves."""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import httpx
import imageio_ffmpeg
import psutil
import pytest

from asrserver.text.wer import word_errors
from tests.program import System
from tests.recordings import Utterance
from tests.system.support import client_of, robust
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SECONDS = 3600

#: MiB by which a gateway may grow, and seconds within which nothing may be done any more for a client that left.
MOST_MEMORY = 30.0
MOST_SECONDS = 2.0


@pytest.fixture(scope="module")
def hour(utterances: list[Utterance]) -> tuple[str, bytes]:
    """What is said in an hour, and its recording as MP3."""
    said, pieces, length = [], [], 0
    for one in itertools.cycle(robust(utterances, 30)):
        if length + len(one.pcm) + 48000 > SECONDS * 32000:
            break
        said.append(one.text)
        pieces += [one.pcm, bytes(48000)]
        length += len(one.pcm) + 48000
    pieces.append(bytes(SECONDS * 32000 - length))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-"]
    done = subprocess.run([*command, "-b:a", "64k", "-f", "mp3", "-"], input=b"".join(pieces), capture_output=True)
    return " ".join(said), done.stdout


@contextmanager
def highest(process: psutil.Process) -> Iterator[list[float]]:
    """Collect the memory of a process in MiB, ten times a second; first what it has before."""
    found = [process.memory_info().rss / 2**20]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            found.append(process.memory_info().rss / 2**20)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        over.set()
        watching.join()


def cpu(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@pytest.mark.timeout(1200)
def test_an_hour_of_mp3(start: Callable[..., System], hour: tuple[str, bytes]) -> None:
    text, mp3 = hour
    system = start("run", "--workers", "1").wait_ready()
    [gateway], [worker] = system.children("gateway"), system.children("worker")
    with client_of(system) as client:
        create = client.audio.transcriptions.create
        assert create(model="whisper-1", file=mp3[:100_000]).text  # what is loaded once is no growth
        began = time.monotonic()
        with highest(gateway) as memory:
            found = create(model="whisper-1", file=mp3, response_format="verbose_json")
        took = time.monotonic() - began
    errors = word_errors(text, found.text)
    grown = max(memory) - memory[0]
    print(f"{took:.0f} s, {errors} of {len(text.split())} words wrong, the gateway grew by {grown:.1f} MiB")
    assert errors <= 0.01 * len(text.split())
    assert found.duration == pytest.approx(SECONDS, abs=0.5)
    assert grown <= MOST_MEMORY

    # Who leaves in the middle has cancelled it.
    with httpx.Client(timeout=60) as http:
        form = {"model": "whisper-1", "stream": "true"}
        url = f"http://127.0.0.1:{system.port}/v1/audio/transcriptions"
        with http.stream("POST", url, data=form, files={"file": mp3}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    break
    left = time.monotonic()
    wait_until(lambda: "its client is gone" in system.output(), MOST_SECONDS, "it is cancelled")
    idle = 0.0
    while time.monotonic() - left < MOST_SECONDS + 2:
        before = cpu([worker])
        time.sleep(0.2)  # what is measured
        if cpu([worker]) - before > 0.1:
            idle = time.monotonic() - left
    print(f"the worker was busy until {idle:.1f} s after the client had left")
    assert idle <= MOST_SECONDS
    [record] = wait_until(lambda: system.get("/history?status=interrupted")["records"], 20, "it is stored")
    assert text.startswith(record["text"][:200])
    assert record["duration"] < SECONDS / 2
