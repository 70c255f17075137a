"""WebSocket frames in pieces, fragmented, in floods, and malformed."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tornado.iostream import IOStream, StreamBufferFullError

from asrserver.protocol.frames import BINARY, FRAMES_PER_TURN, LARGE_MESSAGE, TEXT, FrameProtocol, Params
from tests.waiting import until
from tests.ws_client import frame

pytestmark = pytest.mark.gen_test(timeout=20)

CLOSE, PING, PONG = 8, 9, 10


class Handler:
    """A handler for FrameProtocol. `wait` is awaited after each message, or run of binary ones."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.together: list[int] = []  # how many binary messages were handed over at once
        self.ended = False
        self.failed = False
        self.wait: Callable[[], Awaitable[None] | None] = lambda: None

    def on_message(self, message: Any) -> Awaitable[None] | None:
        self.got.append(message)
        return self.wait()

    def on_binaries(self, messages: list[bytes]) -> Awaitable[None] | None:
        self.together.append(len(messages))
        self.got += messages
        return self.wait()

    def on_ping(self, data: bytes) -> None:
        self.got.append(("ping", data))

    def on_pong(self, data: bytes) -> None:
        self.got.append(("pong", data))

    def on_ws_connection_close(self, code: int | None, reason: str | None) -> None:
        self.ended = True

    def log_exception(self, *_what: Any) -> None:
        self.failed = True


class Ends:
    """A protocol whose other end is a plain socket."""

    def __init__(self, limit: int | None = None, mask: bool = False, largest: int = 1 << 20, sent: bytes = b"") -> None:
        ours, self.far = socket.socketpair()
        self.far.setblocking(False)
        stream = IOStream(ours, max_write_buffer_size=limit)
        if sent:
            self.far.send(sent)
            stream._read_to_buffer()
        self.handler = Handler()
        self.wire = FrameProtocol(self.handler, mask, Params(max_message_size=largest))
        self.wire.stream = stream
        self.task = asyncio.ensure_future(self.wire._receive_frame_loop())

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.far, data)

    async def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await asyncio.get_running_loop().sock_recv(self.far, size - len(data))
        return data

    async def over(self) -> None:
        await until(lambda: self.handler.ended)
        self.far.close()

    async def close(self) -> None:
        self.far.close()
        await self.over()


MESSAGES = [
    frame(BINARY, b"small"),
    frame(TEXT, "grüße".encode()),
    frame(BINARY, bytes(range(256)) * 2),
    frame(BINARY, b"x" * 70_000),
    frame(BINARY, b""),
    frame(BINARY, b"one ", False) + frame(PING, b"!") + frame(0, b"message ", False) + frame(0, b"of three"),
]
GOT = [b"small", "grüße", bytes(range(256)) * 2, b"x" * 70_000, b"", ("ping", b"!"), b"one message of three"]


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
async def test_frames_in_pieces_of_any_size(step: int) -> None:
    ends = Ends()
    data = b"".join(MESSAGES)
    await until(lambda: getattr(ends.wire.stream, "_transport", None) is not None)
    for at in range(0, len(data), step):
        ends.wire.feed(data[at : at + step])
        while ends.wire._held is not None:  # others have their turn
            await asyncio.sleep(0)
    assert ends.handler.got == GOT
    assert await ends.read(3) == b"\x8a\x01!"
    await ends.close()
    assert ends.handler.ended


@pytest.mark.parametrize("opcode", [BINARY, TEXT])
async def test_the_last_step_of_a_large_message_copies_it_once(opcode: int) -> None:
    """It is unmasked as it comes, and handled in a turn of its own: all at once held up the event loop."""
    size = 2 * LARGE_MESSAGE
    ends = Ends(largest=size)
    await until(lambda: getattr(ends.wire.stream, "_transport", None) is not None)
    data = frame(opcode, b"x" * size)
    for at in range(0, size, 100_003):
        ends.wire.feed(data[at : min(at + 100_003, size)])
    tracemalloc.start()
    try:
        ends.wire.feed(data[size:])
        assert size <= tracemalloc.get_traced_memory()[1] < 1.5 * size
    finally:
        tracemalloc.stop()
    assert not ends.handler.got
    await until(lambda: ends.handler.got)
    assert ends.handler.got == [b"x" * size if opcode == BINARY else "x" * size]
    await ends.close()


async def test_binary_messages_of_one_read_are_handed_over_together() -> None:
    """Other connections have their turn as often as before."""
    ends = Ends()
    parts: list[str | bytes] = ["0", *[b"%d" % n for n in range(1, 4)], "4", *[b"%d" % n for n in range(5, 20)]]
    data = [frame(BINARY, part) if isinstance(part, bytes) else frame(TEXT, part.encode()) for part in parts]
    await ends.send(b"".join(data) + frame(BINARY, b"20")[:4])
    await until(lambda: len(ends.handler.got) == 20)
    assert ends.handler.got == parts
    assert ends.handler.together == [
        3,
        FRAMES_PER_TURN - 5,
        FRAMES_PER_TURN,
        15 - (FRAMES_PER_TURN - 5) - FRAMES_PER_TURN,
    ]
    await ends.send(frame(BINARY, b"20")[4:])
    await until(lambda: ends.handler.got[20:] == [b"20"])
    await ends.close()


