"""Utterances of the Wyoming protocol: each from its first audio to its transcript."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from asrserver.audio import bounds, wav
from asrserver.errors import AsrError, BadRequest, Unavailable
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.held_bytes import HeldBytes
from asrserver.handlers.file_session import FileSession
from asrserver.process.aio import Notifier
from asrserver.protocol import model_names, wyoming
from asrserver.protocol.events import Final, Segment
from asrserver.protocol.options import Start
from asrserver.protocol.wyoming import AudioFormat, TranscribeRequest, WireEvent

log = logging.getLogger("asrserver.wyoming")

#: Bytes of audio that wait for their session before no more is read.
MAX_WAITING_BYTES = 1 << 17

#: Seconds within which a transcript follows audio-stop, even an empty one. Home Assistant's pipeline waits that long.
ANSWER_SECONDS = 300.0

#: Seconds between checks of something that also notifies when it changes.
CHECK_SECONDS = 10.0

#: Formats of an utterance's audio, one after another, at most.
MAX_PARTS = 10

#: Codec of samples by their width in bytes.
CODECS = {1: "pcm_u8", 2: "pcm_s16le", 3: "pcm_s24le", 4: "pcm_s32le"}


class Speaker(Protocol):
    """The connection of an utterance."""

    gateway: Gateway

    def send(self, data: bytes) -> None:
        """Send without waiting."""
        ...

    def refuse(self, error: AsrError) -> None:
        """Tell what cannot be done."""
        ...

    def answered(self) -> None:
        """The transcript was sent."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class AudioPipe:
    """Audio on its way from a connection to a session.

    Args:
        held: Counts it.
    """

    def __init__(self, held: HeldBytes) -> None:
        self._held = held
        self._pieces: list[bytes] = []
        self._size = 0
        self._ended = False
        self._closed = False
        self._changed = Notifier()

    async def put(self, data: bytes) -> bool:
        """Add audio, and wait while much of it is waiting. Returns False if none was taken for ANSWER_SECONDS."""
        if self._closed:
            return True
        self._pieces.append(data)
        self._count(len(data))
        self._changed.notify()
        return await self._changed.wait_for(self._has_room, ANSWER_SECONDS)

    def end(self) -> None:
        """Note that no more audio follows."""
        self._ended = True
        self._changed.notify()

    def close(self) -> None:
        """Drop the audio: nobody takes it any more."""
        self._closed = True
        self._pieces = []
        self._count(-self._size)
        self.end()

    def _has_room(self) -> bool:
        most = 0 if self._held.is_full_for("") else MAX_WAITING_BYTES
        return self._ended or self._size <= most

    def _count(self, size: int) -> None:
        self._size += size
        self._held.add("", size)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the audio, each time all that has come."""
        while self._pieces or not self._ended:
            if self._pieces:
                data = b"".join(self._pieces)
                self._pieces = []
                self._count(-self._size)
                self._changed.notify()
                yield data
            else:
                await self._changed.wait(CHECK_SECONDS)


class UtterancePart:
    """The audio of an utterance in one format, and the session that recognises it.

    Args:
        gateway: Where.
        start: The session.
        head: Bytes that go before the audio.
        changed: Notified when there is more text, and at the end.

    Attributes:
        audio: Takes the audio.
        segments: Those that are final, in order.
        job: Ends with the session.
    """

    def __init__(self, gateway: Gateway, start: Start, head: bytes, changed: Notifier) -> None:
        self.audio = AudioPipe(gateway.held)
        session = FileSession(gateway, start, "", changed)
        self.segments = session.segments
        self._head = head
        self._changed = changed
        self.job = asyncio.create_task(session.run(self._pieces()), name="transcribe utterance")
        self.job.add_done_callback(self._done)

    @property
    def failure(self) -> BaseException | None:
        """Why the session has failed, if it has."""
        return self.job.exception() if self.job.done() and not self.job.cancelled() else None

    async def _pieces(self) -> AsyncIterator[bytes]:
        head = self._head
        async for data in self.audio.pieces():
            yield head + data
            head = b""

    def _done(self, job: asyncio.Task[Final]) -> None:
        _ = self.failure  # asyncio logs one that nobody has seen, and the connection may be gone
        self.audio.close()
        self._changed.notify()


class Utterance:
    """One utterance and its answer.

    Nearly always it is one session. Where the format of its audio changes, another one goes on.

    Args:
        connection: Gets the answer.
        asked: How it is to be recognised.
        beginning: The data of its audio-start.

    Attributes:
        asked: As above; it may be changed until audio comes.
        stopped: Its audio has ended: an answer is owed.
        task: Ends with the answer.
    """

    def __init__(self, connection: Speaker, asked: TranscribeRequest, beginning: Mapping[str, Any]) -> None:
        self.asked = asked
        self.stopped = False
        self._connection = connection
        self._gateway = connection.gateway
        self._beginning = beginning
        self._format: AudioFormat | None = None  # of the last part
        self._parts: list[UtterancePart] = []
        self._error: AsrError | None = None
        self._told = 0  # segments
        self._changed = Notifier()
        self.task = asyncio.create_task(self._run(), name="wyoming utterance")

    @property
    def has_audio(self) -> bool:
        """Whether some has come."""
        return self._format is not None

    async def add(self, event: WireEvent) -> None:
        """Take an audio-chunk; after an error it is dropped."""
        if self._error is not None or not event.payload:
            return
        try:
            format = AudioFormat.parse(event.data, self._beginning)
            if format != self._format:
                await self._begin_part(format)
            if not await self._parts[-1].audio.put(event.payload):
                raise Unavailable("overloaded", f"no audio could be taken for {ANSWER_SECONDS:g} s", 5.0)
        except AsrError as exc:
            self._fail(exc)

    def stop(self) -> None:
        """The audio has ended; the answer follows."""
        self.stopped = True
        if self._parts:
            self._parts[-1].audio.end()
        self._changed.notify()

    def cancel(self) -> None:
        """End it without an answer."""
        self.task.cancel()
        self._cancel_jobs()  # here: a task that is cancelled before it has begun does nothing at its end

    async def _begin_part(self, format: AudioFormat) -> None:
        """Begin with the first audio; or with audio of another format, when all before it is recognised."""
        if len(self._parts) == MAX_PARTS:
            raise BadRequest("bad_request", f"the format of the audio changes more than {MAX_PARTS - 1} times")
        if self._parts:
            self._parts[-1].audio.end()
            await asyncio.wait([self._parts[-1].job], timeout=ANSWER_SECONDS)
        self._format = format
        bounds.check(format.channels, format.rate)
        options = self.asked.options(format)
        options = options.of_model(self._model(options.language))
        samples = wav.Format.of(CODECS[format.width], format.channels, format.rate)
        head = b"" if format.is_native else wav.write_header(samples, 0)  # 0: of unknown length
        self._parts.append(UtterancePart(self._gateway, Start("", "", options, False), head, self._changed))

    def _model(self, language: str | None) -> str | None:
        """The model for it; None: whichever there is. Raises Refused."""
        offers = self._gateway.offers
        if not self.asked.model:
            return offers.model_for(language)
        return offers.named(self.asked.model, model_names.OPENAI)

    def _fail(self, error: AsrError) -> None:
        if self._error is None:
            self._error = error
            self._connection.refuse(error)
            self._cancel_jobs()

    def _cancel_jobs(self) -> None:
        for part in self._parts:
            part.job.cancel()

    # -- the answer ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Send the text as it becomes final, and all of it at the end."""
        deadline = math.inf
        try:
            while not (self.stopped and all(part.job.done() for part in self._parts)):
                await self._changed.wait(CHECK_SECONDS)
                self._tell()
                now = time.monotonic()
                deadline = min(deadline, now + ANSWER_SECONDS) if self.stopped else math.inf
                if now >= deadline:
                    self._fail(Unavailable("overloaded", f"there was no text after {ANSWER_SECONDS:g} s", 5.0))
            self._tell()
            self._answer()
        except Exception:
            log.exception("an utterance could not be answered")
            self._connection.close()
        finally:
            self._cancel_jobs()

    def _tell(self) -> None:
        """Send what is new: further segments, or that a session has failed."""
        segments = self._segments
        if len(segments) > self._told:
            if not self._told:
                self._connection.send(wyoming.transcript_start(segments[0].language))
            self._connection.send(wyoming.transcript_chunk(segments, self._told))
            self._told = len(segments)
        for part in self._parts:
            failure = part.failure
            if failure is not None and not isinstance(failure, AsrError):
                log.error("an utterance has failed", exc_info=failure)
                failure = AsrError("internal_error", "the audio could not be handled")
            if failure is not None:
                self._fail(failure)

    def _answer(self) -> None:
        # A command that was heard only in part is not sent: it may mean something else.
        text = wyoming.text_of(self._segments) if self._error is None else ""
        language = self._parts[-1].job.result().language if self._parts and self._error is None else None
        if not self._told:
            self._connection.send(wyoming.transcript_start(language))
        self._connection.send(wyoming.transcript(text, language))
        self._connection.answered()

    @property
    def _segments(self) -> list[Segment]:
        return [segment for part in self._parts for segment in part.segments]
