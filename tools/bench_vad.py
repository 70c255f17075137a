#!/usr/bin/env python3
"""Measure the CPU of streaming voice activity detection, against Silero over whole recordings, in one run.

    python tools/bench_vad.py [--minutes 3] [--rounds 5]

The recordings: speech without pauses; speech that is two thirds pauses, as in conversation; noise without speech; noise
below the gate; silence. Ours is an Endpointer that is fed slices of 20 ms to a minute; bare is faster-whisper's
get_speech_timestamps, once over the whole recording. CPU is that of one thread, the median of alternating rounds;
ratios are ours to bare on the same recording. The last table shows the network alone, with several recordings per call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy, as in a worker: products this small lose by more threads

import numpy as np
from benching import add_json, write_ratios
from faster_whisper.vad import VadOptions, get_speech_timestamps, get_vad_model

from asrserver.audio import SAMPLE_RATE, files
from asrserver.audio.pcm import Samples
from asrserver.inference.silero import FRAME, FRAME_CONTEXT, UNITS, FrameRun, score
from asrserver.inference.vad import Endpointer

UTTERANCES = Path(__file__).resolve().parent.parent / "tests" / "data" / "utterances"

SLICES = (0.02, 0.1, 0.25, 1.0, 60.0)


def recordings(minutes: float) -> dict[str, Samples]:
    random = np.random.default_rng(1)
    count = int(minutes * 60 * SAMPLE_RATE)
    said = [files.decode((UTTERANCES / name).read_bytes(), "ogg", 60) for name in _names()]
    spoken = np.resize(np.concatenate([_trimmed(one) for one in said]), count)
    talk = np.concatenate(
        [part for one in said for part in (_trimmed(one), np.zeros(2 * len(_trimmed(one)), np.float32))]
    )
    return {
        "speech": spoken,
        "talk, two thirds pauses": np.resize(talk, count),
        "noise at -40 dBFS": random.normal(0, 0.01, count).astype(np.float32),
        "quiet at -70 dBFS": random.normal(0, 0.0003, count).astype(np.float32),
        "silence": np.zeros(count, np.float32),
    }


def _names() -> list[str]:
    return list(json.loads((UTTERANCES / "transcripts.json").read_text()))


def _trimmed(samples: Samples) -> Samples:
    """Cut a recording before its first loud sample and after its last."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return samples[loud[0] : loud[-1] + 1]


def bare(recording: Samples) -> None:
    get_speech_timestamps(recording, VadOptions(min_silence_duration_ms=400, speech_pad_ms=200), SAMPLE_RATE)


def ours(recording: Samples, seconds: float) -> None:
    endpointer = Endpointer(0.4)
    step = int(seconds * SAMPLE_RATE)
    for at in range(0, len(recording), step):
        endpointer.feed(recording[at : at + step])
    endpointer.flush()


def cost(work: Callable[[], None]) -> float:
    """CPU seconds of a function call."""
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    add_json(parser)
    options = parser.parse_args()
    bare(np.zeros(SAMPLE_RATE, np.float32))
    heads = "".join(f"{f'{int(1000 * seconds)} ms':>17}" for seconds in SLICES)
    print(f"ms of CPU per second of audio, ratio to bare\n{'':26}{'bare':>8}{heads}")
    found = {}
    for name, recording in recordings(options.minutes).items():
        works = [partial(bare, recording), *(partial(ours, recording, seconds) for seconds in SLICES)]
        rounds = [[cost(work) for work in works] for _ in range(options.rounds)]
        scale = 1000 / (options.minutes * 60)
        medians = [scale * statistics.median(column) for column in zip(*rounds, strict=True)]
        by_slice = [[row[n] / row[0] for row in rounds] for n in range(1, len(SLICES) + 1)]
        ratios = [statistics.median(each) for each in by_slice]
        found[f"speech detection of {name} in 100 ms to faster-whisper's, CPU"] = by_slice[SLICES.index(0.1)]
        figures = "".join(f"{own:9.2f} ({ratio:5.3f})" for own, ratio in zip(medians[1:], ratios, strict=True))
        print(f"{name:26}{medians[0]:8.2f}{figures}")
    calls(options.rounds)
    write_ratios(options, found)


def calls(rounds: int) -> None:
    """Measure our network with one frame of n recordings per call, against onnxruntime with one recording per call."""
    session = get_vad_model().session
    frame = np.random.default_rng(2).normal(0, 0.1, (1, FRAME_CONTEXT + FRAME)).astype(np.float32)
    state = np.zeros((1, 1, UNITS), np.float32)
    inputs = {"input": frame, "h": state, "c": state}

    def theirs(repeat: int) -> None:
        for _ in range(repeat):
            session.run(None, inputs)

    def together(count: int, repeat: int) -> None:
        for _ in range(repeat):
            score([FrameRun(frame, None) for _ in range(count)])

    print("\nmicroseconds of CPU per frame, with n recordings per call; ratio to onnxruntime, one by one")
    for count in (1, 3, 8, 32, 128):
        repeat = 2000 // count
        pairs = [(cost(partial(together, count, repeat)), cost(partial(theirs, repeat * count))) for _ in range(rounds)]
        own = 1e6 * statistics.median(pair[0] for pair in pairs) / (repeat * count)
        print(f"{count:5} {own:8.1f} ({statistics.median(ours / bare for ours, bare in pairs):5.3f})")


if __name__ == "__main__":
    main()
