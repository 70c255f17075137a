"""Requests with a body, which is read as it comes. Answers follow when it was read, even errors.

If a server answers and closes while the client is still sending, the connection is reset, and the client may never see
the answer. So a refusal waits, for a while, until the body has been read and dropped.

Forms are parsed with `multipart` (MIT, no dependencies): it takes bytes as they come and gives parts as they come, does
no I/O, and bounds headers. Tornado's own parser needs the whole body in memory; python-multipart calls back, which does
not fit an event loop that must wait for the disk; streaming-form-data wants to know the parts beforehand.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from tornado.web import HTTPError, stream_request_body

from asrserver.audio import sniff, wav
from asrserver.errors import AsrError, AudioError, BadRequest, Refused
from asrserver.handlers.file_session import FileSession
from asrserver.handlers.long_answer import LongAnswerHandler
from asrserver.handlers.spool import Spool

log = logging.getLogger("asrserver.rest")

#: Tornado refuses larger bodies, with its own error; the handlers here have lower limits.
NO_LIMIT = 1 << 62

#: Bytes of a body at most where none is needed.
MAX_NEEDLESS_BYTES = 1 << 20

#: Digits of a Content-Length at most.
MAX_LENGTH_DIGITS = 18

#: Bytes and seconds for which the body of a refused request is read and dropped.
DRAIN_BYTES = 1 << 30
DRAIN_SECONDS = 10.0

#: An upload that brings fewer than IDLE_BYTES in IDLE_SECONDS has stalled, and is ended: a live stream in any codec is
#: faster. And seconds between checks.
IDLE_SECONDS = 60.0
IDLE_BYTES = 4096
CHECK_SECONDS = 5.0

#: Seconds that an upload may take.
UPLOAD_SECONDS = 86_400.0

#: Bytes of all fields of a form, and number of parts, at most.
MAX_FIELD_BYTES = 1 << 16
MAX_PARTS = 100

#: Bytes of a file that are one chunk of its session.
PIECE_BYTES = 1 << 16


@stream_request_body
class DrainingHandler(LongAnswerHandler):
    """A route whose refusals wait until the request's body was read."""

    query_parameters = None

    def initialize(self, gateway: Any) -> None:
        super().initialize(gateway)
        self._refusal: Exception | None = None
        self._received = 0  # bytes of the body
        self._answering = False
        self._drain_until = 0.0

    async def prepare(self) -> None:
        self.connection.set_max_body_size(NO_LIMIT)
        try:
            await super().prepare()
            if not self._finished and self._refusal is None:
                await self.begin()
        except (AsrError, HTTPError) as exc:
            self.refuse(exc)

    async def begin(self) -> None:
        """Check the request before its body is read; may raise AsrError and HTTPError."""

    def refuse_request(self, error: AsrError) -> None:
        if self._answering or not self._sends_body:
            super().refuse_request(error)
        else:
            self.refuse(error)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self._answering = True
        super().write_error(status_code, **kwargs)

    def refuse(self, error: Exception) -> None:
        """Answer with an error, when the body has been read."""
        if self._refusal is not None:
            return
        if not self._sends_body:
            raise error
        self._refusal = error
        self._drain_until = time.monotonic() + DRAIN_SECONDS
        # Tornado calls this in place of the method once the body is there.
        setattr(self, (self.request.method or "").lower(), self._raise_refusal)

    def data_received(self, chunk: bytes) -> Any:
        """Take a piece of the body; Tornado waits for what this returns."""
        self._received += len(chunk)
        if self._refusal is None:
            if self._received > self.max_body:
                self.refuse(self._too_large())
        elif self._received > DRAIN_BYTES or time.monotonic() > self._drain_until:
            self._answer_now()
        return None

    @property
    def max_body(self) -> int:
        """Bytes of the body at most."""
        return MAX_NEEDLESS_BYTES

    def _too_large(self) -> Refused:
        return Refused(413, "body_too_large", f"the body is larger than {self.max_body} bytes")

    def _raise_refusal(self, *_args: str, **_kwargs: str) -> None:
        assert self._refusal is not None
        raise self._refusal

    def _answer_now(self) -> None:
        """Answer although the body goes on: Tornado then closes the connection."""
        if not self._finished:
            try:
                self._raise_refusal()
            except Exception as exc:
                self._handle_request_exception(exc)

    @property
    def _sends_body(self) -> bool:
        """Whether the client sends a body, or is about to; one that asked first (Expect) does not before it may."""
        headers = self.request.headers
        if self._received:
            return True
        if headers.get("Expect", "").lower() == "100-continue":
            return False
        return "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"


