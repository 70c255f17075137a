"""A connection with one live session at a time, for the protocols of other servers.

Their clients send a stream of audio that is not acknowledged, and cannot resume: what was accepted is recognised and
kept, but a session whose client is gone is ended. A protocol is a subclass. It reads the client's messages, calls
`start`, `flush_audio` and `end_audio`, and translates events in `tell`. Audio, limits and ends are handled here.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from asrserver.errors import AsrError, Unavailable
from asrserver.gateway.intake import Accepted
from asrserver.gateway.session import Session
from asrserver.handlers.connection import INTERNAL_ERROR, WebSocketConnection
from asrserver.protocol.events import Final, Lost, Refusal, SessionEvent
from asrserver.protocol.frames import SERVER_ERROR, TOO_LARGE
from asrserver.protocol.native import Link
from asrserver.protocol.options import Options, Start

#: Close codes of RFC 6455 and its registry: a normal end; the client did what is not allowed; it may try again later.
NORMAL, POLICY, TRY_AGAIN = 1000, 1008, 1013

#: The link of sessions here: their acknowledgements are dropped, so there should be as few as possible.
LINK = Link(None, 5.0)


class LiveSessionConnection(WebSocketConnection):
    """A connection whose binary messages are the audio of its session.

    Attributes:
        refusal: Why the session was ended without its client; else None.
    """

    resumes = False

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        self.refusal: Refusal | None = None

    # -- for a protocol ------------------------------------------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """The open session; None before the first one, and between two."""
        return self.sessions.current

    async def start(self, options: Options, sid: str = "") -> Session:
        """Start a session: in `admit`, before the upgrade; or for a message, which takes that time.

        The client may be gone by then: it may have sent everything and left. What it sent is handled, and then `leave`
        ends the session.

        Args:
            options: How its audio is recognised.
            sid: Its id, where the client knows it by one.

        Raises:
            BadRequest: The options cannot be used.
            Refused: A limit is reached.
            Unavailable: Not now.
        """
        started = Start(sid, "", options, False)
        session = await self.gateway.start(started, self.on_event, self.key_id, len(self.sessions))
        self.sessions.attach(session, LINK)
        self.refusal = None
        return session

    def flush_audio(self) -> int | None:
        """Have all audio so far recognised now; a Flushed event with the returned number follows. None: it is over."""
        session = self.session
        return self.gateway.sessions.flush(session) if session is not None and session.state == "recording" else None

    def change_hotwords(self, hotwords: str) -> None:
        """Give the session other hot words from its next segment on. Does nothing if it is over."""
        if self.session is not None and self.session.state == "recording":
            self.gateway.change_hotwords(self.session, hotwords)

    def end_audio(self) -> None:
        """End the audio of the session; its last events follow, and then `ended`. Does nothing if it is over."""
        if self.session is not None and self.session.state == "recording":
            self.gateway.finish(self.session)

    def ended(self, final: Final) -> None:
        """Called after the session's last event: closes the connection, unless a protocol does something else."""
        if self.refusal is not None:
            self.close(close_code(self.refusal), self.refusal.code)
        else:
            self.close(NORMAL if final.status == "done" else SERVER_ERROR, final.status)

    def give_up(self, error: AsrError) -> None:
        """Tell the client why it cannot go on. The connection is closed after the last events of its session."""
        self.gateway.refused(error, self.request.remote_ip, self.key_id)
        self.refusal = Refusal.of(error)
        self.tell(self.refusal)
        if self.session is not None:
            self.gateway.cancel(self.session, gone=False)
        else:
            self.close(close_code(self.refusal), error.code)

    def interrupt(self) -> None:
        """End the session because the server stops: its client still gets the text of what was said.

        It is not told why: an error before the last text would make some clients give up.
        """
        if self.session is not None and self.session.state == "recording":
            self.refusal = Refusal.of(Unavailable("shutting_down", "the server is restarting: connect again", 1.0))
            self.gateway.cancel(self.session, gone=False)

    # -- audio ---------------------------------------------------------------------------------------------------

    def take_binary(self, data: bytes) -> Awaitable[Any] | None:
        """Take audio. What comes without a session, or after its end, is dropped.

        Audio that is refused is lost, because the client does not know that it should send it again: that ends the
        session.
        """
        session = self.session
        if not data or session is None or session.state != "recording":
            return None
        try:
            wait = self.gateway.offer(session, data).wait
        except AsrError as exc:
            self.give_up(exc)
            return None
        return None if wait is None else self._room(session, wait)

    def take_run(self, messages: list[bytes]) -> Accepted | None:
        session = self.session
        return None if session is None or not session.joinable else self.gateway.offer_run(session, messages)

    async def _room(self, session: Session, wait: Awaitable[bool] | None) -> None:
        """Wait until there is room for more audio: these clients do not send again what is refused.

        A client that is gone sends no more than what waits here.
        """
        while wait is not None and not await wait and self.ws_connection is not None:
            wait = self.gateway.room_for(session)

    # -- as WebSocketConnection calls it -------------------------------------------------------------------------

    @property
    def awaits_ack(self) -> bool:
        return False

    def refuse_message(self, error: AsrError, **where: Any) -> None:
        if error.code in ("message_too_large", "overloaded"):
            self.give_up(error)
        else:
            super().refuse_message(error, **where)

    def on_event(self, event: SessionEvent) -> None:
        super().on_event(event)
        match event:
            case Lost():
                self.close(close_code(event), event.code)
            case Refusal():  # the server ends the session; its last events follow
                self.refusal = event
            case Final():
                self.ended(event)


def close_code(error: Refusal) -> int:
    """The code with which a connection is closed for an error."""
    if error.code == "message_too_large":
        return TOO_LARGE
    if error.code == INTERNAL_ERROR.code:
        return SERVER_ERROR
    return TRY_AGAIN if error.retry_after is not None else POLICY
