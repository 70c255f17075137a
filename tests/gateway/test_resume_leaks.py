"""A resume that is refused leaves the session as it was, and nothing behind when it is over."""

from __future__ import annotations

import pytest

from asrserver.gateway.gateway import Gateway
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO
from tests.waiting import until
from tests.ws_client import WsClient, finish

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.mark.parametrize("same_connection", [True, False])
async def test_a_resume_past_the_end_leaves_no_backlog(
    url: str, worker: FakeWorker, gateway: Gateway, same_connection: bool
) -> None:
    """Sent while the session is finishing: its audio counted as waiting for ever, until every start was refused."""
    async with await WsClient.open(url) as ws, await WsClient.open(url) as other:
        await ws.start("s")
        await ws.chunk("s", 0, AUDIO)
        await ws.send(finish())
        asking = ws if same_connection else other
        await asking.send({"action": "resume", "session_id": "s", "last_seq": 99})
        await until(lambda: [m["code"] for m in asking.messages if m["type"] == "error"] == ["bad_seq"])
        await worker.take("s")
        await worker.chunk("s", 0)
        await worker.final("s", "word", 1)
        await ws.find("s", "final_result")
        await until(lambda: not gateway.sessions.values())
        assert gateway.sessions.backlog.seconds == 0
        assert not gateway.sessions.backlog._accounts
        assert not gateway.sessions.backlog._heard
