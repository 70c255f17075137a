"""POST /api/v1/transcribe: a file in, its text out, for people with curl and for programs without a library."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import orjson

from asrserver.errors import AsrError, BadRequest
from asrserver.handlers.file_session import FileSession
from asrserver.handlers.long_answer import KEEP_ALIVE_SECONDS
from asrserver.handlers.rest import FORMATS
from asrserver.handlers.upload import UploadHandler
from asrserver.protocol.events import Final
from asrserver.protocol.options import Options, Start, track_number, unknown_option, valid_id

log = logging.getLogger("asrserver.rest")

#: The format that is sent as it grows, one JSON object on a line: segments, then the result, as on the WebSocket.
LINES = "ndjson"
LINES_TYPE = "application/x-ndjson"

#: Media types that a client may accept, and the formats that they mean.
ACCEPTED = {
    "application/json": "json",
    LINES_TYPE: LINES,
    "text/plain": "txt",
    "application/x-subrip": "srt",
    "application/srt": "srt",
    "text/vtt": "vtt",
}

#: What may be asked for, in the query or in the form.
PARAMETERS = (
    "channel_mode",
    "format",
    "hotwords",
    "language",
    "model",
    "normalise",
    "prompt",
    "task",
    "track",
    "user_id",
    "words",
)


@dataclass(frozen=True, slots=True)
class Upload:
    """A request that was read.

    Attributes:
        start: The session.
        format: json, ndjson, txt, srt or vtt.
    """

    start: Start
    format: str


class TranscribeHandler(UploadHandler):
    """POST /api/v1/transcribe: the body is the file, or a form with it; the options are in the query or the form."""

    takes_raw = True

    def request_of(self, fields: dict[str, list[str]]) -> Upload:
        given = {name: values[-1].decode(errors="replace") for name, values in self.request.query_arguments.items()}
        given |= {name: values[-1] for name, values in fields.items()}
        for name in given:
            if name not in PARAMETERS:
                raise unknown_option(name, ("file", *PARAMETERS), "parameter")
        format = given.pop("format", "") or self._accepted()
        if format not in ("json", LINES, *FORMATS):
            raise _bad("format", f"must be one of json, {LINES}, {', '.join(FORMATS)}")
        words = given.pop("words", "false")
        if words not in ("true", "false"):
            raise _bad("words", "must be true or false")
        user_id = given.pop("user_id", "")
        track = track_number(given.pop("track", ""))
        options = Options.parse(
            {
                **{name: value for name, value in given.items() if value},
                "track": track,
                "mode": "stream",
                "format": "file",
                # With times of words, long segments become several subtitles.
                "word_timestamps": words == "true" or format in ("srt", "vtt"),
            }
        )
        return Upload(Start("", valid_id(user_id, "user_id") if user_id else "", options, False), format)

    def may_begin(self, fields: dict[str, list[str]]) -> bool:
        return self._parser is None or bool(fields)

    async def respond(self, asked: Upload, session: FileSession, job: asyncio.Task[Final]) -> None:
        if asked.format in FORMATS:
            media_type, make = FORMATS[asked.format]
            await self.finish_text(job, media_type, lambda: make(session.record()))
            return

        if asked.format == LINES:
            await self._send_lines(session, job)
            return

        def body() -> dict[str, Any]:
            return {**_result(job.result()), "segments": session.record()["segments"]}

        await self.finish_json(job, body)

    async def _send_lines(self, session: FileSession, job: asyncio.Task[Final]) -> None:
        """Answer with each segment as it becomes final; signs of life are empty lines.

        What goes wrong before the first line is an ordinary error, and later one a line.
        """
        self.set_header("Content-Type", LINES_TYPE)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")  # or nginx keeps it until it is complete
        try:
            async for segment in session.follow(job, KEEP_ALIVE_SECONDS):
                await self._send_line({"type": "segment_result", **segment.asdict()} if segment else None)
            await self._send_line({"type": "final_result", **_result(job.result())})
        except AsrError as exc:
            if not self._headers_written:
                raise
            log.warning("%s: %s", self.request.path, exc)
            await self._send_line({"type": "error", "code": exc.code, "message": exc.message})

    async def _send_line(self, message: dict[str, Any] | None) -> None:
        await self.send(b"\n" if message is None else orjson.dumps(message) + b"\n")

    def _accepted(self) -> str:
        """The format that the Accept header asks for first."""
        for item in self.request.headers.get("Accept", "").split(","):
            format = ACCEPTED.get(item.partition(";")[0].strip().lower())
            if format is not None:
                return format
        return "json"


def _result(final: Final) -> dict[str, Any]:
    return {
        "session_id": final.session_id,
        "text": final.text,
        "duration": final.total,
        "language": final.language,
    }


def _bad(name: str, must: str) -> BadRequest:
    return BadRequest("bad_request", f"{name} {must}", parameter=name)
