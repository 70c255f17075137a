#!/usr/bin/env python3
"""Feed damaged recordings to the decoders, and fail on crash, hang, memory or time.

    python tools/fuzz_audio.py [--mutants 20000] [--seed 1] [--jobs N] [--only NAME] [--folder build/fuzz]
    python tools/fuzz_audio.py --seed 1 --show NUMBER

Short recordings in every format are damaged: bits, bytes, lengths and runs are changed, removed, repeated, or taken
from another format. Each mutant is decoded as a stream cut anywhere, sometimes with another decoder taking over in the
middle, and as a whole file. Anything but samples or an AudioError is a failure, as are more than 2 s of CPU (beside the
audio's own cost), 30 s without an end, and 50 MB of growth.

A mutant follows from the seed and its number. They are decoded in blocks, each in a process of its own, so that one
that dies takes no others with it. FOLDER keeps the recordings, the mutants that failed, and a journal for each seed, in
which a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from asrserver.audio import SAMPLE_RATE, files
from asrserver.audio.decoders import open_decoder, resume_decoder
from asrserver.audio.recording import ResumePoint
from asrserver.errors import AudioError
from tests.audio.bombs import cost
from tests.audio.signals import encode, encode_file, tone
from tests.audio.streams import FILES, STREAMS, TRACKS

#: Most seconds of CPU, beside so many for each second of audio; and most MB of growth, beside so many.
CPU, CPU_PER_SECOND = 2.0, 0.01
MEMORY, MEMORY_PER_SECOND = 50.0, 0.2

#: Seconds after which a mutant hangs, and bytes of memory that none may exceed.
HANG = 30
ADDRESS_SPACE = 6 << 30

#: Mutants of a block.
BLOCK = 1000

Finding = dict[str, Any]


def mutant(random: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """A damaged recording; its head is hit more often than chance would have it."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 8))):
        reach = len(changed) if random.random() < 0.5 else min(len(changed), 600)
        at, length = int(random.integers(0, max(1, reach))), int(random.geometric(0.1))
        match int(random.integers(0, 9)):
            case 0:
                changed[at : at + 1] = random.bytes(1)
            case 1:
                changed[at : at + length] = random.bytes(length)
            case 2:
                del changed[at : at + length * 10]
            case 3:
                changed[at:at] = changed[at : at + length * 10] * int(random.integers(1, 20))
            case 4:
                edge = (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)[int(random.integers(0, 7))]
                changed[at : at + 4] = edge.to_bytes(4, ("big", "little")[int(random.integers(0, 2))])
            case 5 if at < len(changed):
                changed[at] ^= 1 << int(random.integers(0, 8))
            case 6 if at < len(changed):
                changed[at] = changed[at] + int(random.integers(-4, 5)) & 0xFF
            case 7:
                del changed[len(changed) - length * 100 :]
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


def stream(random: np.random.Generator, data: bytes, kind: str, point: ResumePoint | None = None) -> int:
    """Decode a mutant as a stream, from a point on or from the beginning; return the number of samples."""
    decoder, samples, offset = open_decoder(kind, SAMPLE_RATE, 1), 0, 0
    if point is not None:
        decoder, offset = resume_decoder(point), point.offset
    handed_over = offset + int(random.integers(0, len(data) + 1)) if point is None and random.random() < 0.3 else -1
    for piece in pieces(random, data[offset:]):
        with contextlib.suppress(AudioError):
            samples += len(decoder.feed(piece))
        offset += len(piece)
        if 0 <= handed_over < offset:
            point = decoder.resume_point(max(0, decoder.position - int(random.integers(0, SAMPLE_RATE))))
            point = msgspec.json.decode(msgspec.json.encode(point), type=ResumePoint)
            if not 0 <= point.offset <= offset:
                raise ValueError(f"a resume point at byte {point.offset} of {offset}")
            del decoder  # it died with its worker: its memory is not that of the next one
            return samples + stream(random, data, kind, point)
    with contextlib.suppress(AudioError):
        samples += len(decoder.flush())
    return samples


def whole(_random: np.random.Generator, data: bytes, kind: str) -> int:
    """Decode a mutant as a file, in this process, where a crash is seen; return the number of samples."""
    found = np.zeros(0, np.float32)
    with contextlib.suppress(AudioError):
        found = files.decode_file(data, kind, 600).samples
    if not np.isfinite(found).all():
        raise ValueError("samples that are no numbers")
    return len(found)


#: The ways in which a mutant is decoded. Each is held against the limits by itself, as a server decodes it in one.
WAYS = (whole, stream)


