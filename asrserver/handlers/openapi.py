"""The routes as an OpenAPI document (https://spec.openapis.org/oas/v3.1.0); tests hold it against the code."""

from __future__ import annotations

from functools import cache
from typing import Any

from asrserver import __version__
from asrserver.gateway.archive_files import MEDIA
from asrserver.storage.queries import CURSOR

Schema = dict[str, Any]


@cache
def document() -> Schema:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "asrserver",
            "version": __version__,
            "summary": "Streaming speech recognition",
            "description": "Audio goes in by WebSocket; what was said is read here. Errors are JSON with a code and a "
            "message. Every answer has an X-Request-ID: the request's own, or one made here.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {path: {name: _guarded(path, what) for name, what in item.items()} for path, item in PATHS.items()},
        "components": {
            "schemas": SCHEMAS,
            "responses": RESPONSES,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, where the server has keys."}
            },
        },
        "security": [{"key": []}, {}],
    }


def _guarded(path: str, operation: Schema) -> Schema:
    """The operation with what may be answered before it is asked, on every path but /livez."""
    refusals = {"403": {"$ref": "#/components/responses/Forbidden"}}
    if path == "/livez":
        return {**operation, "security": [], "responses": {**operation["responses"], **refusals}}
    refusals["401"] = {"$ref": "#/components/responses/Unauthorized"}
    return {**operation, "responses": {**operation["responses"], **refusals}}


# -- schemas ---------------------------------------------------------------------------------------------------------


def _object(required: Schema, optional: Schema | None = None, description: str = "") -> Schema:
    made: Schema = {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}
    return {**made, "description": description} if description else made


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(kind: str, description: str = "", **more: Any) -> Schema:
    made: Schema = {"type": [kind, "null"], **more}
    return {**made, "description": description} if description else made


def _number(description: str) -> Schema:
    return {"type": "number", "description": description}


def _count(description: str) -> Schema:
    return {"type": "integer", "description": description}


_TEXT: Schema = {"type": "string"}
_BOOLEAN: Schema = {"type": "boolean"}
_WHEN: Schema = {"type": ["string", "null"], "format": "date-time"}
_STATUS: Schema = {
    "type": "string",
    "enum": ["recording", "done", "interrupted", "error"],
    "description": "recording: audio may still come; done: finished by the client; interrupted: the connection "
    "dropped; error: given up",
}

_RECORD = {
    "session_id": _TEXT,
    "user_id": _or_null("string"),
    "status": _STATUS,
    "text": {"type": "string", "description": "The whole text; empty until the session is over."},
    "duration": _number("Seconds of audio."),
    "chunk_count": {"type": "integer"},
    "language": _or_null("string", "Asked for, or recognised."),
    "mode": _or_null("string"),
    "model": _or_null("string", "Which recognised it."),
    "error_code": _or_null("string", "Of the session as a whole; a chunk has its own."),
    "error_message": _or_null("string"),
    "audio_path": _or_null("string", "Where its recording is kept, if it is: see /api/v1/session/{session_id}/audio."),
    "created_at": {"type": "string", "format": "date-time"},
    "completed_at": _WHEN,
}

_STATE: Schema = {"latency_ms": {"type": "number"}, "error": {"type": "string"}}
_PART = _object({"ready": _BOOLEAN}, _STATE)
_REDIS = _object(
    {"ready": _BOOLEAN},
    {
        **_STATE,
        "keys": _count("Keys."),
        "lasting_keys": _count("Those of them that do not expire."),
        "memory_bytes": _count("Memory used."),
    },
)

