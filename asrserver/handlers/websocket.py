"""/ws/asr: translates the native protocol (protocol/native.py) into calls of the gateway, and events into messages.

What a connection is besides stands in connection.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable
from typing import Any

from asrserver.errors import AsrError, BadRequest, Unavailable
from asrserver.gateway.intake import Accepted
from asrserver.gateway.session import Session
from asrserver.handlers.connection import WebSocketConnection
from asrserver.handlers.flow_control import in_turns
from asrserver.protocol import native
from asrserver.protocol.events import SessionEvent, Started
from asrserver.protocol.native import Link
from asrserver.protocol.options import Resume

#: Subprotocols that are accepted. Browsers offer the first beside `bearer.<key>`: they expect one of those offered, and
#: the key must not be echoed. Telephone systems that send a call as raw PCM offer the second: FreeSWITCH's
#: mod_audio_fork, jambonz.
SUBPROTOCOLS = ("asr.v1", "audio.drachtio.org")


class NativeWebSocketHandler(WebSocketConnection):
    """A connection that speaks the native protocol.

    If its query has options of a session, the session is started at once, for clients that send no JSON. An empty
    binary frame, or the end of the connection, ends its audio.
    """

    _by_query = False

    def open(self, *args: str, **kwargs: str) -> None:
        query = {name: values[-1].decode(errors="replace") for name, values in self.request.query_arguments.items()}
        super().open(*args, **kwargs)
        try:
            action = native.start_of_query(query)
        except BadRequest as exc:
            self.refuse_message(exc)
            self.close(1008, "the query cannot be used")
            return
        if action is not None and self in self._registry:
            self._by_query = not action.start.resumable
            self._wait(self._start_by_query(action))

    def on_close(self) -> None:
        if self._by_query and self.queue is not None:
            self.queue.add(b"", 0)  # behind the audio that still waits
        elif self._by_query:
            for session in self.sessions.values():
                if session.state == "recording":
                    self.gateway.finish(session)
        super().on_close()

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return next((name for name in SUBPROTOCOLS if name in subprotocols), None)

    def take_text(self, text: str) -> Awaitable[Any] | None:
        action = native.parse(text)
        match action:
            case native.StartAction():
                return self._start(action)
            case native.ResumeAction():
                return self._resume(action)
            case _ if self.sessions.may_adopt(action.session_id):
                return self._adopt(action)
            case _:
                return self._go_on(action)

    def take_binary(self, data: bytes) -> Awaitable[Any] | None:
        if not data and self._by_query:
            self.gateway.finish(self.sessions.lookup(None))
            return None
        session, index, audio = self.sessions.parse_frame(data)
        return self.gateway.offer(session, audio, index).wait

    def take_run(self, messages: list[bytes]) -> Accepted | None:
        run = self.sessions.parse_run(messages)
        return None if run is None else self.gateway.offer_run(*run)

    def tell(self, event: SessionEvent) -> None:
        data = native.format(event)
        if data is not None:
            self.send(data)

    def _go_on(self, action: native.SessionAction) -> Awaitable[Any] | None:
        match action:
            case native.ChunkAction():
                return self._chunk(action)
            case native.FlushAction():
                self.gateway.sessions.flush(self.sessions.lookup(action.session_id))
            case native.FinishAction():
                self.gateway.finish(self.sessions.lookup(action.session_id))
        return None

    async def _adopt(self, action: native.SessionAction) -> None:
        """Continue a session that lost its connection, for clients without `resume`: those of the ancestor."""
        try:
            adopted = Resume(action.session_id, 0, adopted=True)
            session, missed = await self.gateway.resume(adopted, self.on_event, self.key_id)
        except BadRequest:  # it is unknown, or another connection's
            session, missed = None, []
        except AsrError as exc:
            self.refuse_message(exc, **native.named(action.session_id))
            return
        if session is not None:
            self.sessions.attach(session, Link(None, 0.0))
            await self.gateway.sessions.delivery.replay(session, missed, self.confirm_read)
        try:
            wait = self._go_on(action)
            if wait is not None:
                await wait
        except AsrError as exc:
            self.refuse_message(exc)
        if session is not None and self.ws_connection is None:
            self.gateway.abandon(session)

    def _chunk(self, action: native.ChunkAction) -> Awaitable[Any] | None:
        session = self.sessions.lookup(action.session_id, action.chunk_index)
        if action.is_large:
            return self._large_chunk(session, action)
        try:
            audio = action.audio()
        except BadRequest as exc:
            exc.details |= session.order.where(action.chunk_index)
            raise
        return self.gateway.offer(session, audio, action.chunk_index).wait

    async def _large_chunk(self, session: Session, action: native.ChunkAction) -> None:
        """Take a chunk of megabytes, giving way to others while it is decoded."""
        try:
            audio = await in_turns(action.audio_slices())
            wait = self.gateway.offer(session, audio, action.chunk_index).wait
            if wait is not None:
                await wait
        except AsrError as exc:
            exc.details = session.order.where(action.chunk_index) | exc.details
            self.refuse_message(exc)

    async def _start(self, action: native.StartAction) -> None:
        start = action.start
        try:
            session = await self.gateway.start(start, self.on_event, self.key_id, len(self.sessions))
        except AsrError as exc:
            self.refuse_message(exc, **native.named(start.session_id))
            return
        self.sessions.attach(session, action.link)
        queued = None
        if action.queue_position:
            with contextlib.suppress(Unavailable):
                queued = await self.gateway.queue_position(start.options)
        model = self.gateway.offers.expected(start.options)
        self._acknowledge(Started(session_id=session.id, queued=queued, model=model), action.link, action.warnings)
        if self.ws_connection is None:  # the client left while its session was made
            self.gateway.abandon(session)

    async def _start_by_query(self, action: native.StartAction) -> None:
        await self._start(action)
        if not self.sessions:
            self.close(1008, "the session was refused")  # the error said why; audio would only be refused too

    async def _resume(self, action: native.ResumeAction) -> None:
        if self.ws_connection is None:
            return  # the client is gone, and may have resumed the session on another connection
        try:
            session, missed = await self.gateway.resume(action.resume, self.on_event, self.key_id)
        except AsrError as exc:
            self.refuse_message(exc, session_id=action.resume.session_id)
            return
        self.sessions.attach(session, action.link)
        self._acknowledge(session.resumption(), action.link, action.warnings)
        await self.gateway.sessions.delivery.replay(session, missed, self.confirm_read)
        if self.ws_connection is None:
            self.gateway.abandon(session)

    def _acknowledge(self, event: SessionEvent, link: Link, warnings: tuple[str, ...] = ()) -> None:
        data = native.format(event, link.channel, warnings)
        assert data is not None
        self.send(data)
