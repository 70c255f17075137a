#!/usr/bin/env python3
"""Measure the CPU of recognition: the engine and a whole worker, each against a bare loop that does the same.

    python tools/bench_worker.py [--utterances 200] [--rounds 7] [--load 0.6]

Work arrives at an even pace that keeps the bare loop busy for LOAD of the time; both sides get the same, alternately.
CPU is user and system time (getrusage) of each process; the ratios are the medians of the rounds. The texts must be
equal.

The engine gets the samples of segments: features, its queue, its thread, the guards against invented text. The worker
is a real one on a real Redis and gets WAV files as chunks of sessions: it claims, reads, decodes, detects speech,
recognises and publishes. A bare loop is the least code from the same samples or files to the same texts, in one thread:
our features, `ctranslate2.models.Whisper` with the same windows and options, and the tokenizer; for files our decoder
too, and our voice activity detection in the worker's slices. The language is given, as in a session after its first
segment; in the second row both sides detect it, the bare loop with the fewest possible calls.
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
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import tokenizers
import uvloop
from bench_gateway import own_cpu, report_cpu
from benching import add_json, write_ratios

from asrserver.audio import SAMPLE_RATE, wav
from asrserver.audio import files as audio
from asrserver.audio.pcm import Samples
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.config import Settings
from asrserver.embedded.redis import EmbeddedRedis
from asrserver.inference import vad, worker
from asrserver.inference.decoding import Request
from asrserver.inference.engine import DecodeJob, Engine
from asrserver.inference.features import log_mel
from asrserver.inference.partials import PartialScheduler
from asrserver.inference.poison import InFlight
from asrserver.inference.utterances import SLICE_SECONDS
from asrserver.inference.whisper import Whisper
from asrserver.inference.windows import length_limit, window_for
from asrserver.models import find_model
from asrserver.protocol import codec
from asrserver.protocol.events import ChunkResult, ErrorEvent, Final
from asrserver.protocol.options import Options

RECORDINGS = Path(__file__).resolve().parent.parent / "tests" / "data" / "utterances"

#: Seconds of silence that end a segment.
SILENCE = 0.4

#: Sessions over which the worker's files are distributed.
SESSIONS = 8

_spawn = multiprocessing.get_context("spawn")


def recordings(count: int) -> list[Samples]:
    """The English test recordings, repeated up to `count`."""
    texts = json.loads((RECORDINGS / "transcripts.json").read_text())
    names = [name for name, text in texts.items() if text.isascii()]
    decoded = [audio.decode((RECORDINGS / name).read_bytes(), "ogg", 60) for name in names]
    return list(itertools.islice(itertools.cycle(decoded), count))


def wav_file(samples: Samples) -> bytes:
    return wav.encode(wav.Format.of("pcm_s16le", 1, SAMPLE_RATE), (samples * 32767).astype("<i2").tobytes())


def speech(samples: Samples) -> Iterator[Samples]:
    """The segments of an utterance, as a worker finds them."""
    endpointer = vad.Endpointer(SILENCE)
    events: list[vad.Event] = []
    step = SLICE_SECONDS * SAMPLE_RATE
    for begin in range(0, len(samples), step):
        events += endpointer.feed(samples[begin : begin + step])
    for event in events + endpointer.flush():
        if isinstance(event, vad.SegmentEnded):
            yield samples[event.start : event.end]


class Bare:
    """The bare loop's model: the least code from samples to text."""

    def __init__(self) -> None:
        path = find_model("demo").path
        self.model = ctranslate2.models.Whisper(str(path), device="cpu", intra_threads=1, inter_threads=1)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        self.languages = json.loads((path / "config.json").read_text())["lang_ids"]
        self.others = sorted(set(range(self.tokenizer.get_vocab_size())) - set(self.languages))

    def token(self, text: str) -> int:
        number = self.tokenizer.token_to_id(f"<|{text}|>")
        assert number is not None, text
        return int(number)

    def text(self, samples: Samples, language: str | None) -> str:
        seconds = len(samples) / SAMPLE_RATE
        features = log_mel(samples, window_for(seconds, "fit"), self.model.n_mels)
        heard = ctranslate2.StorageView.from_array(features[np.newaxis])
        if language is None:
            heard = self.model.encode(heard)
        spoken = self.detected(heard) if language is None else self.token(language)
        prompt = [self.token("startoftranscript"), spoken, self.token("transcribe"), self.token("notimestamps")]
        options = {"beam_size": 1, "return_scores": True, "return_no_speech_prob": True}
        found = self.model.generate(heard, [prompt], max_length=length_limit(len(prompt), seconds), **options)[0]
        return str(self.tokenizer.decode(found.sequences_ids[0])).strip()

    def detected(self, encoded: Any) -> int:
        """Detect the language's token. CTranslate2's `detect_language` accepts only OpenAI's vocabularies."""
        prompt = [self.token("startoftranscript"), self.token("notimestamps")]
        options = {"beam_size": 1, "max_length": 2, "suppress_tokens": self.others, "suppress_blank": False}
        return int(self.model.generate(encoded, [prompt], **options)[0].sequences_ids[0][0])

    def file(self, data: bytes) -> str:
        segments = speech(audio.decode(data, "wav", 60))
        return " ".join(text for text in (self.text(segment, "en") for segment in segments) if text)


