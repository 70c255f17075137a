"""The routes of kikipounamu's Python server (protocol/kikipounamu.py), for its clients: served on request.

A file is a session in mode chunk. The request is answered when Redis has the file, which then is not lost. Its result
is read from the history, at any gateway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tornado.web import HTTPError

from asrserver.errors import Refused
from asrserver.gateway import submissions
from asrserver.handlers.audio import RecordingHandler
from asrserver.handlers.base import RestHandler
from asrserver.handlers.file_session import FileSession
from asrserver.handlers.upload import MAX_NEEDLESS_BYTES, UploadHandler
from asrserver.protocol import kikipounamu
from asrserver.protocol.options import Start

log = logging.getLogger("asrserver.rest")

#: Seconds for which a recording is waited for that is being assembled, at most, between looks, and after the end of its
#: session.
AUDIO_SECONDS = 5.0
LOOK_SECONDS = 0.1
FRESH_SECONDS = 60.0


class KikipounamuHandler(RestHandler):
    """A route of that server: open to all pages, with its errors."""

    any_origin = True
    query_parameters = None

    def set_default_headers(self) -> None:
        super().set_default_headers()
        if "Origin" in self.request.headers:
            self.set_header("Access-Control-Allow-Credentials", "true")

    def error_body(self, status: int, code: str, message: str, **details: Any) -> dict[str, Any]:
        return {"detail": message}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was read: its session."""

    start: Start


class SubmissionHandler(KikipounamuHandler, UploadHandler):
    """POST /api/v1/asr/submit."""

    file_field = "audio"
    as_chunk = True

    @property
    def max_body(self) -> int:
        """As large as a chunk may be, in a form."""
        return min(super().max_body, int(self.gateway.settings.max_chunk) + MAX_NEEDLESS_BYTES)

    def _too_large(self) -> Refused:
        limit = min(self.gateway.settings.max_upload, self.gateway.settings.max_chunk)
        return Refused(413, "body_too_large", f"the file is larger than {limit} bytes (max_upload, max_chunk)")

    def request_of(self, fields: dict[str, list[str]]) -> Asked:
        query = {name: values[-1].decode(errors="replace") for name, values in self.request.query_arguments.items()}
        return Asked(kikipounamu.start(query | {name: values[-1] for name, values in fields.items()}))

    def _check_file(self, asked: Asked) -> None:
        super()._check_file(asked)
        if self.spool.size > self.gateway.settings.max_chunk:
            raise self._too_large()

    def may_begin(self, fields: dict[str, list[str]]) -> bool:
        return False

    def work(self, session: FileSession, pieces: AsyncIterator[bytes]) -> Coroutine[Any, Any, Any]:
        return session.submit(pieces)

    async def respond(self, asked: Asked, session: FileSession, job: asyncio.Task[Any]) -> None:
        sid = await job
        position = await self.gateway.queue_position(asked.start.options)
        wait = await self.gateway.broker.status.oldest_waiting() if position else 0.0
        self.answer(kikipounamu.submitted(sid, position, wait))


class SubmissionResultHandler(KikipounamuHandler):
    """GET /api/v1/asr/result/:id."""

    async def get(self, session_id: str) -> None:
        found = await submissions.find(self.gateway, session_id, self.owner)
        if found is None:
            raise HTTPError(404, "Task not found: %s", session_id)
        has_audio = bool(self.gateway.settings.save_audio)
        self.answer(
            kikipounamu.result(
                session_id, found.state, found.text, found.duration, found.created_at, found.error, has_audio
            )
        )


class SubmittedAudioHandler(KikipounamuHandler, RecordingHandler):
    """GET /api/v1/asr/audio/:id: the recording, which may still be being assembled when its result is told."""

    async def get(self, session_id: str) -> None:
        deadline = time.monotonic() + AUDIO_SECONDS
        while not await self.gateway.storage.has_audio(session_id, owner=self.owner):
            if time.monotonic() > deadline or not await self._may_come(session_id):
                break
            await asyncio.sleep(LOOK_SECONDS)
        await super().get(session_id)

    async def _may_come(self, session_id: str) -> bool:
        if not self.gateway.settings.save_audio:
            return False
        found = await self.gateway.storage.record(session_id, owner=self.owner)
        if found is None or found["completed_at"] is None:
            return False
        age = datetime.now(UTC) - datetime.fromisoformat(found["completed_at"])
        return age.total_seconds() < FRESH_SECONDS
