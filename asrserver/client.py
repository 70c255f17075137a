"""The Python client: sessions over one WebSocket connection. The command line and the tests use it.

async with await Client.connect("ws://127.0.0.1:8080/ws/asr") as client:
    session = await client.start(language="en")
    await session.send(open("hello.wav", "rb").read())
    print((await session.finish())["text"])
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import orjson
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

#: Chunks of a session that may be sent ahead of their acknowledgement.
WINDOW = 32


def authorization(key: str) -> dict[str, str]:
    """The header that shows an API key; none for an empty one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


class ServerError(Exception):
    """Raised for an error the server reported: `event` is all of it."""

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(f"{event.get('code', 'error')}: {event.get('message', '')}")
        self.event = event


class ConnectionLost(Exception):
    """Raised when the connection ended before what was waited for came."""


class Client:
    """A connection and its sessions."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection
        self._sessions: dict[str, ClientSession] = {}
        self._starting: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def connect(cls, url: str, timeout: float = 10.0, key: str = "") -> Client:
        """Connect, with an API key if given; raises what Tornado raises: OSError, HTTPClientError, TimeoutError."""
        request = HTTPRequest(url, headers=authorization(key), connect_timeout=timeout)
        return cls(await websocket_connect(request, max_message_size=1 << 26))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._connection.close()
        await self._reader

    async def start(self, session_id: str = "", **options: Any) -> ClientSession:
        """Open a session; the options are those of `start` in the protocol. One start at a time."""
        await self._connection.write_message(orjson.dumps({"action": "start", "session_id": session_id, **options}))
        answer = await self._starting.get()
        if answer is None:
            raise ConnectionLost("the connection ended before the session was open")
        if answer["type"] == "error":
            raise ServerError(answer)
        return self._sessions[answer["session_id"]]

    async def _read(self) -> None:
        while (message := await self._connection.read_message()) is not None:
            event = orjson.loads(message)
            session = self._sessions.get(event.get("session_id", ""))
            if event.get("status") == "session_started":
                self._sessions[event["session_id"]] = ClientSession(self, event["session_id"])
                self._starting.put_nowait(event)
            elif session is not None:
                session.take(event)
                if event["type"] == "final_result":
                    del self._sessions[session.id]
            elif event["type"] == "error":
                self._starting.put_nowait(event)
        self._starting.put_nowait(None)
        for session in self._sessions.values():
            session.take(None)

    async def write(self, message: dict[str, Any]) -> None:
        await self._connection.write_message(orjson.dumps(message))


class ClientSession:
    """One session: chunks in, events out. Events wait until they are read."""

    def __init__(self, client: Client, sid: str) -> None:
        self.id = sid
        self.next_index = 0
        self._client = client
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._unacknowledged: set[int] = set()
        self._room = asyncio.Semaphore(WINDOW)

    def take(self, event: dict[str, Any] | None) -> None:
        """An event of this session; None when the connection has ended."""
        index = (event or {}).get("chunk_index")
        if index in self._unacknowledged:  # acknowledged, or refused
            self._unacknowledged.discard(index)
            self._room.release()
        if event is None:
            for _ in range(WINDOW):
                self._room.release()
        if event is None or event["type"] != "ack":
            self._events.put_nowait(event)

    async def send(self, data: bytes) -> int:
        """Send the next chunk, once there is room for it; its index. Raises WebSocketClosedError."""
        await self._room.acquire()
        index, self.next_index = self.next_index, self.next_index + 1
        self._unacknowledged.add(index)
        await self._client.write(
            {
                "action": "chunk",
                "session_id": self.id,
                "chunk_index": index,
                "audio_data": b64encode(data).decode(),
            }
        )
        return index

    async def end(self) -> None:
        """Say that no more audio comes; `final_result` follows."""
        await self._client.write({"action": "finish", "session_id": self.id})

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Every event up to and with `final_result`; raises ConnectionLost when it does not come."""
        while True:
            event = await self._events.get()
            if event is None:
                raise ConnectionLost("the connection ended before the final result")
            yield event
            if event["type"] == "final_result":
                return

    async def finish(self) -> dict[str, Any]:
        """End the session and wait for its `final_result`."""
        await self.end()
        async for event in self.events():
            last = event
        return last
