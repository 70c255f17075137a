#!/usr/bin/env python3
"""Measure a gateway beside kikipounamu's, which is written in Go: same client, same messages, same machine, one run.

    python tools/bench_kikipounamu.py --go BINARY [--rounds 3] [--seconds 8] [--storm 2000] [--quick]

BINARY is ASR_go_backend/cmd/server of github.com/fishheadwithchili/kikipounamu, built by you. For the storm, raise the
constant MaxConnections in internal/handler/websocket.go, which refuses the 1,001st connection.

Each gateway has a Redis and a PostgreSQL of its own, started alike. In each round, for 100, 500 and 1,000 connections
with WAVs of 2 s, and 100 with WAVs of 0.1 s, sent as base64 in JSON at the speed of speech, one process

    start    connects, and starts a session on each connection
    chunks   sends SECONDS of audio on each, evenly spread; a substitute for the workers answers every chunk
    finish   ends the sessions

first at one gateway and then at the other, in turns, each freshly started. A step is over when its last answer has come
and its last row is in PostgreSQL. CPU is user and system time, of the gateway with all its processes, and of these with
Redis and PostgreSQL. The memory of a connection is what the gateway's grew by for all. In the storm, STORM clients
start a session each, lose their connections, and start again, all at once.

The two do not do the same work: Go's gateway writes each session's audio to a file and keeps its results in memory
until the end; this one stores every result when it comes, and can go on elsewhere after it died.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import psutil
import psycopg2
import redis
import uvloop
from bench_connect import crowd
from benching import (
    Servers,
    about,
    about_line,
    add_json,
    cpu,
    family,
    quantile,
    server_process,
    servers,
    system,
    wait_for,
)
from json_clients import Load, run_clients
from worker_substitutes import run_consumer, run_go_worker

from asrserver.config import Settings

#: Connections, and seconds of audio in a chunk.
ROWS = [(100, 2.0), (500, 2.0), (1000, 2.0), (100, 0.1)]
QUICK_ROWS = [(100, 2.0), (100, 0.1)]

#: What a substitute for the workers understands in every chunk.
TEXT = "turn on the light in the kitchen"

#: Seconds that a step may take beyond the time in which its messages are sent.
PATIENCE = 60.0

START = json.dumps({"action": "start", "session_id": "", "user_id": "bench"})

_spawn = multiprocessing.get_context("spawn")


@dataclass
class Gateway:
    """A gateway that was started: its port, and the process that started all its others."""

    port: int
    process: psutil.Process

    def memory(self) -> int:
        """Bytes of memory of all its processes."""
        return sum(each.memory_info().rss for each in family(self.process))


class Side:
    """One of the two: how it is started, and what its PostgreSQL has when a step is over."""

    name: ClassVar[str]

    #: Rows of a session that was started, of a chunk that was answered, and of a session that has ended.
    started: ClassVar[str] = "SELECT count(*) FROM asr_sessions"
    answered: ClassVar[str | None] = None
    ended: ClassVar[str] = "SELECT count(*) FROM asr_sessions WHERE status = 'done'"

    def __init__(self, own: Servers) -> None:
        self.servers = own

    @contextmanager
    def serving(self) -> Iterator[Gateway]:
        """Run the gateway until the block ends."""
        raise NotImplementedError

    def worker(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """What answers the chunks, in a process of its own."""
        raise NotImplementedError

    def dsn(self) -> str:
        """The database."""
        return self.servers.postgres.dsn

    @cached_property
    def _connection(self) -> Any:
        """One for all queries: PostgreSQL makes a process for each, whose CPU would count."""
        connection = psycopg2.connect(self.dsn())
        connection.autocommit = True
        return connection

    def rows(self, query: str) -> int:
        """Ask PostgreSQL for a count."""
        with self._connection.cursor() as cursor:
            cursor.execute(query)
            return int(cursor.fetchone()[0])

    def empty(self) -> None:
        """Empty Redis, and its append-only file, which would be rewritten in the middle of a measurement."""
        with redis.Redis.from_url(self.servers.redis.url) as client:
            client.flushall()
            client.bgrewriteaof()
            wait_for(lambda: not client.info("persistence")["aof_rewrite_in_progress"], PATIENCE, "emptying Redis")


class Ours(Side):
    name = "asrserver"
    answered = "SELECT count(*) FROM asr_chunks"

    @contextmanager
    def serving(self) -> Iterator[Gateway]:
        unlimited = ("--max-sessions", "0", "--max-address-connections", "0", "--drain-timeout", "1")
        with system(self.servers, "gateway", *unlimited) as own:
            yield Gateway(own.port, own.supervisor)

    def worker(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        return run_consumer, (Settings(**self.servers.settings), TEXT)


class Go(Side):
    name = "Go"

    def __init__(self, own: Servers, binary: Path) -> None:
        super().__init__(own)
        self.binary = binary

    def dsn(self) -> str:
        return f"host={self.servers.postgres.socket_path.parent} user=postgres dbname=postgres"

    @contextmanager
    def serving(self) -> Iterator[Gateway]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        sockets = self.servers.postgres.socket_path.parent
        with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as place:
            ffmpeg = Path(place, "ffmpeg")  # it only looks whether there is one
            ffmpeg.write_text("#!/bin/sh\n")
            ffmpeg.chmod(0o755)
            environment = {
                "ASR_BACKEND_PORT": str(port), "REDIS_ADDR": str(self.servers.redis.socket_path),
                # It puts the host into a URL: this is the only way to name a directory of sockets there.
                "DB_HOST": f"localhost/postgres?host={sockets}&application_name=", "DB_USER": "postgres",
                "DB_NAME": "postgres", "MIN_WORKERS": "0", "MAX_CONNECTIONS": "100000", "LOG_LEVEL": "error",
                "GIN_MODE": "release", "PATH": f"{place}:{os.environ['PATH']}",
            }  # fmt: skip
            process = subprocess.Popen([self.binary], cwd=place, env=environment, stdout=subprocess.DEVNULL)
            try:
                wait_for(lambda: process.poll() is not None or listens(port), PATIENCE, "starting the Go gateway")
                if process.poll() is not None:
                    raise SystemExit(f"the Go gateway does not start: status {process.returncode}")
                yield Gateway(port, psutil.Process(process.pid))
            finally:
                process.kill()
                process.wait(PATIENCE)

    def worker(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        return run_go_worker, (self.servers.redis.url, TEXT)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


# -- one measurement -------------------------------------------------------------------------------------------------


@dataclass
class Used:
    """CPU seconds: of the gateway with all its processes, of its Redis, and of its PostgreSQL."""

    gateway: float
    redis: float
    postgres: float

    @property
    def all(self) -> float:
        return self.gateway + self.redis + self.postgres


@dataclass
class Figures:
    """What one gateway needed in one row and round. Seconds and bytes; CPU of `chunks` for a chunk, else a session."""

    start: Used
    chunks: Used
    finish: Used
    p50: float
    p95: float
    connection: float
    memory: float


class Meter:
    """Counts the CPU of a gateway and its servers from step to step."""

    def __init__(self, side: Side, gateway: Gateway) -> None:
        servers = side.servers
        self._roots = [gateway.process, server_process(servers.redis), server_process(servers.postgres)]
        self._last = self._now()

    def _now(self) -> list[float]:
        return [cpu(family(root)) for root in self._roots]

    def used(self, divisor: int) -> Used:
        """What was used since the last call, for each of `divisor`."""
        before, self._last = self._last, self._now()
        return Used(*((now - then) / divisor for then, now in zip(before, self._last, strict=True)))


@contextmanager
def running(target: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run a function in a process of its own until the block ends."""
    process = _spawn.Process(target=target, args=arguments)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def answer(pipe: Connection, seconds: float) -> Any:
    """What the clients say when a step is done."""
    if not pipe.poll(seconds + PATIENCE):
        raise SystemExit("the clients got no answers in time: the gateway or the machine is overloaded")
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit("the clients failed") from None


