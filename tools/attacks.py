"""What hostile clients with a key of their own can do to a server, for bench_attacks.py. Limits are in hostile.py."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from hostile import Attack, Peer, Run, Target, many, open_streams, upgrade

from asrserver.client import Client
from tests.audio.bombs import BOMBS
from tests.ws_client import frame

#: Options of the server: what is waited for comes within a few seconds, and budgets are reached by clients on this
#: machine.
OPTIONS = (
    *("--unread-timeout", "2", "--resume-timeout", "2"),
    *("--message-memory", str(64 << 20), "--upload-space", str(256 << 20)),
)

#: The key of these clients.
KEY = "greedy"

MIB = 1 << 20

#: The bombs that once took a worker's memory, or its time for seconds and minutes.
ONCE = (
    "many_samples",
    "many_runs",
    "sample_table",
    "tracks",
    "flac_rate",
    "flac_marks",
    "wav_rate",
    "opus_silence",
)

#: Seconds within which a bomb must be answered, and between two of them.
BOMB_TIMEOUT = 8.0
BOMB_PAUSE = 0.2


def _request(target: Target, method: str, path: str, *, length: int = 0, host: str = "x") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {target.keys[KEY]}"]
    return "\r\n".join([*lines, "X-Forwarded-For: 10.9.9.9", f"Content-Length: {length}", "", ""]).encode()


async def _status(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and the body of an answer that says how long it is."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    size = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
    return int(head.split()[1]), await reader.readexactly(size)


async def _ask(target: Target, path: str, host: str = "x") -> tuple[int, Any]:
    """The status and the JSON that answer a GET."""
    reader, writer = await open_streams(target.port)
    try:
        writer.write(_request(target, "GET", path, host=host))
        status, body = await _status(reader)
        return status, json.loads(body or b"null")
    finally:
        writer.close()


def _upgrade(target: Target) -> bytes:
    return upgrade(target.keys[KEY], "10.9.9.9")


def _begun(size: int, missing: int = 1) -> bytes:
    """A binary frame of a size without its last bytes; its mask is zero."""
    return b"\x82\xff" + size.to_bytes(8, "big") + bytes(4) + bytes(size - missing)


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    for at in range(0, len(data), MIB):
        writer.write(data[at : at + MIB])
        await writer.drain()


@contextlib.asynccontextmanager
async def _raw(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await open_streams(port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


# -- sessions ----------------------------------------------------------------------------------------------------------


async def _resume_past_the_end(target: Target) -> None:
    async with target.peer(KEY) as peer:
        while True:
            sid = await peer.session(mode="stream")
            await peer.send(target.speech[:32000])
            await peer.finish(sid)
            await peer.send({"action": "resume", "session_id": sid, "last_seq": 10**6})
            await target.told((await peer.answer(sid, "error"))["code"])
            await peer.answer(sid, "final_result")


async def _all_at_once(target: Target) -> None:
    """A whole session and the end of the connection in one write: it must be served."""
    while True:
        sid = str(uuid.uuid4())
        start = json.dumps({"action": "start", "session_id": sid, "mode": "chunk", "format": "pcm_s16le"}).encode()
        finish = json.dumps({"action": "finish", "session_id": sid}).encode()
        audio = frame(2, target.speech[:64000])
        async with _raw(target.port) as (reader, writer):
            writer.write(_upgrade(target))
            await reader.readuntil(b"\r\n\r\n")
            writer.write(frame(1, start) + audio + frame(1, finish) + frame(8, b"\x03\xe8"))
            await reader.read()
        deadline = time.monotonic() + 20
        while (await _ask(target, f"/api/v1/session/{sid}"))[1].get("status") != "done":
            if time.monotonic() > deadline:
                await target.told("!lost")
                break
            await asyncio.sleep(0.1)
        else:
            await target.told("served")


async def _greedy(target: Target) -> None:
    async with target.peer(KEY) as peer:
        while True:
            sid = await peer.session(mode="chunk")
            await peer.send(target.speech[:160_000])
            await peer.finish(sid)
            await peer.answer(sid, "final_result")
            await target.told("served")


# -- frames and messages -----------------------------------------------------------------------------------------------


async def _bad_close(target: Target) -> None:
    while True:
        async with _raw(target.port) as (reader, writer):
            writer.write(_upgrade(target) + frame(8, b"\x03\xe8\xff"))
            await reader.readuntil(b"\r\n\r\n")
            await target.told(str(int.from_bytes((await reader.read())[2:4], "big")))


async def _reset(target: Target) -> None:
    while True:
        reader, writer = await open_streams(target.port)
        writer.write(_upgrade(target))
        await reader.readuntil(b"\r\n\r\n")
        connected: socket.socket = writer.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await target.told("reset")


async def _unfinished(target: Target, turn: asyncio.Semaphore) -> None:
    """All but the last byte of a frame of 16 MB; and that when all others have sent as much."""
    async with target.peer(KEY) as peer:
        async with turn:
            await _write(peer.writer, _begun(16 * MIB))
        await asyncio.sleep(1)
        peer.writer.write(b"\0")
        while True:
            message = await peer.read()
            if message["type"] == "error":
                await target.told(message["code"])


async def _all_unfinished(target: Target) -> None:
    turn = asyncio.Semaphore(8)
    await asyncio.gather(*(_unfinished(target, turn) for _ in range(100)))


async def _behind_others(target: Target) -> None:
    """Large messages behind refusals that the client does not read."""
    small = frame(1, json.dumps({"action": "finish", "session_id": "x" * 128}).encode())
    while True:
        peer = await Peer.open(target.port, target.keys[KEY], "10.9.9.9", window=4096)
        try:
            await _write(peer.writer, small * 3000)
            while True:
                await _write(peer.writer, _begun(30 * MIB, 0))
        except OSError:
            await target.told("cut")
        finally:
            peer.writer.transport.abort()


async def _large_chunks(target: Target) -> None:
    while True:
        async with target.peer(KEY) as peer:
            await peer.session(mode="chunk", sample_rate=48000, channels=2)
            await _write(peer.writer, _begun(30 * MIB, 0))
            message = await peer.read()
            if message["type"] == "error":
                await target.told(message["code"])
            await asyncio.sleep(1)


def _text(data: bytes) -> Run:
    async def run(target: Target) -> None:
        async with target.peer(KEY) as peer:
            sent = frame(1, data)
            while True:
                await _write(peer.writer, sent)
                await target.told((await peer.read())["code"])

    return run


async def _single_bytes(target: Target) -> None:
    pieces = frame(2, b"\0") * 2000

    async def pour(peer: Peer) -> None:
        while True:
            peer.writer.write(pieces)
            try:
                async with asyncio.timeout(0.5):
                    await peer.writer.drain()
            except TimeoutError:
                await target.told("slow")
                await peer.writer.drain()

    async with target.peer(KEY) as peer:
        await peer.session(mode="stream", ack_interval=1)
        async with asyncio.TaskGroup() as group:
            group.create_task(pour(peer))
            while True:
                await peer.read()


# -- HTTP, and the Wyoming port ----------------------------------------------------------------------------------------


async def _slow_bodies(target: Target) -> None:
    """Three hundred bodies of a byte a second, half of them uploads; the server must go on answering others."""

    async def one(path: str) -> None:
        while True:
            async with _raw(target.port) as (reader, writer):
                writer.write(_request(target, "POST", path, length=60_000))
                with contextlib.suppress(OSError):
                    while not reader.at_eof():
                        writer.write(b"\0")
                        await writer.drain()
                        await asyncio.sleep(1)
            await target.told("closed")

    async def live() -> None:
        while True:
            if (await _ask(target, "/livez"))[0] != 200:
                await target.told("!livez")
            await asyncio.sleep(0.5)

    paths = itertools.islice(itertools.cycle(("/api/v1/transcribe", "/v1/realtime/client_secrets")), 300)
    await asyncio.gather(live(), *map(one, paths))


async def _uploads(target: Target) -> None:
    """Uploads of which all but the end has come."""

    async def one() -> None:
        while True:
            async with _raw(target.port) as (reader, writer):
                writer.write(_request(target, "POST", "/api/v1/transcribe", length=2 * MIB))
                with contextlib.suppress(OSError):
                    await _write(writer, b"caff" + bytes(MIB))
                    await asyncio.sleep(2)
                    await _write(writer, bytes(MIB - 4))
                    _, body = await _status(reader)
                    await target.told(json.loads(body)["error"]["code"])
            await asyncio.sleep(0.2)

    await asyncio.gather(*(one() for _ in range(300)))


async def _unfinished_events(target: Target) -> None:
    """Data of Wyoming's events, but for the last byte."""

    async def one() -> None:
        while True:
            async with _raw(target.wyoming) as (reader, writer):
                with contextlib.suppress(OSError):
                    writer.write(b'{"type": "describe", "data_length": 262144}\n' + bytes(262143))
                    if b'"overloaded"' in await reader.read():
                        await target.told("overloaded")
            await asyncio.sleep(0.2)

    await asyncio.gather(*(one() for _ in range(350)))


