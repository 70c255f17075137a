"""The connection of a pipeline, with a real Redis, and with one that breaks off or says what nobody asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from asrserver.broker.pipeline import connect
from asrserver.broker.raw_connection import BatchConnection, EncodedCommand, encode

pytestmark = pytest.mark.gen_test(timeout=30)


@asynccontextmanager
async def connected_to(url: str) -> AsyncIterator[BatchConnection]:
    async with connect(url, timeout=5.0) as client:
        connection = await BatchConnection.connect(client)
        yield connection
        if not connection.lost:
            await connection.close()


@asynccontextmanager
async def answering(answers: list[bytes]) -> AsyncIterator[str]:
    """The URL of a server that accepts one connection, and gives these answers, one a read; then it closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"SETINFO" in await reader.read(1 << 16):
            writer.write(b"+OK\r\n+OK\r\n")
        for answer in answers:
            writer.write(answer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_commands_of_both_kinds_have_the_replies_of_redis_py(redis_url: str) -> None:
    encoded = EncodedCommand((b"*3\r\n" + encode(b"SET"), encode(b"key\r\n", b"\x00\r\n")))
    async with connected_to(redis_url) as connection:
        assert await connection.execute(
            [
                ("SET", "number", 1.5),
                ("SET", encoded),
                ("GET", b"key\r\n"),
                ("HSET", "hash", "field", 2, "umlaut", "\u00e4"),
                ("HGETALL", "hash"),
                ("ZADD", "sorted", 0.25, "member"),
                ("ZSCORE", "sorted", "member"),
                ("XADD", "stream", "1-0", "field", "value"),
                ("XREAD", "STREAMS", "stream", "0"),
            ]
        ) == [
            True,
            True,
            b"\x00\r\n",
            2,
            {b"field": b"2", b"umlaut": "\u00e4".encode()},
            1,
            0.25,
            b"1-0",
            [[b"stream", [(b"1-0", {b"field": b"value"})]]],
        ]


async def test_an_error_is_the_reply_to_its_command_alone(redis_url: str) -> None:
    async with connected_to(redis_url) as connection:
        before, error, after = await connection.execute([("SET", "text", "a"), ("INCR", "text"), ("GET", "text")])
        assert (before, after) == (True, b"a")
        assert isinstance(error, redis.ResponseError)
        assert await connection.execute([("GET", "text")]) == [b"a"]


async def test_large_replies_come_in_pieces(redis_url: str) -> None:
    large = bytes(range(256)) * 20_000
    async with connected_to(redis_url) as connection:
        assert await connection.execute([("SET", "large", large), *[("GET", "large")] * 3]) == [
            True,
            large,
            large,
            large,
        ]


async def test_whoever_gives_up_closes_the_connection(redis_url: str) -> None:
    """Else the late reply would be taken for that to the next command."""
    async with connected_to(redis_url) as connection:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.execute([("BLPOP", "nothing", 0)])
        assert connection.lost
        with pytest.raises(redis.ConnectionError):
            await connection.execute([("PING",)])


@pytest.mark.parametrize(
    "answers", [[], [b"+PO"], [b"-LOADING Redis is loading the dataset in memory\r\n"], [b"?\r\n"], [b"+1\r\n+2\r\n"]]
)
async def test_what_is_no_reply_loses_the_connection(answers: list[bytes]) -> None:
    """It ends, before a reply or in it; Redis is not ready; what comes is not its protocol, or is too much."""
    async with answering(answers) as url, connected_to(url) as connection:
        with pytest.raises(redis.ConnectionError):
            await connection.execute([("PING",)])
        assert connection.lost
