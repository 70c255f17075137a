"""Logs: one line an event on standard error, for people or as JSON, with the request and the session it is about."""

from __future__ import annotations

import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

import orjson

#: The id of the request, or of the connection's, in whose turn something is logged.
request_id: ContextVar[str] = ContextVar("request_id", default="")

#: How every line names its session; an id has no spaces.
_SESSION = re.compile(r"\bsession=(\S+)")


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, process, message; session, request_id and error where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        made = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": message,
        }
        session = _SESSION.search(message)
        if session is not None:
            made["session"] = session[1]
        if request_id.get():
            made["request_id"] = request_id.get()
        if record.exc_info:
            made["error"] = self.formatException(record.exc_info)
        elif record.stack_info:
            made["error"] = record.stack_info
        # What a log may quote was once bytes: halves of surrogate pairs, which orjson refuses.
        return orjson.dumps({key: _storable(value) for key, value in made.items()}).decode()


def configure_logging(level: str, kind: str = "text") -> None:
    """Log from this level up; `kind` is text or json."""
    handler = logging.StreamHandler(sys.stderr)
    if kind == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s[%(process)d] %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("tornado.access").setLevel(logging.WARNING)
    # Below that it quotes headers that are malformed, and one of them may be Authorization.
    logging.getLogger("tornado.general").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _storable(value: object) -> object:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