def _get(path: str, host: str = "x") -> Run:
    async def run(target: Target) -> None:
        while True:
            _, body = await _ask(target, path, host)
            await target.told(body["error"]["code"] if "error" in body else "!answered")

    return run


# -- audio -------------------------------------------------------------------------------------------------------------


def _bomb(name: str) -> Run:
    async def run(target: Target) -> None:
        data = BOMBS[name][0]()
        url = f"ws://127.0.0.1:{target.port}/ws/asr"
        async with await Client.connect(url, key=target.keys[KEY]) as client:
            for mode in itertools.cycle(("stream", "chunk")):
                try:
                    async with asyncio.timeout(BOMB_TIMEOUT):
                        await _throw(target, client, data, mode)
                except TimeoutError:  # it holds half an hour of audio, say
                    await target.told("none in time")
                await asyncio.sleep(BOMB_PAUSE)

    return run


async def _throw(target: Target, client: Client, data: bytes, mode: str) -> None:
    """Send a bomb, and wait for the end of its session; the first answer counts."""
    session = await client.start(mode=mode, format="auto")

    async def send() -> None:
        step = len(data) if mode == "chunk" else 1 << 18
        for at in range(0, len(data), step):
            await session.send(data[at : at + step])
        await session.end()

    begun, answered = time.monotonic(), False
    sending = asyncio.ensure_future(send())
    try:
        async for event in session.events():
            if not answered and event["type"] in ("error", "chunk_result", "final_result"):
                answered = True
                target.waits.append(time.monotonic() - begun)
                await target.told(str(event.get("code") or event["type"]))
        await sending
    finally:
        sending.cancel()


