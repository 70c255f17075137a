"""The clients of a run: each holds one session after another, and writes into the book what it is told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import HTTPTimeoutError
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from asrserver.client import Client, ClientSession, ConnectionLost, ConnectionObserver, ServerError
from tests.faults.book import Book, Event, Talk
from tests.recordings import Utterance

#: Seconds that a client tries to get a connection, or to get a session opened: longer than any fault.
PATIENCE = 240.0

#: Seconds between two attempts of a client that does not resume.
PAUSE = 1.0

#: Bytes of a piece of a live stream, 300 ms, and how many times faster than speech it is sent.
PIECE = 9600
SPEED = 2.0

#: Silence between two utterances of a live stream, in bytes: a second.
SILENCE = bytes(32000)


@dataclass
class Plan:
    """What all clients share.

    Attributes:
        urls: Of the gateways.
        utterances: What they may say.
        book: Where everything is noted.
        pause: Seconds between two chunks of a session, at most.
        special: Marked recordings, each to be sent once by whichever client speaks next: (bytes, text or None).
        until: When no new session begins (time.monotonic()).
    """

    urls: list[str]
    utterances: Sequence[Utterance]
    book: Book
    pause: float
    special: list[tuple[bytes, str | None]]
    until: float


class Listener(ConnectionObserver):
    """Notes acknowledgements and refusals as they come over the connection."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def refused(self, reason: Exception, pause: float) -> None:
        self._book.refusals[type(reason).__name__] += 1

    def received(self, event: Event) -> None:
        talk = self._book.talks.get(event.get("session_id", ""))
        if talk is not None and event["type"] == "ack":
            talk.heard(event)
        elif event["type"] == "error" and "seq" not in event:
            self._book.refusals[event["code"]] += 1


class Resuming:
    """A client that resumes, with the Python client: chunks, or a live stream."""

    def __init__(self, number: int, seed: int, plan: Plan, live: bool) -> None:
        self._name = f"r{seed}-{number}"
        self._dice = random.Random(f"{seed} {number}")
        self._plan = plan
        self._live = live

    async def run(self) -> None:
        """Hold sessions until the end."""
        count = 0
        while time.monotonic() < self._plan.until:
            urls = self._plan.urls.copy()
            self._dice.shuffle(urls)
            try:
                client = await Client.connect(
                    urls, reconnect_timeout=PATIENCE, retry=True, observer=Listener(self._plan.book)
                )
            except ConnectionLost:
                self._plan.book.refusals["no connection"] += 1
                continue
            async with client:
                for _ in range(self._dice.randint(1, 3)):
                    if time.monotonic() < self._plan.until:
                        await self._talk(client, f"{self._name}-{count}")
                        count += 1

    async def _talk(self, client: Client, sid: str) -> None:
        talk = self._plan.book.open(sid, self._live, resumes=True)
        options = {"mode": "stream", "format": "pcm_s16le", "partials": True} if self._live else {}
        try:
            session = await client.start(sid, **options)
        except (ServerError, ConnectionLost) as exc:
            talk.failure = f"not opened: {exc}"
            return
        speaking = asyncio.ensure_future((self._stream if self._live else self._speak)(session, talk))
        try:
            async for event in session.events():
                talk.got(event)
        except (ServerError, ConnectionLost) as exc:
            talk.failure = str(exc)
        finally:
            speaking.cancel()
            with contextlib.suppress(asyncio.CancelledError, ServerError, ConnectionLost):
                await speaking

    async def _speak(self, session: ClientSession, talk: Talk) -> None:
        for _ in range(self._dice.randint(3, 8)):
            one = self._dice.choice(self._plan.utterances)
            data, text = self._plan.special.pop() if self._plan.special else (one.wav, one.text)
            talk.send(text)
            await session.send(data)
            await asyncio.sleep(self._dice.uniform(0, self._plan.pause))
        talk.finishing = time.monotonic()
        await session.end()

    async def _stream(self, session: ClientSession, talk: Talk) -> None:
        said = [self._dice.choice(self._plan.utterances) for _ in range(self._dice.randint(3, 6))]
        talk.said = [one.text for one in said]
        pcm = b"".join(one.pcm + SILENCE for one in said)
        for at in range(0, len(pcm), PIECE):
            talk.send("")
            await session.send(pcm[at : at + PIECE])
            await asyncio.sleep(PIECE / 32000 / SPEED)
        talk.finishing = time.monotonic()
        await session.end()


class Plain:
    """A client that knows no resuming: a lost connection ends its session, which the server must store all the same."""

    def __init__(self, number: int, seed: int, plan: Plan) -> None:
        self._name = f"p{seed}-{number}"
        self._dice = random.Random(f"{seed} plain {number}")
        self._plan = plan

    async def run(self) -> None:
        """Hold sessions until the end."""
        count = 0
        while time.monotonic() < self._plan.until:
            request = HTTPRequest(self._dice.choice(self._plan.urls), connect_timeout=10, request_timeout=10)
            try:
                connection = await websocket_connect(request, max_message_size=1 << 26)
            except (OSError, HTTPTimeoutError, Exception) as exc:
                self._plan.book.refusals[type(exc).__name__] += 1
                await asyncio.sleep(PAUSE)
                continue
            try:
                while time.monotonic() < self._plan.until and await self._talk(connection, f"{self._name}-{count}"):
                    count += 1
                count += 1
            finally:
                connection.close()
            await asyncio.sleep(PAUSE)

    async def _talk(self, connection: WebSocketClientConnection, sid: str) -> bool:
        """Hold one session, each chunk after the result of the one before; False if the connection cannot be used."""
        talk = self._plan.book.open(sid, live=False, resumes=False)
        try:
            await self._say(connection, {"action": "start", "session_id": sid})
            if not await self._heard(connection, talk, lambda event: event.get("status") == "session_started"):
                return False
            for index in range(self._dice.randint(2, 6)):
                one = self._dice.choice(self._plan.utterances)
                talk.send(one.text)
                audio = base64.b64encode(one.wav).decode()
                await self._say(
                    connection, {"action": "chunk", "session_id": sid, "chunk_index": index, "audio_data": audio}
                )
                if not await self._heard(connection, talk, lambda _, i=index: bool(talk.chunks[i].answers)):
                    return False
                await asyncio.sleep(self._dice.uniform(0, self._plan.pause))
            talk.finishing = time.monotonic()
            await self._say(connection, {"action": "finish", "session_id": sid})
            return await self._heard(connection, talk, lambda _: bool(talk.finals))
        except WebSocketClosedError:
            talk.dropped = True
            return False

    async def _say(self, connection: WebSocketClientConnection, message: Event) -> None:
        await connection.write_message(orjson.dumps(message).decode())

    async def _heard(self, connection: WebSocketClientConnection, talk: Talk, wanted: Any) -> bool:
        """Listen until what is wanted has come; False if it will not."""
        while True:
            text = await connection.read_message()
            if text is None:
                talk.dropped = True
                return False
            event = orjson.loads(text)
            if event["type"] == "ack":
                talk.heard(event)
            elif event["type"] == "error" and "seq" not in event:
                self._plan.book.refusals[event["code"]] += 1
                talk.dropped = True  # this client knows no second attempt
                return False
            else:
                talk.got(event)
            if wanted(event):
                return True
