#!/usr/bin/env python3
"""Measure the CPU of decoding audio, for each format, against PyAV on the same bytes in the same run.

    python tools/bench_audio.py [--minutes 1] [--rounds 9] [FORMAT …]

Ours is a stream that comes in 100 ms at a time, and a whole file; bare is PyAV opening the bytes as a file,
decoding its first audio track, and resampling it to 16 kHz mono float32. CPU is that of the process, whose threads
FFmpeg would start for either. Rounds alternate between the three. A row shows the median of each in ms per second of
audio, and of the ratios of ours to bare in the same round; lowest is the least of all rounds, which other work on the
machine touches least.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy, as in a worker

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import av
import numpy as np
from av.audio.resampler import AudioResampler
from benching import add_json, write_ratios

from asrserver.audio import SAMPLE_RATE, files
from asrserver.audio.stream import StreamDecoder
from tests.audio import streams
from tests.audio.signals import encode

#: Those that clients send, and what each of them costs in another way: containers, codecs, resampling, channels.
FORMATS = (
    *("wav", "wav-f32-48k", "webm", "webm-live-stereo", "mkv-aac", "ogg-opus", "ogg-vorbis"),
    *("flac", "flac-44k-stereo", "mp3", "mp3-vbr-44k", "aac", "mp4", "mp4-alac"),
)

#: Seconds of a message of a live stream.
STEP_SECONDS = 0.1


def bare(data: bytes, kind: str) -> None:
    resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    pieces = []
    with av.open(io.BytesIO(data), format=kind) as source:
        source.streams.audio[0].codec_context.thread_count = 1
        for frame in source.decode(source.streams.audio[0]):
            frame.pts = None  # the resampler refuses gaps
            pieces += [out.to_ndarray()[0] for out in resampler.resample(frame)]
    np.concatenate([*pieces, *(out.to_ndarray()[0] for out in resampler.resample(None))])


def streamed(data: bytes, kind: str, step: int) -> None:
    decoder = StreamDecoder(kind)
    np.concatenate([*(decoder.feed(data[at : at + step]) for at in range(0, len(data), step)), decoder.flush()])


def whole(data: bytes, kind: str) -> None:
    files.decode(data, kind, 3600)


def cost(work: Callable[[], None]) -> float:
    """CPU seconds of a function call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> None:
    """Measure, print the table, write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("names", nargs="*", choices=[[], *streams.STREAMS], metavar="FORMAT", help="only these")
    add_json(parser)
    options = parser.parse_args()
    count = int(options.minutes * 60 * SAMPLE_RATE)
    speech = np.resize(streams.speech(), count)
    scale = 1000 * SAMPLE_RATE / count
    head = "".join(f"{name:>8}{'ratio':>8}{'lowest':>8}" for name in ("stream", "file"))
    print(f"ms of CPU per second of audio, ratio to bare\n{'':20}{'bare':>8}{head}")
    found = {}
    for name in options.names or FORMATS:
        data, kind = encode(speech, streams.STREAMS[name][0]), streams.kind(name)
        step = round(len(data) * STEP_SECONDS / (count / SAMPLE_RATE))
        works = [partial(bare, data, kind), partial(streamed, data, kind, step), partial(whole, data, kind)]
        for work in works:
            work()
        rounds = [[cost(work) for work in works] for _ in range(options.rounds)]
        columns = list(zip(*rounds, strict=True))
        line = f"{name:20}{scale * statistics.median(columns[0]):8.2f}"
        for number, way in ((1, "as a stream"), (2, "as a file")):
            ratios = [row[number] / row[0] for row in rounds]
            found[f"decoding {name} {way} to PyAV, CPU"] = ratios
            lowest = min(columns[number]) / min(columns[0])
            line += f"{scale * statistics.median(columns[number]):8.2f}{statistics.median(ratios):8.2f}{lowest:8.2f}"
        print(line, flush=True)
    write_ratios(options, found)


if __name__ == "__main__":
    main()
