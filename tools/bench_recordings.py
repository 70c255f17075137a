#!/usr/bin/env python3
"""What encryption adds to recordings: CPU time to write, assemble and read them, with a key over without.

    python tools/bench_recordings.py [--minutes 60] [--rounds 5]

A session of PCM in chunks of 100 ms, as gateways write it, is assembled to a WAV file and read as REST does, in pairs:
without a key, then with one. The disk is not part of it: put TMPDIR where it is in memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from asrserver.encryption.keys import KeyPair, Keyring
from asrserver.gateway import archive_files
from asrserver.gateway.archive_parts import PartWriter
from asrserver.handlers.audio import BLOCK_BYTES

#: Bytes of a chunk: 100 ms of 16-bit PCM at 16 kHz.
CHUNK = 3200

HEADER = {"sid": "s", "mode": "stream", "format": "pcm_s16le", "rate": 16000, "channels": 1}


def seconds(work: Callable[[], None]) -> float:
    """The CPU time of a step."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(directory: Path, count: int, keys: Keyring | None) -> dict[str, float]:
    """The CPU time of each step for one session of so many chunks."""
    data = os.urandom(CHUNK)
    name = archive_files.name_of("s")

    def write() -> None:
        path = archive_files.part_path(directory, "s", "bench")
        part = PartWriter(path, name, HEADER, keys.first if keys else None)
        for index in range(count):
            part.write(index, data)
        part.close()

    def assemble() -> None:
        assert archive_files.assemble(directory, "s", "wav", keys=keys)

    def read() -> None:
        path = archive_files.find(directory, "s")
        assert path is not None
        with archive_files.open_recording(path, keys).file as file:
            while file.read(BLOCK_BYTES):
                pass

    found = {step.__name__: seconds(step) for step in (write, assemble, read)}
    archive_files.remove(directory, "s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What encryption adds to recordings.")
    parser.add_argument("--minutes", type=float, default=60, help="length of the session")
    parser.add_argument("--rounds", type=int, default=5, help="pairs that are measured")
    arguments = parser.parse_args()
    count = int(arguments.minutes * 600)
    with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as folder:
        directory, file = Path(folder), Path(folder, "keys")
        (directory / "incoming").mkdir()
        file.write_text(KeyPair.generate().secret)
        keys = Keyring(str(file))
        pairs = [(measure(directory, count, None), measure(directory, count, keys)) for _ in range(arguments.rounds)]
    size = count * CHUNK
    print(f"{size / 2**20:.0f} MiB in chunks of {CHUNK} bytes, median of {arguments.rounds} pairs, CPU time")
    for step in pairs[0][0]:
        plain, sealed = (statistics.median(pair[which][step] for pair in pairs) for which in (0, 1))
        ratio = statistics.median(pair[1][step] / pair[0][step] for pair in pairs)
        print(
            f"{step:9} {plain:6.2f} s  encrypted {sealed:6.2f} s ({size / sealed / 1e6:5.0f} MB/s)  ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
