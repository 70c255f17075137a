"""/whisperlive: WhisperLive's protocol (protocol/whisperlive.py)."""

from __future__ import annotations

import math
from collections.abc import Awaitable
from typing import Any

from asrserver.errors import BadRequest
from asrserver.handlers.dialogue import Dialogue, DialogueConnection
from asrserver.protocol import model_names, whisperlive
from asrserver.protocol.events import SessionEvent
from asrserver.protocol.json_messages import parse_object
from asrserver.protocol.pathless import UrlOptions
from asrserver.protocol.whisperlive import END_OF_AUDIO, WhisperLiveResults

#: Seconds without audio after which what was said is recognised, although no pause was heard: WhisperLive's client says
#: that its file has ended only when it has had all text.
STALL_SECONDS = 1.0


class WhisperLiveDialogue(Dialogue):
    """The first message begins a session; the audio of a client that stops sending is recognised soon."""

    name = "whisperlive"

    def __init__(self, connection: DialogueConnection, url: UrlOptions) -> None:
        super().__init__(connection, url)
        self._results = WhisperLiveResults()
        self._is_begun = False
        self._is_8_bit = False
        self._unflushed = False  # there was audio since the last flush

    def take_text(self, text: str) -> Awaitable[Any] | None:
        if self._is_begun:
            return None
        self._is_begun = True
        return self._begin(text)

    async def _begin(self, text: str) -> None:
        connection, message = self.connection, parse_object(text)
        self._results.uid = whisperlive.uid_of(message)
        asked = whisperlive.parse(message, self.url)
        model = connection.gateway.offers.named(asked.model, model_names.WHISPER) if asked.model else None
        self._is_8_bit = asked.is_8_bit
        await connection.start(asked.options.of_model(model))
        connection.send(self._results.ready(asked))

    def take_binary(self, data: bytes) -> Awaitable[Any] | None:
        if not self._is_begun:
            raise BadRequest("bad_request", "the first message must be the options, as JSON")
        if data == END_OF_AUDIO:
            self._unflushed = False
            self.connection.end_audio()
            return None
        self._unflushed = True
        self.connection.due = min(self.connection.due, self.connection.heard_at + STALL_SECONDS)
        return self.connection.take_audio(whisperlive.widened(data) if self._is_8_bit else data)

    def check(self, now: float) -> float:
        if not self._unflushed:
            return math.inf
        due = self.connection.heard_at + STALL_SECONDS
        if self.connection.queue is not None:  # there is audio that waits to be taken
            due = now + STALL_SECONDS
        if now < due:
            return due
        self._unflushed = False
        self.connection.flush_audio()
        return math.inf

    def tell(self, event: SessionEvent) -> None:
        for data in self._results.messages(event):
            self.connection.send(data)


class WhisperLiveHandler(DialogueConnection):
    """WebSocket /whisperlive."""

    protocols = (WhisperLiveDialogue,)
