"""POST /v1/realtime/client_secrets: short-lived keys for pages, as OpenAI's interface makes them."""

from __future__ import annotations

from typing import Any

from asrserver.handlers.openai import OpenAIHandler
from asrserver.protocol.json_messages import parse_object
from asrserver.protocol.realtime import new_session_id
from asrserver.protocol.realtime_session import secret_request

#: Bytes of a request's body at most.
MAX_BODY = 1 << 16


class ClientSecretsHandler(OpenAIHandler):
    """POST /v1/realtime/client_secrets."""

    max_body = MAX_BODY

    def initialize(self, gateway: Any) -> None:
        super().initialize(gateway)
        self._body = b""

    def data_received(self, chunk: bytes) -> Any:
        if self._received < MAX_BODY:
            self._body += chunk
        return super().data_received(chunk)

    async def post(self) -> None:
        """Make one, for the API key of the request."""
        seconds, setup = secret_request(parse_object(self._body.decode(errors="replace") or "{}"))
        value, expires = await self.gateway.client_secrets.make(self.key_id, setup.document(), seconds)
        self.answer({"value": value, "expires_at": expires, "session": {"id": new_session_id(), **setup.document()}})