#: Any code will do; of some there is text, or half an hour of silence.
BOMBS_THROWN = [Attack(f"bomb: {name}", "", 1, _bomb(name)) for name in ONCE]

ATTACKS = [
    Attack("resume past the end", "bad_seq", 1, _resume_past_the_end),
    Attack("close frame not in UTF-8", "1007", 1, _bad_close),
    Attack("100 unfinished frames of 16 MB", "overloaded", 1, _all_unfinished),
    Attack("30 MB behind what is not read", "cut", 1, many(10, _behind_others)),
    Attack("40 chunks of 30 MB at once", "overloaded", 1, many(40, _large_chunks)),
    Attack("300 slow bodies", "closed", 1, _slow_bodies),
    Attack("300 uploads of 2 MB", "overloaded", 1, _uploads),
    Attack("350 unfinished Wyoming events", "overloaded", 1, _unfinished_events),
    Attack("16 MB of nested JSON", "bad_json", 1, _text(b"[" + b"[]," * (5 * MIB) + b"[]]")),
    Attack("1,000 brackets", "bad_json", 1, _text(b"[" * 1000 + b"]" * 1000)),
    Attack("chunks of one byte", "slow", 1, many(5, _single_bytes)),
    Attack("40 sessions of one key", "served", 1, many(40, _greedy)),
    Attack("a session in one write, then gone", "served", 1, _all_at_once),
    Attack("a reset after the handshake", "reset", 1, _reset),
    Attack("a date without meaning", "bad_request", 1, _get("/api/v1/history?from=0001-01-01T00:00:00%2B23:59")),
]

#: On a server without keys.
KEYLESS = [Attack("a foreign Host header", "host_not_allowed", 1, _get("/api/v1/history", "evil.example"))]
