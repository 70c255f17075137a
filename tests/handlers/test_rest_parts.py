"""A session that is too large to be held as a whole."""

from __future__ import annotations

import orjson
import pytest
from tornado.httpclient import AsyncHTTPClient

from asrserver.gateway.gateway import Gateway
from asrserver.handlers import rest
from asrserver.handlers.long_answer import LongAnswerHandler
from asrserver.storage.queries import PART_ROWS
from asrserver.storage.tables import Record


@pytest.mark.usefixtures("http_server")
@pytest.mark.gen_test(timeout=60)
async def test_a_session_of_many_chunks_is_sent_in_parts(
    http_client: AsyncHTTPClient, base_url: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection to PostgreSQL is held while one of them is sent."""
    monkeypatch.setattr(rest, "SEND_BYTES", 1000)
    sizes = []

    async def send(handler: rest.SessionHandler, data: bytes) -> None:
        sizes.append(len(data))
        await LongAnswerHandler.send(handler, data)

    monkeypatch.setattr(rest.SessionHandler, "send", send)
    count = 2 * PART_ROWS + 1
    rows = [{"chunk_index": n, "text": f"text {n}", "duration": 0.1} for n in range(count)]
    await gateway.storage.save([Record({"id": "s", "status": "done"}, rows)])
    body = orjson.loads((await http_client.fetch(f"{base_url}/api/v1/session/s")).body)
    assert [chunk["text"] for chunk in body["chunks"]] == [f"text {n}" for n in range(count)]
    assert body["segments"] == []
    assert len(sizes) == 2
    assert max(sizes) < 200 * PART_ROWS