# -- the sides of a comparison: processes that receive work, and answer with their CPU seconds and their texts


def paced(items: Iterable[Any], gap: float) -> Iterator[tuple[float, Any]]:
    """Yield each item with the seconds until it is due; items are `gap` seconds apart."""
    begun = time.monotonic()
    for number, item in enumerate(items):
        yield max(0.0, begun + number * gap - time.monotonic()), item


def run_bare(language: str | None, pipe: Connection) -> None:
    bare = Bare()
    while True:
        items, gap = pipe.recv()
        texts = []
        before = own_cpu()
        for wait, item in paced(items, gap):
            time.sleep(wait)
            texts.append(bare.file(item) if isinstance(item, bytes) else bare.text(item, language))
        pipe.send((own_cpu() - before, texts))


def run_engine(language: str | None, pipe: Connection) -> None:
    async def main() -> None:
        model = Whisper("demo", "cpu", "default", 1, 1)
        engine = Engine(model, 0, InFlight(lambda _: None).hold, PartialScheduler())
        request = Request(language)

        async def text(samples: Samples) -> str:
            seconds = len(samples) / SAMPLE_RATE
            features = log_mel(samples, window_for(seconds, "fit"), model.n_mels)
            return (await engine.recognise(DecodeJob(features, request, seconds, "bench 1-0", session="bench"))).text

        while True:
            items, gap = pipe.recv()
            before = own_cpu()
            tasks = []
            for wait, item in paced(items, gap):
                await asyncio.sleep(wait)
                tasks.append(asyncio.create_task(text(item)))
            texts = await asyncio.gather(*tasks)
            pipe.send((own_cpu() - before, texts))

    uvloop.run(main())


def run_worker(settings: Settings, pipe: Connection) -> None:
    report_cpu(pipe)
    uvloop.run(
        worker.run_worker(settings, "bench", worker.load_model(settings), lambda: None, lambda: None, lambda _: None)
    )


class Side:
    """One side of a comparison, in its own process."""

    def __init__(self, target: Callable[..., None], argument: Any) -> None:
        self.pipe, there = _spawn.Pipe()
        self._process = _spawn.Process(target=target, args=(argument, there), daemon=True)
        self._process.start()

    def take(self, items: list[Any], gap: float) -> tuple[float, list[str]]:
        """Process items that arrive `gap` seconds apart; return the CPU seconds and the texts."""
        self.pipe.send((items, gap))
        cpu, texts = self.pipe.recv()
        return cpu, texts

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


