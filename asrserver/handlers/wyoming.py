"""The Wyoming port: translates the protocol of Home Assistant (protocol/wyoming.py) into sessions of the gateway.

A connection is a bare TCP socket: the protocol has neither keys nor TLS. Each utterance, from audio-start to
audio-stop, is a session. Its audio goes in as it comes, and it is always answered with a transcript, whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Mapping
from typing import Any

from asrserver import __version__
from asrserver.errors import AsrError, BadRequest, Refused, Unavailable
from asrserver.gateway.gateway import Gateway
from asrserver.handlers.accepting import Acceptor
from asrserver.handlers.wyoming_utterance import ANSWER_SECONDS, Utterance
from asrserver.process.aio import cancel_and_wait, until
from asrserver.protocol import wyoming
from asrserver.protocol.wyoming import EventParser, TranscribeRequest, WireEvent

log = logging.getLogger("asrserver.wyoming")

#: Bytes that are read at a time.
READ_BYTES = 1 << 16

#: Bytes that wait for a client that does not read; then it is cut. Its answers are short.
MAX_UNREAD = 1 << 16

#: Seconds in which an event must be complete, or the next piece of its payload must come.
EVENT_SECONDS = 30.0

#: Seconds that describe waits for a worker: Home Assistant waits for one, and asks three times.
DESCRIBE_SECONDS = 0.8


class WyomingConnection:
    """One connection.

    Args:
        server: The server that accepted it.
        reader, writer: Its streams.
    """

    def __init__(self, server: WyomingServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.gateway = server.gateway
        self._server = server
        self._reader = reader
        self._writer = writer
        self._address = str((writer.get_extra_info("peername") or ("",))[0])
        self._parser = EventParser(self.gateway.settings.max_message)
        self._asked = TranscribeRequest()
        self._utterance: Utterance | None = None
        self._count = 0  # utterances
        self._kept = 0  # bytes of an event that is not whole

    @property
    def is_idle(self) -> bool:
        """Whether no utterance is open, and no answer owed."""
        return self._utterance is None or self._utterance.task.done()

    async def run(self) -> None:
        """Serve the connection until it ends."""
        try:
            release = await self.gateway.connect(self._address, None)
        except (Refused, Unavailable) as exc:
            self.refuse(exc)
            self.close()
            return
        log.info("connection open from %s", self._address)
        try:
            await self._read()
            utterance = self._utterance
            if utterance is not None and utterance.stopped and not self._writer.is_closing():
                await asyncio.wait([utterance.task], timeout=ANSWER_SECONDS)  # a client may end its side, and wait
        except (BadRequest, Unavailable) as exc:
            self.refuse(exc)
        except OSError:
            pass  # the client is gone
        except Exception:
            log.exception("a connection failed")
        finally:
            if self._utterance is not None:
                self._utterance.cancel()
            try:
                await self._end()
            finally:
                self.gateway.held.add("", -self._kept)
                release()
            log.info("connection closed from %s utterances=%d", self._address, self._count)

    # -- what comes ----------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Take events until the client ends its side, or sends nothing for too long; raises BadRequest."""
        idle = self.gateway.settings.idle_timeout or math.inf
        due = math.inf  # by when the event must be whole that has begun
        while True:
            now = time.monotonic()
            seconds = min(idle, max(0.0, due - now))
            try:
                async with asyncio.timeout(None if seconds == math.inf else seconds):
                    data = await self._reader.read(READ_BYTES)
            except TimeoutError:
                if due != math.inf:
                    raise BadRequest("bad_request", f"an event was not whole after {EVENT_SECONDS:g} s") from None
                if self._owes_answer:
                    continue
                return
            if not data:
                return
            for event in self._parser.feed(data):
                await self._take(event)
                due = math.inf
            self._count_kept()
            if not self._parser.in_event:
                due = math.inf
            elif due == math.inf:
                due = time.monotonic() + EVENT_SECONDS

    def _count_kept(self) -> None:
        """Count what is kept of an event that is not whole; raises Unavailable if there is no room for it."""
        before, self._kept = self._kept, self._parser.kept
        if self.gateway.held.grew("", before, self._kept):
            raise Unavailable("overloaded", "too many large events are coming in: send it again later", 2.0)

    async def _take(self, event: WireEvent) -> None:
        match event.type:
            case "audio-chunk":
                await (await self._current()).add(event)
            case "audio-start":
                await self._begin(event.data)
            case "audio-stop":
                (await self._current()).stop()
            case "transcribe":
                self._transcribe(TranscribeRequest.parse(event.data))
            case "describe":
                await self._describe()
            case "ping":
                self.send(wyoming.pong(event.data.get("text")))
                await self._drain()

    async def _current(self) -> Utterance:
        """The open utterance; a new one where none is: not every client sends audio-start."""
        if self._utterance is None or self._utterance.stopped:
            return await self._begin({})
        return self._utterance

    async def _begin(self, beginning: Mapping[str, Any]) -> Utterance:
        """Begin an utterance: after the answer to the one before, or in the place of one that was not stopped."""
        before = self._utterance
        if before is not None and before.stopped:
            await asyncio.wait([before.task], timeout=ANSWER_SECONDS)
        elif before is not None:
            before.cancel()
        self._count += 1
        self._utterance = Utterance(self, self._asked, beginning)
        self._asked = TranscribeRequest()
        return self._utterance

    def _transcribe(self, asked: TranscribeRequest) -> None:
        """Take a request: it is for the next utterance, or for the open one if no audio of it has come."""
        utterance = self._utterance
        if utterance is not None and not utterance.stopped and not utterance.has_audio:
            utterance.asked = asked
        else:
            self._asked = asked

    async def _describe(self) -> None:
        """Say which models and languages there are.

        While no worker is there, that is not known. Then the connection ends: Home Assistant asks again, but would not
        if it were told of a server without languages.
        """
        offers = self.gateway.offers
        if not offers.models:
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(DESCRIBE_SECONDS):
                    await offers.refresh()
                    await until(lambda: bool(offers.models), DESCRIBE_SECONDS)
        if not offers.models:
            self.refuse(Unavailable("overloaded", "no worker is ready: ask again", 5.0))
            self.close()
            return
        models = sorted(offers.models.values(), key=lambda model: -model["default"])
        self.send(wyoming.info(models, __version__))
        await self._drain()

    @property
    def _owes_answer(self) -> bool:
        return self._utterance is not None and self._utterance.stopped and not self._utterance.task.done()

    # -- what goes -----------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send without waiting; a client that does not read is cut after MAX_UNREAD bytes."""
        if self._writer.is_closing():
            return
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > MAX_UNREAD:
            self._cut()

    def refuse(self, error: AsrError) -> None:
        """Tell the client what cannot be done."""
        self.gateway.refused(error, self._address, "", is_request=True)
        self.send(wyoming.error(error.code, error.message))

    def answered(self) -> None:
        """Close the connection after its answer if the gateway stops."""
        if self._server.stopping:
            self.close()

    def close(self) -> None:
        """Close the connection when what was sent is on its way."""
        self._writer.close()

    async def _end(self) -> None:
        """Close the connection, in bounded time: a regular close waits for ever for a client that does not read."""
        self.close()
        try:
            async with asyncio.timeout(self.gateway.settings.unread_timeout):
                await self._writer.wait_closed()
        except TimeoutError:
            self._cut()
        except OSError:
            pass  # the client is gone

    async def _drain(self) -> None:
        """Wait until the client has read what was sent; one that does not within unread_timeout is cut."""
        try:
            async with asyncio.timeout(self.gateway.settings.unread_timeout):
                await self._writer.drain()
        except TimeoutError:
            self._cut()

    def _cut(self) -> None:
        log.warning("connection from %s does not read: cut", self._address)
        self._writer.transport.abort()


class WyomingServer:
    """Serves the protocol on a listening socket.

    Attributes:
        gateway: Where sessions are.
        stopping: Connections are closed once nothing is owed on them.
    """

    def __init__(self, gateway: Gateway, listening: socket.socket) -> None:
        self.gateway = gateway
        self.stopping = False
        self._listening = listening
        self._open: set[WyomingConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptor = Acceptor(listening, self._accept)

    def _accept(self, connected: socket.socket, _address: Any) -> None:
        task = asyncio.create_task(self._serve(connected), name="wyoming connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connected: socket.socket) -> None:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # clients may lose their power
        reader, writer = await asyncio.open_connection(sock=connected, limit=READ_BYTES)
        writer.transport.set_write_buffer_limits(high=MAX_UNREAD // 2)
        connection = WyomingConnection(self, reader, writer)
        self._open.add(connection)
        try:
            await connection.run()
        finally:
            self._open.discard(connection)

    def stop(self) -> None:
        """Accept no more connections, and close those on which nothing is owed."""
        self.stopping = True
        self._acceptor.stop()
        self._listening.close()
        for connection in self._open:
            if connection.is_idle:
                connection.close()

    async def close(self) -> None:
        """Close the rest."""
        await cancel_and_wait(self._tasks)
