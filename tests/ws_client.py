"""A WebSocket client that keeps all messages, for system tests, and queries to Redis and PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import psycopg2
import redis
from tornado.iostream import IOStream
from tornado.tcpclient import TCPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

from asrserver.protocol.frames import TEXT
from tests.recordings import Utterance
from tests.waiting import until

#: Longest wait for one message, in seconds: far above any that is right, on any machine.
PATIENCE = 60.0

Message = dict[str, Any]


def chunk(sid: str, index: int, data: bytes) -> Message:
    """A `chunk` message."""
    return {"action": "chunk", "session_id": sid, "chunk_index": index, "audio_data": base64.b64encode(data).decode()}


def frame(opcode: int, payload: bytes, final: bool = True, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    """A frame as a client sends it."""
    size = len(payload)
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    else:
        head += struct.pack("!BH", 0xFE, size) if size < 1 << 16 else struct.pack("!BQ", 0xFF, size)
    key = (mask * (size // 4 + 1))[:size]
    # As two large numbers: byte by byte it would take seconds for all the frames of test_conformance.py.
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + mask + masked.to_bytes(size, "big")


class WsClient:
    """One connection. `messages` are all messages from the server, in order."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection = connection
        self.messages: list[Message] = []
        self.closed = False
        self._read = 0
        self._news = asyncio.Condition()
        self._reader = asyncio.get_running_loop().create_task(self._listen())

    @classmethod
    async def open(cls, url: str) -> WsClient:
        return cls(await websocket_connect(url, max_message_size=1 << 26))

    async def __aenter__(self) -> WsClient:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close as a client should."""
        self.connection.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._reader, 10)

    def drop(self) -> None:
        """End as a client whose network is lost: without a closing handshake."""
        protocol = self.connection.protocol
        assert protocol is not None
        assert protocol.stream is not None
        protocol.stream.close()

    async def _listen(self) -> None:
        while (text := await self.connection.read_message()) is not None:
            async with self._news:
                self.messages.append(json.loads(text))
                self._news.notify_all()
        async with self._news:
            self.closed = True
            self._news.notify_all()

    async def write(self, data: bytes) -> None:
        """Send bytes as they are, for example frames that arrive together."""
        protocol = self.connection.protocol
        assert protocol is not None
        assert protocol.stream is not None
        await protocol.stream.write(data)

    async def send(self, message: Message | bytes | str) -> None:
        """Send an object as JSON, bytes as a binary frame, a str as it is."""
        if isinstance(message, bytes):
            await self.connection.write_message(message, binary=True)
        else:
            await self.connection.write_message(message if isinstance(message, str) else json.dumps(message))

    async def next(self) -> Message:
        """Read the next message, as a client that waits for each answer."""
        await self._until(lambda: len(self.messages) > self._read)
        self._read += 1
        return self.messages[self._read - 1]

    async def call(self, message: Message | bytes | str) -> Message:
        """Send, and read one message."""
        await self.send(message)
        return await self.next()

    async def find(self, sid: str, kind: str, index: int | None = None) -> Message:
        """Wait for a session's message of a type, and for a chunk: then not for the acknowledgement of start."""

        def found() -> Message | None:
            messages = self.of(sid, kind)
            if index is not None:
                messages = [
                    m for m in messages if m.get("chunk_index") == index and m.get("status") != "session_started"
                ]
            return next(iter(messages), None)

        await self._until(lambda: found() is not None)
        message = found()
        assert message is not None
        return message

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._news:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._news.wait_for(lambda: condition() or self.closed)
            except TimeoutError:
                raise AssertionError(f"the message did not come; the last ones: {self.messages[-5:]}") from None
        assert condition(), f"the connection was closed; the last messages: {self.messages[-5:]}"

    def of(self, sid: str, kind: str | None = None) -> list[Message]:
        """All messages of a session, or those of one type."""
        return [m for m in self.messages if m.get("session_id") == sid and kind in (None, m["type"])]

    async def start(self, sid: str, **options: Any) -> None:
        await self.send({"action": "start", "session_id": sid, **options})
        ack = await self.find(sid, "ack")
        assert ack["status"] == "session_started"

    async def chunk(self, sid: str, index: int, data: bytes) -> None:
        """Send a chunk, and wait until it is acknowledged."""
        await self.send(chunk(sid, index, data))
        await self.find(sid, "ack", index)

    async def finish(self, sid: str) -> Message:
        await self.send({"action": "finish", "session_id": sid})
        return await self.find(sid, "final_result")

    async def stream(self, sid: str, spoken: Sequence[Utterance], **options: Any) -> Message:
        """Run a whole session: each utterance is a chunk, sent when the one before is acknowledged."""
        await self.start(sid, **options)
        for index, utterance in enumerate(spoken):
            await self.chunk(sid, index, utterance.wav)
        return await self.finish(sid)

    def check(self, sid: str, spoken: Sequence[Utterance]) -> None:
        """Check the messages: each chunk has one acknowledgement and one result, in order, with its own text."""
        indexes = list(range(len(spoken)))
        kinds = {message["type"] for message in self.of(sid)}
        assert kinds == {"ack", "chunk_result", "final_result"}, self.of(sid, "error")
        acks = self.of(sid, "ack")
        assert acks[0]["status"] == "session_started"
        assert [ack["chunk_index"] for ack in acks[1:]] == indexes
        results = self.of(sid, "chunk_result")
        assert [result["chunk_index"] for result in results] == indexes
        assert [result["text"] for result in results] == [utterance.text for utterance in spoken]
        (final,) = self.of(sid, "final_result")
        assert final is self.of(sid)[-1]
        assert final["text"] == " ".join(utterance.text for utterance in spoken)
        assert final["chunk_count"] == len(spoken)


