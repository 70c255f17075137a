"""Blocking clients: leases renewed from a thread of the worker's, and what the supervisor does for a dead worker."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from asrserver.broker import keys, scripts


class LeaseRenewer:
    """The worker's leases, renewed from a thread of their own: a blocking connection of its own too."""

    def __init__(self, url: str, name: str) -> None:
        self._name = name
        self._client = _sync_client(url)

    def renew(self, tasks: list[str]) -> set[str]:
        """Renew the leases that are still this worker's, and say which those are; raises redis.RedisError."""
        if not tasks:
            return set()
        reply: Any = self._client.eval(scripts.RENEW, 1, keys.TASKS, keys.GROUP, self._name, *tasks)
        return {task.decode() for task in reply}

    def close(self) -> None:
        self._client.close()


class WorkerJanitor:
    """What the supervisor does for a dead worker: blocking, short, and never in the way of a restart."""

    def __init__(self, url: str) -> None:
        self._client = _sync_client(url)

    def release(self, worker: str) -> int:
        """Let the dead worker's sessions be claimed at once; how many."""
        reply: Any = self._client.eval(scripts.RELEASE, 1, keys.TASKS, keys.GROUP, worker)
        return int(reply)

    def retire(self, worker: str) -> None:
        """Forget a worker's name, unless an entry still hangs on it: Xkeys.GROUP DELCONSUMER would throw that away."""
        pending: Any = self._client.xpending_range(keys.TASKS, keys.GROUP, "-", "+", 1, consumername=worker)
        if not pending:
            self._client.xgroup_delconsumer(keys.TASKS, keys.GROUP, worker)

    def strike(self, sid: str, entry: str) -> int:
        """Count that a worker died with this piece of audio in hand; how often it has happened."""
        reply: Any = self._client.eval(scripts.STRIKE, 1, keys.session_key(sid), entry)
        return int(reply)

    def close(self) -> None:
        self._client.close()


def _sync_client(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        protocol=2,
        socket_timeout=3,
        socket_connect_timeout=3,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 1),
    )
