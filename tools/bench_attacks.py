#!/usr/bin/env python3
"""Attack a server in every way that a client can, and measure what a bystander notices and what stays behind.

    python tools/bench_attacks.py [--seconds 2] [--rounds 3] [--kinds attacks,bombs,keyless] [WORD …]

A bystander with an API key of its own speaks all the time on some live streams. Before and after each attack it is
alone for SECONDS; all attacks take turns, ROUNDS times. Each text counts for the time at which its last word was
spoken, so that one that an attack delayed counts for the attack. A row shows

    answer          what the attacker got, most often, how often in all, and for bombs the median seconds until it came
    alone, beside   95th percentile of how late the bystander's texts were, in ms, and their ratio: medians of rounds
    ack             the same ratio for the acknowledgements of its 100 ms chunks
    MB              resident memory of gateway and workers before the attack, at its peak, and after it
    left            connections, sessions, seconds of backlog and descriptors of the attacker that stay

A `!` marks what is against a bound: the expected answer did not come; the ratio of texts is above 1.5, and the texts
are 0.1 s later; memory rises by more than 512 MB; after it there is more than 192 MB, and what a worker may keep, above
what there was before all attacks, or 64 MB more than after its first round; anything is left 10 s after the last of the
audio that was acknowledged is recognised; a bomb's error took more than a second. Then, and if the bystander got an
error or the log a traceback, the exit status is 1.

The attackers are processes of the lowest priority: elsewhere they would take no CPU of the server's machine. Kinds are
`attacks`, `bombs`, `keyless`, and `limits`: those of hostile.py, on a server whose limits are low. Words select the
rows whose names contain all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import attacks
import hostile
from hostile import Attack, Peer, Target
from live import Server, load, make, percentile, server

from asrserver.auth.keys import KeyLimits, KeysFile
from asrserver.broker.connection import HEARTBEAT_EVERY
from asrserver.loadtest.host import get
from asrserver.supervisor.children import WORKER_KEPT_MEMORY
from tests.program import free_port

_spawn = multiprocessing.get_context("spawn")

#: The kinds of attacks.
KINDS: dict[str, list[Attack]] = {
    "attacks": attacks.ATTACKS,
    "bombs": attacks.BOMBS_THROWN,
    "keyless": attacks.KEYLESS,
    "limits": [*hostile.ATTACKS, hostile.WORK],
}

#: Live streams of the bystander.
STREAMS = 4

#: Seconds within which an attack must get its answer, and within which what it left must go.
REACH_TIMEOUT = 20.0
LEFT_TIMEOUT = 10.0

#: Seconds for which the bystander recovers from an attack before it counts as alone; between two looks at the memory.
RECOVERY_SECONDS = 0.7
SAMPLE_SECONDS = 0.1

#: The bounds.
MOST_RATIO = 1.5
MOST_LATER = 0.1
MOST_PEAK, MOST_KEPT, MOST_GROWTH = 512 << 20, (192 << 20) + WORKER_KEPT_MEMORY, 64 << 20
MOST_WAIT = 1.0

#: Descriptors that may stay: those of connections to Redis and PostgreSQL, which are opened when they are needed.
POOLED = 8


def run_hostile(target: Target, pipe: Connection) -> None:
    """For each (kind, number) on the pipe: attack, report when it is answered, stop on request, send what was got."""
    os.nice(19)

    async def attack(one: Attack) -> None:
        target.tally, target.waits = Counter(), []
        running = asyncio.ensure_future(one.run(target))
        deadline = time.monotonic() + REACH_TIMEOUT

        def reached() -> bool:
            return bool(target.tally[one.code] if one.code else target.tally)

        while not reached() and not running.done() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        pipe.send(reached())
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        running.cancel()
        (error,) = await asyncio.gather(running, return_exceptions=True)
        if not isinstance(error, asyncio.CancelledError):
            print(f"{one.limit}: {error!r}", file=sys.stderr)
        pipe.send((target.tally, target.waits))

    while True:
        kind, number = pipe.recv()
        asyncio.run(attack(KINDS[kind][number]))


@dataclass
class Bystander:
    """Somebody who speaks on some live streams until it is cancelled.

    Attributes:
        texts: When the last word of each text was spoken, by time.monotonic(), and how many seconds later it came.
        acks: When each chunk was sent, and how many seconds later it was acknowledged.
        errors: What went wrong.
    """

    target: Target
    texts: list[tuple[float, float]] = field(default_factory=list)
    acks: list[tuple[float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Speak on all streams; each begins again if it breaks."""
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(self._repeat(number))

    async def _repeat(self, number: int) -> None:
        recording = await asyncio.to_thread(make, load()[:40], 120, (0.3, 0.6), number)
        pcm = (recording.samples * 32767).astype("<i2").tobytes()
        while True:
            peer, sid = await self.target.bystander(mode="stream", partials=True)
            try:
                await self._speak(peer, sid, pcm)
            except (OSError, EOFError) as exc:
                self.errors.append(repr(exc))
            finally:
                await peer.close()

    async def _speak(self, peer: Peer, sid: str, pcm: bytes) -> None:
        begun, sent = time.monotonic(), dict[int, float]()

        async def send() -> None:
            for index, at in enumerate(range(0, len(pcm), 3200)):
                await asyncio.sleep(max(0.0, begun + (at + 3200) / 32000 - time.monotonic()))
                sent[index] = time.monotonic()
                await peer.send(pcm[at : at + 3200])
            await peer.finish(sid)

        sending = asyncio.ensure_future(send())
        try:
            while (message := await peer.read())["type"] != "final_result":
                self._note(message, begun, sent)
        finally:
            sending.cancel()

    def _note(self, message: dict[str, Any], begun: float, sent: dict[int, float]) -> None:
        now = time.monotonic()
        match message["type"]:
            case "ack":
                at = sent.pop(message["chunk_index"])
                self.acks.append((at, now - at))
            case "partial_result" | "segment_result":
                spoken = begun + message["end"]
                self.texts.append((spoken, now - spoken))
            case "error":
                self.errors.append(str(message))


