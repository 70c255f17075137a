"""WebSocket at the path `/`: for clients that can be given no path."""

from __future__ import annotations

import logging

from asrserver.handlers.dialogue import Dialogue, DialogueConnection
from asrserver.handlers.funasr import FunasrDialogue
from asrserver.handlers.vosk import VoskDialogue
from asrserver.handlers.whisperlive import WhisperLiveDialogue
from asrserver.protocol import pathless

log = logging.getLogger("asrserver.websocket")


class RootHandler(DialogueConnection):
    """WebSocket /: the first message tells the protocol."""

    protocols = (FunasrDialogue, VoskDialogue, WhisperLiveDialogue)

    def find(self, message: str | bytes) -> type[Dialogue]:
        name = pathless.detect_protocol(message, self.selected_subprotocol)
        log.info("connection from %s speaks %s", self.request.remote_ip, name)
        return next(protocol for protocol in self.protocols if protocol.name == name)
