"""What is shed as more audio waits, step by step, and what never is."""

from __future__ import annotations

import pytest

from asrserver.auth.keys import KeyLimits
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.gateway.gateway import Gateway
from asrserver.telemetry import metrics
from tests.fakes import FakeWorker
from tests.gateway.limits.support import PIECE, Keyed, connect, error
from tests.waiting import until
from tests.ws_client import WsClient

pytestmark = pytest.mark.gen_test(timeout=60)


async def starts(client: WsClient, sid: str) -> bool:
    """Whether a session of this client may start."""
    client.messages.clear()
    client._read = 0
    answer = await client.call({"action": "start", "session_id": sid})
    if answer["type"] == "ack":
        return True
    assert (await error(client, "overloaded"))["retry_after"] > 0
    return False


@pytest.mark.parametrize("shares", [KeyLimits(priority="low")])
@pytest.mark.parametrize("given", [{"max_queue": 100.0, "max_ahead": 2.0}])
async def test_steps(url: str, gateway: Gateway, worker: FakeWorker, keyed: Keyed, redis_url: str) -> None:
    """First audio that is ahead of its time waits, then low keys start nothing, then keys that have their share."""
    elsewhere = GatewayBroker(redis_url, "elsewhere")

    async def overload(seconds: float, step: int) -> None:
        elsewhere.heartbeat({"backlog": seconds, "backlogs": {keyed.free.id: seconds}})
        await until(lambda: gateway.sessions.shedder.step == step and metrics.shedding._value.get() == step)

    def may_be_read(sid: str) -> bool:
        return gateway.room._has_room(gateway.sessions[sid])

    async with await connect(url, keyed.free_text) as normal, await connect(url, keyed.text) as low:
        for sid in ("live", "batch"):
            await normal.start(sid, format="pcm_s16le")
        await worker.take("live", "batch")
        await normal.chunk("live", 0, PIECE)
        await worker.chunk("live", 0)
        for index in range(20):  # ahead of real time by most of it, and recognised
            await normal.chunk("batch", index, bytes(32000))
            await worker.chunk("batch", index)
        await normal.find("batch", "chunk_result", 19)

        async def state(number: int) -> tuple[bool, ...]:
            return (
                may_be_read("live"),
                may_be_read("batch"),
                await starts(low, f"low{number}"),
                await starts(normal, f"normal{number}"),
            )

        steps = {
            49.0: (True, True, True, True),
            51.0: (True, False, True, True),
            76.0: (True, False, False, True),
            101.0: (True, False, False, False),
        }
        for step, (seconds, expected) in enumerate(steps.items()):
            await overload(seconds, step)
            assert await state(step) == expected
        await normal.chunk("live", 1, PIECE)
        await worker.chunk("live", 1)
        await normal.find("live", "chunk_result", 1)
        await overload(0.0, 0)
        assert await state(4) == (True, True, True, True)
    await elsewhere.pipeline.drain()
    await elsewhere.close()
