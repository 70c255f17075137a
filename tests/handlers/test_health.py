"""GET /health, and what asrserver status makes of it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import redis

from asrserver import __version__
from asrserver.cli.status import format_health
from asrserver.gateway.gateway import Gateway
from tests.fakes import FakeWorker
from tests.handlers.api import Api
from tests.servers import Servers

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_health_is_true(api: Api, worker: FakeWorker) -> None:
    """503 until there is a worker; then everything is reported, with figures."""
    status, body = await api.call("/health")
    assert (status, body["status"]) == (503, "degraded")
    ready = {"redis_ready": True, "postgres_ready": True, "workers_ready": False, "funasr_ready": False}
    assert ready.items() <= body.items()
    await worker.broker.open()
    worker.broker.heartbeat({"backlog": 0.0})
    await worker.broker.pipeline.drain()
    status, body = await api.call("/health")
    assert (status, body["status"], body["workers_ready"], body["funasr_ready"]) == (200, "ok", True, True)
    assert [found["name"] for found in body["workers"]] == ["fake-worker"]
    assert len(body["gateways"]) == 1
    assert {state["version"] for state in (*body["workers"], *body["gateways"])} == {__version__}
    assert not [text for text in body["warnings"] if "versions" in text]
    worker.broker.heartbeat({"backlog": 0.0, "version": "0.0.9"})
    await worker.broker.pipeline.drain()
    assert [text for text in (await api.call("/health"))[1]["warnings"] if "0.0.9" in text]
    assert body["queue"] == {"waiting": 0, "processing": 0, "dead": 0}
    assert body["redis"]["latency_ms"] > 0
    assert body["redis"]["keys"] >= body["redis"]["lasting_keys"] > 0
    assert body["redis"]["memory_bytes"] > 0
    assert body["postgres"]["latency_ms"] > 0


async def test_health_while_redis_does_not_answer(api: Api, servers: Servers) -> None:
    """Redis is stopped but not gone: the answer says so within seconds, and recovers."""
    pid = servers.redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        status, body = await api.call("/health")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (status, body["redis_ready"], body["postgres_ready"], body["workers_ready"]) == (503, False, True, False)
    assert body["redis"]["error"]

    async def recovered() -> bool:
        return bool((await api.call("/health"))[1]["redis_ready"])

    while not await recovered():
        await asyncio.sleep(0.02)


async def test_health_warns_of_a_redis_that_may_lose_audio(api: Api, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    policy = client.config_get("maxmemory-policy")
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        _, body = await api.call("/health")
    finally:
        client.config_set("maxmemory-policy", policy["maxmemory-policy"] or "noeviction")
        client.close()
    assert [text for text in body["redis"]["warnings"] if "set noeviction" in text]
    assert [line for line in format_health(body) if line.startswith("warning   Redis: maxmemory-policy")]
    _, body = await api.call("/health")
    assert not [text for text in body["redis"]["warnings"] if "noeviction" in text]


async def test_health_while_postgresql_is_away(api: Api, gateway: Gateway) -> None:
    await gateway.storage.close()
    status, body = await api.call("/health")
    assert (status, body["redis_ready"], body["postgres_ready"]) == (503, True, False)
    assert body["postgres"]["error"]
    status, body = await api.call("/history")
    assert (status, body["error"]["code"]) == (503, "storage_unavailable")
    await gateway.storage.open()
    assert (await api.call("/health"))[1]["postgres_ready"]
