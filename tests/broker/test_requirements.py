"""What a Redis must be like, and what is said of one that is not."""

from __future__ import annotations

import re
from typing import Any

import pytest
import redis

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
    described = await broker.status.describe()
    assert described.pop("warnings") == found.shortcomings
    assert described["keys"] >= described["lasting_keys"] > 0 < described["memory_bytes"]
    await broker.close()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("forbidden", "told"),
    [
        (["-info"], "may not send INFO, so its memory and settings are not watched: permit +info"),
        (["-config"], "may not send CONFIG GET, so its appendfsync is not known: permit +config|get"),
        (["-info", "-config"], "may not send INFO and CONFIG GET, .* permit +info and +config|get"),
    ],
)
async def test_what_may_not_be_looked_at_is_told_once_and_nothing_else_fails(
    db: redis.Redis, redis_url: str, forbidden: list[str], told: str
) -> None:
    """A gateway did not start with such a user."""
    db.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", "~*", "&*", "+@all", *forbidden)
    try:
        url = f"{redis_url}?username=limited&password=secret"
        seen = (await inspect(url)).shortcomings
        broker = GatewayBroker(url, "limited")
        await broker.open()
        described = await broker.status.describe()
        assert described["warnings"] == seen
        [line] = [line for line in seen if "may not" in line]
        assert re.search(re.escape(told).replace(r"\.\*", ".*"), line)
        assert ("keys" in described) == ("-info" not in forbidden)
        assert await broker.status.fullness() >= 0
        await broker.close()
    finally:
        db.execute_command("ACL", "DELUSER", "limited")


@pytest.mark.gen_test
async def test_health_asks_for_everything_at_once(db: redis.Redis, g: GatewayBroker) -> None:
    """Each INFO takes Redis as long as ten chunks."""
    db.config_resetstat()
    await g.status.describe()
    assert db.info("commandstats")["cmdstat_info"]["calls"] == 1


@pytest.mark.gen_test
async def test_one_that_does_not_answer_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        await inspect("redis://127.0.0.1:9/0")
