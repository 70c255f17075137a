"""Hostile clients for bench_attacks.py and the tests: each of ATTACKS reaches one limit of a server and keeps trying.

All limits are those of one server, started with `flags`; refusals are counted by their code.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrserver.auth.keys import KeyLimits, KeysFile

#: The server's limits: low, so that attacks reach them soon, but a client that sends in real time reaches none.
SETTINGS: dict[str, Any] = {
    "max_connections": 60,
    "max_address_connections": 20,
    "max_sessions": 40,
    "max_connection_sessions": 10,
    "max_message": 1 << 20,
    "max_chunk": 3 << 18,
    "max_session": 40.0,
    "max_speed": 1.0,
    "speed_burst": 30.0,
    "max_queue": 60.0,
    "session_idle_timeout": 3.0,
    "idle_timeout": 5.0,
    "unread_timeout": 1.0,
    "resume_timeout": 0.0,
    "trusted_proxies": "127.0.0.1",  # so that clients have addresses of their own
}

#: The limits of the API keys, by their names.
KEYS = {
    "free": KeyLimits(),
    "connections": KeyLimits(connections=5),
    "sessions": KeyLimits(sessions=5),
    "starts": KeyLimits(starts_per_minute=5),
    "greedy": KeyLimits(),
}


def flags(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Write a keys file into the folder; return options of `asrserver run`, and the API keys by name."""
    file = KeysFile(str(folder / "keys.json"))
    keys = {name: file.create(name, limits, operator=False)[1] for name, limits in KEYS.items()}
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in SETTINGS.items()]
    return [*itertools.chain(*pairs), "--keys-file", str(file.path)], keys


class UpgradeRefused(Exception):
    """Raised when a connection is refused before the upgrade; the arguments are the error's code and message."""


