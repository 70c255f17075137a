"""/funasr: FunASR's protocol (protocol/funasr.py)."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from asrserver.audio import sniff
from asrserver.errors import AsrError, BadRequest
from asrserver.handlers.dialogue import Dialogue, DialogueConnection
from asrserver.protocol import model_names
from asrserver.protocol.events import Final, SessionEvent
from asrserver.protocol.funasr import FunasrConfig, FunasrResults
from asrserver.protocol.json_messages import parse_object
from asrserver.protocol.pathless import UrlOptions


class FunasrDialogue(Dialogue):
    """One recording after another, each with a session that begins with its first audio.

    What goes wrong is told at the end of the recording, where the client waits for it: the connection stays.
    """

    name = "funasr"

    def __init__(self, connection: DialogueConnection, url: UrlOptions) -> None:
        super().__init__(connection, url)
        self._config = FunasrConfig.of_url(url)
        self._results = FunasrResults(self._config)
        self._has_audio = False  # of this recording some has come

    def take_text(self, text: str) -> Awaitable[Any] | None:
        message = parse_object(text)
        try:
            self._results.config = self._config = self._config.updated(message)
        except BadRequest as exc:
            self.connection.refuse_message(exc)
        if message.get("is_speaking", True):
            return None
        return self._finish(bool(message.get("is_end")))

    def take_binary(self, data: bytes) -> Awaitable[Any] | None:
        if self._has_audio:
            return self.connection.take_audio(data)
        self._has_audio = True
        return self._begin(data)

    async def _begin(self, data: bytes) -> None:
        connection, config = self.connection, self._config
        if self._results.error is not None:
            return
        try:
            # Headerless audio may look like much, but not like these.
            is_file = sniff.container(data, first=config.names_file) is not None
            model = connection.gateway.offers.named(self.url.model, model_names.NONE) if self.url.model else None
            await connection.start(config.options(model, is_file))
            if (wait := connection.take_audio(data)) is not None:
                await wait
        except AsrError as exc:
            connection.refuse_message(exc)

    async def _finish(self, is_end: bool) -> None:
        self._results.is_ending = True
        await self.connection.end_session()
        for data in self._results.finish(is_end):
            self.connection.send(data)
        self._results = FunasrResults(self._config)
        self._has_audio = False

    def tell(self, event: SessionEvent) -> None:
        for data in self._results.messages(event):
            self.connection.send(data)

    def ended(self, final: Final) -> None:
        pass  # the next recording comes on the same connection


class FunasrHandler(DialogueConnection):
    """WebSocket /funasr."""

    protocols = (FunasrDialogue,)
