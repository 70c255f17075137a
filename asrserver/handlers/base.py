"""What REST handlers share: JSON out, errors as JSON, parameters by name, a request id."""

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

from asrserver.errors import AsrError, Unavailable
from asrserver.handlers.auth import Door
from asrserver.storage.errors import StorageError
from asrserver.telemetry.logs import request_id

log = logging.getLogger("asrserver.rest")

#: A request id of the client's own that may stand in a header and a log line.
REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")

_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?", re.ASCII | re.I)


class BadParameter(HTTPError):
    """Raised when a parameter has a value that cannot be used."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(400, "%s", f"{name} {message}")
        self.name = name
        self.message = f"{name} {message}"


class JsonErrors(Door):
    """Errors are {"error": {"code", "message", "parameter"?}}; a method refused is told which are allowed."""

    def answer(self, body: Any, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(orjson.dumps(body))

    def fail(self, status: int, code: str, message: str, **details: Any) -> None:
        self.answer({"error": {"code": code, "message": message, **details}}, status)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        exc = (kwargs.get("exc_info") or (None, None, None))[1]
        if isinstance(exc, StorageError):
            self.set_header("Retry-After", "5")
            self.fail(503, "storage_unavailable", str(exc))
        elif isinstance(exc, AsrError):
            unavailable = isinstance(exc, Unavailable)
            if unavailable:
                self.set_header("Retry-After", str(round(exc.details["retry_after"])))
            self.fail(503 if unavailable else 400, exc.code, exc.message)
        elif isinstance(exc, BadParameter):
            self.fail(400, "bad_request", exc.message, parameter=exc.name)
        else:
            if status_code == 405:
                self.set_header("Allow", ", ".join(methods(type(self))))
            phrase = http.HTTPStatus(status_code).phrase
            told = isinstance(exc, HTTPError) and exc.log_message
            message = (exc.log_message % exc.args if exc.args else exc.log_message) if told else phrase  # type: ignore[union-attr,operator]
            self.fail(status_code, phrase.lower().replace(" ", "_"), message)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, (StorageError, AsrError)):
            log.warning("%s %s: %s", self.request.method, self.request.path, value)
        elif not isinstance(value, BadParameter):
            super().log_exception(typ, value, tb)

    def set_default_headers(self) -> None:
        """Also called before an error is written: the request's id is on every answer."""
        super().set_default_headers()
        given = self.request.headers.get("X-Request-ID", "")
        if not hasattr(self, "request_id"):
            self.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
            request_id.set(self.request_id)
        self.set_header("X-Request-ID", self.request_id)
        self.clear_header("Server")  # nobody's business


class Rest(JsonErrors):
    """A route of REST, with its query's parameters."""

    async def head(self, **path: str) -> None:
        """Whatever can be read can be asked for without its body."""
        if "GET" not in methods(type(self)):
            raise HTTPError(405)
        await self.get(**path)  # type: ignore[misc]

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadParameter(name or "path", "is not text in UTF-8") from None

    # -- query parameters ----------------------------------------------------------------------------------------

    def given(self, name: str) -> str | None:
        """The parameter as it stands in the query, or None."""
        return self.get_query_argument(name, None, strip=False)

    def text(self, name: str, longest: int) -> str | None:
        value = self.given(name)
        if value is not None and not 1 <= len(value) <= longest:
            raise BadParameter(name, f"must have 1 to {longest} characters")
        return value

    def whole(self, name: str, default: int, lowest: int, highest: int) -> int:
        value = self.given(name)
        if value is None:
            return default
        if not value.isascii() or not value.isdigit() or not lowest <= int(value[:18]) <= highest:
            raise BadParameter(name, f"must be a whole number from {lowest} to {highest}")
        return int(value)

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        value = self.given(name)
        if value is not None and value not in allowed:
            raise BadParameter(name, f"must be one of {', '.join(allowed)}")
        return value

    def when(self, name: str) -> datetime | None:
        """A day or a moment of ISO 8601; without a zone it is UTC."""
        value = self.given(name)
        if value is None:
            return None
        mended = re.sub(r" (\d\d:?\d\d)$", r"+\1", value) if ":" in value[:16] else value  # a + that was not encoded
        try:
            if not _DATE.fullmatch(mended):
                raise ValueError
            at = datetime.fromisoformat(mended.upper())
        except ValueError:
            raise BadParameter(name, "must be a day or a moment such as 2026-01-31T12:00:00Z") from None
        return at if at.tzinfo else at.replace(tzinfo=UTC)


def methods(handler: type[RequestHandler]) -> list[str]:
    """The methods that a handler has, by name."""
    own = [m for m in RequestHandler.SUPPORTED_METHODS if m != "HEAD" and _has(handler, m.lower())]
    return sorted([*own, "HEAD"] if "GET" in own and issubclass(handler, Rest) else own)


def _has(handler: type[RequestHandler], name: str) -> bool:
    return getattr(handler, name) is not getattr(RequestHandler, name)
