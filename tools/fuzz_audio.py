#!/usr/bin/env python3
"""Feed damaged recordings to the decoders, and fail on crash, hang, memory or time.

    python tools/fuzz_audio.py [--mutants 20000] [--seed 1] [--only NAME]

Short recordings in every format are damaged: bytes and runs are overwritten, removed, repeated, or taken from another
format. Each mutant is decoded as a stream cut anywhere and as a whole file. Anything but samples or an AudioError is a
failure, as are more than 2 s of CPU (beside the audio's own cost), 20 s without an end, and 50 MB of growth. The mutant
that is in hand when the process dies is left in the file that --keep names.
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from asrserver.audio import SAMPLE_RATE, files
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError
from tests.audio.signals import encode, tone
from tests.audio.streams import STREAMS

#: Formats that only whole files have, and that ffmpeg can write to a pipe.
WHOLE = {
    "aiff": ("-f aiff", "aiff"),
    "caf": ("-f caf", "caf"),
    "au": ("-f au", "au"),
    "w64": ("-f w64", "w64"),
    "mpegts": ("-c:a aac -f mpegts", "mpegts"),
    "avi": ("-c:a libmp3lame -f avi", "avi"),
    "asf": ("-c:a wmav2 -f asf", "asf"),
    "flv": ("-c:a libmp3lame -ar 44100 -f flv", "flv"),
    "mp2": ("-c:a mp2 -f mp2", "mp2"),
    "ac3": ("-c:a ac3 -ar 48000 -f ac3", "ac3"),
    "wav-adpcm": ("-c:a adpcm_ima_wav -f wav", "wav"),
}

#: Most seconds of CPU, beside so many for each second of audio; and most MB of growth.
CPU, CPU_PER_SECOND, MEMORY = 2.0, 0.01, 50.0

#: Seconds after which a mutant hangs.
HANG = 20.0


def mutant(random: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """A damaged recording; its head is hit more often than chance would have it."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 8))):
        reach = len(changed) if random.random() < 0.5 else min(len(changed), 600)
        at, length = int(random.integers(0, max(1, reach))), int(random.geometric(0.1))
        match int(random.integers(0, 6)):
            case 0:
                changed[at : at + 1] = random.bytes(1)
            case 1:
                changed[at : at + length] = random.bytes(length)
            case 2:
                del changed[at : at + length * 10]
            case 3:
                changed[at:at] = changed[at : at + length * 10] * int(random.integers(1, 20))
            case 4:
                changed[at : at + 4] = int(random.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])).to_bytes(4, "big")
            case _:
                begin = int(random.integers(0, len(other)))
                changed[at : at + length] = other[begin : begin + length * 10]
    return bytes(changed)


def pieces(random: np.random.Generator, data: bytes) -> Iterator[bytes]:
    """The bytes, cut anywhere."""
    at = 0
    while at < len(data):
        size = int(random.integers(1, 6000))
        yield data[at : at + size]
        at += size


def decode(random: np.random.Generator, data: bytes, kind: str) -> float:
    """Decode a mutant in both ways; return its seconds of audio."""
    samples = 0
    try:
        decoder = StreamDecoder(kind)
        for piece in pieces(random, data):
            try:
                samples += len(decoder.feed(piece))
            except AudioError:
                continue
        samples += len(decoder.flush())
    except AudioError:
        pass
    try:
        found = files.decode_file(data, kind, 600).samples
    except AudioError:
        found = np.zeros(0, np.float32)
    if not np.isfinite(found).all():
        raise ValueError("samples that are no numbers")
    return (samples + len(found)) / SAMPLE_RATE


def peak() -> float:
    """The most memory that the process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the mutants; the exit status is 1 if one costs too much."""
    parser = argparse.ArgumentParser(description="Feed damaged recordings to the decoders.")
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="a format")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz-mutant"), help="where the last mutant is left")
    arguments = parser.parse_args()
    formats = {name: (encode(tone(0.6), row[0]), row[1]) for name, row in (STREAMS | WHOLE).items()}
    if arguments.only:
        formats = {arguments.only: formats[arguments.only]}
    arguments.keep.parent.mkdir(parents=True, exist_ok=True)
    for data, kind in formats.values():  # what is loaded once
        decode(np.random.default_rng(0), data, kind)
    names, failures, highest, begun = list(formats), 0, peak(), time.monotonic()
    for number in range(arguments.mutants):
        random = np.random.default_rng((arguments.seed, number))
        name = names[number % len(names)]
        data, kind = formats[name]
        data = mutant(random, data, formats[names[int(random.integers(0, len(names)))]][0])
        arguments.keep.write_bytes(data)
        faulthandler.dump_traceback_later(HANG, exit=True)
        cpu = time.process_time()
        seconds = decode(random, data, kind)
        cpu = time.process_time() - cpu
        if cpu > CPU + CPU_PER_SECOND * seconds or peak() - highest > MEMORY + 0.2 * seconds:
            failures += 1
            grown = peak() - highest
            print(f"mutant {number} of {name}: {cpu:.2f} s of CPU, {grown:.0f} MB, {seconds:.0f} s of audio")
        highest = max(highest, peak())
    faulthandler.cancel_dump_traceback_later()
    arguments.keep.unlink()
    elapsed = time.monotonic() - begun
    print(f"{arguments.mutants} mutants of {len(names)} formats in {elapsed:.0f} s: {failures} cost too much")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
