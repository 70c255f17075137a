#!/usr/bin/env python3
"""Measure the CPU of a gateway, against a bare Tornado echo server that answers with as many bytes, in one run.

    python tools/bench_gateway.py [--connections 500] [--rate 10] [--seconds 10] [--rounds 3] [--results] [--client]

Each connection sends a binary 100 ms chunk (3,200 bytes) RATE times per second, evenly spread, to a real gateway on a
real Redis and PostgreSQL, and then to the echo server; this is repeated ROUNDS times. CPU is user and system time
(getrusage) of the server process only; the CPU of Redis and of the clients is printed beside it.

With --client the Python client sends the chunks: its binary frames name their session, and the server acknowledges them
every half second; otherwise each chunk is acknowledged at once. With --results a substitute for the workers also
answers every chunk, and the echo server sends as many bytes more; otherwise nothing consumes the audio, and the gateway
answers with acknowledgements only.
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
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import uvloop
from benching import add_json, write_ratios
from tornado.httpserver import HTTPServer
from tornado.web import Application
from tornado.websocket import WebSocketHandler
from worker_substitutes import run_consumer

from asrserver.client import Client, ConnectionObserver
from asrserver.config import Settings
from asrserver.embedded.postgres import EmbeddedPostgres
from asrserver.embedded.redis import EmbeddedRedis

CHUNK = bytes(3200)

#: Size in bytes of an acknowledgement: the echo's answer if the client received fewer of them than it sent chunks.
ACK_SIZE = 102

#: Seconds after the last chunk within which the last answer must arrive.
ANSWER_TIMEOUT = 10.0

_spawn = multiprocessing.get_context("spawn")


class Echo(WebSocketHandler):
    """Answers each message with a message of `size` bytes."""

    def initialize(self, size: int) -> None:
        self.answer = b"x" * size

    def open(self) -> None:
        self.set_nodelay(True)

    def on_message(self, message: str | bytes) -> None:
        self.write_message(self.answer)


def own_cpu() -> float:
    """CPU seconds that this process has used so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def report_cpu(pipe: Connection) -> None:
    """Start a thread that answers each request on the pipe with the CPU seconds of this process so far."""

    def answer() -> None:
        while True:
            try:
                pipe.recv()
            except EOFError:
                os._exit(0)
            pipe.send(own_cpu())

    threading.Thread(target=answer, daemon=True).start()


def run_echo(listener: socket.socket, size: int, pipe: Connection) -> None:
    async def main() -> None:
        HTTPServer(Application([("/ws/asr", Echo, {"size": size})])).add_socket(listener)
        report_cpu(pipe)
        await asyncio.Event().wait()

    uvloop.run(main())


def run_gateway(listener: socket.socket, settings: Settings, pipe: Connection) -> None:
    from asrserver.handlers.app import serve

    report_cpu(pipe)
    uvloop.run(serve(settings, {"http": listener}, lambda: None, lambda: None, True))


#: A client awaits this when it is connected: it returns when all clients are connected and the measurement begins.
Connected = Callable[[], Coroutine[Any, Any, None]]


async def measured(
    client: Callable[[int, Connected], Coroutine[Any, Any, None]],
    connections: int,
    counts: list[int],
    delays: list[float],
    pipe: Connection,
) -> None:
    """Connect the clients, report on the pipe, wait for an answer, run them; send their counts, CPU time and delays."""
    ready, go = asyncio.Barrier(connections + 1), asyncio.Event()

    async def connected() -> None:
        await ready.wait()
        await go.wait()

    tasks = [asyncio.create_task(client(number, connected)) for number in range(connections)]
    await ready.wait()
    pipe.send(None)
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    go.set()
    before = own_cpu()
    await asyncio.gather(*tasks)
    pipe.send((*counts, own_cpu() - before, sorted(delays)))


async def load(
    port: int, connections: int, rate: float, seconds: float, answers: int, echo: bool, pipe: Connection
) -> None:
    """Send chunks over plain sockets, and wait until each has its `answers`.

    Sends (messages sent, messages received, bytes received) to the pipe. The cost of connecting is not measured.
    """
    counts = [0, 0, 0]
    delays: list[float] = []

    async def client(number: int, connected: Connected) -> None:
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
        await connected()
        frame = b"\x82\xfe" + len(CHUNK).to_bytes(2, "big") + bytes(4) + CHUNK
        steps = int(seconds * rate)
        sent: deque[float] = deque()
        receiving = asyncio.create_task(_receive(reader, counts, steps * answers, sent, delays))
        begun = time.monotonic() + number / connections / rate
        for step in range(steps):
            await asyncio.sleep(begun + step / rate - time.monotonic())
            sent.append(time.monotonic())
            writer.write(frame)
            counts[0] += 1
        await asyncio.wait_for(receiving, ANSWER_TIMEOUT)
        writer.close()

    await measured(client, connections, counts, delays, pipe)