async def open_streams(port: int, window: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a port of this machine.

    Not by `open_connection` alone: cancelled, as an attack may be at any moment, uvloop's leaves its transport open.

    Args:
        port: The port.
        window: Bytes that the kernel keeps unread for the client; 0: the default.
    """
    connection = socket.socket()
    connection.setblocking(False)
    if window:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    try:
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    opening = asyncio.ensure_future(asyncio.open_connection(sock=connection, limit=window or 1 << 16))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        _, writer = await opening  # at once: the socket is connected
        writer.close()
        raise


def upgrade(key: str, address: str) -> bytes:
    """The request for an upgrade, of a client behind a proxy."""
    return (
        b"GET /ws/asr HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        + f"Authorization: Bearer {key}\r\nX-Forwarded-For: {address}\r\n\r\n".encode()
    )


class Peer:
    """A WebSocket client that does only what it is told, including what a library would refuse to do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._sessions: set[str] = set()

    @classmethod
    async def open(cls, port: int, key: str, address: str, window: int = 0) -> Peer:
        """Connect as a client behind a proxy.

        Args:
            port: The server's port.
            key: The API key.
            address: The client's address, as the proxy reports it.
            window: Bytes that the kernel keeps unread for the client; 0: the default.

        Raises:
            UpgradeRefused: The server refuses the connection.
        """
        peer = cls(*await open_streams(port, window))
        try:
            await peer._upgrade(key, address)
        except BaseException:
            await peer.close()
            raise
        return peer

    async def _upgrade(self, key: str, address: str) -> None:
        self.writer.write(upgrade(key, address))
        status, _, head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().partition("\r\n")
        if " 101 " not in status:
            size = int(head.partition("content-length:")[2].partition("\r\n")[0])
            error = json.loads(await self._reader.readexactly(size))["error"]
            raise UpgradeRefused(error["code"], error["message"])

    async def send(self, message: dict[str, Any] | bytes) -> None:
        """Send an object as JSON, or bytes as a binary frame."""
        kind, data = (0x82, message) if isinstance(message, bytes) else (0x81, json.dumps(message).encode())
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xff" + len(data).to_bytes(8, "big")
        self.writer.write(bytes([kind]) + size + bytes(4) + data)
        await self.writer.drain()

    async def read(self) -> dict[str, Any]:
        """Read the next message; raises EOFError when the server closes, OSError when the connection is lost."""
        while True:
            head = await self._reader.readexactly(2)
            size = head[1]
            if size >= 126:
                size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
            data = await self._reader.readexactly(size)
            if head[0] & 0x0F == 8:
                raise EOFError(data[2:].decode())
            if head[0] & 0x0F == 9:
                self.writer.write(bytes([0x8A, 0x80 | len(data)]) + bytes(4) + data)
            if head[0] & 0x0F == 1:
                message: dict[str, Any] = json.loads(data)
                return message

    async def answer(self, sid: str, *kinds: str) -> dict[str, Any]:
        """Read up to the next message of one of these types for the session."""
        while (message := await self.read()).get("session_id") != sid or message["type"] not in kinds:
            pass
        return message

    async def start(self, **options: Any) -> tuple[str, dict[str, Any]]:
        """Request a session; return its id, and the acknowledgement or the error."""
        sid = str(uuid.uuid4())
        await self.send({"action": "start", "session_id": sid, "format": "pcm_s16le", **options})
        answer = await self.answer(sid, "ack", "error")
        if answer["type"] == "ack":
            self._sessions.add(sid)
        return sid, answer

    async def session(self, **options: Any) -> str:
        """Request sessions until one is accepted; return its id."""
        while True:
            sid, answer = await self.start(**options)
            if answer["type"] == "ack":
                return sid
            await asyncio.sleep(0.1)

    async def finish(self, sid: str) -> None:
        self._sessions.discard(sid)
        await self.send({"action": "finish", "session_id": sid})

    async def close(self) -> None:
        """Finish the sessions, so that they occupy no limit, and cut the connection."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(0.5):  # a connection that the server reads slowly is cut without that
                for sid in list(self._sessions):
                    await self.finish(sid)
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Target:
    """The attacked server.

    Attributes:
        port: Its port.
        keys: API keys by name.
        speech: 24 s of speech as 16 kHz PCM.
        pause: Seconds that a client waits after each refusal.
        tally: The number of refusals by code.
        waits: Seconds until answers whose time is of interest.
        wyoming: The port of that protocol.
    """

    port: int
    keys: dict[str, str]
    speech: bytes
    pause: float = 0.0
    tally: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    wyoming: int = 0

    async def told(self, code: str, message: str = "") -> None:
        """Count a refusal: where one code has several reasons, with the setting that its message names, or the key."""
        setting = re.search(r"\((\w+)=", message)
        self.tally[f"{code}: {setting[1] if setting else 'API key'}" if message else code] += 1
        await asyncio.sleep(self.pause)

    @contextlib.asynccontextmanager
    async def peer(self, key: str = "free", address: str = "10.9.9.9") -> AsyncIterator[Peer]:
        peer = await Peer.open(self.port, self.keys[key], address)
        try:
            yield peer
        finally:
            await peer.close()

    async def bystander(self, **options: Any) -> tuple[Peer, str]:
        """Connect a harmless client, and start its session as soon as the server accepts both."""
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(UpgradeRefused, EOFError, OSError):
                    peer = await Peer.open(self.port, self.keys["free"], "10.8.8.8")
                    sid, answer = await peer.start(**options)
                    if answer["type"] == "ack":
                        return peer, sid
                    await peer.close()
                await asyncio.sleep(0.1)


Run = Callable[[Target], Coroutine[Any, Any, None]]


# -- the attacks: each continues until it is cancelled, or the server ends it ------------------------------------------


def _connect(key: str, addresses: Callable[[], Iterator[str]]) -> Run:
    async def run(target: Target) -> None:
        held: deque[Peer] = deque()
        try:
            for address in addresses():
                try:
                    held.append(await Peer.open(target.port, target.keys[key], address))
                except UpgradeRefused as refused:
                    await target.told(*refused.args)
                if len(held) > SETTINGS["max_connections"]:  # the server has closed the oldest as idle
                    await held.popleft().close()
        finally:
            for peer in held:
                await peer.close()

    return run


async def _ask_nothing(target: Target) -> None:
    held: list[asyncio.StreamWriter] = []
    try:
        while True:
            reader, writer = await open_streams(target.port)
            held.append(writer)
            if len(held) > SETTINGS["max_connections"]:
                with contextlib.suppress(OSError):
                    assert not await reader.read(1)
                held.pop().close()
                await target.told("closed")
    finally:
        for writer in held:
            writer.close()


def _start(key: str, peers: int) -> Run:
    async def run(target: Target) -> None:
        async with contextlib.AsyncExitStack() as stack:
            connected = [await stack.enter_async_context(target.peer(key)) for _ in range(peers)]
            for peer in itertools.cycle(connected):
                sid, answer = await peer.start()
                if answer["type"] == "error":
                    await target.told(answer["code"], answer["message"])
                elif key == "starts":
                    await peer.finish(sid)

    return run


def _send(size: int) -> Run:
    async def run(target: Target) -> None:
        async with target.peer() as peer:
            data = bytes(size)
            while True:
                await peer.session()
                await peer.send(bytes(320))
                code = ""
                while code != "session_idle":
                    await peer.send(data)
                    while (answer := await peer.read())["type"] != "error":
                        pass
                    code = answer["code"]
                    await target.told(code)

    return run


def _rush(seconds: float) -> Run:
    """Send much audio at once, and more on another connection, because the server stops reading the first."""

    async def run(target: Target) -> None:
        while True:
            async with target.peer() as first, target.peer() as second:
                sid = await first.session(sample_rate=8000)
                await first.send(bytes(int(16000 * seconds)))
                await first.answer(sid, "ack")
                await second.send({"action": "resume", "session_id": sid, "last_seq": 0})
                await second.answer(sid, "ack")
                while True:
                    await second.send(bytes(320))
                    answer = await second.answer(sid, "ack", "error")
                    if answer["type"] == "ack" or answer["code"] == "session_finished":
                        break
                    await target.told(answer["code"])

    return run


async def _flood(target: Target) -> None:
    second = target.speech[:32000]

    async def pour(peer: Peer) -> None:
        while True:
            await peer.send(second)

    while True:
        async with target.peer() as peer:
            sid = await peer.session()
            pouring = asyncio.ensure_future(pour(peer))
            try:
                while (await peer.answer(sid, "ack", "error"))["type"] == "ack":
                    await target.told("slow")
            finally:
                pouring.cancel()
                await asyncio.gather(pouring, return_exceptions=True)


async def _idle(target: Target, sessions: int) -> None:
    while True:
        async with target.peer() as peer:
            for _ in range(sessions):
                await peer.start()
            try:
                while True:
                    message = await peer.read()
                    if message["type"] == "error":
                        await target.told(message["code"])
            except EOFError:
                await target.told("closed")


async def _pile_up(target: Target) -> None:
    while True:
        async with target.peer() as peer:
            sid, answer = await peer.start()
            while answer["type"] == "error":
                await target.told(answer["code"])
                sid, answer = await peer.start()
            await peer.send(target.speech)
            await peer.answer(sid, "ack")
            await peer.finish(sid)


async def _work(target: Target) -> None:
    async with target.peer() as peer:
        while True:
            sid = await peer.session()
            await peer.send(target.speech)
            await peer.finish(sid)
            await peer.answer(sid, "final_result")
            await target.told("served")


async def _never_read(target: Target) -> None:
    while True:
        peer = await Peer.open(target.port, target.keys["free"], "10.9.9.9", window=4096)
        try:
            while True:
                for _ in range(50):
                    await peer.send({"action": "finish", "session_id": "x" * 128})
                await asyncio.sleep(target.pause)
        except OSError:
            await target.told("cut")
        finally:
            await peer.close()


def many(count: int, run: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> Run:
    async def all_of(target: Target) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(run(target, *arguments))

    return all_of


def _anywhere() -> Iterator[str]:
    return (f"10.1.{number // 250 % 250}.{number % 250 + 1}" for number in itertools.count())


def _somewhere() -> Iterator[str]:
    return itertools.repeat("10.2.2.2")


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        limit: The name of the limit.
        code: The key in `Target.tally` that must be counted: the error code, and for some codes the setting. Outcomes
            without an error code: `closed` and `cut` connections, and `slow`: the server reads slowly.
        often: How often the code must be counted in the test.
        run: The attack.
    """

    limit: str
    code: str
    often: int
    run: Run


ATTACKS = [
    Attack("connections of a gateway", "too_many_connections: max_connections", 100, _connect("free", _anywhere)),
    Attack(
        "connections of an address", "too_many_connections: max_address_connections", 100, _connect("free", _somewhere)
    ),
    Attack("connections of a key", "too_many_connections: API key", 100, _connect("connections", _somewhere)),
    Attack("connections that ask for nothing", "closed", 100, _ask_nothing),
    Attack("sessions of a connection", "too_many_sessions: max_connection_sessions", 100, _start("free", 1)),
    Attack("sessions of a gateway", "too_many_sessions: max_sessions", 100, _start("free", 8)),
    Attack("sessions of a key", "too_many_sessions: API key", 100, _start("sessions", 1)),
    Attack("session starts per minute of a key", "rate_limited: API key", 100, _start("starts", 1)),
    Attack("size of a message", "message_too_large", 80, _send(SETTINGS["max_message"] + 1)),
    Attack("size of a chunk", "chunk_too_large", 80, _send(SETTINGS["max_chunk"] + 1)),
    Attack("length of a session", "session_too_long", 5, _rush(45)),
    Attack("audio faster than real time", "too_fast", 200, _rush(39.9)),
    Attack("audio faster than recognition", "slow", 20, _flood),
    Attack("a session without audio", "session_idle", 15, many(3, _idle, 5)),
    Attack("a connection without messages", "closed", 10, many(10, _idle, 0)),
    Attack("backlog", "overloaded", 100, many(6, _pile_up)),
    Attack("a client that does not read", "cut", 10, many(5, _never_read)),
]

#: No attack: two clients send 24 s of speech at a time, so that a worker is always busy and no limit is reached.
WORK = Attack("no limit: a worker that is never idle", "served", 5, many(2, _work))