SCHEMAS: Schema = {
    "Error": _object(
        {
            "error": _object(
                {
                    "code": {"type": "string", "description": "Stable, for programs."},
                    "message": {"type": "string", "description": "For people."},
                },
                {"parameter": {"type": "string", "description": "The parameter that was wrong."}},
            )
        }
    ),
    "Record": _object(_RECORD, description="A session."),
    "Chunk": _object(
        {
            "chunk_index": {"type": "integer"},
            "text": _TEXT,
            "duration": _or_null("number", "Seconds of audio."),
            "language": _or_null("string"),
            "error_code": _or_null("string", "null: recognised."),
            "error_message": _or_null("string"),
            "received_at": _WHEN,
            "recognised_at": _WHEN,
        },
        description="What the client sent as one piece.",
    ),
    "Segment": _object(
        {
            "number": _count("Its place in the session, from 0."),
            "chunk_index": _or_null("integer", "The chunk, where the segment is within one."),
            "start": _number("Seconds from the start of the recording."),
            "end": _number("Seconds from the start of the recording."),
            "text": _TEXT,
            "language": _or_null("string"),
            "confidence": _or_null("number", "0 to 1: the mean probability of its tokens."),
            "words": {
                "type": ["array", "null"],
                "items": _object({"word": _TEXT}, {"start": _or_null("number"), "end": _or_null("number")}),
                "description": "Words with times in seconds, if they were asked for.",
            },
            "worker": _or_null("string", "Who recognised it."),
        },
        description="A stretch of speech between two silences.",
    ),
    "Session": _object({**_RECORD, "chunks": _array(_ref("Chunk")), "segments": _array(_ref("Segment"))}),
    "History": _object(
        {
            "total": _count("How many sessions match, on all pages."),
            "records": _array(_ref("Record")),
            "cursor": _or_null("string", "Where the next page begins; null on the last."),
        }
    ),
    "Deleted": _object({"session_id": _TEXT, "deleted": {"const": True}}),
    "Health": _object(
        {
            "status": {"enum": ["ok", "degraded"]},
            "funasr_ready": {"type": "boolean", "description": "As workers_ready."},
            "redis_ready": _BOOLEAN,
            "workers_ready": _BOOLEAN,
            "postgres_ready": _BOOLEAN,
            "redis": _REDIS,
            "postgres": _PART,
            "recognition": _PART,
            "queue": {"type": "object", "additionalProperties": {"type": "integer"}},
            "gateways": _array({"type": "object"}),
            "workers": _array({"type": "object"}),
        }
    ),
    "Stats": _object(
        {
            "total_tasks": _count("Sessions that are stored."),
            "total_duration": _number("Their seconds of audio."),
            "avg_rtf": _number("Seconds of work a second of speech, of the workers that live now."),
            "storage_used": _count("Bytes of the database and of recordings."),
            "storage": _object({"database": _count("Bytes."), "recordings": _count("Bytes.")}),
            "sessions": _object(
                {status: {"type": "integer"} for status in _STATUS["enum"]}, description="How many, by status."
            ),
        }
    ),
    "Queue": _object(
        {
            "queued": _count("Sessions that no worker has claimed."),
            "processing": _count("Sessions that a worker has."),
            "failed": _count("Pieces of audio that were given up after three workers."),
            "workers": _count("Workers that live."),
            "workers_busy": _count("Those with something to do."),
            "backlog_seconds": _number("Audio taken and not yet recognised, in seconds."),
            "oldest_waiting_seconds": _number("How long the longest of it has waited."),
            "real_time_factor": _number("Seconds of work a second of speech."),
            "sessions": _count("Sessions that are open."),
            "to_store": _count("Sessions with results that are not yet in PostgreSQL."),
        }
    ),
    "Status": _object({"status": _TEXT}, {"reason": {"type": "string"}}),
}


# -- responses -------------------------------------------------------------------------------------------------------


def _response(description: str, schema: str = "Error", media: str = "application/json") -> Schema:
    return {"description": description, "content": {media: {"schema": _ref(schema)}}}


RESPONSES: Schema = {
    "BadRequest": _response("A parameter is wrong; `parameter` says which."),
    "Unauthorized": _response("The server has keys, and the request showed none of them."),
    "Forbidden": _response("Pages of this origin may not use this server, or the key may not do this."),
    "NotFound": _response("There is no such session."),
    "Unavailable": _response("Redis or PostgreSQL is away: try again after `Retry-After` seconds."),
    "BadGateway": _response("The server that FUNASR_ADDR names gave no usable answer."),
}


def _answers(good: Schema, **errors: str) -> Schema:
    """The responses of an operation: 200, and the common ones as BadRequest="400" and so on."""
    named = {status: {"$ref": f"#/components/responses/{name}"} for name, status in errors.items()}
    return {"200": good, **named}


def _get(name: str, summary: str, responses: Schema, parameters: list[Schema] | None = None) -> Schema:
    made: Schema = {"operationId": name, "summary": summary, "responses": responses}
    return {**made, "parameters": parameters} if parameters else made


# -- parameters ------------------------------------------------------------------------------------------------------


def _query(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": description}


_MOMENT: Schema = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}

