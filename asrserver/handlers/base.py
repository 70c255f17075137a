"""What the REST handlers share: answers and errors as JSON, query parameters by name, a request id."""

from __future__ import annotations

import http
import logging
import re
import uuid
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import orjson
from tornado.web import HTTPError, RequestHandler

from asrserver.errors import AsrError, AudioError, BadRequest, DecryptionError, Refused, Unavailable
from asrserver.handlers.auth import AuthenticatedHandler
from asrserver.protocol.codes import CODES
from asrserver.protocol.options import unknown_option
from asrserver.storage.errors import StorageError
from asrserver.telemetry import traces
from asrserver.telemetry.logs import request_id

log = logging.getLogger("asrserver.rest")

#: Who read or deleted what, where the operator wants to know.
audit_log = logging.getLogger("asrserver.audit")

#: Request ids of the client's own that are taken over: they stand in a header and in log lines.
REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")

#: ISO 8601: a day, or a day and a time with or without a zone. datetime.fromisoformat alone takes much more.
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?", re.ASCII | re.I)


#: What an unknown path is told.
NO_PATH = "there is nothing at this path; GET /docs shows the routes"


class BadParameter(HTTPError):
    """Raised when a parameter has a value that cannot be used; the answer is 400 and names it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(400, "%s", f"{name} {message}")
        self.name = name
        self.message = f"{name} {message}"


class JsonHandler(AuthenticatedHandler):
    """Answers in JSON. Errors are {"error": {"code", "message", "parameter"?}}; a 405 lists the allowed methods."""

    def answer(self, body: Any, status: int = 200) -> None:
        """Finish the request with `body` as JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(orjson.dumps(body))

    def fail(self, status: int, code: str, message: str, **details: Any) -> None:
        """Finish the request with an error."""
        self.answer(self.error_body(status, code, message, **details), status)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        exc = (kwargs.get("exc_info") or (None, None, None))[1]
        if isinstance(exc, StorageError):
            self.set_header("Retry-After", "5")
            self.fail(503, "storage_unavailable", str(exc))
        elif isinstance(exc, (Refused, Unavailable)):
            self.refuse_request(exc)
        elif isinstance(exc, AsrError):
            self.fail(next(iter(CODES[exc.code].statuses), 400), exc.code, exc.message, **exc.details)
        elif isinstance(exc, BadParameter):
            self.fail(400, "bad_request", exc.message, parameter=exc.name)
        else:
            if status_code == 405:
                self.set_header("Allow", allowed := ", ".join(methods(type(self))))
            phrase = http.HTTPStatus(status_code).phrase
            message = f"{self.request.method} is not possible here, only {allowed}" if status_code == 405 else phrase
            if isinstance(exc, HTTPError) and exc.log_message:
                message = exc.log_message % exc.args if exc.args else exc.log_message
            self.fail(status_code, phrase.lower().replace(" ", "_"), message)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, DecryptionError):
            return  # the handler has logged it, with the session
        if isinstance(value, (StorageError, AsrError)):
            level = logging.INFO if isinstance(value, (AudioError, BadRequest, Refused)) else logging.WARNING
            log.log(level, "%s %s: %s", self.request.method, self.request.path, value)
        elif not isinstance(value, BadParameter):
            super().log_exception(typ, value, tb)

    def set_default_headers(self) -> None:
        """Set the request's id, on errors too: Tornado clears the headers and calls this before it writes one."""
        super().set_default_headers()
        given = self.request.headers.get("X-Request-ID", "")
        if not hasattr(self, "request_id"):
            self.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
            request_id.set(self.request_id)
            traces.set_remote_parent(self.request.headers)
        self.set_header("X-Request-ID", self.request_id)
        self.clear_header("Server")  # which would tell the version of Tornado


class RestHandler(JsonHandler):
    """A route of the REST interface, with the parameters of its query."""

    #: The query parameters of GET; other methods have none. An unknown one is refused, for it may be a misspelt one.
    #: None: unknown ones are ignored, on routes that monitoring asks.
    query_parameters: frozenset[str] | None = frozenset()

    async def prepare(self) -> None:
        await super().prepare()
        method = self.request.method or ""
        if self._finished or self.query_parameters is None or method == "OPTIONS" or method not in methods(type(self)):
            return
        known = self.query_parameters if method in ("GET", "HEAD") else frozenset()
        for name in self.request.query_arguments:
            if name not in known:
                raise unknown_option(name, known, "parameter")

    async def head(self, **path: str) -> None:
        """Answer as GET does; Tornado leaves the body out."""
        if "GET" not in methods(type(self)):
            raise HTTPError(405)
        await self.get(**path)  # type: ignore[misc]

    def audit(self, action: str, subject: str) -> None:
        """Log who reads or deletes the texts of a session or a user, where the setting audit-log asks for it."""
        if self.gateway.settings.audit_log == "on":
            quoted = orjson.dumps(subject).decode()  # it is the client's
            audit_log.info("%s key=%s address=%s id=%s", action, self.key_id or "-", self.request.remote_ip, quoted)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadParameter(name or "path", "is not text in UTF-8") from None

    # -- query parameters: each method returns None, or its default, where the parameter is not given --------------

    def raw(self, name: str) -> str | None:
        """A parameter as it stands in the query."""
        return self.get_query_argument(name, None, strip=False)

    def text(self, name: str, longest: int) -> str | None:
        """A text of 1 to `longest` characters; raises BadParameter."""
        value = self.raw(name)
        if value is not None and not 1 <= len(value) <= longest:
            raise BadParameter(name, f"must have 1 to {longest} characters")
        return value

    def whole(self, name: str, default: int, lowest: int, highest: int) -> int:
        """A whole number; raises BadParameter."""
        value = self.raw(name)
        if value is None:
            return default
        if not value.isascii() or not value.isdigit() or not lowest <= int(value[:18]) <= highest:
            raise BadParameter(name, f"must be a whole number from {lowest} to {highest}")
        return int(value)

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        """One of the `allowed` values; raises BadParameter."""
        value = self.raw(name)
        if value is not None and value not in allowed:
            raise BadParameter(name, f"must be one of {', '.join(allowed)}")
        return value

    def when(self, name: str) -> datetime | None:
        """A day or a moment of ISO 8601, in UTC; without a zone it is taken as UTC. Raises BadParameter."""
        value = self.raw(name)
        if value is None:
            return None
        mended = re.sub(r" (\d\d:?\d\d)$", r"+\1", value) if ":" in value[:16] else value  # a + that was not encoded
        try:
            if not _DATE.fullmatch(mended):
                raise ValueError
            at = datetime.fromisoformat(mended.upper())
            return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
        except (ValueError, OverflowError):  # in UTC it may be before the year 1, or after 9999
            raise BadParameter(name, "must be a day or a moment such as 2026-01-31T12:00:00Z") from None


def methods(handler: type[RequestHandler]) -> list[str]:
    """The names of the methods that a handler implements."""
    own = [m for m in RequestHandler.SUPPORTED_METHODS if m != "HEAD" and _implements(handler, m.lower())]
    return sorted([*own, "HEAD"] if "GET" in own and issubclass(handler, RestHandler) else own)


def _implements(handler: type[RequestHandler], name: str) -> bool:
    return getattr(handler, name) is not getattr(RequestHandler, name)