async def load_by_client(
    port: int, connections: int, rate: float, seconds: float, answers: int, echo: bool, pipe: Connection
) -> None:
    """Do the same with the Python client."""
    counts, steps = [0, 0, 0], int(seconds * rate)

    class Counting(ConnectionObserver):
        def __init__(self) -> None:
            self.through, self.all = -1, asyncio.Event()

        def received(self, event: dict[str, Any]) -> None:
            if event["type"] == "chunk_result" or event.get("status") == "received":
                self.through = max(self.through, event["chunk_index"])
                counts[1] += 1
            if self.through == steps - 1:
                self.all.set()

    async def client(number: int, connected: Connected) -> None:
        observer = Counting()
        async with await Client.connect(f"ws://127.0.0.1:{port}/ws/asr", observer=observer) as client:
            session = await client.start(mode="stream", format="pcm_s16le")
            await connected()
            begun = time.monotonic() + number / connections / rate
            for step in range(steps):
                await asyncio.sleep(begun + step / rate - time.monotonic())
                await session.send(CHUNK)
                counts[0] += 1
            await asyncio.wait_for(observer.all.wait(), ANSWER_TIMEOUT)

    await measured(client, connections, counts, [], pipe)


async def _frame(reader: asyncio.StreamReader) -> tuple[bool, bytes]:
    """Read one short frame of the server; return whether it is a message, and its payload."""
    head = await reader.readexactly(2)
    size = head[1]
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    return head[0] & 0x0F in (1, 2), await reader.readexactly(size)


async def _receive(
    reader: asyncio.StreamReader, counts: list[int], wanted: int, sent: deque[float], delays: list[float]
) -> None:
    """Count the answers; the first ones to the chunks `sent` have `delays`."""
    while wanted:
        message, payload = await _frame(reader)
        if message:
            if sent and b'"chunk_result"' not in payload:
                delays.append(time.monotonic() - sent.popleft())
            assert b'"error"' not in payload, payload
            wanted -= 1
            counts[1] += 1
            counts[2] += len(payload)


def run_load(arguments: tuple[Any, ...], by_client: bool, pipe: Connection) -> None:
    chosen: Callable[..., Coroutine[Any, Any, None]] = load_by_client if by_client else load
    uvloop.run(chosen(*arguments, pipe))


def measure(
    port: int, cpu: Connection, options: argparse.Namespace, echo: bool, redis: psutil.Process | None = None
) -> tuple[float, int]:
    """Run one round; return the CPU seconds of the server, and the bytes that it sent."""
    here, there = _spawn.Pipe()
    answers = 2 if options.results and not echo else 1
    arguments = (port, options.connections, options.rate, options.seconds, answers, echo)
    by_client = options.client and not echo
    loader = _spawn.Process(target=run_load, args=(arguments, by_client, there))
    loader.start()
    here.recv()
    cpu.send(None)
    before = cpu.recv()
    redis_before = sum(redis.cpu_times()[:2]) if redis else 0.0
    here.send(None)
    sent, received, size, clients, delays = here.recv()
    redis_used = sum(redis.cpu_times()[:2]) - redis_before if redis else 0.0
    loader.join()
    cpu.send(None)
    used = cpu.recv() - before
    costs = {"echo" if echo else "gateway": used, "Redis": redis_used, "clients": clients}
    costs_text = ", ".join(f"{name} {1e6 * seconds / sent:.0f}" for name, seconds in costs.items() if seconds)
    print(f"  {sent} chunks, {received} answers of {size} bytes; µs of CPU per chunk: {costs_text}{_spread(delays)}")
    if not by_client and received < sent * answers:
        raise SystemExit(f"only {received} answers to {sent} chunks: the server or the clients are overloaded")
    return used, size


def _spread(delays: list[float]) -> str:
    """In words; `delays` are in seconds, sorted."""
    if not delays:
        return ""
    low, high = (1000 * delays[int(share * len(delays))] for share in (0.5, 0.95))
    return f"; answered after {low:.1f} ms (p50), {high:.1f} ms (p95)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--rate", type=float, default=10.0, help="chunks per second from each connection")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", action="store_true", help="send the chunks with the Python client")
    parser.add_argument("--results", action="store_true", help="also answer every chunk with a result")
    parser.add_argument("--fsync", choices=["always", "no"], default="always", help="of Redis, as of asrserver run")
    add_json(parser)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

    with tempfile.TemporaryDirectory(prefix="asrserver-bench-") as directory:
        redis = EmbeddedRedis(Path(directory), maxmemory=4 << 30, appendfsync=options.fsync)
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
    name = f"gateway to a Tornado echo, {options.connections} connections at {options.rate:g} chunks/s, CPU"
    write_ratios(options, {name: ratios})


def one_round(options: argparse.Namespace, redis: EmbeddedRedis, postgres: EmbeddedPostgres) -> float:
    """Measure the gateway, then the echo with as many bytes per answer; return the ratio of their CPU."""
    import redis as client

    client.Redis.from_url(redis.url).flushall()
    settings = Settings(redis_url=redis.url, database_url=postgres.dsn, port=0)
    others = [(run_consumer, (settings,))] if options.results else []
    with serving(run_gateway, settings, others) as (port, cpu):
        gateway, answered = measure(port, cpu, options, False, psutil.Process(redis.pid))
    chunks = options.connections * int(options.seconds * options.rate)
    with serving(run_echo, answered // chunks or ACK_SIZE, []) as (port, cpu):
        echo, _ = measure(port, cpu, options, True)
    return gateway / echo


@contextmanager
def serving(
    target: Callable[..., None], argument: Any, others: list[tuple[Callable[..., None], tuple[Any, ...]]]
) -> Iterator[tuple[int, Connection]]:
    """Run a server process on a free port, and other processes; yields the port and the pipe that reports its CPU."""
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
