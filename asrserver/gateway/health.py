"""Health, queue and statistics for operators. They are cheap: read from heartbeats and from sums."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, Any

from asrserver.errors import Unavailable
from asrserver.gateway.offers import summary
from asrserver.models import PACKAGED, TOY_NOTICE
from asrserver.storage.errors import StorageError

if TYPE_CHECKING:
    from asrserver.gateway.gateway import Gateway

#: Seconds that Redis may take for the answers.
HEALTH_TIMEOUT = 2.0


async def not_ready(gateway: Gateway) -> str:
    """Return why this gateway accepts no sessions now, in words that anybody may read; '' if it does.

    PostgreSQL does not matter for that: sessions are stored later.
    """
    if gateway.closing:
        return "shutting down"
    state = await _probe(gateway.broker.ping())
    return "" if state["ready"] else "Redis does not answer"


async def health(gateway: Gateway) -> dict[str, Any]:
    """Probe every part now, and return the state of each: its latency in milliseconds, or why it does not work."""
    redis_state, postgres_state = await asyncio.gather(_probe(gateway.broker.ping()), _probe(gateway.storage.ping()))
    workers: list[dict[str, Any]] = []
    gateways: list[dict[str, Any]] = []
    queue: dict[str, int] = {}
    recognition: dict[str, Any] = {"ready": False, "error": "unknown: Redis does not answer"}
    if redis_state["ready"]:
        began = time.monotonic()
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                workers, gateways, queue, described = await asyncio.gather(
                    gateway.broker.status.heartbeats("worker"),
                    gateway.broker.status.heartbeats("gateway"),
                    gateway.broker.status.queue(),
                    gateway.broker.status.describe(),
                )
        except (TimeoutError, Unavailable) as exc:
            redis_state = {"ready": False, "error": str(exc) or "too slow"}
        else:
            redis_state |= described
            latency = round((time.monotonic() - began) * 1000, 2)
            recognition = {"ready": True, "latency_ms": latency}
            if all(worker.get("drained") for worker in workers):
                why = "every worker is drained" if workers else "no worker is running"
                recognition = {"ready": False, "error": why}
    if shards := gateway.broker.shards():
        redis_state |= {"shards": shards}
    ready = all(part["ready"] for part in (redis_state, postgres_state, recognition, *shards))
    return {
        "status": "ok" if ready else "degraded",
        "funasr_ready": recognition["ready"],
        "redis_ready": redis_state["ready"],
        "workers_ready": recognition["ready"],
        "postgres_ready": postgres_state["ready"],
        "redis": redis_state,
        "postgres": postgres_state,
        "recognition": recognition,
        "queue": queue,
        "models": summary(workers),
        "warnings": list(_warnings(gateways, workers)),
        "gateways": gateways,
        "workers": workers,
    }


def _warnings(gateways: list[dict[str, Any]], workers: list[dict[str, Any]]) -> Iterator[str]:
    """What operators should know although everything works."""
    if any(worker.get("model") in PACKAGED for worker in workers):
        yield TOY_NOTICE
    versions = sorted({str(state.get("version", "before 0.2")) for state in (*gateways, *workers)})
    if len(versions) > 1:
        yield f"gateways and workers are of different versions: {', '.join(versions)}"


def without_details(state: dict[str, Any]) -> dict[str, Any]:
    """Return what of `health` any key may see: no processes, machines, other keys, or errors that name addresses."""
    shown = {name: value for name, value in state.items() if name not in ("gateways", "workers")}
    return shown | {name: {"ready": state[name]["ready"]} for name in ("redis", "postgres", "recognition")}


async def stats(gateway: Gateway, owner: str | None) -> dict[str, Any]:
    """Return what was recognised so far.

    Args:
        gateway: The gateway that asks.
        owner: If given, the id of an API key: only its sessions count.

    Raises:
        StorageError: PostgreSQL cannot be asked.
        Unavailable: Redis cannot be asked.
    """
    (workers,) = await _soon(gateway.broker.status.heartbeats("worker"))
    found = await gateway.storage.stats(owner=owner)
    size = await gateway.storage.size() if owner is None else 0
    totals = {name: sum(row[name] for row in found.values()) for name in ("sessions", "audio_ms", "audio_bytes")}
    return {
        "total_tasks": totals["sessions"],
        "total_duration": totals["audio_ms"] / 1000,
        "avg_rtf": _real_time_factor(workers),
        "storage_used": size + totals["audio_bytes"],
        "storage": {"database": size, "recordings": totals["audio_bytes"]},
        "sessions": {
            status: found.get(status, {}).get("sessions", 0) for status in ("recording", "done", "interrupted", "error")
        },
    }


async def queue_status(gateway: Gateway) -> dict[str, Any]:
    """Return what waits, for how long, and how many workers there are; raises Unavailable."""
    status, backlog = gateway.broker.status, gateway.sessions.backlog
    workers, gateways, queue, waiting = await _soon(
        status.heartbeats("worker"), status.heartbeats("gateway"), status.queue(), status.oldest_waiting()
    )
    others = [state for state in gateways if state["name"] != gateway.name]
    oldest = [backlog.oldest, waiting, *(state.get("oldest_waiting", 0.0) for state in others)]
    return {
        "queued": queue["waiting"],
        "processing": queue["processing"],
        "failed": queue["dead"],
        "workers": len(workers),
        "workers_busy": sum(bool(state.get("backlog") or state.get("queue")) for state in workers),
        "backlog_seconds": round(backlog.seconds + sum(state.get("backlog", 0.0) for state in others), 1),
        "oldest_waiting_seconds": round(max(oldest), 3),
        "real_time_factor": _real_time_factor(workers),
        "sessions": len(gateway.sessions) + sum(state.get("sessions", 0) for state in others),
        "to_store": gateway.write_behind.waiting + sum(state.get("to_store", 0) for state in others),
    }


async def _soon(*questions: Awaitable[Any]) -> list[Any]:
    """Return the answers of Redis, or raise Unavailable soon: the pipeline by itself would retry for much longer."""
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT):
            return await asyncio.gather(*questions)
    except TimeoutError:
        raise Unavailable("broker_unavailable", "Redis does not answer") from None


def _real_time_factor(workers: list[dict[str, Any]]) -> float:
    """Return the seconds of work for a second of speech, of all living workers; 0 if there was no speech yet."""
    speech = sum(state.get("speech_seconds", 0.0) for state in workers)
    busy = sum(state.get("speech_seconds", 0.0) * state.get("real_time_factor", 0.0) for state in workers)
    return round(busy / speech, 4) if speech else 0.0


async def _probe(ping: Awaitable[float]) -> dict[str, Any]:
    try:
        return {"ready": True, "latency_ms": round(await ping * 1000, 2)}
    except (Unavailable, StorageError) as exc:
        return {"ready": False, "error": str(exc)}