class UploadHandler(DrainingHandler):
    """A route that takes a file, in a form or as the body, and transcribes it.

    A route gives `request_of`, which reads the form's fields, and `respond`.
    """

    takes_secrets = True

    #: Whether the body may be the file itself.
    takes_raw = False

    #: The name of the form's file.
    file_field = "file"

    #: Whether any file is one chunk of its session, and not only those that cannot be decoded piece by piece.
    as_chunk = False

    def initialize(self, gateway: Any) -> None:
        super().initialize(gateway)
        self.fields: dict[str, list[str]] = {}
        self.spool = Spool(gateway.held, gateway.uploads)
        self.session: FileSession | None = None
        self._asked: Any = None  # the request that the session was started for
        self._job: asyncio.Task[Any] | None = None
        self._parser: PushMultipartParser | None = None
        self._part: str | None = None  # the name of the open part
        self._value = b""
        self._field_bytes = 0  # of all fields
        self._has_file = False
        self._looked_at = False  # whether the file's first bytes were
        self._release: Callable[[], None] | None = None
        self._paced = time.monotonic(), 0  # when IDLE_BYTES more had come, and how many there were
        self._busy = False
        self._watch: asyncio.TimerHandle | None = None

    # -- for a route ---------------------------------------------------------------------------------------------

    @abstractmethod
    def request_of(self, fields: dict[str, list[str]]) -> Any:
        """Read the fields, into something that has a Start as `start`; raises AsrError.

        Its format is `file`, or that of headerless audio: then what begins like no container is such audio.
        """

    @abstractmethod
    async def respond(self, asked: Any, session: FileSession, job: asyncio.Task[Any]) -> None:
        """Answer the request; raises AsrError."""

    def work(self, session: FileSession, pieces: AsyncIterator[bytes]) -> Coroutine[Any, Any, Any]:
        """What is done with the file: the job that `respond` answers with."""
        return session.run(pieces)

    def may_begin(self, fields: dict[str, list[str]]) -> bool:
        """Whether the fields that came before the file are likely all."""
        return "model" in fields

    # -- the body ------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        if self.request.method != "POST":
            return
        self._release = await self.gateway.connect(self.request.remote_ip or "", self.key)
        self.spool.owner = self.key_id
        self.connection.set_body_timeout(UPLOAD_SECONDS)
        if self.stream.closed():  # the client left meanwhile
            self._end()
        self.gateway.refuse_when_full(self.key_id)
        length = self.request.headers.get("Content-Length", "0")
        if not length.isdecimal() or len(length) > MAX_LENGTH_DIGITS:  # Tornado ignores it beside Transfer-Encoding
            raise BadRequest("bad_request", "Content-Length must be one number")
        if int(length) > self.max_body:
            raise self._too_large()
        kind, options = parse_options_header(self.request.headers.get("Content-Type", ""))
        if kind == "multipart/form-data":
            if not options.get("boundary"):
                raise BadRequest("bad_request", "the form's Content-Type has no boundary")
            self._parser = PushMultipartParser(options["boundary"], max_segment_count=MAX_PARTS)
        elif self.takes_raw:
            self._open_file()
        else:
            raise BadRequest("bad_request", "the body must be a form: Content-Type multipart/form-data")
        self._check_client()

    async def data_received(self, chunk: bytes) -> None:
        super().data_received(chunk)
        if self._refusal is not None or self._finished or self.request.method != "POST":
            return
        self._busy = True
        try:
            if self._parser is None:
                await self.file_data(chunk)
            else:
                for event in self._parser.parse(chunk):
                    await self._form_event(event)
        except MultipartError as exc:
            self._give_up(BadRequest("bad_request", f"the form cannot be read: {exc}"))
        except AsrError as exc:
            self._give_up(exc)
        finally:
            self._busy = False

    @property
    def max_body(self) -> int:
        return self.gateway.settings.max_upload

    def _too_large(self) -> Refused:
        return Refused(413, "body_too_large", f"the upload is larger than {self.max_body} bytes (max_upload)")

    async def _form_event(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            self._part, self._value = event.name or "", b""
            if self._part == self.file_field:
                self._open_file()
        elif event is None:
            if self._part not in (None, self.file_field):
                try:
                    value = self._value.decode()
                except UnicodeDecodeError:
                    raise BadRequest(
                        "bad_request", f"{self._part} is not text in UTF-8", parameter=self._part
                    ) from None
                self.fields.setdefault(self._part or "", []).append(value)
            self._part = None
        elif self._part == self.file_field:
            await self.file_data(bytes(event))
        else:
            self._value += event
            self._field_bytes += len(event)
            if self._field_bytes > MAX_FIELD_BYTES:
                message = f"the fields of a form have at most {MAX_FIELD_BYTES} bytes"
                raise BadRequest("bad_request", message, parameter=self._part)

    def _open_file(self) -> None:
        if self._has_file:
            raise BadRequest("bad_request", "the form has more than one file", parameter=self.file_field)
        self._has_file = True

    async def file_data(self, data: bytes) -> None:
        """Take the next bytes of the file."""
        await self.spool.write(data)
        if not self._looked_at and len(self.spool.head) == sniff.HEAD_BYTES:
            self._looked_at = True
            if self.may_begin(self.fields):
                self._start()

    def _start(self) -> None:
        """Begin to transcribe before the whole body is read, if the fields and the first bytes are sufficient.

        Otherwise errors are found, and reported, when everything is there.
        """
        try:
            asked = self.request_of(self.fields)
        except AsrError:
            return
        kind = self._container(asked)
        if not self._is_whole(kind) and (kind is not None or _is_headerless(asked)):
            self._transcribe(asked)

    def _container(self, asked: Any) -> str | None:
        """The container that the file is; None: it is in none that is known."""
        return sniff.container(self.spool.head, first=not _is_headerless(asked))

    def _is_whole(self, kind: str | None) -> bool:
        """Whether such a file cannot be decoded piece by piece, and must be one chunk."""
        return kind in sniff.WHOLE or (kind == "wav" and wav.is_whole(self.spool.head))

    def _transcribe(self, asked: Any) -> None:
        self._asked = asked
        start, size, kind = asked.start, PIECE_BYTES, self._container(asked)
        if self._is_whole(kind) or self.as_chunk:
            start, size = start.changed(mode="chunk", format="auto"), max(1, self.spool.size)
        elif kind is not None:
            start = start.changed(format="file")
        self.session = FileSession(self.gateway, start, self.key_id)
        self._job = asyncio.create_task(self.work(self.session, self.spool.pieces(size)), name="transcribe upload")
        # `post` raises its exception, unless the client is gone.
        self._job.add_done_callback(lambda job: job.cancelled() or job.exception())

    def _give_up(self, error: AsrError) -> None:
        self._stop()
        self.spool.close()
        self.refuse(error)

    # -- the answer ----------------------------------------------------------------------------------------------

    async def post(self, *_args: str) -> None:
        """Answer when the body is there."""
        try:
            if self._parser is not None:
                self._parser.close()
            asked = self.request_of(self.fields)
            self._check_file(asked)
            if self._job is not None and asked != self._asked:  # fields came after the file
                job = self._job
                self._stop()
                await asyncio.wait([job])  # or its session would be done with the file
            self.spool.end()
            if self._job is None:
                self._transcribe(asked)
            assert self.session is not None
            assert self._job is not None
            await self.respond(asked, self.session, self._job)
        except MultipartError as exc:
            raise BadRequest("bad_request", f"the form cannot be read: {exc}") from None
        except AsrError as exc:
            if not self._headers_written:
                raise
            # The answer has begun: it can only be cut off.
            log.warning("%s %s: %s", self.request.method, self.request.path, exc)
            self.stream.close()
        except asyncio.CancelledError:
            if not self.stream.closed():
                raise
            log.info("%s: the client left before its answer", self.request.path)

    def _check_file(self, asked: Any) -> None:
        if not self._has_file:
            raise BadRequest("bad_request", f"the form has no file ({self.file_field})", parameter=self.file_field)
        if not self.spool.size:
            raise AudioError("not_audio", "the file is empty")
        kind = self._container(asked) if _is_headerless(asked) else sniff.of_file(self.spool.head)
        limit = self.gateway.settings.max_chunk
        if self._is_whole(kind) and self.spool.size > limit:
            name = sniff.WHOLE.get(kind or "", "such WAV")
            message = f"{name} files have at most {limit} bytes (max_chunk): send it in another format"
            raise AudioError("not_streamable", message)

    # -- the end -------------------------------------------------------------------------------------------------

    def on_connection_close(self) -> None:
        """Cancel everything: the client is gone."""
        self._end()

    def on_finish(self) -> None:
        self._end()

    def _end(self) -> None:
        self._stop()
        self.spool.close()
        if self._watch is not None:
            self._watch.cancel()
        release, self._release = self._release, None
        if release is not None:
            release()

    def _stop(self) -> None:
        job, self._job = self._job, None
        if job is not None and not job.done():
            job.cancel()

    def _check_client(self) -> None:
        """End the request if its client sends nothing, or hardly anything, for too long."""
        since, received = self._paced
        if self._busy or self.spool.ended or self._received - received >= IDLE_BYTES:
            self._paced = time.monotonic(), self._received
        elif time.monotonic() - since > IDLE_SECONDS:
            log.info("the upload from %s stalled for %g s: cut", self.request.remote_ip, IDLE_SECONDS)
            self.stream.close()
            self._end()
            return
        self._watch = asyncio.get_running_loop().call_later(CHECK_SECONDS, self._check_client)


def _is_headerless(asked: Any) -> bool:
    """Whether a request says that its file is headerless audio."""
    return bool(asked.start.options.format != "file")
