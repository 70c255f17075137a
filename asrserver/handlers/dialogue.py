"""Connections that speak one of several protocols: that of their path; or at `/`, that of their first message.

A Dialogue is one client's exchange in one protocol; what all protocols share is in the connection. So a client that can
be given neither a path nor a key still finds its protocol (protocol/pathless.py).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from asrserver.errors import AsrError, BadRequest, Refused, Unavailable
from asrserver.gateway.intake import Accepted
from asrserver.handlers.live_session import LiveSessionConnection
from asrserver.process.aio import Notifier
from asrserver.protocol import native
from asrserver.protocol.events import Final, SessionEvent
from asrserver.protocol.pathless import UrlOptions

#: Longest wait of a client's message for what the message before it asked for, in seconds.
ANSWER_SECONDS = 600.0

#: The subprotocols that are accepted; any other that a client offers may be its key.
SUBPROTOCOLS = ("binary", "token", "bearer")


class Dialogue(ABC):
    """The exchange with one client in its protocol.

    Args:
        connection: The client's.
        url: What its URL says.
    """

    #: Its name, in settings and in protocol/pathless.py.
    name: ClassVar[str]

    def __init__(self, connection: DialogueConnection, url: UrlOptions) -> None:
        self.connection = connection
        self.url = url

    @abstractmethod
    def take_text(self, text: str) -> Awaitable[Any] | None:
        """Handle a text message, as WebSocketConnection.take_text does; what it returns may raise AsrError, too."""

    @abstractmethod
    def take_binary(self, data: bytes) -> Awaitable[Any] | None:
        """Handle a binary message in the same way."""

    @abstractmethod
    def tell(self, event: SessionEvent) -> None:
        """Send what the client is told of an event, if it is told anything."""

    def ended(self, final: Final) -> None:
        """Called after a session's last event."""
        self.connection.close_after(final)

    def check(self, now: float) -> float:
        """Do what is due by the event loop's clock; return when to check next."""
        return math.inf


class DialogueConnection(LiveSessionConnection):
    """A connection that speaks one of the protocols of its path."""

    #: Its protocols.
    protocols: ClassVar[tuple[type[Dialogue], ...]]

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        self._dialogue: Dialogue | None = None
        self._url = UrlOptions()
        self._changed = Notifier()

    # -- for a dialogue ------------------------------------------------------------------------------------------

    def take_audio(self, data: bytes) -> Awaitable[Any] | None:
        """Take audio of the session, as LiveSessionConnection does."""
        return super().take_binary(data)

    async def end_session(self) -> None:
        """End the audio of the session, and wait until it is over; raises Unavailable if that takes too long.

        It waits even if the client is gone: what it sent for a further session would be dropped otherwise.
        """
        self.end_audio()
        await self._wait_for(lambda: self.session is None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until events have made a condition true, or the connection is gone.

        Raises:
            Unavailable: That takes too long.
        """
        await self._wait_for(lambda: self.ws_connection is None or condition())

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        if not await self._changed.wait_for(condition, ANSWER_SECONDS):
            raise Unavailable("overloaded", f"there was no text after {ANSWER_SECONDS:g} s", 5.0)

    def close_after(self, final: Final) -> None:
        """Close the connection after a session's last event."""
        super().ended(final)

    # -- as the connection calls it ------------------------------------------------------------------------------

    @property
    def needs_no_key(self) -> bool:
        return any(protocol.name in self.gateway.settings.keyless for protocol in self.protocols)

    async def admit(self) -> None:
        query = self.request.query_arguments.items()
        self._url = UrlOptions.parse({name: values[-1].decode(errors="replace") for name, values in query})

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return next((name for name in subprotocols if name in SUBPROTOCOLS), None)

    def find(self, message: str | bytes) -> type[Dialogue]:
        """Find the protocol of the first message; raises BadRequest if it is of none."""
        return self.protocols[0]

    def _dialogue_for(self, message: str | bytes) -> Dialogue | None:
        """The dialogue, which begins with the first message; None if that is of no protocol: the connection ends."""
        if self._dialogue is None and self.refusal is None:
            try:
                protocol = self.find(message)
                if self.key is None and protocol.name not in self.gateway.settings.keyless:
                    self.gateway.access.authenticate(None)
                self._dialogue = protocol(self, self._url)
            except (BadRequest, Refused) as exc:
                self.give_up(exc)
        return self._dialogue

    def take_text(self, text: str) -> Awaitable[Any] | None:
        dialogue = self._dialogue_for(text)
        wait = None if dialogue is None else dialogue.take_text(text)
        return None if wait is None else self._done(wait)

    def take_binary(self, data: bytes) -> Awaitable[Any] | None:
        dialogue = self._dialogue_for(data)
        wait = None if dialogue is None else dialogue.take_binary(data)
        return None if wait is None else self._done(wait)

    async def _done(self, wait: Awaitable[Any]) -> None:
        """Wait until a message is handled. An error by then cannot be its answer any more, and ends the session."""
        try:
            await wait
        except AsrError as exc:
            self.give_up(exc)

    def take_run(self, messages: list[bytes]) -> Accepted | None:
        return None  # each may be more than audio

    def tell(self, event: SessionEvent) -> None:
        if self._dialogue is not None:
            self._dialogue.tell(event)
        elif (data := native.format(event)) is not None:
            self.send(data)

    def ended(self, final: Final) -> None:
        if self._dialogue is not None:
            self._dialogue.ended(final)

    def on_event(self, event: SessionEvent) -> None:
        super().on_event(event)
        self._changed.notify()

    def on_close(self) -> None:
        super().on_close()
        self._changed.notify()

    def check(self, now: float) -> float:
        due = super().check(now)
        return due if self._dialogue is None else min(due, self._dialogue.check(now))
