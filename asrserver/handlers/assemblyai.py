"""/v3/ws: AssemblyAI's streaming API, for clients that were written for it (protocol/assemblyai.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any

from asrserver.errors import AsrError, Refused
from asrserver.handlers.live_session import LiveSessionConnection
from asrserver.protocol import assemblyai, model_names
from asrserver.protocol.events import Refusal, SessionEvent
from asrserver.protocol.json_messages import parse_object
from asrserver.protocol.options import Options, hotwords_of, join_hotwords

#: Seconds that clients are told a session may last, where there is no limit.
UNLIMITED_SECONDS = 86_400.0


class AssemblyAiHandler(LiveSessionConnection):
    """WebSocket /v3/ws: one session, which lasts as long as the connection.

    It is started after the upgrade: clients wait for one second for that.
    """

    _turns: assemblyai.AssemblyAiTurns
    _options: Options
    _is_refusing = False  # a message, and not the session

    async def admit(self) -> None:
        given = self.request.query_arguments.items()
        asked = assemblyai.parse_query({name: values[-1].decode(errors="replace") for name, values in given})
        self._options = asked.options.of_model(self._resolve(asked.model))
        self._turns = assemblyai.AssemblyAiTurns(asked)
        self.gateway.refuse_when_full(self.key_id)

    def _resolve(self, name: str) -> str | None:
        try:
            return self.gateway.offers.named(name, model_names.ASSEMBLYAI) if name else None
        except Refused as exc:
            raise Refused(400, "unknown_model", exc.message) from None

    def open(self, *args: str, **kwargs: str) -> None:
        super().open(*args, **kwargs)
        if self in self._registry:
            self._wait(self._begin())

    async def _begin(self) -> None:
        try:
            session = await self.start(self._options)
        except AsrError as exc:
            self.give_up(exc)
            return
        self.send(self._turns.begin(session.id, self.gateway.settings.max_session or UNLIMITED_SECONDS))

    def take_text(self, text: str) -> Awaitable[Any] | None:
        message = parse_object(text)
        match message.get("type"):
            case "ForceEndpoint":
                self.flush_audio()
            case "Terminate":
                self.end_audio()
            case "UpdateConfiguration":
                keyterms = hotwords_of(message.get("keyterms_prompt"), "keyterms_prompt")
                if keyterms is not None:
                    self.change_hotwords(join_hotwords(keyterms))
                self._send(self._turns.configured(message))
        return None

    def refuse_message(self, error: AsrError, **where: Any) -> None:
        self._is_refusing = True
        super().refuse_message(error, **where)
        self._is_refusing = False

    def tell(self, event: SessionEvent) -> None:
        if isinstance(event, Refusal) and self._is_refusing and self.refusal is None:
            self.send(self._turns.warning(event.code, event.message))  # with an error the client would give up
        else:
            self._send(self._turns.messages(event))

    def _send(self, messages: Iterable[bytes]) -> None:
        for data in messages:
            self.send(data)