@dataclass(frozen=True)
class Span:
    """A time: from when to when, by time.monotonic()."""

    begin: float
    end: float

    def late(self, noted: list[tuple[float, float]]) -> list[float]:
        """How late what belongs to it was."""
        return [late for at, late in noted if self.begin <= at < self.end]


@dataclass
class Row:
    """What is known of an attack.

    Attributes:
        spans: Of each round, the attack, and the times before and after it.
        memory: Of each round, bytes before, at the peak, and after.
        left: Of the last round: what stayed.
    """

    attack: Attack
    kind: str
    number: int
    reached: bool = True
    tally: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    spans: list[tuple[Span, Span, Span]] = field(default_factory=list)
    memory: list[tuple[int, int, int]] = field(default_factory=list)
    left: dict[str, float] = field(default_factory=dict)

    def ratio(self, noted: list[tuple[float, float]]) -> tuple[float, float, float]:
        """p95 alone, beside the attack, and their ratio: medians over the rounds."""
        alone = [percentile(before.late(noted) + after.late(noted), 0.95) for _, before, after in self.spans]
        beside = [percentile(during.late(noted), 0.95) for during, _, _ in self.spans]
        ratios = [one / other for one, other in zip(beside, alone, strict=True)]
        return statistics.median(alone), statistics.median(beside), statistics.median(ratios)

    def format(self, bystander: Bystander, first: int) -> tuple[str, bool]:
        """The row of the table, and whether a bound is broken; `first` is the memory before all attacks, in bytes."""
        alone, beside, ratio = self.ratio(bystander.texts)
        acks = self.ratio(bystander.acks)[2]
        broken = False

        def marked(text: str, width: int, bad: bool) -> str:
            nonlocal broken
            broken = broken or bad
            return f"{text + '!' * bad:>{width}}"

        most = self.tally.most_common(1)[0][0].partition(":")[0] if self.tally else "-"
        wait = statistics.median(self.waits) if self.waits else None
        begun, highest, ended = (max(sizes) / 2**20 for sizes in zip(*self.memory, strict=True))
        risen = max(peak - before for before, peak, _ in self.memory)
        stays = self.memory[-1][2] - first > MOST_KEPT or self.memory[-1][2] - self.memory[0][2] > MOST_GROWTH
        left = ", ".join(f"{value:g} {name}" for name, value in self.left.items()) or "-"
        wrong = not self.reached or any(code.startswith("!") for code in self.tally)
        cells = [
            f"{self.attack.limit:42}",
            f"{marked(most, 0, wrong):22}",
            f"{self.tally.total():6}",
            marked(
                "" if wait is None else f"{wait:.2f}",
                6,
                wait is not None and wait > MOST_WAIT and most != "final_result",
            ),
            f"{1000 * alone:6.0f} {1000 * beside:6.0f}",
            marked(f"{ratio:.2f}", 6, not ratio <= MOST_RATIO and beside - alone > MOST_LATER),
            f"{acks:6.1f}",
            f"{begun:5.0f}",
            marked(f"{highest:.0f}", 6, risen > MOST_PEAK),
            marked(f"{ended:.0f}", 6, stays),
            marked(left, 0, bool(self.left)),
        ]
        return "  ".join(cells), broken


