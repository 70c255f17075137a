"""/v1/listen: Deepgram's interface, for clients that were written for it (protocol/deepgram.py)."""

from __future__ import annotations

import math
from collections.abc import Awaitable
from typing import Any

from asrserver.errors import BadRequest, Refused
from asrserver.handlers.base import JsonHandler
from asrserver.handlers.live_session import LiveSessionConnection
from asrserver.protocol import deepgram, model_names
from asrserver.protocol.events import SessionEvent
from asrserver.protocol.frames import SERVER_ERROR

#: Seconds without a message after which a client counts as gone.
SILENT_SECONDS = 10.0


class DeepgramHandler(JsonHandler):
    """Queries, and errors as Deepgram's clients read them: in the body, and in headers for a refused handshake."""

    def query(self) -> dict[str, list[str]]:
        """The values of each parameter."""
        given = self.request.query_arguments.items()
        return {name: [value.decode(errors="replace") for value in values] for name, values in given}

    def resolve(self, name: str) -> str | None:
        """The model that a name means; None: whichever there is. Raises Refused."""
        try:
            return self.gateway.offers.named(name, model_names.DEEPGRAM) if name else None
        except Refused as exc:
            raise Refused(400, "unknown_model", exc.message) from None

    def error_body(self, status: int, code: str, message: str, **details: Any) -> dict[str, Any]:
        self.set_header("dg-error", message.encode("ascii", "replace").decode())
        self.set_header("dg-request-id", self.request_id)
        return deepgram.refusal(code, message, self.request_id)


class DeepgramLiveHandler(DeepgramHandler, LiveSessionConnection):
    """WebSocket /v1/listen: one session, which lasts as long as the connection."""

    results: deepgram.LiveResults

    async def admit(self) -> None:
        asked = deepgram.parse_live(self.query())
        options = asked.of_model(self.resolve(asked.model))
        session = await self.start(options)
        self.results = deepgram.LiveResults(asked, session.id, self.gateway.offers.expected(options))
        self.set_header("dg-request-id", session.id)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return next((name for name in subprotocols if name.lower() in ("token", "bearer")), None)

    def open(self, *args: str, **kwargs: str) -> None:
        super().open(*args, **kwargs)
        self.due = min(self.due, self.heard_at + SILENT_SECONDS)

    def check(self, now: float) -> float:
        if self.session is None or self.session.state != "recording":
            return super().check(now)
        due = self.heard_at + SILENT_SECONDS
        if now >= due and self.queue is None:
            self.close(SERVER_ERROR, f"no audio and no KeepAlive came for {SILENT_SECONDS:g} s")
            return math.inf
        return min(super().check(now), max(due, now + 1))

    def take_binary(self, data: bytes) -> Awaitable[Any] | None:
        if not data:
            self.end_audio()
        return super().take_binary(data)

    def take_text(self, text: str) -> Awaitable[Any] | None:
        message = deepgram.parse_message(text)
        match message["type"]:
            case "KeepAlive":
                pass
            case "CloseStream":
                self.end_audio()
            case other:
                raise BadRequest("bad_request", f"there is no message of the type {other[:50]!r}")
        return None

    def tell(self, event: SessionEvent) -> None:
        for data in self.results.messages(event):
            self.send(data)
