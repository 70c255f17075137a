"""/vosk: Vosk's protocol (protocol/vosk.py)."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from asrserver.handlers.dialogue import Dialogue, DialogueConnection
from asrserver.handlers.live_session import NORMAL
from asrserver.protocol import model_names, vosk
from asrserver.protocol.events import ErrorEvent, Final, Flushed, Refusal, SessionEvent
from asrserver.protocol.pathless import UrlOptions


class VoskDialogue(Dialogue):
    """Each frame has its answer at once; the session begins with the first one, for which the configuration counts."""

    name = "vosk"

    def __init__(self, connection: DialogueConnection, url: UrlOptions) -> None:
        super().__init__(connection, url)
        self._answers = vosk.VoskAnswers(vosk.VoskConfig(url=url))
        self._flushed = 0  # number of the last flush that was answered
        self._ending = False
        self._goes_on = False  # with another session, when this one is over

    def take_text(self, text: str) -> Awaitable[Any] | None:
        message = vosk.parse(text)
        if "config" in message:
            return self._configure(self._answers.config.updated(message["config"]))
        if not message.get("eof"):
            return self._reset()
        self._end()
        return None

    def take_binary(self, data: bytes) -> Awaitable[Any] | None:
        if self._ending:
            return None
        if self.connection.session is None:
            return self._begin(data)
        return self._take(data)

    def tell(self, event: SessionEvent) -> None:
        self._answers.add(event)
        match event:
            case Flushed():
                self._flushed = event.number
            case Refusal() | ErrorEvent():
                self.connection.send(vosk.failure(event.message))

    def ended(self, final: Final) -> None:
        if not self._goes_on:
            self.connection.send(self._answers.text())
            super().ended(final)

    # -- actions -------------------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> Awaitable[Any] | None:
        wait = self.connection.take_audio(data)
        if self.connection.refusal is None:
            self.connection.send(self._answers.answer())
        return wait

    async def _begin(self, data: bytes) -> None:
        connection, config = self.connection, self._answers.config
        name = self.url.model or config.model
        model = connection.gateway.offers.named(name, model_names.VOSK) if name else None
        self._flushed = 0
        await connection.start(config.options(model))
        if (wait := self._take(data)) is not None:
            await wait

    def _configure(self, config: vosk.VoskConfig) -> Awaitable[Any] | None:
        """Take a configuration: what comes from now on is a session of its own, if that one cannot be recognised so."""
        before, self._answers.config = self._answers.config, config
        changed = (config.model, config.options(None)) != (before.model, before.options(None))
        return self._end_before_another() if changed and self.connection.session is not None else None

    async def _end_before_another(self) -> None:
        self._goes_on = True
        await self.connection.end_session()
        self._goes_on = False

    def _end(self) -> None:
        self._ending = True
        if self.connection.session is None:
            self.connection.send(self._answers.text())
            self.connection.close(NORMAL)
        self.connection.end_audio()

    async def _reset(self) -> None:
        number = self.connection.flush_audio()
        if number is not None:
            await self.connection.until(lambda: self._flushed >= number or self.connection.session is None)
        self.connection.send(self._answers.text())


class VoskHandler(DialogueConnection):
    """WebSocket /vosk."""

    protocols = (VoskDialogue,)