HEAD = (
    f"{'attack':42}  {'answer':22}  {'count':>6}  {'after':>6}  {'alone':>6} {'beside':>6}  {'ratio':>6}  {'ack':>6}"
    f"  {'MB':>5}  {'peak':>6}  {'after':>6}  left"
)


class Arena:
    """A server, a bystander, and a process of attackers."""

    def __init__(self, running: Server, target: Target, operator: str, pipe: Connection, seconds: float) -> None:
        self.running = running
        self.bystander = Bystander(target)
        self._pipe = pipe
        self._operator = operator
        self._seconds = seconds
        self._watched = [*running.processes("gateway"), *running.processes("worker")]
        self._peak = self.first = 0
        self._quiet: dict[str, float] = {}

    async def run(self, rows: list[Row], rounds: int) -> None:
        """Let all attacks take turns."""
        speaking = asyncio.ensure_future(self.bystander.run())
        sampling = asyncio.ensure_future(self._sample())
        async with asyncio.timeout(60):
            while len(self.bystander.texts) < 10 * STREAMS:
                await asyncio.sleep(0.1)
        await asyncio.sleep(2 * HEARTBEAT_EVERY)
        self._quiet = await asyncio.to_thread(self._held)
        self._quiet["descriptors"] += POOLED
        self.first = self.memory()
        for number in range(rounds):
            before = await self._alone()
            for row in rows:
                during, memory = await self._attack(row)
                leaving = asyncio.ensure_future(self._left())
                after = await self._alone()
                row.spans.append((during, before, after))
                row.memory.append((*memory, self.memory()))
                row.left = await leaving
                before = after
                print(f"round {number + 1}: {row.attack.limit}: {dict(row.tally)}, {self._sizes()}", file=sys.stderr)
        await asyncio.sleep(3)  # texts that are late
        for task in (speaking, sampling):
            task.cancel()
        await asyncio.gather(speaking, sampling, return_exceptions=True)

    def memory(self) -> int:
        """Resident bytes of gateway and workers."""
        return sum(process.memory_info().rss for process in self._watched)

    def _sizes(self) -> str:
        return ", ".join(f"{process.memory_info().rss >> 20} MB" for process in self._watched)

    async def _alone(self) -> Span:
        await asyncio.sleep(RECOVERY_SECONDS)
        begin = time.monotonic()
        await asyncio.sleep(self._seconds)
        return Span(begin, time.monotonic())

    async def _attack(self, row: Row) -> tuple[Span, tuple[int, int]]:
        """Attack until there was an answer, and for the seconds of a round at least."""
        loop = asyncio.get_running_loop()
        before = self._peak = self.memory()
        begin = time.monotonic()
        self._pipe.send((row.kind, row.number))
        reached = loop.run_in_executor(None, self._pipe.recv)
        await asyncio.sleep(self._seconds)
        row.reached = await reached and row.reached
        span = Span(begin, time.monotonic())
        self._pipe.send(None)
        tally, waits = await loop.run_in_executor(None, self._pipe.recv)
        row.tally += tally
        row.waits += waits
        return span, (before, self._peak)

    async def _sample(self) -> None:
        while True:
            with suppress(psutil.NoSuchProcess):
                self._peak = max(self._peak, self.memory())
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _left(self) -> dict[str, float]:
        """What is there beyond the bystander's, once all is gone, or LEFT_TIMEOUT after its backlog last shrank."""
        backlog, deadline = math.inf, 0.0
        while True:
            found = await asyncio.to_thread(self._held)
            if found["s of backlog"] < backlog:
                backlog, deadline = found["s of backlog"], time.monotonic() + LEFT_TIMEOUT
            left = {name: value - self._quiet[name] for name, value in found.items() if value > self._quiet[name]}
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.5)

    def _held(self) -> dict[str, float]:
        health = get(self.running.http, "/api/v1/health", self._operator)
        kinds = {name: sum(gateway[name] for gateway in health["gateways"]) for name in ("connections", "sessions")}
        gateways = self.running.processes("gateway")
        return {
            **kinds,
            "s of backlog": round(sum(gateway["backlog"] for gateway in health["gateways"])),
            "descriptors": sum(process.num_fds() for process in gateways),
        }