async def test_what_came_with_the_upgrade_is_taken_first() -> None:
    """Tornado's stream has already read it."""
    ends = Ends(sent=frame(TEXT, b"first") + frame(TEXT, b"second")[:5])
    await ends.send(frame(TEXT, b"second")[5:])
    await until(lambda: len(ends.handler.got) == 2)
    assert ends.handler.got == ["first", "second"]
    await ends.close()


async def test_the_next_message_waits_for_what_the_last_one_does() -> None:
    ends, gates = Ends(), [asyncio.Event(), asyncio.Event()]
    waits = iter([gates[0].wait(), None, gates[1].wait(), None])
    ends.handler.wait = lambda: next(waits)  # type: ignore[assignment, return-value]
    await ends.send(b"".join(frame(TEXT, b"%d" % number) for number in range(3)))
    await until(lambda: ends.handler.got)
    await ends.send(frame(TEXT, b"3"))
    for number, gate in enumerate(gates):
        await asyncio.sleep(0.02)
        assert len(ends.handler.got) == 1 + 2 * number
        gate.set()
    await until(lambda: len(ends.handler.got) == 4)
    assert ends.handler.got == ["0", "1", "2", "3"]
    await ends.close()


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (1002, frame(BINARY | 0x40, b"compressed")),
        (1002, frame(3, b"an opcode that is none")),
        (1002, frame(0, b"a part of nothing")),
        (1007, frame(TEXT, b"\xff")),
        (1002, frame(TEXT, b"in parts", False) + frame(TEXT, b"another")),
        (1002, frame(PING, b"in parts", False)),
        (1002, frame(PING, b"x" * 126)),
        (1002, b"\x81\x08unmasked"),
        (1002, b"\x82\x08unmasked"),
        (1002, b"\x88\x02\x03\xe8"),
        (1009, frame(BINARY, b"x" * (1001))),
        (1009, frame(BINARY, b"x" * 1000, False) + frame(0, b"x")),
    ],
)
async def test_what_is_no_frame_ends_the_connection(code: int, data: bytes) -> None:
    """The client gets the reason."""
    ends = Ends(largest=1000)
    await ends.send(frame(TEXT, b"before") + data + frame(TEXT, b"after"))
    opcode, size = await ends.read(2)
    assert (opcode, (await ends.read(size))[:2]) == (0x80 | CLOSE, code.to_bytes(2, "big"))
    await ends.over()
    assert ends.handler.got == ["before"]


@pytest.mark.parametrize("payload", [b"", b"masked"])
async def test_a_client_refuses_masked_frames(payload: bytes) -> None:
    ends = Ends(mask=True)
    await ends.send(b"\x82\x06binary" + b"\x81\x04text" + frame(BINARY, payload))
    await ends.over()
    assert ends.handler.got == [b"binary", "text"]
    assert not ends.handler.failed


async def test_a_message_that_raises_ends_the_connection() -> None:
    ends = Ends()
    ends.handler.wait = lambda: 1 / 0  # type: ignore[assignment, return-value]
    await ends.send(frame(TEXT, b"x"))
    await ends.over()
    assert ends.handler.failed


@pytest.mark.parametrize("size", [5, 200, 70_000])
async def test_what_a_client_writes_is_masked(size: int) -> None:
    """It is masked before the transport is there and after that."""
    one, two = Ends(mask=True), Ends()
    payload = bytes(number % 251 for number in range(size))
    for turn in range(2):
        one.wire.send(BINARY, payload)
        sent = await one.read(len(frame(BINARY, payload)))
        assert payload[:5] not in sent
        await two.send(sent)
        await until(lambda turn=turn: len(two.handler.got) > turn)
    assert two.handler.got == [payload] * 2
    await one.close()
    await two.close()


async def test_who_does_not_read_costs_a_bounded_buffer() -> None:
    """If the client reads in time, nothing is missing."""
    ends = Ends(limit=1 << 16)
    await until(lambda: getattr(ends.wire.stream, "_transport", None) is not None)
    sent = 0
    while not ends.wire.blocked:
        ends.wire.send(BINARY, bytes(1000))
        sent += 1
    for _ in range(64):
        ends.wire.send(BINARY, bytes(1000))
        sent += 1
    with pytest.raises(StreamBufferFullError):
        ends.wire.send(BINARY, bytes(2000))
    drained = asyncio.ensure_future(ends.wire.drained())
    for _ in range(sent):
        await ends.read(1004)
    await drained
    assert not ends.wire.blocked
    await ends.close()