def recordings(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Name → (bytes, container) of the intact recordings; they are encoded once."""
    found = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, row in (STREAMS | FILES | TRACKS).items():
        path = folder / f"{name}.{row[1]}"
        if not path.exists():
            partly = path.with_suffix(".part")
            if name in FILES | TRACKS:
                with tempfile.TemporaryDirectory() as here:
                    partly.write_bytes(encode_file(tone(6.5 if name in TRACKS else 0.6), row[0], Path(here)))
            else:
                partly.write_bytes(encode(tone(0.6), row[0]))
            partly.rename(path)
        found[name] = (path.read_bytes(), row[1])
    return found


class Mutants:
    """The mutants of a seed."""

    def __init__(self, seed: int, folder: Path, only: str | None) -> None:
        self._seed = seed
        self._all = recordings(folder / "recordings")
        self._names = [only] if only else list(self._all)

    def make(self, number: int) -> tuple[np.random.Generator, str, bytes, str]:
        """(random numbers for the rest, name, bytes, container) of a mutant."""
        random = np.random.default_rng((self._seed, number))
        name = self._names[number % len(self._names)]
        data, kind = self._all[name]
        others = list(self._all)
        return random, name, mutant(random, data, self._all[others[int(random.integers(0, len(others)))]][0]), kind

    def warm_up(self) -> None:
        """Load what is loaded once."""
        for data, kind in self._all.values():
            for way in WAYS:
                way(np.random.default_rng(0), data, kind)


def measured(decode: Callable[[], int]) -> str:
    """What is wrong with a way of decoding, which returns the number of samples; empty if nothing is."""
    faulthandler.dump_traceback_later(HANG, exit=True)
    try:
        samples, cpu, grown = cost(decode)
    except BaseException as exc:
        return f"{type(exc).__name__}: {exc}"
    seconds = samples / SAMPLE_RATE
    if cpu > CPU + CPU_PER_SECOND * seconds or grown > MEMORY + MEMORY_PER_SECOND * seconds:
        return f"{cpu:.2f} s of CPU, {grown:.0f} MB, {seconds:.1f} s of audio"
    return ""


def run_block(mutants: Mutants, begin: int, end: int) -> None:
    """Decode mutants; print the findings as lines of JSON. The one in hand is the last line that names a number."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    mutants.warm_up()
    hand = os.open(os.environ["FUZZ_IN_HAND"], os.O_WRONLY | os.O_CREAT)
    for number in range(begin, end):
        os.pwrite(hand, b"%12d" % number, 0)
        random, name, data, kind = mutants.make(number)
        for way in WAYS:
            if finding := measured(partial(way, random, data, kind)):
                row = {"number": number, "name": name, "what": f"{way.__name__}: {finding}"}
                print(json.dumps(row), flush=True)
    faulthandler.cancel_dump_traceback_later()


def block(arguments: argparse.Namespace, begin: int, end: int) -> list[Finding]:
    """Decode mutants in processes of their own, as many as die; return the findings."""
    findings: list[Finding] = []
    hand = arguments.folder / f"in-hand-{begin}"
    command = [sys.executable, __file__, "--seed", str(arguments.seed), "--folder", str(arguments.folder)]
    command += ["--only", arguments.only] if arguments.only else []
    at = begin
    while at < end:
        hand.write_text(str(at))
        done = subprocess.run(
            [*command, "--block", str(at), str(end)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"FUZZ_IN_HAND": str(hand), "OPENBLAS_NUM_THREADS": "1"},
        )
        findings += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode == 0:
            break
        at = int(hand.read_text()) + 1
        what = f"the process ended with {done.returncode}"
        findings.append({"number": at - 1, "name": "", "what": what, "log": done.stderr[-4000:]})
    hand.unlink(missing_ok=True)
    return findings


def run_all(arguments: argparse.Namespace) -> int:
    """Decode all mutants that the journal does not have yet; return the number of findings."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    mutants = Mutants(arguments.seed, arguments.folder, arguments.only)
    named = f"{arguments.seed}-{arguments.only}" if arguments.only else str(arguments.seed)
    journal = arguments.folder / f"seed-{named}.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() and not arguments.anew else []
    done = {row["begin"]: row for row in map(json.loads, lines)}
    begun, total = time.monotonic(), 0
    due = [(at, min(at + BLOCK, arguments.mutants)) for at in range(0, arguments.mutants, BLOCK)]
    with journal.open("a" if done else "w") as file, ThreadPoolExecutor(arguments.jobs) as pool:
        running = [
            (at, end, pool.submit(block, arguments, at, end))
            for at, end in due
            if at not in done or done[at]["end"] < end
        ]
        for at, end, future in running:
            row = done[at] = {"begin": at, "end": end, "findings": future.result()}
            file.write(json.dumps(row) + "\n")
            file.flush()
            for finding in row["findings"]:
                _, name, data, kind = mutants.make(finding["number"])
                path = arguments.folder / f"mutant-{arguments.seed}-{finding['number']}.{kind}"
                path.write_bytes(data)
                print(f"mutant {finding['number']} of {name} ({path}): {finding['what']}", flush=True)
                print(finding.get("log", ""), end="", flush=True)
    rows = [done[at] for at, _ in due]
    total = sum(len(row["findings"]) for row in rows)
    count = sum(row["end"] - row["begin"] for row in rows)
    print(
        f"{count} mutants in {time.monotonic() - begun:.0f} s ({len(due) - len(running)} blocks done before): ", end=""
    )
    print(f"{total} failed")
    return total


def show(mutants: Mutants, number: int) -> None:
    """Decode one mutant here, with its traceback."""
    mutants.warm_up()
    random, name, data, kind = mutants.make(number)
    print(f"mutant {number} of {name}: {len(data)} bytes", flush=True)
    for way in WAYS:
        samples, cpu, grown = cost(partial(way, random, data, kind))
        print(f"{way.__name__}: {cpu:.2f} s of CPU, {grown:.0f} MB, {samples / SAMPLE_RATE:.0f} s of audio")


def main() -> None:
    """Run the mutants; the exit status is 1 if one fails."""
    parser = argparse.ArgumentParser(description="Feed damaged recordings to the decoders.")
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--only", help="a format")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--anew", action="store_true", help="forget what an earlier run did")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="decode this mutant alone")
    parser.add_argument("--block", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.show is not None:
        show(Mutants(arguments.seed, arguments.folder, arguments.only), arguments.show)
    elif arguments.block:
        run_block(Mutants(arguments.seed, arguments.folder, arguments.only), *arguments.block)
    else:
        sys.exit(run_all(arguments) > 0)


if __name__ == "__main__":
    main()
