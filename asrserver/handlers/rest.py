"""REST under /api/v1, and the probes of process supervisors; data/openapi.json describes it for programs."""

from __future__ import annotations

import logging
from typing import Any

import orjson
from tornado.web import HTTPError

from asrserver.gateway import health
from asrserver.gateway.not_stored import why_missing
from asrserver.handlers.base import NO_PATH, BadParameter, RestHandler
from asrserver.handlers.long_answer import LongAnswerHandler
from asrserver.handlers.proxy import ProxyHandler
from asrserver.handlers.upload import DrainingHandler
from asrserver.storage.queries import Filter
from asrserver.text.subtitles import plain, srt, vtt

log = logging.getLogger("asrserver.rest")

#: Sessions that one history request returns at most.
MAX_LIMIT = 1000

#: Characters of a search, and of a user id, at most.
MAX_SEARCH = 200
MAX_USER_ID = 128

#: Bytes of a session's JSON that are sent at a time.
SEND_BYTES = 1 << 18

STATUSES = ("recording", "done", "interrupted", "error")

#: The formats besides json of a session that is read, or of a file: each its media type, and what makes it.
FORMATS = {
    "txt": ("text/plain", plain),
    "srt": ("application/x-subrip", srt),
    "vtt": ("text/vtt", vtt),
}


class NotFoundHandler(DrainingHandler):
    """Every path without a route. Who sends a file to a misspelt one must be told so, and not cut off."""

    async def begin(self) -> None:
        raise HTTPError(404, NO_PATH)


class LivenessHandler(RestHandler):
    """GET /livez: 200 while this process handles requests at all. It needs no key."""

    public = True
    query_parameters = None

    async def get(self) -> None:
        self.answer({"status": "ok"})


class ReadinessHandler(RestHandler):
    """GET /readyz: 200 while this gateway accepts sessions; 503 before and after.

    It needs no key: Kubernetes and load balancers can show none. So it tells no more than what is not ready.
    """

    public = True
    query_parameters = None

    async def get(self) -> None:
        reason = await health.not_ready(self.gateway)
        self.answer(
            {"status": "not ready", "reason": reason} if reason else {"status": "ready"}, 503 if reason else 200
        )


class HealthHandler(RestHandler):
    """GET /api/v1/health: the state of every part, probed now; 503 when one does not work."""

    async def get(self) -> None:
        state = await health.health(self.gateway)
        self.answer(
            state if self.is_operator else health.without_details(state), 200 if state["status"] == "ok" else 503
        )


class HistoryHandler(RestHandler):
    """GET /api/v1/history: {total, records, cursor}, newest first."""

    query_parameters = frozenset(("limit", "cursor", "user_id", "status", "from", "to", "q"))

    async def get(self) -> None:
        limit = self.whole("limit", 50, 1, MAX_LIMIT)
        which = Filter(
            owner=self.owner,
            user_id=self.text("user_id", MAX_USER_ID),
            status=self.choice("status", STATUSES),
            since=self.when("from"),
            until=self.when("to"),
            search=self.text("q", MAX_SEARCH),
        )
        await self.gateway.wait_stored()
        self.audit("history", which.user_id or "")
        try:
            page = await self.gateway.storage.history(limit, which, self.raw("cursor"))
        except ValueError as exc:
            raise BadParameter("cursor", f"is not usable: {exc}") from None
        self.answer({"total": page.total, "records": page.records, "cursor": page.cursor})


class SessionHandler(LongAnswerHandler):
    """GET and DELETE /api/v1/session/:id."""

    query_parameters = frozenset(("format",))

    async def get(self, session_id: str) -> None:
        kind = self.choice("format", ("json", *FORMATS)) or "json"
        await self.gateway.wait_stored(session_id)
        record = await self.gateway.storage.record(session_id, owner=self.owner)
        if record is None:
            raise HTTPError(404, await self._why_missing(session_id))
        self.audit("read", session_id)
        if kind == "json":
            await self._send_json(record)
            return
        media_type, make = FORMATS[kind]
        segments = self.gateway.storage.segments(session_id, owner=self.owner)
        record["segments"] = [segment async for part in segments for segment in part]
        self.set_header("Content-Type", f"{media_type}; charset=utf-8")
        self.finish(make(record))

    async def _why_missing(self, session_id: str) -> str:
        if self.owner is None:
            return await why_missing(self.gateway, session_id)
        return "there is no such session of this API key"  # what others have, or had, is not told

    async def _send_json(self, record: dict[str, Any]) -> None:
        """Send the record with its chunks and segments, as they are read: there may be 100,000 of them."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        storage, sid = self.gateway.storage, record["session_id"]
        begun = orjson.dumps(record)[:-1]
        for name, parts in (("chunks", storage.chunks), ("segments", storage.segments)):
            begun += b',"%s":[' % name.encode()
            separator = b""
            async for rows in parts(sid, owner=self.owner):
                begun += separator + orjson.dumps(rows)[1:-1]
                separator = b","
                if len(begun) > SEND_BYTES:
                    await self.send(begun)
                    begun = b""
            begun += b"]"
        self.finish(begun + b"}")

    async def delete(self, session_id: str) -> None:
        if not await self.gateway.delete(session_id, owner=self.owner):
            raise HTTPError(404, "there is no such session")
        log.info("session=%s deleted", session_id)
        self.audit("delete", session_id)
        self.answer({"session_id": session_id, "deleted": True})


class UserHandler(RestHandler):
    """DELETE /api/v1/users/:id: all sessions of a user."""

    async def delete(self, user_id: str) -> None:
        if not 0 < len(user_id) <= MAX_USER_ID:
            raise BadParameter("user_id", f"must have 1 to {MAX_USER_ID} characters")
        await self.gateway.wait_stored()
        deleted, complete = await self.gateway.retention.erase(user_id, self.owner)
        log.info("deleted %d sessions of a user complete=%s", deleted, complete)
        self.audit("erase", user_id)
        self.answer({"user_id": user_id, "deleted": deleted, "complete": complete})


class StatsHandler(ProxyHandler):
    """GET /api/v1/stats: sums over all stored sessions."""

    async def local_answer(self) -> None:
        self.answer(await health.stats(self.gateway, self.owner))


class QueueStatusHandler(ProxyHandler):
    """GET /api/v1/asr/queue/status: what waits for recognition, for how long, and how many workers there are."""

    async def local_answer(self) -> None:
        self.answer(await health.queue_status(self.gateway))