def keyed(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Options and keys of a server with a key for everybody."""
    file = KeysFile(str(folder / "keys.json"))
    keys = {
        name: file.create(name, KeyLimits(), operator=name == "operator")[1] for name in ("free", "greedy", "operator")
    }
    return ["--keys-file", str(file.path), "--trusted-proxies", "127.0.0.1", *attacks.OPTIONS], keys


def limited(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Options and keys of a server with the limits of hostile.py."""
    options, keys = hostile.flags(folder)
    return options, {
        **keys,
        "operator": KeysFile(str(folder / "keys.json")).create("op", KeyLimits(), operator=True)[1],
    }


def keyless(_folder: Path) -> tuple[list[str], dict[str, str]]:
    """Options and keys of a server that asks for none."""
    return [], {"free": "", "greedy": "", "operator": ""}


#: How a server is started, and the kinds of attacks that it gets.
SERVERS: list[tuple[Callable[[Path], tuple[list[str], dict[str, str]]], tuple[str, ...]]] = [
    (keyed, ("attacks", "bombs")),
    (keyless, ("keyless",)),
    (limited, ("limits",)),
]


@contextmanager
def attackers(target: Target) -> Iterator[Connection]:
    """A process that attacks, and the pipe to it."""
    pipe, theirs = _spawn.Pipe()
    process = _spawn.Process(target=run_hostile, args=(target, theirs), daemon=True)
    process.start()
    try:
        yield pipe
    finally:
        process.kill()
        process.join()


def measure(
    start: Callable[[Path], tuple[list[str], dict[str, str]]], rows: list[Row], options: argparse.Namespace
) -> bool:
    """Run attacks against one server, and print their rows; return whether a bound is broken."""
    speech = b"".join((part * 32767).astype("<i2").tobytes() for _, part in load()[:20])[: 24 * 32000]
    with tempfile.TemporaryDirectory(prefix="asrserver-attacks-") as folder:
        arguments, keys = start(Path(folder))
        wyoming = free_port()
        arguments += ["--workers", "1", "--wyoming-port", str(wyoming), "--allow-keyless", "wyoming"]
        with server(*arguments) as running:
            target = Target(running.port, keys, speech, 1 / options.rate, wyoming=wyoming)
            with attackers(target) as pipe:
                arena = Arena(running, target, keys["operator"], pipe, options.seconds)
                asyncio.run(arena.run(rows, options.rounds))
            running.stop()
            log = running.log.read_text(errors="replace")
    broken = False
    for row in rows:
        text, bad = row.format(arena.bystander, arena.first)
        broken = broken or bad
        print(text, flush=True)
    findings = Counter(re.findall(r"^.*(?:Traceback| died: |CRITICAL).*$", log, re.M))
    findings.update(f"the bystander got {error}" for error in arena.bystander.errors)
    for finding, count in findings.most_common(10):
        print(f"! {count} times: {finding}")
    return broken or bool(findings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of an attack, and of the time before and after it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100.0, help="refusals a second of a hostile client at most")
    parser.add_argument("--kinds", default="attacks,bombs,keyless")
    parser.add_argument("only", nargs="*", metavar="WORD", help="measure only attacks whose names contain all words")
    options = parser.parse_args()
    print(HEAD, flush=True)
    broken = False
    for start, kinds in SERVERS:
        rows = [
            Row(attack, kind, number)
            for kind in kinds
            if kind in options.kinds.split(",")
            for number, attack in enumerate(KINDS[kind])
            if all(word in attack.limit for word in options.only)
        ]
        if rows:
            broken = measure(start, rows, options) or broken
    sys.exit(broken)


if __name__ == "__main__":
    main()