class Worker(Side):
    """A real worker; this process is its gateway."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(run_worker, settings)
        self._settings = settings
        self._rounds = 0

    def _cpu(self) -> float:
        self.pipe.send(None)
        return float(self.pipe.recv())

    def take(self, items: list[Any], gap: float) -> tuple[float, list[str]]:
        self._rounds += 1
        before = self._cpu()
        texts = asyncio.run(self._feed(items, gap, [f"{self._rounds}-{number}" for number in range(SESSIONS)]))
        return self._cpu() - before, texts

    async def _feed(self, files: list[bytes], gap: float, names: list[str]) -> list[str]:
        """Distribute the files over sessions, and wait for all results."""
        broker = GatewayBroker(self._settings.redis, "bench-gateway")
        await broker.open()
        options = codec.encode_options(Options(mode="chunk", language="en"))
        fields = {"gateway": "bench-gateway", "options": options, "user_id": ""}
        for name in names:
            await broker.open_session(name, name, fields, time.time() + 600)
        for number, (wait, data) in enumerate(paced(files, gap)):
            await asyncio.sleep(wait)
            index = number // len(names)
            broker.append(
                names[number % len(names)], index, index - 1 if index else None, [data], False, lambda error: None
            )
        for name in names:
            await broker.end_session(name, "done", time.time() + 600)
        said = {name: await self._results(broker, name) for name in names}
        await broker.close()
        return [said[names[number % len(names)]][number // len(names)] for number in range(len(files))]

    async def _results(self, broker: GatewayBroker, name: str) -> list[str]:
        while not (events := await broker.read_events(name)) or not isinstance(events[-1], Final):
            await asyncio.sleep(0.1)
        if errors := [event for event in events if isinstance(event, ErrorEvent)]:
            raise SystemExit(f"the worker failed: {errors[0]}")
        return [event.text for event in events if isinstance(event, ChunkResult)]


def compare(name: str, side: Side, bare: Side, items: list[Any], options: argparse.Namespace) -> list[float]:
    """Measure both sides, print the ratio of their CPU, and return those of the rounds."""
    for each in (side, bare):
        each.take(items[:20], 0.0)  # warm
    cost, _ = bare.take(items[:50], 0.0)
    gap = cost / min(50, len(items)) / options.load
    rounds = []
    for _ in range(options.rounds):
        cpu, texts = side.take(items, gap)
        bare_cpu, bare_texts = bare.take(items, gap)
        if texts != bare_texts:
            different = next(pair for pair in zip(texts, bare_texts, strict=True) if pair[0] != pair[1])
            raise SystemExit(f"{name}: wrong text {different[0]!r}, the bare loop has {different[1]!r}")
        rounds.append((1000 * cpu / len(items), 1000 * bare_cpu / len(items)))
    own, other = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = sorted(one / two for one, two in rounds)
    print(
        f"{name:32}{own:10.2f}{other:10.2f}{statistics.median(ratios):10.2f}   ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )
    side.end()
    bare.end()
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--load", type=float, default=0.6)
    add_json(parser)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when the spawned processes import numpy
    said = recordings(options.utterances)
    segments = [segment for samples in said for segment in speech(samples)]
    print(f"{'ms of CPU per item, medians':32}{'ours':>10}{'bare':>10}{'ratio':>10}")
    found = {}
    for language, name in (("en", "engine, segments"), (None, "engine, language detected")):
        found[name] = compare(name, Side(run_engine, language), Side(run_bare, language), segments, options)
    with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as directory:
        redis = EmbeddedRedis(Path(directory), appendfsync="no")
        redis.start()
        try:
            settings = Settings(redis_url=redis.url, device="cpu", model="demo", max_backlog=1e9, silence=SILENCE)
            found["worker"] = compare(
                "worker, WAV files", Worker(settings), Side(run_bare, "en"), [wav_file(one) for one in said], options
            )
        finally:
            redis.stop(10)
    write_ratios(options, {f"{name} to a bare loop, CPU": ratios for name, ratios in found.items()})


if __name__ == "__main__":
    main()
