#!/usr/bin/env python3
"""What a gateway costs: its CPU against that of a bare Tornado echo that answers with as many bytes, in one run.

    python tools/bench_gateway.py [--connections 300] [--rate 10] [--seconds 10] [--rounds 3] [--results]

Each connection sends a binary 100 ms chunk (3,200 bytes) RATE times a second, paced and spread evenly, first to the
echo, then to a real gateway on a real Redis and PostgreSQL; ROUNDS times in turn. CPU is getrusage's, user and system,
of the server process alone. Without --results nobody consumes the audio and the gateway's answers are the
acknowledgements; with it a stand-in for the workers answers every chunk too, and the echo sends as many bytes more.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop
from tornado.httpserver import HTTPServer
from tornado.web import Application
from tornado.websocket import WebSocketHandler

from asrserver.broker import Broker
from asrserver.config import Settings
from asrserver.embedded import EmbeddedPostgres, EmbeddedRedis

CHUNK = bytes(3200)

#: Seconds after the last chunk within which the last answer must come.
LATE = 10.0

_spawn = multiprocessing.get_context("spawn")


class Echo(WebSocketHandler):
    """Answers each message with one of `size` bytes."""

    def initialize(self, size: int) -> None:
        self.answer = b"x" * size

    def open(self) -> None:
        self.set_nodelay(True)

    def on_message(self, message: str | bytes) -> None:
        self.write_message(self.answer)


def report_cpu(pipe: Connection) -> None:
    """Answer every question on the pipe, from a thread, with the CPU seconds of this process so far."""

    def answer() -> None:
        while True:
            try:
                pipe.recv()
            except EOFError:
                os._exit(0)
            usage = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(usage.ru_utime + usage.ru_stime)

    threading.Thread(target=answer, daemon=True).start()


def run_echo(listener: socket.socket, size: int, pipe: Connection) -> None:
    async def main() -> None:
        HTTPServer(Application([("/ws/asr", Echo, {"size": size})])).add_socket(listener)
        report_cpu(pipe)
        await asyncio.Event().wait()

    uvloop.run(main())


def run_gateway(listener: socket.socket, settings: Settings, pipe: Connection) -> None:
    from asrserver.app import serve

    report_cpu(pipe)
    uvloop.run(serve(settings, listener, lambda: None, lambda: None))


def run_consumer(settings: Settings) -> None:
    """What workers do to Redis and to the gateway, without recognising: every chunk gets a result."""
    uvloop.run(_consume(settings))


async def _consume(settings: Settings) -> None:
    broker = Broker(settings.redis, "bench-worker")
    await broker.open()
    claims: dict[str, Any] = {}
    cursors: dict[str, str] = {}
    counts: dict[str, int] = {}

    async def answer(sid: str, entry_id: str) -> None:
        counts[sid] += 1
        event = {
            "seq": counts[sid],
            "type": "chunk",
            "chunk_index": int(entry_id.partition("-")[0]) - 1,
            "text": "",
            "duration": 0.1,
            "time": time.time(),
            "worker": "bench",
            "model": "none",
            "chunk_count": counts[sid],
            "total": counts[sid] / 10,
            "language": None,
            "segments": [],
        }
        await broker.emit(claims[sid], counts[sid], event, entry_id)

    while True:
        for task, sid in await broker.claim(None, 100, 0.0):
            claim = await broker.own(task, sid)
            if claim is not None:
                claims[sid], cursors[sid], counts[sid] = claim, "0-1", 0
        for sid, entries in (await broker.read_audio(cursors, 16)).items():
            await asyncio.gather(*(answer(sid, entry.id) for entry in entries if entry.data))
            cursors[sid] = entries[-1].id
        await asyncio.sleep(0.04)


async def load(
    port: int, connections: int, rate: float, seconds: float, answers: int, echo: bool, pipe: Connection
) -> None:
    """Connect, tell, wait for a word, and send until each chunk has its `answers`.

    Tells (messages sent, messages received, their bytes). What connecting costs is not measured.
    """
    ready, go = asyncio.Barrier(connections + 1), asyncio.Event()
    counts = [0, 0, 0]

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /ws/asr HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        if not echo:
            start = b'{"action":"start"}'
            writer.write(bytes([0x81, 0x80 | len(start), 0, 0, 0, 0]) + start)
            _, answer = await _frame(reader)
            assert b"session_started" in answer, answer
        await ready.wait()
        await go.wait()
        frame = b"\x82\xfe" + len(CHUNK).to_bytes(2, "big") + bytes(4) + CHUNK
        steps = int(seconds * rate)
        receiving = asyncio.create_task(_receive(reader, counts, steps * answers))
        begun = time.monotonic() + number / connections / rate
        for step in range(steps):
            await asyncio.sleep(begun + step / rate - time.monotonic())
            writer.write(frame)
            counts[0] += 1
        await asyncio.wait_for(receiving, LATE)
        writer.close()

    tasks = [asyncio.create_task(client(number)) for number in range(connections)]
    await ready.wait()
    pipe.send(None)
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    go.set()
    await asyncio.gather(*tasks)
    pipe.send(tuple(counts))


async def _frame(reader: asyncio.StreamReader) -> tuple[bool, bytes]:
    """Read one short frame of the server: whether it is a message, and its payload."""
    head = await reader.readexactly(2)
    size = head[1]
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    return head[0] & 0x0F in (1, 2), await reader.readexactly(size)


async def _receive(reader: asyncio.StreamReader, counts: list[int], wanted: int) -> None:
    while wanted:
        message, payload = await _frame(reader)
        if message:
            assert b'"error"' not in payload, payload
            wanted -= 1
            counts[1] += 1
            counts[2] += len(payload)


def run_load(arguments: tuple[Any, ...], pipe: Connection) -> None:
    uvloop.run(load(*arguments, pipe))


def measure(port: int, cpu: Connection, options: argparse.Namespace, echo: bool) -> tuple[float, int]:
    """(CPU seconds of the server, bytes it answered) for one round."""
    here, there = _spawn.Pipe()
    answers = 2 if options.results and not echo else 1
    arguments = (port, options.connections, options.rate, options.seconds, answers, echo)
    loader = _spawn.Process(target=run_load, args=(arguments, there))
    loader.start()
    here.recv()
    cpu.send(None)
    before = cpu.recv()
    here.send(None)
    sent, received, size = here.recv()
    loader.join()
    cpu.send(None)
    used = cpu.recv() - before
    print(
        f"  {'echo' if echo else 'gateway'}: {sent} chunks, {received} answers of {size} bytes, {used:.2f} s of CPU,"
        f" {1e6 * used / sent:.0f} µs a chunk"
    )
    if received < sent * answers:
        raise SystemExit(f"only {received} answers to {sent} chunks: something is not keeping up")
    return used, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=300)
    parser.add_argument("--rate", type=float, default=10.0, help="chunks a second from each connection")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", action="store_true", help="answer every chunk with a result too")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

    with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as directory:
        redis = EmbeddedRedis(Path(directory), maxmemory=4 << 30, appendfsync="no")
        postgres = EmbeddedPostgres(Path(directory))
        redis.start()
        postgres.start()
        try:
            ratios = [one_round(options, redis, postgres) for _ in range(options.rounds)]
        finally:
            postgres.stop(10)
            redis.stop(10)
    kind = "acknowledgements and results" if options.results else "acknowledgements"
    print(f"gateway / echo, {kind}: {statistics.median(ratios):.2f} (of {', '.join(f'{r:.2f}' for r in ratios)})")


def one_round(options: argparse.Namespace, redis: EmbeddedRedis, postgres: EmbeddedPostgres) -> float:
    """Gateway, then the echo with as many bytes an answer; the ratio of their CPU."""
    import redis as client

    client.Redis.from_url(redis.url).flushall()
    settings = Settings(redis_url=redis.url, database_url=postgres.dsn, port=0)
    others = [(run_consumer, (settings,))] if options.results else []
    with serving(run_gateway, settings, others) as (port, cpu):
        gateway, answered = measure(port, cpu, options, echo=False)
    chunks = options.connections * int(options.seconds * options.rate)
    with serving(run_echo, answered // chunks, []) as (port, cpu):
        echo, _ = measure(port, cpu, options, echo=True)
    return gateway / echo


@contextmanager
def serving(
    target: Callable[..., None], argument: Any, others: list[tuple[Callable[..., None], tuple[Any, ...]]]
) -> Iterator[tuple[int, Connection]]:
    """A server process on a free port, with others beside it: (port, pipe that tells its CPU)."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    cpu, theirs = _spawn.Pipe()
    processes = [_spawn.Process(target=target, args=(listener, argument, theirs))]
    processes += [_spawn.Process(target=other, args=arguments) for other, arguments in others]
    for process in processes:
        process.start()
    try:
        yield listener.getsockname()[1], cpu
    finally:
        for process in processes:
            process.kill()
            process.join()
        listener.close()


if __name__ == "__main__":
    main()
