"""Clients of bench_kikipounamu.py: one process with many connections, which sends WAVs as base64 in JSON."""

from __future__ import annotations

import asyncio
import base64
import io
import time
import wave
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.resources import files
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import uvloop

RECORDING = Path(str(files("asrserver").joinpath("data", "recordings", "english-1.wav")))

#: Seconds within which the last answer of a step must come after its last message.
ANSWER_TIMEOUT = 50.0

#: Connections that are opened at the same time.
OPENING = 20

#: Seconds over which the sessions are finished.
FINISH_SECONDS = 1.0

UPGRADE = (
    b"GET /ws/asr HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

#: Every client masks with it: servers unmask as always, and the audio needs to be masked only once.
KEY = b"\x37\xfa\x21\x3d"


@dataclass(frozen=True)
class Load:
    """What the clients send: on how many connections, and seconds of audio in a chunk, and on each connection."""

    connections: int
    chunk: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.connections:,} connections, chunks of {self.chunk:g} s"

    @property
    def steps(self) -> int:
        """Chunks of each connection."""
        return int(self.seconds / self.chunk)

    @cached_property
    def audio(self) -> bytes:
        """The base64 of a chunk, and what follows it in the message; masked."""
        cut = io.BytesIO()
        with wave.open(str(RECORDING)) as recording, wave.open(cut, "wb") as out:
            out.setparams(recording.getparams())
            out.writeframes(recording.readframes(int(self.chunk * recording.getframerate())))
        return masked(base64.b64encode(cut.getvalue()) + b'"}')


def masked(data: bytes) -> bytes:
    """XOR a payload, or a part of it from a multiple of four bytes on, with the key."""
    size = len(data)
    key = (KEY * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def frame(begin: bytes, rest: bytes = b"") -> bytes:
    """The head of a frame and the masked beginning of its payload; `rest` is masked, and sent behind."""
    size = len(begin) + len(rest)
    if size < 126:
        head = bytes([0x81, 0x80 | size])
    elif size < 1 << 16:
        head = bytes([0x81, 0xFE]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x81, 0xFF]) + size.to_bytes(8, "big")
    return head + KEY + masked(begin)


class Client(asyncio.Protocol):
    """One connection with its session."""

    def __init__(self, clients: Clients, number: int) -> None:
        self._clients = clients
        self.sid = f"bench-{number}-{clients.run}"
        self._buffer = b""
        self._upgraded = False
        self._sent: deque[float] = deque()
        self._index = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(UPGRADE)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        if not self._upgraded:
            head, end, rest = data.partition(b"\r\n\r\n")
            if end:
                if not head.startswith(b"HTTP/1.1 101"):
                    self._clients.failed(f"a connection was refused: {head!r}")
                self._upgraded, data = True, rest
                self._transport.write(frame(b'{"action":"start","session_id":"%s"}' % self.sid.encode()))
        at = 0
        while self._upgraded and len(data) >= at + 2:
            size, begin = data[at + 1], at + 2
            if size == 126:
                if len(data) < at + 4:
                    break
                size, begin = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            if len(data) < begin + size:
                break
            if data[at] == 0x81:
                self._take(data[begin : begin + size])
            at = begin + size
        self._buffer = data[at:]

    def _take(self, message: bytes) -> None:
        if b'"received"' in message:
            self._clients.delays.append(time.monotonic() - self._sent.popleft())
        elif b'"error"' in message:
            self._clients.failed(f"a message was refused: {message.decode()}")
        else:  # session_started, a result, or the final one
            self._clients.answered()

    def chunk(self) -> None:
        begin = b'{"action":"chunk","session_id":"%s","chunk_index":%d,"audio_data":' % (self.sid.encode(), self._index)
        begin += b" " * (-(len(begin) + 1) % 4) + b'"'
        audio = self._clients.load.audio
        self._index += 1
        self._sent.append(time.monotonic())
        self._transport.write(frame(begin, audio))
        self._transport.write(audio)

    def finish(self) -> None:
        self._transport.write(frame(b'{"action":"finish","session_id":"%s"}' % self.sid.encode()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.failed(f"the gateway closed a connection: {exc}")


class Clients:
    """All connections.

    Attributes:
        load: What they send.
        run: A number that no other run has.
        delays: Seconds from each chunk to its acknowledgement.
    """

    def __init__(self, load: Load) -> None:
        self.load = load
        self.run = time.monotonic_ns()
        self.delays: list[float] = []
        self._left = 0
        self._done = asyncio.Event()
        self._clients: list[Client] = []
        self._failure: str | None = None

    def answered(self) -> None:
        """Count an answer that the step waits for."""
        self._left -= 1
        if self._left <= 0:
            self._done.set()

    def failed(self, why: str) -> None:
        self._failure = why
        self._done.set()

    async def _step(self, answers: int, messages: Coroutine[Any, Any, None]) -> None:
        """Send what a step has to send, and wait for so many answers to it."""
        self._left = answers
        self._done.clear()
        await messages
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await self._done.wait()
        if self._failure:
            raise SystemExit(self._failure)

    async def start(self, port: int) -> None:
        """Connect, and start a session on each connection."""
        await self._step(self.load.connections, self._connect(port))

    async def _connect(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        numbers = range(self.load.connections)
        for begin in numbers[::OPENING]:
            opened = (
                loop.create_connection(partial(Client, self, number), "127.0.0.1", port)
                for number in numbers[begin : begin + OPENING]
            )
            self._clients += [client for _, client in await asyncio.gather(*opened)]

    async def send(self) -> None:
        """Send the audio at the speed of speech; every chunk is acknowledged and answered."""
        sends = (Client.chunk for _ in range(self.load.steps))
        await self._step(self.load.connections * self.load.steps, self._spread(sends, self.load.chunk))
        if len(self.delays) < self.load.connections * self.load.steps:
            raise SystemExit(f"only {len(self.delays)} chunks were acknowledged")

    async def finish(self) -> None:
        """End the sessions."""
        await self._step(self.load.connections, self._spread([Client.finish], FINISH_SECONDS))

    async def _spread(self, sends: Iterable[Callable[[Client], None]], period: float) -> None:
        """Have each client send one thing after another, one a period; all clients evenly spread over it."""
        begun = time.monotonic()
        for step, send in enumerate(sends):
            for number, client in enumerate(self._clients):
                wait = begun + (step + number / len(self._clients)) * period - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                send(client)


async def _run(port: int, load: Load, pipe: Connection) -> None:
    loop, clients = asyncio.get_running_loop(), Clients(load)
    pipe.send(None)
    for step in (partial(clients.start, port), clients.send, clients.finish):
        await loop.run_in_executor(None, pipe.recv)
        await step()
        pipe.send(sorted(clients.delays))
    await loop.run_in_executor(None, pipe.recv)


def run_clients(port: int, load: Load, pipe: Connection) -> None:
    """Run the steps start, send and finish, each when the pipe says so; say there when it is done.

    What is said is the delays of the acknowledgements so far, in seconds, sorted.
    """
    uvloop.run(_run(port, load, pipe))
