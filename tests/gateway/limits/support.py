"""Clients that reach limits, and one that must not notice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from asrserver.auth.keys import KeyLimits, KeysFile
from tests.waiting import until
from tests.ws_client import Message, WsClient

#: A tenth of a second of PCM.
PIECE = bytes(3200)


class Keyed:
    """A keys file with a limited key and an unlimited one."""

    def __init__(self, path: Path, limits: KeyLimits) -> None:
        self.file = KeysFile(str(path))
        self.limited, self.text = self.file.create("limited", limits, operator=False)
        self.free, self.free_text = self.file.create("free", KeyLimits(), operator=False)


async def connect(url: str, key: str = "") -> WsClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return WsClient(await websocket_connect(HTTPRequest(url, headers=headers), max_message_size=1 << 26))


async def refusal(url: str, key: str = "") -> tuple[int, Message]:
    """The status and the error with which a connection is refused; it has a Retry-After."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with pytest.raises(HTTPClientError) as refused:
        await websocket_connect(HTTPRequest(url, headers=headers))
    response = refused.value.response
    if response is None or not response.body:  # Tornado's WebSocket client does not read it
        response = await AsyncHTTPClient().fetch(
            HTTPRequest(
                url.replace("ws", "http", 1),
                headers={
                    **headers,
                    "Upgrade": "websocket",
                    "Connection": "Upgrade",
                    "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
                },
            ),
            raise_error=False,
        )
    assert int(response.headers["Retry-After"]) >= 1
    return response.code, orjson.loads(response.body)["error"]


async def error(ws: WsClient, code: str) -> Message:
    """Wait for the connection's first error with this code."""

    def found() -> Message | None:
        return next((message for message in ws.messages if message.get("code") == code), None)

    message: Message = await until(found, what=f"an error {code}")
    return message


@contextlib.asynccontextmanager
async def bystander(url: str, key: str = "") -> AsyncIterator[Callable[[], int]]:
    """A client that sends chunk after chunk; yields a function that counts the acknowledged ones.

    At the end every chunk must have been acknowledged, in order, and nothing else may have come.
    """
    async with await connect(url, key) as quiet:
        await quiet.start("bystander")
        stop = False

        async def run() -> int:
            index = 0
            while not stop:
                await quiet.chunk("bystander", index, PIECE[:32])  # so little that it is not ahead itself
                index += 1
            return index

        running = asyncio.ensure_future(run())
        try:
            yield lambda: len(quiet.messages) - 1
        finally:
            stop = True
            sent = await running
        assert [message.get("chunk_index") for message in quiet.messages[1:]] == list(range(sent))