def start(sid: str = "s", **options: Any) -> Message:
    return {"action": "start", "session_id": sid, **options}


def finish(sid: str = "s") -> Message:
    return {"action": "finish", "session_id": sid}


async def errors(ws: WsClient, count: int = 1) -> list[Message]:
    """The errors on the connection, once there are `count`."""
    await until(lambda: sum(message["type"] == "error" for message in ws.messages) >= count)
    return [message for message in ws.messages if message["type"] == "error"]


def addressed(channel: int, index: int, data: bytes) -> bytes:
    return channel.to_bytes(4, "big") + index.to_bytes(8, "big") + data


async def raw(url: str) -> IOStream:
    """A connection from which the test reads when it wants to."""
    host, port = url.split("/")[2].split(":")
    stream = await TCPClient().connect(host, int(port))
    key = base64.b64encode(os.urandom(16)).decode()
    await stream.write(
        f"GET /ws/asr HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    assert (await stream.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    return stream


def said(message: Message) -> bytes:
    """The frame of a message."""
    return frame(TEXT, json.dumps(message).encode())


async def next_text(stream: IOStream) -> bytes:
    size = (await stream.read_bytes(2))[1]
    return await stream.read_bytes(int.from_bytes(await stream.read_bytes(2), "big") if size == 126 else size)


# -- behind the scenes -----------------------------------------------------------------------------------------------


def query(dsn: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Rows from PostgreSQL; none if the table does not exist yet."""
    with contextlib.closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        try:
            cursor.execute(statement, values)
        except psycopg2.errors.UndefinedTable:
            return []
        return list(cursor.fetchall())


def stored(dsn: str, sid: str) -> tuple[Any, ...] | None:
    """(status, text, chunk count) of a session whose end is stored, or None."""
    rows = query(dsn, "SELECT status, final_text, chunk_count FROM asr_sessions WHERE id = %s", sid)
    return rows[0] if rows and rows[0][0] != "recording" else None


def stored_chunks(dsn: str, sid: str) -> list[tuple[int, str | None]]:
    """(index, text) of a session's chunks, in order."""
    return query(dsn, "SELECT chunk_index, text FROM asr_chunks WHERE session_id = %s ORDER BY chunk_index", sid)


def check_stored(dsn: str, sid: str, spoken: Sequence[Utterance], status: str = "done") -> None:
    """Check that the rows of a session are exactly those of its utterances."""
    text = " ".join(utterance.text for utterance in spoken)
    assert stored(dsn, sid) == (status, text, len(spoken))
    assert stored_chunks(dsn, sid) == [(index, utterance.text) for index, utterance in enumerate(spoken)]
    segments = query(
        dsn,
        "SELECT number, chunk_index, text, start_time, end_time FROM asr_segments WHERE session_id = %s ORDER BY 1",
        sid,
    )
    assert [segment[0] for segment in segments] == list(range(len(segments)))
    for index, utterance in enumerate(spoken):
        assert " ".join(segment[2] for segment in segments if segment[1] == index) == utterance.text
    times = [time for segment in segments for time in segment[3:]]
    assert times == sorted(times)
    assert max(times, default=0.0) <= sum(len(utterance.pcm) for utterance in spoken) / 32000 + 0.5 * len(spoken)


def health(port: int) -> Any:
    """The health document, for any status."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/health", timeout=10) as response:
            return json.load(response)
    except urllib.error.HTTPError as exc:
        with exc:
            assert exc.code == 503  # noqa: PT017
            return json.load(exc)


def look(url: str) -> redis.Redis:
    """A client of the system's Redis, for the `with` statement."""
    return redis.Redis.from_url(url, decode_responses=True)
