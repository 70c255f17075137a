#!/usr/bin/env python3
"""Measure what connecting costs a gateway, against a bare Tornado echo, and how long a crowd of clients waits for it.

    python tools/bench_connect.py [--clients 2000] [--rounds 3]

Each round starts a gateway on a real Redis and PostgreSQL, and measures

    one      clients connect and start a session, one after another: CPU milliseconds of the gateway for each, and the
             ratio to those of an echo server in the same round, to which they connect and send one message as long
    crowd    CLIENTS clients connect and start a session, all at once: seconds until the last has its acknowledgement
    return   all their connections break at once; they reconnect and resume their sessions, all at once

A client that has no acknowledgement within 30 s gives up; their number should be 0. The clients use the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import psutil
import uvloop
from bench_gateway import run_echo, run_gateway, serving
from benching import about, about_line, add_json, cpu, quantile, server_process, servers, write_ratios

from asrserver.config import Settings
from asrserver.process.limits import raise_file_limit

#: Seconds after which a client gives up.
PATIENCE = 30.0

#: Clients that connect one after another, to measure the cost of one.
SINGLE = 500

#: Clients before them, which load what is imported when it is needed first.
WARM = 50

#: Bytes of an acknowledgement, which the echo server answers with.
ANSWER = 150

UPGRADE = (
    b"GET /ws/asr HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

START = '{"action":"start","mode":"stream","format":"pcm_s16le","resume":true}'

RESUME = '{"action":"resume","session_id":"%s","last_seq":0}'


@dataclass
class Client:
    """One connection, after its first answer."""

    answer: bytes
    writer: asyncio.StreamWriter
    seconds: float

    @classmethod
    async def open(cls, port: int, message: str) -> Client:
        """Connect, send a message and wait for the answer to it."""
        begun = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UPGRADE)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise SystemExit(f"the server refused a connection: {head.decode(errors='replace')}")
        data = message.encode()
        writer.write(bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data)
        first, size = await reader.readexactly(2)
        assert first == 0x81, first
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        return cls(await reader.readexactly(size), writer, time.monotonic() - begun)

    @property
    def session_id(self) -> str:
        return str(json.loads(self.answer)["session_id"])

    def expect(self, status: bytes) -> None:
        if status not in self.answer:
            raise SystemExit(f"the server refused a session: {self.answer.decode()}")

    def cut(self) -> None:
        """End the connection as a network does that fails."""
        self.writer.transport.abort()


@dataclass
class Crowd:
    """How a crowd fared: seconds until all had their answers, each client's wait, and how many gave up."""

    seconds: float
    waits: list[float]
    gave_up: int

    def __str__(self) -> str:
        waits = f"each p50 {quantile(self.waits, 0.5):.1f} s, p95 {quantile(self.waits, 0.95):.1f} s"
        return f"{self.seconds:.1f} s for all, {waits}, {self.gave_up} gave up"


async def crowd(port: int, messages: Sequence[str], status: bytes) -> tuple[Crowd, list[Client]]:
    """Open all connections at once; returns also the clients that have their answer."""
    begun = time.monotonic()
    found = await asyncio.gather(
        *(asyncio.wait_for(Client.open(port, message), PATIENCE) for message in messages), return_exceptions=True
    )
    seconds = time.monotonic() - begun
    clients = [one for one in found if isinstance(one, Client)]
    for one in clients:
        one.expect(status)
    for error in found:
        if isinstance(error, BaseException) and not isinstance(error, TimeoutError | OSError):
            raise error
    return Crowd(seconds, [one.seconds for one in clients], len(found) - len(clients)), clients


async def one_by_one(port: int, count: int, status: bytes) -> None:
    """Open one connection after another, and close them all at the end."""
    clients = [await Client.open(port, START) for _ in range(count)]
    for one in clients:
        one.expect(status)
        one.cut()


def asked(pipe: Connection) -> float:
    """The CPU seconds of a server of bench_gateway so far."""
    pipe.send(None)
    return float(pipe.recv())


def one_round(settings: Settings, others: list[psutil.Process], clients: int) -> tuple[float, Crowd, Crowd]:
    """Measure everything once; returns the ratio to the echo, and both crowds."""
    with serving(run_gateway, settings, []) as (port, pipe):
        uvloop.run(one_by_one(port, WARM, b"session_started"))
        before, before_others = asked(pipe), cpu(others)
        uvloop.run(one_by_one(port, SINGLE, b"session_started"))
        used, used_others = asked(pipe) - before, cpu(others) - before_others
        first, back = uvloop.run(come_and_return(port, clients))
    with serving(run_echo, ANSWER, []) as (port, pipe):
        uvloop.run(one_by_one(port, WARM, b"x"))
        before = asked(pipe)
        uvloop.run(one_by_one(port, SINGLE, b"x"))
        echo = asked(pipe) - before
    print(
        f"  one: gateway {1000 * used / SINGLE:.2f} ms, Redis and PostgreSQL {1000 * used_others / SINGLE:.2f} ms, "
        f"echo {1000 * echo / SINGLE:.2f} ms, ratio {used / echo:.2f}\n  crowd: {first}\n  return: {back}",
        flush=True,
    )
    return used / echo, first, back


async def come_and_return(port: int, clients: int) -> tuple[Crowd, Crowd]:
    first, opened = await crowd(port, [START] * clients, b"session_started")
    for one in opened:
        one.cut()
    back, opened = await crowd(port, [RESUME % one.session_id for one in opened], b"session_resumed")
    for one in opened:
        one.cut()
    return first, back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    add_json(parser)
    options = parser.parse_args()
    raise_file_limit()
    print(f"{about_line(about())}\n{options.clients} clients in a crowd, {SINGLE} one by one", flush=True)
    with servers() as own:
        settings = Settings(**own.settings, port=0, max_sessions=0, max_address_connections=0)
        others = [server_process(own.redis), server_process(own.postgres)]
        rounds = [one_round(settings, others, options.clients) for _ in range(options.rounds)]
    ratios = [ratio for ratio, _, _ in rounds]
    print(f"gateway / echo, one: {statistics.median(ratios):.2f} (of {', '.join(f'{each:.2f}' for each in ratios)})")
    write_ratios(options, {"connect and start to a Tornado echo, CPU": ratios})


if __name__ == "__main__":
    main()
