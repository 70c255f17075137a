"""/v1: OpenAI's interface for audio files and models, for clients that were written for it (protocol/openai.py)."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import orjson
from tornado.web import HTTPError

from asrserver.errors import AsrError, Refused, Unavailable
from asrserver.handlers.base import NO_PATH, JsonHandler
from asrserver.handlers.file_session import FileSession
from asrserver.handlers.long_answer import KEEP_ALIVE_SECONDS
from asrserver.handlers.upload import DrainingHandler, UploadHandler
from asrserver.protocol import model_names, openai
from asrserver.protocol.events import Final
from asrserver.protocol.openai import TranscriptionRequest
from asrserver.text.subtitles import plain, srt, vtt

log = logging.getLogger("asrserver.rest")

#: The formats that are text: each its media type, and what makes it.
TEXTS = {
    "text": ("text/plain", plain),
    "srt": ("text/plain", srt),
    "vtt": ("text/vtt", vtt),
}

#: When this process began to serve its models, in seconds since the Unix epoch.
STARTED = int(time.time())


class OpenAIErrors(JsonHandler):
    """Errors as OpenAI's clients read them, for every status; and the names of its models."""

    def error_body(self, status: int, code: str, message: str, **details: Any) -> dict[str, Any]:
        return openai.error(status, code, message, details.get("parameter") or details.get("option"))

    def resolve(self, name: str) -> str | None:
        """The model that a name means; None: whichever there is. Raises Refused."""
        return self.gateway.offers.named(name, model_names.OPENAI)


class OpenAIHandler(OpenAIErrors, DrainingHandler):
    """A route of OpenAI's interface."""


class UnknownPathHandler(OpenAIHandler):
    """Every path below /v1 without a route."""

    async def begin(self) -> None:
        if not self._preflight:
            raise HTTPError(404, NO_PATH)


class ModelsHandler(OpenAIHandler):
    """GET /v1/models."""

    takes_secrets = True

    async def get(self) -> None:
        offers = self.gateway.offers
        names = dict.fromkeys([*offers.models, *offers.aliases, "whisper-1"])
        self.answer({"object": "list", "data": [openai.model(name, STARTED) for name in names]})


class ModelHandler(OpenAIHandler):
    """GET /v1/models/{model}."""

    takes_secrets = True

    async def get(self, model: str) -> None:
        self.resolve(model)
        self.answer(openai.model(model, STARTED))


class TranscriptionsHandler(OpenAIHandler, UploadHandler):
    """POST /v1/audio/transcriptions."""

    task = "transcribe"

    def request_of(self, fields: dict[str, list[str]]) -> TranscriptionRequest:
        asked = openai.parse(fields, self.task)
        return asked.of_model(self.resolve(asked.model))

    async def respond(self, asked: TranscriptionRequest, session: FileSession, job: asyncio.Task[Final]) -> None:
        if asked.stream:
            await self._stream(asked, session, job)
            return
        if asked.format in TEXTS:
            media_type, make = TEXTS[asked.format]
            await self.finish_text(job, media_type, lambda: make(session.record()))
        else:
            await self.finish_json(job, lambda: openai.answer(asked, session.in_order, job.result()))

    async def _stream(self, asked: TranscriptionRequest, session: FileSession, job: asyncio.Task[Final]) -> None:
        """Answer with server-sent events. What goes wrong before the first one is an ordinary error."""
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")  # or nginx keeps it until it is complete
        before = ""
        try:
            async for segment in session.follow(job, KEEP_ALIVE_SECONDS):
                if segment is None:
                    await self.send(b": keep-alive\n\n")
                else:
                    await self._send(openai.delta(before, segment))
                    before = segment.text or before
            await self._send(openai.done(asked, session.in_order, job.result()))
            await self.send(b"data: [DONE]\n\n")
        except AsrError as exc:
            if not self._headers_written:
                raise
            log.warning("%s: %s", self.request.path, exc)
            status = exc.status if isinstance(exc, Refused) else 503 if isinstance(exc, Unavailable) else 400
            await self._send(self.error_body(status, exc.code, exc.message))

    async def _send(self, body: dict[str, Any]) -> None:
        """Send a server-sent event."""
        await self.send(b"data: " + orjson.dumps(body) + b"\n\n")


class TranslationsHandler(TranscriptionsHandler):
    """POST /v1/audio/translations: into English."""

    task = "translate"
