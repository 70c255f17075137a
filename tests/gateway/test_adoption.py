"""Sessions of a gateway that died, which another one ends and stores."""

from __future__ import annotations

import logging

import pytest

from asrserver.broker import keys
from asrserver.broker.connection import DAMAGED_TTL
from asrserver.gateway.gateway import Gateway
from tests.fakes import FakeWorker
from tests.waiting import until
from tests.ws_client import look

pytestmark = pytest.mark.gen_test(timeout=60)


#: The hash of a session of a gateway that is dead.
FIELDS = {"gateway": "dead", "user_id": "", "created": "1.0", "options": '{"mode": "auto"}'}


async def test_a_session_whose_first_results_are_trimmed(gateway: Gateway, worker: FakeWorker, redis_url: str) -> None:
    """Of one that went on for hours Redis keeps the last results only. It ends as any other, and is stored."""
    dead = type(gateway.broker)(redis_url, "dead")
    assert await dead.open_session("s", "n", FIELDS, dead.clock.now() + 60)
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


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        (keys.session_key("damaged"), "gateway", None),
        (keys.session_key("damaged"), "user_id", None),
        (keys.session_key("damaged"), "options", None),
        (keys.session_key("damaged"), "options", "no JSON"),
        (keys.session_key("damaged"), None, "of another type"),
        (keys.audio_key("damaged"), None, "of another type"),
        (keys.events_key("damaged"), None, "of another type"),
    ],
)
async def test_a_damaged_session_costs_only_itself(
    gateway: Gateway,
    worker: FakeWorker,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
    key: str,
    field: str | None,
    value: str | None,
) -> None:
    """It is given up, with one line in the log; it kept all other sessions of dead gateways from being ended."""
    dead = type(gateway.broker)(redis_url, "dead")
    for sid in ("damaged", "s"):
        assert await dead.open_session(sid, "n", FIELDS, 1.0)
    await dead.close()
    with look(redis_url) as client:
        if field is None:
            client.delete(key)
            client.set(key, str(value))
        elif value is None:
            client.hdel(key, field)
        else:
            client.hset(key, field, value)
        await until(lambda: client.xlen(keys.DEAD))
        assert client.zscore(keys.OPEN, "damaged") is None
        assert 0 < client.ttl(key) <= DAMAGED_TTL
        await until(lambda: client.hget(keys.session_key("s"), "end") == "interrupted")
    if field is not None:  # a worker that has it finds its end
        assert await worker.ended("damaged") == "interrupted"
    await until(gateway.write_behind.is_flushed)
    [error] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert "session=damaged its keys in Redis are damaged, it is given up" in error