_ID: Schema = {
    "name": "session_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "description": "The session's id, percent-encoded.",
}

_HISTORY = [
    _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}, "Sessions on a page."),
    _query("cursor", {"type": "string", "pattern": f"^{CURSOR.pattern}$"}, "`cursor` of the page before."),
    _query("user_id", {"type": "string", "minLength": 1, "maxLength": 128}, "Of this user alone."),
    _query("status", {"type": "string", "enum": _STATUS["enum"]}, "In this state alone."),
    _query("from", _MOMENT, "Begun at this moment or later; without a zone, UTC."),
    _query("to", _MOMENT, "Begun before this moment."),
    _query(
        "q",
        {"type": "string", "minLength": 1, "maxLength": 200},
        'Full-text search in what was said, once a session is over: all of these words, "a phrase", -not, or.',
    ),
]

_FORMAT = _query(
    "format",
    {"type": "string", "enum": ["json", "txt", "srt", "vtt"], "default": "json"},
    "json has everything; txt is the text; srt and vtt are subtitles.",
)


# -- paths -----------------------------------------------------------------------------------------------------------

_RECORDING: Schema = {
    "description": "As it was sent; headerless audio as WAV or FLAC; of several files that cannot be joined, a ZIP.",
    "content": {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA.values()},
}

PATHS: Schema = {
    "/ws/asr": {
        "get": {
            "operationId": "stream",
            "summary": "The WebSocket of the native protocol: audio in, text out",
            "responses": {
                "101": {"description": "The connection is a WebSocket now."},
                "400": _response("It was not asked to be a WebSocket."),
                "426": {"description": "The WebSocket version is not 13."},
            },
        }
    },
    "/livez": {"get": _get("live", "Whether the process handles requests", _answers(_response("It does.", "Status")))},
    "/readyz": {
        "get": _get(
            "ready",
            "Whether this gateway takes sessions",
            {"200": _response("It does.", "Status"), "503": _response("It does not, for this reason.", "Status")},
        )
    },
    "/metrics": {
        "get": _get(
            "metrics",
            "Metrics for Prometheus, of all gateways and workers of this machine's supervisor",
            {"200": {"description": "The text format.", "content": {"text/plain": {"schema": _TEXT}}}},
        )
    },
    "/api/v1/health": {
        "get": _get(
            "health",
            "Every part, probed now",
            {"200": _response("All works.", "Health"), "503": _response("Something does not.", "Health")},
        )
    },
    "/api/v1/history": {
        "get": _get(
            "history",
            "Sessions, newest first",
            _answers(_response("A page.", "History"), BadRequest="400", Unavailable="503"),
            _HISTORY,
        )
    },
    "/api/v1/session/{session_id}": {
        "get": _get(
            "session",
            "A session with its chunks, segments and words, or its text in other formats",
            _answers(
                {
                    "description": "The session.",
                    "content": {
                        "application/json": {"schema": _ref("Session")},
                        **{media: {"schema": _TEXT} for media in ("text/plain", "application/x-subrip", "text/vtt")},
                    },
                },
                BadRequest="400",
                NotFound="404",
                Unavailable="503",
            ),
            [_ID, _FORMAT],
        ),
        "delete": _get(
            "delete",
            "Delete a session for good: its rows, its streams, its recording",
            _answers(_response("It is gone.", "Deleted"), BadRequest="400", NotFound="404", Unavailable="503"),
            [_ID],
        ),
    },
    "/api/v1/session/{session_id}/audio": {
        "get": _get(
            "recording",
            "The recording of a session, where the server keeps them",
            {
                **_answers(_RECORDING, BadRequest="400", NotFound="404", Unavailable="503"),
                "206": {**_RECORDING, "description": "The range of it that `Range` asked for."},
                "416": _response("It has no such range."),
            },
            [_ID],
        )
    },
    "/api/v1/stats": {
        "get": _get(
            "stats",
            "What was recognised since the beginning",
            _answers(_response("Sums.", "Stats"), BadGateway="502", Unavailable="503"),
        )
    },
    "/api/v1/asr/queue/status": {
        "get": _get(
            "queue",
            "What waits, how long, and who works",
            _answers(_response("Numbers of now.", "Queue"), BadGateway="502", Unavailable="503"),
        )
    },
    "/api/v1/openapi.json": {
        "get": _get(
            "openapi",
            "This document",
            {"200": {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}}},
        )
    },
}