def measure(side: Side, load: Load) -> Figures:
    """Run all steps of a row at one of the two."""
    side.empty()
    here, there = _spawn.Pipe()
    target, arguments = side.worker()
    with side.serving() as gateway, running(target, *arguments), running(run_clients, gateway.port, load, there):
        there.close()
        answer(here, 0.0)
        meter, before = Meter(side, gateway), gateway.memory()
        chunks = load.connections * load.steps

        def step(query: str | None, count: int) -> tuple[Used, list[float]]:
            """Run a step that adds so many rows to what the query counts; returns also the delays so far."""
            rows = side.rows(query) + count if query else 0
            here.send(None)
            delays = answer(here, load.seconds)
            if query:
                wait_for(lambda: side.rows(str(query)) >= rows, PATIENCE, "storing the rows")
            return meter.used(count), delays

        start, _ = step(side.started, load.connections)
        started = gateway.memory()
        sent, acks = step(side.answered, chunks)
        memory = gateway.memory()
        finish, _ = step(side.ended, load.connections)
    p50, p95 = (quantile(acks, part) for part in (0.5, 0.95))
    return Figures(start, sent, finish, p50, p95, (started - before) / load.connections, memory)


@dataclass
class Storm:
    """How many seconds a crowd took to come back, the CPU seconds that it took, and how many gave up."""

    seconds: float
    used: Used
    gave_up: int


