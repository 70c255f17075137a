"""What a Redis must be like, and what is said of one that is not."""

from __future__ import annotations

from typing import Any

import pytest

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.requirements import inspect, shortcomings
from asrserver.errors import Unavailable

GOOD: dict[str, Any] = {
    "redis_version": "7.2.4",
    "cluster_enabled": 0,
    "role": "master",
    "maxmemory": 1 << 30,
    "used_memory": 1 << 20,
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
}


@pytest.mark.parametrize("appendfsync", ["always", "no", ""])
def test_nothing_is_said_of_one_that_keeps_what_it_is_given(appendfsync: str) -> None:
    assert shortcomings(GOOD, appendfsync) == []


@pytest.mark.parametrize(
    ("changed", "appendfsync", "told"),
    [
        ({"redis_version": "6.0.16"}, "always", "6.2 or newer"),
        ({"cluster_enabled": 1}, "always", "Redis Cluster"),
        ({"role": "slave"}, "always", "replica"),
        ({"maxmemory_policy": "allkeys-lru"}, "always", "set noeviction"),
        ({"maxmemory": 0}, "always", "maxmemory is not set"),
        ({"used_memory": (1 << 30) * 95 // 100}, "always", "95% full"),
        ({"aof_enabled": 0}, "always", "appendonly is off"),
        ({}, "everysec", "appendfsync is everysec"),
        ({"aof_last_write_status": "err"}, "always", "append-only file"),
    ],
)
def test_what_would_lose_audio_is_told(changed: dict[str, Any], appendfsync: str, told: str) -> None:
    [line] = shortcomings(GOOD | changed, appendfsync)
    assert told in line


@pytest.mark.gen_test
async def test_a_real_redis_is_read_alike_by_both_ways(redis_url: str) -> None:
    found = await inspect(redis_url)
    assert int(found.version.split(".")[0]) >= 6
    assert abs(found.skew) < 60
    broker = GatewayBroker(redis_url, "requirements")
    await broker.open()
    assert await broker.status.shortcomings() == found.shortcomings
    await broker.close()


@pytest.mark.gen_test
async def test_one_that_does_not_answer_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        await inspect("redis://127.0.0.1:9/0")
