"""Requirements of Redis: settings that could lose acknowledged audio are reported before they do.

The list is that of docs/reference/redis.md#requirements.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis
import redis.exceptions

from asrserver.broker.fullness import FULL_FOR_AUDIO
from asrserver.broker.pipeline import connect
from asrserver.errors import Unavailable

#: The oldest version with the commands that are used.
LEAST_VERSION = (6, 2)

#: Seconds that the answers may take.
ANSWER_TIMEOUT = 5.0


class View(NamedTuple):
    """What a Redis lets its user see of itself.

    Attributes:
        info: What INFO says, parsed; empty where it is forbidden.
        shortcomings: What it lacks, and what could not be checked, a line each.
    """

    info: Mapping[str, Any]
    shortcomings: list[str]


@dataclass(frozen=True)
class Inspection:
    """What a Redis says of itself.

    Attributes:
        version: Its version.
        latency: Seconds that a PING takes.
        skew: Seconds by which its clock is ahead of this machine's.
        shortcomings: What it lacks, a line each.
    """

    version: str
    latency: float
    skew: float
    shortcomings: list[str]


async def inspect(url: str) -> Inspection:
    """Ask a Redis about itself.

    Raises:
        Unavailable: It cannot be reached, or refuses; the message says why.
    """
    client = connect(url, timeout=ANSWER_TIMEOUT)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await client.ping()
            began = time.time()
            await client.ping()
            latency = time.time() - began
            seconds, micros = await client.time()
            skew = seconds + micros / 1e6 - time.time()
            info, lacking = await examine(client.execute_command)
        return Inspection(str(info.get("redis_version", "unknown")), latency, skew, lacking)
    except (TimeoutError, redis.RedisError, OSError) as exc:
        reason = str(exc) or f"no answer in {ANSWER_TIMEOUT:g} s"
        raise Unavailable("broker_unavailable", reason) from None
    finally:
        await client.aclose()


async def examine(ask: Callable[..., Awaitable[Any]]) -> View:
    """Ask a Redis for what tells whether it meets the requirements, as far as its user is permitted to know.

    Args:
        ask: Sends a command.

    Raises:
        Unavailable: From `ask`.
    """
    info, setting = await asyncio.gather(_asked(ask("INFO")), _asked(ask("CONFIG", "GET", "appendfsync")))
    hidden, found = [], list[str]()
    if isinstance(info, redis.ResponseError):
        if isinstance(info, redis.exceptions.NoPermissionError) or "unknown command" in str(info):
            hidden.append(("INFO", "+info"))
        else:  # a script runs for too long, for example
            found.append(f"it does not tell how it is set up: {info}")
        info = {}
    if isinstance(setting, redis.exceptions.NoPermissionError):
        hidden.append(("CONFIG GET", "+config|get"))
    fsync = setting[1] if isinstance(setting, list | tuple) and len(setting) > 1 else b""
    found += shortcomings(info, fsync.decode() if isinstance(fsync, bytes) else str(fsync)) if info else []
    if hidden:
        names, rights = (" and ".join(parts) for parts in zip(*hidden, strict=True))
        unknown = "its appendfsync is not known" if info else "its memory and settings are not watched"
        found.append(f"its user may not send {names}, so {unknown}: permit {rights} (ACL SETUSER)")
    return View(info, found)


async def _asked(answer: Awaitable[Any]) -> Any:
    """An answer, or the error in its place: a hosted Redis often has no CONFIG."""
    try:
        return await answer
    except redis.ResponseError as exc:
        return exc


def shortcomings(info: Mapping[str, Any], appendfsync: str) -> list[str]:
    """What a Redis lacks, a line each, each with what to do.

    Args:
        info: What INFO says, parsed.
        appendfsync: The setting of that name; '' if it is not known.
    """
    found = []
    version = tuple(int(part) for part in re.findall(r"\d+", str(info.get("redis_version", "")))[:2])
    if version and version < LEAST_VERSION:
        found.append(f"it is version {info['redis_version']}: 6.2 or newer is needed")
    if info.get("cluster_enabled"):
        found.append("it is a Redis Cluster, which is not supported: use a Redis of its own")
    if info.get("role") == "slave":
        found.append("it is a replica, which takes no writes: let REDIS_URL name the primary")
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        found.append(f"maxmemory-policy is {policy}, so acknowledged audio can vanish: set noeviction")
    limit = info.get("maxmemory", 0)
    if limit == 0:
        found.append("maxmemory is not set, so the kernel may kill it when memory is short: set it")
    elif (full := info["used_memory"] / limit) >= FULL_FOR_AUDIO:
        found.append(f"its memory is {full:.0%} full: at 100 % audio is refused")
    if not info.get("aof_enabled", 1):
        found.append("appendonly is off, so a restart loses acknowledged audio: set appendonly yes")
    elif appendfsync == "everysec":
        found.append("appendfsync is everysec, which can lose acknowledged audio when it is killed: set always")
    if info.get("aof_last_write_status", "ok") != "ok":
        found.append("it cannot write its append-only file: look at its log and its disk")
    return found
