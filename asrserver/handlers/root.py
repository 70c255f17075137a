"""WebSocket at the path `/`: for clients that can be given no path."""

from __future__ import annotations

import logging

from asrserver.errors import BadRequest
from asrserver.handlers.dialogue import Dialogue, DialogueConnection
from asrserver.handlers.vosk import VoskDialogue
from asrserver.handlers.whisperlive import WhisperLiveDialogue
from asrserver.protocol import pathless

log = logging.getLogger("asrserver.websocket")


class RootHandler(DialogueConnection):
    """WebSocket /: the first message tells the protocol."""

    protocols = (VoskDialogue, WhisperLiveDialogue)

    def find(self, message: str | bytes) -> type[Dialogue]:
        name = pathless.speaks(message, self.selected_subprotocol)
        for protocol in self.protocols:
            if protocol.name == name:
                log.info("connection from %s speaks %s", self.request.remote_ip, name)
                return protocol
        raise BadRequest("bad_request", f"{name} is not spoken here")
