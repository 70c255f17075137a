"""Logging: one line for each record on standard error, as text or as JSON, with its request and its session."""

from __future__ import annotations

import logging
import re
import sys
import threading
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson

from asrserver.telemetry import traces

#: The id of the request or connection that is being served; log lines carry it.
request_id: ContextVar[str] = ContextVar("request_id", default="")

#: How log messages name their session; an id has no spaces.
_SESSION = re.compile(r"\bsession=(\S+)")

#: HTTP clients of huggingface_hub's versions, which log every request of a download.
_HUB_CLIENTS = ("httpx", "httpx2")


#: Characters that would forge a line, or change how one is read: control characters, line separators, marks of the
#: writing direction. A message may quote what a client sent.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class TextFormatter(logging.Formatter):
    """Formats a record as one line, and after it the traceback, if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """The traceback, indented: an error's message may quote what a client sent, and have lines of its own."""
        return "\n".join(f"  {escaped(line)}" for line in super().formatException(ei).split("\n"))


def escaped(text: str) -> str:
    """A text on one line: what cannot be printed is written as Python does."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text.rstrip("\n"))


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line.

    Keys: time, level, logger, process, message; and where they are known session, its trace_id, request_id and error.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = escaped(record.getMessage())
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
            if trace_id := traces.trace_id(session[1]):
                made["trace_id"] = trace_id
        if request_id.get():
            made["request_id"] = request_id.get()
        if record.exc_info:
            made["error"] = self.formatException(record.exc_info)
        elif record.stack_info:
            made["error"] = record.stack_info
        # A message may quote bytes that were decoded with surrogateescape; orjson refuses lone surrogates.
        return orjson.dumps({key: _storable(value) for key, value in made.items()}).decode()


def configure_logging(level: str, kind: str = "text") -> None:
    """Configure the root logger; warnings of libraries, and what ends the process or a thread, go there too.

    Args:
        level: The minimum level, in any case.
        kind: text (for humans) or json (for machines).
    """
    handler = logging.StreamHandler(sys.stderr)
    if kind == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter("%(asctime)s %(levelname)-7s %(name)s[%(process)d] %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("tornado.access").setLevel(logging.WARNING)
    # At lower levels it quotes malformed headers, and one of them may be Authorization.
    logging.getLogger("tornado.general").setLevel(logging.WARNING)
    for name in _HUB_CLIENTS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook, threading.excepthook = _log_end, _log_end_of_thread


def _log_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log what ends this process, in place of a traceback that is no JSON."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger("asrserver").critical("stopped by an error", exc_info=(kind, error, trace))


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_type is SystemExit:  # as Python's own hook
        return
    name = ended.thread.name if ended.thread is not None else "unknown"
    error = ended.exc_value if ended.exc_value is not None else ended.exc_type()
    logging.getLogger("asrserver").critical("the thread %s was stopped by an error", name, exc_info=error)


def _storable(value: object) -> object:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
