"""/v1/listen: Deepgram's interface, for clients that were written for it (protocol/deepgram*.py)."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable
from typing import Any

from asrserver.errors import BadRequest, Refused
from asrserver.gateway.intake import Accepted
from asrserver.handlers.base import JsonHandler
from asrserver.handlers.file_session import FileSession
from asrserver.handlers.live_session import LiveSessionConnection
from asrserver.handlers.upload import UploadHandler
from asrserver.protocol import deepgram, deepgram_live, deepgram_recorded, model_names
from asrserver.protocol.deepgram_recorded import RecordedRequest
from asrserver.protocol.events import Final, Flushed, SegmentResult, SessionEvent
from asrserver.protocol.frames import SERVER_ERROR
from asrserver.protocol.options import hotwords_of, join_hotwords

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

    results: deepgram_live.LiveResults

    async def admit(self) -> None:
        asked = deepgram.parse_live(self.query())
        options = asked.options.of_model(self.resolve(asked.model))
        session = await self.start(options)
        self.results = deepgram_live.LiveResults(asked, session.id, self.gateway.offers.expected(options))
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
        self.results.sha256.update(data)
        if not data:
            self.end_audio()
        return super().take_binary(data)

    def take_run(self, messages: list[bytes]) -> Accepted | None:
        accepted = super().take_run(messages)
        for data in messages if accepted is not None else ():
            self.results.sha256.update(data)
        return accepted

    def take_text(self, text: str) -> Awaitable[Any] | None:
        try:
            self._take(deepgram_live.parse_message(text))
        except BadRequest:
            self.results.unreadable = text
            raise
        return None

    def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "KeepAlive":
                pass
            case "Finalize":
                self.results.flushes = self.flush_audio() or self.results.flushes
            case "CloseStream":
                self.end_audio()
            case "Configure":
                self._configure(message)
            case other:
                raise BadRequest("unknown_action", f"there is no message of the type {other[:50]!r}")

    def _configure(self, message: dict[str, Any]) -> None:
        try:
            keyterms = hotwords_of(message.get("keyterms"), "keyterms")
        except BadRequest as exc:
            self.send(self.results.not_configured(exc))
            return
        if keyterms is not None:
            self.change_hotwords(join_hotwords(keyterms))
        self.send(self.results.configured(keyterms))

    def tell(self, event: SessionEvent) -> None:
        self._send(self.results.messages(event))
        waits = self.results.utterance_waits(event.total) if isinstance(event, SegmentResult | Flushed) else ()
        for seconds, channel, last_word in waits:
            asyncio.get_running_loop().call_later(seconds, self._utterance_over, channel, last_word)

    def _utterance_over(self, channel: int, last_word: float) -> None:
        self._send(self.results.utterance_over(channel, last_word))

    def _send(self, messages: Any) -> None:
        for data in messages:
            self.send(data)


class DeepgramRecordedHandler(DeepgramHandler, UploadHandler):
    """POST /v1/listen: a recording is the body; the options are in the query."""

    takes_raw = True

    def initialize(self, gateway: Any) -> None:
        super().initialize(gateway)
        self._sha256 = hashlib.sha256()

    async def begin(self) -> None:
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            raise BadRequest("bad_request", "this server fetches nothing: send the recording itself, and no URL")
        await super().begin()

    async def file_data(self, data: bytes) -> None:
        self._sha256.update(data)
        await super().file_data(data)

    def may_begin(self, fields: dict[str, list[str]]) -> bool:
        return True

    def request_of(self, fields: dict[str, list[str]]) -> RecordedRequest:
        asked = deepgram_recorded.parse(self.query())
        return asked.of_model(self.resolve(asked.model))

    async def respond(self, asked: RecordedRequest, session: FileSession, job: asyncio.Task[Final]) -> None:
        def body() -> dict[str, Any]:
            return deepgram_recorded.answer(asked, session.in_order, job.result(), self._sha256.hexdigest())

        await self.finish_json(job, body)