def storm(side: Side, clients: int) -> Storm:
    """Have a crowd start, lose its connections, and start again."""
    side.empty()
    with side.serving() as gateway:

        async def come(before: Callable[[], Any]) -> Storm:
            _, opened = await crowd(gateway.port, [START] * clients, b"session_started")
            for one in opened:
                one.cut()
            meter = before()
            back, opened = await crowd(gateway.port, [START] * clients, b"session_started")
            for one in opened:
                one.cut()
            return Storm(back.seconds, meter.used(1), back.gave_up)

        return uvloop.run(come(lambda: Meter(side, gateway)))


# -- the report ------------------------------------------------------------------------------------------------------

#: What is printed of a row: its name, its unit, how many of it make one of the unit, and how it is had of Figures.
COLUMNS: list[tuple[str, float, Callable[[Figures], float]]] = [
    ("gateway, CPU s per 1,000 chunks", 1000, lambda each: each.chunks.gateway),
    ("Redis", 1000, lambda each: each.chunks.redis),
    ("PostgreSQL", 1000, lambda each: each.chunks.postgres),
    ("all three", 1000, lambda each: each.chunks.all),
    ("ack p50, ms", 1000, lambda each: each.p50),
    ("ack p95, ms", 1000, lambda each: each.p95),
    ("connect and start, CPU ms", 1000, lambda each: each.start.gateway),
    ("with Redis and PostgreSQL", 1000, lambda each: each.start.all),
    ("finish, CPU ms", 1000, lambda each: each.finish.gateway),
    ("with Redis and PostgreSQL", 1000, lambda each: each.finish.all),
    ("a connection, KB", 1e-3, lambda each: each.connection),
    ("gateway, MB", 1e-6, lambda each: each.memory),
]


#: Those whose ratios are written where --json says.
RATIOS = {"gateway, CPU s per 1,000 chunks", "all three", "ack p50, ms", "ack p95, ms"}


def spread(values: Sequence[float]) -> str:
    """The median, and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def line(name: str, go: Sequence[float], ours: Sequence[float]) -> str:
    ratios = [mine / its if its else float("inf") for its, mine in zip(go, ours, strict=True)]
    return f"  {name:34}{spread(go):28}{spread(ours):28}{spread(ratios)}"


def report(rows: dict[Load, dict[str, list[Figures]]], storms: dict[str, list[Storm]]) -> None:
    """Print the medians and ranges of all rounds, and the ratios of ours to Go's in the same round."""
    for load, found in rows.items():
        print(f"\n{load}\n  {'':34}{'Go':28}{'asrserver':28}ratio")
        for name, scale, figure in COLUMNS:
            go, ours = ([scale * figure(each) for each in found[side.name]] for side in (Go, Ours))
            print(line(name, go, ours))
    if storms:
        print("\nstorm")
        figures: list[tuple[str, Callable[[Storm], float]]] = [
            ("seconds until all are back", lambda each: each.seconds),
            ("gateway, CPU s", lambda each: each.used.gateway),
            ("with Redis and PostgreSQL", lambda each: each.used.all),
            ("gave up", lambda each: each.gave_up),
        ]
        for name, part in figures:
            print(line(name, *([part(each) for each in storms[side.name]] for side in (Go, Ours))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--go", type=Path, required=True, metavar="BINARY")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of audio on each connection")
    parser.add_argument("--storm", type=int, default=2000, help="clients; 0: none")
    parser.add_argument("--quick", action="store_true", help="a try: 100 connections, one round, no storm")
    add_json(parser)
    options = parser.parse_args()
    rounds, storming = (1, 0) if options.quick else (options.rounds, options.storm)
    loads = [Load(*row, options.seconds) for row in (QUICK_ROWS if options.quick else ROWS)]
    rows: dict[Load, dict[str, list[Figures]]] = {load: {Go.name: [], Ours.name: []} for load in loads}
    storms: dict[str, list[Storm]] = {Go.name: [], Ours.name: []} if storming else {}
    print(about_line(about()), flush=True)
    with ExitStack() as stack:
        sides = [Go(stack.enter_context(servers()), options.go.resolve()), Ours(stack.enter_context(servers()))]
        for number in range(rounds):
            for load in loads:
                for side in sides:
                    rows[load][side.name].append(measure(side, load))
            for side in sides if storming else ():
                storms[side.name].append(storm(side, storming))
            sides.reverse()
            print(f"round {number + 1} of {rounds}", flush=True)
    report(rows, storms)
    if options.json is not None:
        found = {
            f"{load}: {name}": [
                figure(ours) / figure(go) for go, ours in zip(each[Go.name], each[Ours.name], strict=True)
            ]
            for load, each in rows.items()
            for name, _, figure in COLUMNS
            if name in RATIOS
        }
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
