"""REST under /api/v1: health, history, sessions. Errors are {"error": {"code", "message"}}."""

from __future__ import annotations

import http
import logging
from typing import Any

import orjson
from tornado.web import HTTPError

from asrserver.handlers.door import Door
from asrserver.storage import StorageError

log = logging.getLogger("asrserver.rest")

#: Most sessions that one history request returns.
MAX_LIMIT = 1000


class Rest(Door):
    """What the handlers share: JSON out, errors as JSON."""

    def answer(self, body: Any, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(orjson.dumps(body))

    def fail(self, status: int, code: str, message: str) -> None:
        self.answer({"error": {"code": code, "message": message}}, status)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        exc = (kwargs.get("exc_info") or (None, None, None))[1]
        if isinstance(exc, StorageError):
            self.fail(503, "storage_unavailable", str(exc))
            return
        phrase = http.HTTPStatus(status_code).phrase
        message = exc.log_message if isinstance(exc, HTTPError) and exc.log_message else phrase
        self.fail(status_code, phrase.lower().replace(" ", "_"), message)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, StorageError):
            log.warning("%s %s: %s", self.request.method, self.request.path, value)
        else:
            super().log_exception(typ, value, tb)


class NotFound(Rest):
    def prepare(self) -> None:
        super().prepare()
        if not self._finished:
            raise HTTPError(404, "there is nothing at this path")


class Health(Rest):
    """GET /api/v1/health: every part, probed; 503 when one does not work."""

    async def get(self) -> None:
        health = await self.gateway.health()
        self.answer(health, 200 if health["status"] == "ok" else 503)


class History(Rest):
    """GET /api/v1/history?limit=50: {total, records}, newest first."""

    async def get(self) -> None:
        text = self.get_query_argument("limit", "50")
        if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_LIMIT:
            raise HTTPError(400, f"limit must be a whole number from 1 to {MAX_LIMIT}")
        total, records = await self.gateway.storage.history(int(text))
        self.answer({"total": total, "records": records})


class OneSession(Rest):
    """GET and DELETE /api/v1/session/:id."""

    async def get(self, sid: str) -> None:
        await self.gateway.settled(sid)
        session = await self.gateway.storage.session(sid)
        if session is None:
            raise HTTPError(404, "there is no such session")
        self.answer(session)

    async def delete(self, sid: str) -> None:
        if not await self.gateway.delete(sid):
            raise HTTPError(404, "there is no such session")
        log.info("session=%s deleted", sid)
        self.answer({"session_id": sid, "deleted": True})
