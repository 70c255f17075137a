"""REST under /api/v1, and what a supervisor of processes asks; openapi.py says the same for programs."""

from __future__ import annotations

import logging

from tornado.web import HTTPError

from asrserver.gateway import health as overview
from asrserver.handlers import openapi
from asrserver.handlers.base import BadParameter, Rest
from asrserver.handlers.proxy import Upstream
from asrserver.storage.queries import Filter
from asrserver.text.subtitles import plain, srt, vtt

log = logging.getLogger("asrserver.rest")

#: Most sessions that one history request returns.
MAX_LIMIT = 1000

#: Longest search in characters.
MAX_SEARCH = 200

STATUSES = ("recording", "done", "interrupted", "error")

#: What a session can be read as, besides json: the media type, and how it is made.
FORMATS = {
    "txt": ("text/plain", plain),
    "srt": ("application/x-subrip", srt),
    "vtt": ("text/vtt", vtt),
}


class NotFound(Rest):
    def prepare(self) -> None:
        super().prepare()
        if not self._finished:
            raise HTTPError(404, "there is nothing at this path")


class Live(Rest):
    """GET /livez: 200 while this process handles requests at all. Asked without a key."""

    public = True

    async def get(self) -> None:
        self.answer({"status": "ok"})


class Ready(Rest):
    """GET /readyz: 200 while this gateway takes sessions; 503 before and after."""

    async def get(self) -> None:
        reason = await overview.not_ready(self.gateway)
        self.answer(
            {"status": "not ready", "reason": reason} if reason else {"status": "ready"}, 503 if reason else 200
        )


class Health(Rest):
    """GET /api/v1/health: every part, probed; 503 when one does not work."""

    async def get(self) -> None:
        health = await overview.health(self.gateway)
        self.answer(health, 200 if health["status"] == "ok" else 503)


class History(Rest):
    """GET /api/v1/history: {total, records, cursor}, newest first."""

    async def get(self) -> None:
        limit = self.whole("limit", 50, 1, MAX_LIMIT)
        which = Filter(
            owner=self.owner,
            user_id=self.text("user_id", 128),
            status=self.choice("status", STATUSES),
            since=self.when("from"),
            until=self.when("to"),
            search=self.text("q", MAX_SEARCH),
        )
        try:
            page = await self.gateway.storage.history(limit, which, self.given("cursor"))
        except ValueError as exc:
            raise BadParameter("cursor", f"is not usable: {exc}") from None
        self.answer({"total": page.total, "records": page.records, "cursor": page.cursor})


class OneSession(Rest):
    """GET and DELETE /api/v1/session/:id."""

    async def get(self, session_id: str) -> None:
        kind = self.choice("format", ("json", *FORMATS)) or "json"
        await self.gateway.wait_flushed(session_id)
        session = await self.gateway.storage.session(session_id, owner=self.owner)
        if session is None:
            raise HTTPError(404, "there is no such session")
        if kind == "json":
            self.answer(session)
            return
        media_type, make = FORMATS[kind]
        self.set_header("Content-Type", f"{media_type}; charset=utf-8")
        self.finish(make(session))

    async def delete(self, session_id: str) -> None:
        if not await self.gateway.delete(session_id, owner=self.owner):
            raise HTTPError(404, "there is no such session")
        log.info("session=%s deleted", session_id)
        self.answer({"session_id": session_id, "deleted": True})


class Stats(Upstream):
    """GET /api/v1/stats: what was recognised since the beginning."""

    async def here(self) -> None:
        self.answer(await overview.stats(self.gateway, self.owner))


class QueueStatus(Upstream):
    """GET /api/v1/asr/queue/status: what waits, how long, and who works."""

    async def here(self) -> None:
        self.answer(await overview.queue_status(self.gateway))


class OpenApi(Rest):
    """GET /api/v1/openapi.json: this, for programs."""

    async def get(self) -> None:
        self.answer(openapi.document())
