"""/v1/realtime: OpenAI's Realtime interface for transcription, for clients that were written for it
(protocol/realtime.py, realtime_session.py).

To its client, a connection is one session. Underneath, a session of this server begins with the first audio, and
another one when the client asks for other options later: the options of a session hold for all of its audio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Any

from asrserver.errors import AsrError, BadRequest, Refused, Unavailable
from asrserver.handlers.flow_control import in_turns
from asrserver.handlers.live_session import NORMAL, LiveSessionConnection
from asrserver.handlers.openai import OpenAIErrors
from asrserver.process.aio import Notifier
from asrserver.protocol.events import Final, Lost, Refusal, SessionEvent
from asrserver.protocol.frames import NO_STATUS
from asrserver.protocol.json_messages import Excerpt, base64_slices, from_base64, parse_bulky
from asrserver.protocol.options import Options
from asrserver.protocol.realtime import Transcription
from asrserver.protocol.realtime_session import Setup

#: Bytes of audio that are one chunk at most: a message may have minutes of it.
PIECE_BYTES = 1 << 16

#: Seconds that the last results of a session may take before the next one begins.
ENDING_SECONDS = 60.0

#: Characters of a client's own id of a message that an error repeats.
MAX_EVENT_ID = 512

#: Close codes with which a client says that it has no more audio; 1001: its page was left.
DONE = (NORMAL, 1001, NO_STATUS)

#: Where the model and the language are in an update.
_TRANSCRIPTION = "session.audio.input.transcription"


class RealtimeHandler(OpenAIErrors, LiveSessionConnection):
    """WebSocket /v1/realtime."""

    transcription: Transcription
    wanted: Options  # what the client asks for now; the session's own may be older

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        self._over = Notifier()  # of the end of a session
        self._started = 0  # sessions so far
        self._asked: Options | None = None  # what the last of them was asked for with

    # -- the connection ------------------------------------------------------------------------------------------

    async def admit(self) -> None:
        self.gateway.refuse_when_full(self.key_id)
        setup = Setup()
        if self.secret is not None:
            setup = setup.updated(self.secret.session)
        for name in self.request.query_arguments.get("model", [])[-1:]:
            with suppress(AsrError):  # mostly one that talks; the one that hears is named in the session
                named = setup.updated({"input_audio_transcription": {"model": name.decode(errors="replace")}})
                await self._options(named)
                setup = named
        self.wanted = await self._options(setup)
        self.transcription = Transcription(setup)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return "realtime" if "realtime" in subprotocols else next(iter(subprotocols), None)

    def open(self, *args: str, **kwargs: str) -> None:
        super().open(*args, **kwargs)
        self.send(self.transcription.created())

    def leave(self) -> None:
        if self.close_code in DONE:
            self.end_audio()
        super().leave()

    # -- messages ------------------------------------------------------------------------------------------------

    def take_text(self, text: str) -> Awaitable[Any] | None:
        self.transcription.event_id = None
        message = parse_bulky(text, "audio")
        kind, event_id = message.get("type"), message.get("event_id")
        if isinstance(event_id, str):
            self.transcription.event_id = event_id[:MAX_EVENT_ID]
        match kind:
            case "input_audio_buffer.append":
                audio = message.get("audio")
                if isinstance(audio, Excerpt):
                    return self._append_large(audio)
                return self._append(from_base64(audio, "audio"))
            case "input_audio_buffer.commit":
                self.transcription.check_commit()
                self._send(self.transcription.commit(self.flush_audio()))
                self._settle()
            case "input_audio_buffer.clear":
                self.send(self.transcription.clear(self.flush_audio()))
                self._settle()
            case "session.update" | "transcription_session.update":
                return self._update(kind, message.get("session"))
            case str():
                pass  # what a conversation would need
            case _:
                raise BadRequest("bad_request", "the message has no type")
        return None

    def take_binary(self, data: bytes) -> Awaitable[Any] | None:
        raise BadRequest("bad_request", "audio comes in base64 here: input_audio_buffer.append")

    def take_run(self, messages: list[bytes]) -> None:
        return None

    def _settle(self) -> None:
        """Answer at once what no session has to answer."""
        if self.session is None:
            self._send(self.transcription.settle())

    async def _update(self, kind: str, session: Any) -> None:
        try:
            setup = self.transcription.setup.updated(session)
            options = await self._options(setup)
        except Unavailable as exc:
            self.give_up(exc)
        except AsrError as exc:
            self.refuse_message(exc)
        else:
            self.transcription.setup = setup
            if options != self.wanted:
                self.wanted = options
            self.send(self.transcription.updated(kind))

    async def _options(self, setup: Setup) -> Options:
        """The options of a setup; raises AsrError if this server has no model for them."""
        try:
            options = setup.options(self.resolve(setup.model))
        except Refused as exc:
            raise BadRequest("unknown_model", exc.message, option=f"{_TRANSCRIPTION}.model") from None
        try:
            await self.gateway.offers.check(options)
        except BadRequest as exc:
            exc.details["option"] = f"{_TRANSCRIPTION}.{exc.details['option']}"
            raise
        return options

    # -- audio ---------------------------------------------------------------------------------------------------

    @property
    def _is_current(self) -> bool:
        """Whether there is a session that takes audio, and is as the client asks for now; or shall be no longer.

        Until speech pauses, an older one goes on: the word would be cut in which a change comes.
        """
        session = self.session
        if session is None or session.state != "recording":
            return False
        if self._asked is self.wanted:
            return True
        return self.transcription.is_speaking and session.options.has_same_audio(self.wanted)

    def _append(self, audio: bytes) -> Awaitable[Any] | None:
        if self._is_current and len(audio) <= PIECE_BYTES:
            return self._offer(audio)
        return self._append_slowly(audio) if audio and self.refusal is None else None

    async def _append_large(self, excerpt: Excerpt) -> None:
        """Take megabytes of audio, giving way to others while they are decoded."""
        try:
            wait = self._append(await in_turns(base64_slices(excerpt, "audio")))
            if wait is not None:
                await wait
        except AsrError as exc:
            self.refuse_message(exc)

    def _offer(self, audio: bytes) -> Awaitable[Any] | None:
        self.transcription.appended(len(audio) / self.wanted.bytes_per_second)
        return super().take_binary(audio)

    async def _append_slowly(self, audio: bytes) -> None:
        """Take audio that needs another session first, or is more than there may be room for at once."""
        try:
            if not self._is_current:
                await self._renew()
        except AsrError as exc:
            self.give_up(exc)
        for begin in range(0, len(audio), PIECE_BYTES):
            if self.refusal is not None:
                return
            wait = self._offer(audio[begin : begin + PIECE_BYTES])
            if wait is not None:
                await wait

    async def _renew(self) -> None:
        """Have a session with the options that the client asks for now; raises AsrError."""
        before = self.session
        if before is not None:
            self.end_audio()
            # One after the other: no text of the next one may come before the last of this one. Also where the client
            # is gone: what it sent before it left is recognised.
            await self._over.wait_for(lambda: self.session is not before, ENDING_SECONDS)
        if self.session is not None:
            raise Unavailable("overloaded", f"the text so far did not come within {ENDING_SECONDS:g} s")
        self._started += 1
        sid = self.transcription.id + (f".{self._started}" if self._started > 1 else "")
        self._asked = self.wanted
        await self.start(self._asked, sid)
        self._send(self.transcription.begin())

    # -- events --------------------------------------------------------------------------------------------------

    def on_event(self, event: SessionEvent) -> None:
        if isinstance(event, Refusal) and not isinstance(event, Lost):
            return  # its session is ended because no audio came: with more audio there is another
        super().on_event(event)
        if isinstance(event, Lost):
            self._over.notify()

    def tell(self, event: SessionEvent) -> None:
        self._send(self.transcription.messages(event))

    def ended(self, final: Final) -> None:
        if self.refusal is not None or final.status == "error":
            super().ended(final)
        self._over.notify()

    def _send(self, messages: Iterable[bytes]) -> None:
        for data in messages:
            self.send(data)
