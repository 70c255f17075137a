"""The whole system, as its users meet it: the program as processes, a WebSocket client, REST, PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.conftest import System, Utterance, word_errors


async def call(ws: WebSocketClientConnection, message: dict[str, Any] | None = None) -> dict[str, Any]:
    """Send, if there is something to send, and read one message."""
    if message is not None:
        await ws.write_message(json.dumps(message))
    answer = await asyncio.wait_for(ws.read_message(), 30)
    assert isinstance(answer, str), "the connection was closed"
    return json.loads(answer)


def chunk(sid: str, index: int, data: bytes) -> dict[str, Any]:
    return {"action": "chunk", "session_id": sid, "chunk_index": index, "audio_data": base64.b64encode(data).decode()}


@pytest.mark.gen_test(timeout=120)
async def test_lock_step_client_gets_exactly_its_messages(system: System, all_utterances: list[Utterance]) -> None:
    """A client written from the protocol's first page alone; a hundred utterances of at most 5 % word errors."""
    ws = await websocket_connect(system.url + "?uid=1&device_id=2")
    ack = await call(ws, {"action": "start", "session_id": "lock-step", "user_id": "someone"})
    assert (ack["type"], ack["session_id"], ack["status"]) == ("ack", "lock-step", "session_started")
    errors = words = 0
    texts = []
    for index, utterance in enumerate(all_utterances):
        ack = await call(ws, chunk("lock-step", index, utterance.wav))
        assert (ack["type"], ack["chunk_index"], ack["status"]) == ("ack", index, "received")
        result = await call(ws)
        assert (result["type"], result["session_id"], result["chunk_index"]) == ("chunk_result", "lock-step", index)
        texts.append(result["text"])
        errors += word_errors(utterance.text, result["text"])
        words += len(utterance.text.split())
    final = await call(ws, {"action": "finish", "session_id": "lock-step"})
    assert (final["type"], final["session_id"], final["chunk_count"]) == ("final_result", "lock-step", 100)
    assert final["text"] == " ".join(texts)
    assert final["duration"] == pytest.approx(sum(len(u.pcm) for u in all_utterances) / 32000, abs=0.1)
    assert errors / words <= 0.05
    ws.close()
