"""Conformance of the frames to RFC 6455: cases after those of the Autobahn test suite, numbered by its sections.

The suite itself runs on Python 2 only, so that its cases are made here. Sections 12 and 13 are about compression, which
is not offered. In 6.4 a message that is no UTF-8 may be refused as soon as that is seen, or at its end, as here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.protocol.test_frames import Ends
from tests.waiting import until
from tests.ws_client import frame

pytestmark = pytest.mark.gen_test(timeout=20)

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

STAR = b"*"
SIGN = "κόσμε Hello-µ@ßöäüàá-UTF-8!!"
LONG = SIGN * 300


class Case(NamedTuple):
    """What is sent, in pieces of `step` bytes; what is taken and answered; the close code, if any."""

    number: str
    sent: bytes
    got: list[Any] = []  # noqa: RUF012
    answered: bytes = b""
    code: int | None = None
    step: int = 1 << 20


def pong(data: bytes) -> bytes:
    return bytes((0x80 | PONG, len(data))) + data


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def cut(opcode: int, data: bytes, size: int, between: bytes = b"") -> bytes:
    """A message in fragments."""
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    frames = [frame(opcode if not n else 0, part, n == len(parts) - 1) for n, part in enumerate(parts)]
    return between.join(frames)


SIZES = (0, 125, 126, 127, 128, 65535, 65536)
HELLO = frame(TEXT, b"Hello, world!")

CASES = [
    *(Case(f"1.1.{n}", frame(TEXT, STAR * size), ["*" * size]) for n, size in enumerate(SIZES, 1)),
    Case("1.1.8", frame(TEXT, STAR * 65536), ["*" * 65536], step=997),
    *(Case(f"1.2.{n}", frame(BINARY, b"\xfe" * size), [b"\xfe" * size]) for n, size in enumerate(SIZES, 1)),
    Case("1.2.8", frame(BINARY, b"\xfe" * 65536), [b"\xfe" * 65536], step=997),
    Case("2.1", frame(PING, b""), [("ping", b"")], pong(b"")),
    Case("2.2", frame(PING, b"Hello"), [("ping", b"Hello")], pong(b"Hello")),
    Case("2.3", frame(PING, b"\x00\xff\xfe"), [("ping", b"\x00\xff\xfe")], pong(b"\x00\xff\xfe")),
    Case("2.4", frame(PING, b"\xfe" * 125), [("ping", b"\xfe" * 125)], pong(b"\xfe" * 125)),
    Case("2.5", frame(PING, b"\xfe" * 126), code=1002),
    Case("2.6", frame(PING, b"\xfe" * 125), [("ping", b"\xfe" * 125)], pong(b"\xfe" * 125), step=1),
    Case("2.7", frame(PONG, b"") + HELLO, [("pong", b""), "Hello, world!"]),
    Case("2.8", frame(PONG, b"x") + HELLO, [("pong", b"x"), "Hello, world!"]),
    Case("2.9", frame(PONG, b"x") + frame(PING, b"y"), [("pong", b"x"), ("ping", b"y")], pong(b"y")),
    Case(
        "2.10",
        b"".join(frame(PING, b"%d" % n) for n in range(10)),
        [("ping", b"%d" % n) for n in range(10)],
        b"".join(pong(b"%d" % n) for n in range(10)),
    ),
    Case("3.1", frame(TEXT | 0x10, b"x"), code=1002),
    Case("3.2", HELLO + frame(TEXT | 0x20, b"x") + frame(PING, b""), ["Hello, world!"], code=1002),
    Case("3.3", HELLO + frame(TEXT | 0x30, b"x"), ["Hello, world!"], code=1002, step=1),
    Case("3.4", frame(BINARY | 0x40, b"x"), code=1002, step=1),
    Case("3.5", frame(BINARY | 0x50, b"x"), code=1002),
    Case("3.6", frame(PING | 0x60, b"x"), code=1002),
    Case("3.7", frame(CLOSE | 0x70, b""), code=1002),
    *(Case(f"4.1.{n}", HELLO + frame(2 + n, b"x"), ["Hello, world!"], code=1002) for n in range(1, 6)),
    *(Case(f"4.2.{n}", HELLO + frame(10 + n, b"x"), ["Hello, world!"], code=1002) for n in range(1, 6)),
    Case("5.1", cut(PING, b"fragment1fragment2", 9), code=1002),
    Case("5.2", cut(PONG, b"fragment1fragment2", 9), code=1002),
    Case("5.3", cut(TEXT, b"fragment1fragment2", 9), ["fragment1fragment2"]),
    Case("5.5", cut(TEXT, b"fragment1fragment2", 9), ["fragment1fragment2"], step=1),
    Case(
        "5.6",
        cut(TEXT, b"fragment1fragment2", 9, frame(PING, b"p")),
        [("ping", b"p"), "fragment1fragment2"],
        pong(b"p"),
    ),
    Case(
        "5.8",
        cut(TEXT, b"fragment1fragment2", 9, frame(PING, b"p")),
        [("ping", b"p"), "fragment1fragment2"],
        pong(b"p"),
        step=1,
    ),
    Case("5.9", frame(0, b"x") + HELLO, code=1002),
    Case("5.11", frame(0, b"x") + HELLO, code=1002, step=1),
    Case("5.12", frame(0, b"x", False) + HELLO, code=1002),
    Case("5.15", cut(TEXT, b"onetwo", 3) + frame(0, b"x", False) + HELLO, ["onetwo"], code=1002),
    Case("5.18", frame(TEXT, b"one", False) + frame(TEXT, b"two"), code=1002),
    Case(
        "5.19",
        cut(TEXT, b"fragment1fragment2fragment3", 9, frame(PING, b"p")),
        [("ping", b"p"), ("ping", b"p"), "fragment1fragment2fragment3"],
        pong(b"p") * 2,
    ),
    Case("6.1.1", frame(TEXT, b""), [""]),
    Case("6.1.2", frame(TEXT, b"", False) + frame(0, b"", False) + frame(0, b""), [""]),
    Case("6.1.3", frame(TEXT, b"", False) + frame(0, b"middle", False) + frame(0, b""), ["middle"]),
    Case("6.2.1", frame(TEXT, SIGN.encode()), [SIGN]),
    Case("6.2.2", cut(TEXT, SIGN.encode(), 11), [SIGN]),
    Case("6.2.3", cut(TEXT, SIGN.encode(), 1), [SIGN]),
    Case("6.2.4", cut(TEXT, "κόσμε".encode(), 1), ["κόσμε"], step=1),
    Case("6.3.1", frame(TEXT, "κόσμε".encode() + b"\xed\xa0\x80edited"), code=1007),
    Case("6.3.2", cut(TEXT, "κόσμε".encode() + b"\xed\xa0\x80edited", 1), code=1007),
    Case("6.4.1", cut(TEXT, "κόσμε".encode() + b"\xf4\x90\x80\x80edited", 11), code=1007),
    *(
        Case(f"6.{section}", frame(TEXT, data), [data.decode()])
        for section, data in {
            "5.1": "κόσμε".encode(),
            "6.2": b"\xce\xba",
            "7.1": b"\x00",
            "7.4": b"\xf0\x90\x80\x80",
            "9.1": b"\x7f",
            "9.2": b"\xdf\xbf",
            "9.3": b"\xef\xbf\xbf",
            "9.4": b"\xf4\x8f\xbf\xbf",
            "11.1": b"\xed\x9f\xbf",
            "11.2": b"\xee\x80\x80",
            "11.3": b"\xef\xbf\xbd",
            "22.1": b"\xef\xbf\xbe",
            "23.1": b"\xef\xbf\xbb",
        }.items()
    ),
    *(
        Case(f"6.{section}", frame(TEXT, data), code=1007)
        for section, data in {
            "6.1": b"\xce",
            "6.4": b"\xce\xba\xe1",
            "8.1": b"\xf8\x88\x80\x80\x80",
            "8.2": b"\xfc\x84\x80\x80\x80\x80",
            "10.1": b"\xf7\xbf\xbf\xbf",
            "11.5": b"\xf4\x90\x80\x80",
            "12.1": b"\x80",
            "12.3": b"\x80\xbf",
            "13.1": b"\xc0 \xc1 \xc2 ",
            "13.3": b"\xf0 \xf1 ",
            "14.1": b"\xc0",
            "14.2": b"\xe0\x80",
            "14.6": b"\xdf",
            "16.1": b"\xfe",
            "16.2": b"\xff",
            "17.1": b"\xc0\xaf",
            "17.2": b"\xe0\x80\xaf",
            "18.1": b"\xc1\xbf",
            "19.1": b"\xc0\x80",
            "20.1": b"\xed\xa0\x80",
            "20.7": b"\xed\xbf\xbf",
            "21.1": b"\xed\xa0\x80\xed\xb0\x80",
        }.items()
    ),
    Case("7.1.1", HELLO + close(1000), ["Hello, world!"], code=1000),
    Case("7.1.3", close(1000) + frame(PING, b"x"), code=1000),
    Case("7.1.4", close(1000) + HELLO, code=1000),
    Case("7.1.5", frame(TEXT, b"one", False) + close(1000) + frame(0, b"two"), code=1000),
    Case("7.3.1", frame(CLOSE, b""), code=0),
    Case("7.3.2", frame(CLOSE, b"x"), code=1002),
    Case("7.3.3", close(1000), code=1000),
    Case("7.3.4", close(1000, b"Hello, world!"), code=1000),
    Case("7.3.5", close(1000, STAR * 123), code=1000),
    Case("7.3.6", close(1000, STAR * 124), code=1002),
    Case("7.5.1", close(1000, b"\xce\xba\xed\xa0\x80"), code=1007),
    *(
        Case(f"7.7.{n}", close(code), code=code)
        for n, code in enumerate((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1)
    ),
    *(
        Case(f"7.9.{n}", close(code), code=1002)
        for n, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1)
    ),
    Case("7.13.1", close(5000), code=1002),
    *(
        Case(f"9.1.{n}", frame(TEXT, STAR * size), ["*" * size])
        for n, size in enumerate((1 << 16, 1 << 18, 1 << 20, 1 << 22), 1)
    ),
    Case("9.2.6", frame(BINARY, b"\xfe" * (16 << 20)), [b"\xfe" * (16 << 20)]),
    Case("9.3.1", cut(TEXT, STAR * (1 << 20), 64), ["*" * (1 << 20)]),
    Case("9.4.5", cut(BINARY, b"\xfe" * (4 << 20), 4096), [b"\xfe" * (4 << 20)]),
    Case("9.5.1", frame(TEXT, LONG.encode()), [LONG], step=64),
    Case("9.7.1", frame(TEXT, b"") * 1000, [""] * 1000),
    Case("9.8.6", frame(BINARY, b"x" * 4096) * 300, [b"x" * 4096] * 300),
    Case("10.1.1", cut(TEXT, STAR * 65536, 1300), ["*" * 65536]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.number for case in CASES])
async def test_case(case: Case) -> None:
    ends = Ends(largest=32 << 20)
    await until(lambda: getattr(ends.wire.stream, "_transport", None) is not None)
    try:
        for at in range(0, len(case.sent), case.step):
            await ends.send(case.sent[at : at + case.step])
    except OSError:  # it was closed in the middle, as it must be
        assert case.code is not None
    if case.answered:
        assert await ends.read(len(case.answered)) == case.answered
    if case.code is None:
        await until(lambda: len(ends.handler.got) >= len(case.got))
        assert not ends.handler.ended
        await ends.close()
    else:
        opcode, size = await ends.read(2)
        assert opcode == 0x80 | CLOSE
        payload = await ends.read(size) if size else b""
        assert int.from_bytes(payload[:2], "big") == case.code
        ends.far.close()
        await until(lambda: ends.handler.ended)
    assert ends.handler.got == case.got
    assert not ends.handler.failed
