"""Sessions of a gateway that died, which another one ends and stores."""

from __future__ import annotations

import pytest

from asrserver.broker import keys
from asrserver.gateway.gateway import Gateway
from tests.fakes import FakeWorker
from tests.waiting import until
from tests.ws_client import look

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_a_session_whose_first_results_are_trimmed(gateway: Gateway, worker: FakeWorker, redis_url: str) -> None:
    """Of one that went on for hours Redis keeps the last results only. It ends as any other, and is stored."""
    dead = type(gateway.broker)(redis_url, "dead")
    fields = {"gateway": "dead", "user_id": "", "created": "1.0", "options": '{"mode": "auto"}'}
    assert await dead.open_session("s", "n", fields, dead.clock.now() + 60)
    await worker.take("s")
    for index in range(4):
        await worker.chunk("s", index)
    await dead.trim_events("s", (await dead.read_events("s"))[1].id)
    await dead.refresh({"s": 1.0})
    await dead.close()
    assert await worker.ended("s") == "interrupted"
    await worker.final("s", "all of it", 4)
    await until(lambda: not gateway.sessions and gateway.write_behind.is_flushed())
    stored = await gateway.storage.session("s")
    assert stored is not None
    assert (stored["status"], stored["text"]) == ("interrupted", "all of it")
    with look(redis_url) as client:
        await until(lambda: client.ttl(keys.session_key("s")) > 0)
