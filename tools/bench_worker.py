#!/usr/bin/env python3
"""What a worker costs: its CPU for each second of speech against a bare loop over the same windows, in one run.

    python tools/bench_worker.py [--utterances 300] [--sessions 8] [--rounds 3]

The worker is a real one, on a real Redis: it claims sessions in chunk mode, decodes WAV, finds speech, recognises,
publishes. The bare loop computes the same features and calls ctranslate2.models.Whisper for the same windows, with the
same options, one after another. Finding speech is measured apart and taken off the worker's side. CPU is getrusage's,
user and system, of each process, after a warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import wave
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import uvloop
from bench_gateway import report_cpu

from asrserver.broker import Broker
from asrserver.config import Settings
from asrserver.embedded import EmbeddedRedis
from asrserver.inference import audio, vad
from asrserver.inference.features import log_mel
from asrserver.inference.models import MARGIN, Request, length_limit, window_for
from asrserver.session import Options

RECORDINGS = Path(__file__).resolve().parent.parent / "tests" / "data" / "utterances"

_spawn = multiprocessing.get_context("spawn")


def wavs(count: int) -> list[bytes]:
    """The test recordings as WAV files, repeated up to `count`."""
    files = []
    for name in json.loads((RECORDINGS / "transcripts.json").read_text()):
        samples = audio.decode((RECORDINGS / name).read_bytes(), "ogg", 60)
        buffer = BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((samples * 32767).astype("<i2").tobytes())
        files.append(buffer.getvalue())
    return list(itertools.islice(itertools.cycle(files), count))


def run_worker(settings: Settings, pipe: Connection) -> None:
    from asrserver.inference.worker import load, work

    report_cpu(pipe)
    uvloop.run(work(settings, "bench", load(settings), lambda: None, lambda: None, lambda _: None))


async def feed(settings: Settings, files: list[bytes], sessions: int, label: str) -> None:
    """Put the utterances into sessions and wait for all their final results."""
    broker = Broker(settings.redis, "bench-gateway")
    await broker.open()
    fields = {"gateway": "bench-gateway", "options": json.dumps(Options(mode="chunk").asdict()), "user_id": ""}
    names = [f"{label}-{number}" for number in range(sessions)]
    for name in names:
        await broker.open_session(name, name, fields, time.time() + 600)
    for number, data in enumerate(files):
        index = number // sessions
        broker.append(names[number % sessions], index, index - 1 if index else None, data, lambda error: None)
    for name in names:
        await broker.end_session(name, "done", time.time() + 600)
    for name in names:
        while not (events := await broker.read_events(name)) or events[-1]["type"] != "final":
            await asyncio.sleep(0.1)
        errors = [event for event in events if event["type"] == "error"]
        if errors:
            raise SystemExit(f"the worker failed: {errors[0]}")
    await broker.close()


def bare(files: list[bytes]) -> tuple[float, float, float]:
    """(CPU seconds of features and model, CPU seconds of finding speech, seconds of speech) in one thread."""
    from asrserver.inference.models import Whisper, find

    shipped = Whisper("demo", "cpu", "default", 1, 1)  # for its prompt alone
    prompt = shipped.prompt(Request(), shipped.languages[0])
    model = ctranslate2.models.Whisper(find("demo"), device="cpu", intra_threads=1, inter_threads=1)
    spoken, recognising, finding = 0.0, 0.0, 0.0
    for warm in (True, False):
        spoken = recognising = finding = 0.0
        for data in files[:10] if warm else files:
            samples = audio.decode(data, "wav", 60)
            begun = time.process_time()
            spans = vad.segments(samples, 0.4)
            found = time.process_time()
            for start, end in spans:
                seconds = (end - start) / audio.RATE
                features = log_mel(samples[start:end], window_for(seconds, "fit"), model.n_mels)
                view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features[np.newaxis]))
                model.generate(view, [prompt], beam_size=1, max_length=length_limit(len(prompt), seconds))
                spoken += seconds
            finding += found - begun
            recognising += time.process_time() - found
    return recognising, finding, spoken


def run_bare(files: list[bytes], pipe: Connection) -> None:
    pipe.send(bare(files))


def one_round(options: argparse.Namespace, settings: Settings, number: int) -> float:
    files = wavs(options.utterances)
    here, there = _spawn.Pipe()
    worker = _spawn.Process(target=run_worker, args=(settings, there))
    worker.start()
    asyncio.run(feed(settings, files[:20], 2, f"warm-{number}"))
    used = -ask(here)
    asyncio.run(feed(settings, files, options.sessions, f"round-{number}"))
    used += ask(here)
    worker.terminate()
    worker.join()

    here, there = _spawn.Pipe()
    loop = _spawn.Process(target=run_bare, args=(files, there))
    loop.start()
    recognising, finding, spoken = here.recv()
    loop.join()
    ratio = (used - finding) / recognising
    print(
        f"  {spoken:.0f} s of speech: worker {1000 * used / spoken:.2f} ms of CPU a second,"
        f" of it {1000 * finding / spoken:.2f} finding speech; bare loop {1000 * recognising / spoken:.2f}; {ratio:.2f}"
    )
    return ratio


def ask(pipe: Connection) -> float:
    pipe.send(None)
    answer: Any = pipe.recv()
    return float(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=300)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of what is spawned: before its numpy
    with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as directory:
        redis = EmbeddedRedis(Path(directory), appendfsync="no")
        redis.start()
        try:
            settings = Settings(redis_url=redis.url, device="cpu", max_backlog=1e9)
            ratios = [one_round(options, settings, number) for number in range(options.rounds)]
        finally:
            redis.stop(10)
    print(f"worker / bare loop, windows of speech + {MARGIN} s: {statistics.median(ratios):.2f}", end=" ")
    print(f"(of {', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
