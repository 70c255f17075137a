"""Leases of workers, with blocking clients: their renewal from a thread, and the release of a dead worker's leases.

A worker's lease on a session is its pending entry in the group of a stream of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from asrserver.broker import event_scripts, keys, replies, task_scripts
from asrserver.broker.addresses import addresses
from asrserver.broker.replies import Task
from asrserver.broker.sentinel import blocking_client
from asrserver.errors import Unavailable


class LeaseRenewer:
    """Renews the leases of one worker, on a blocking connection of its own: for a thread that only does this.

    The event loop of a worker may be late by seconds; its leases must not depend on it.
    """

    def __init__(self, url: str, name: str) -> None:
        self._name = name
        self._client = _blocking_client(url)

    def renew(self, tasks: Iterable[Task]) -> set[Task]:
        """Renew the leases that this worker still holds.

        Args:
            tasks: The sessions' tasks.

        Returns:
            Those of the tasks that were renewed; the others belong to another worker, or are gone.

        Raises:
            Unavailable: Redis did not answer.
        """
        renewed: set[Task] = set()
        try:
            with _errors():
                for stream, ids in replies.by_stream(tasks).items():
                    reply: Any = self._client.eval(task_scripts.RENEW, 1, stream, keys.GROUP, self._name, *ids)
                    renewed.update(Task(stream, entry.decode()) for entry in reply)
        except Unavailable:
            self._client.connection_pool.disconnect()  # its address may lead to another Redis now
            raise
        return renewed

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


class WorkerJanitor:
    """What the supervisor does after a worker's death. Every call blocks for a few seconds at most.

    All methods raise Unavailable where Redis does not answer.
    """

    def __init__(self, url: str) -> None:
        """Work on each Redis that a REDIS_URL lists."""
        self._clients = [_blocking_client(each) for each in addresses(url)]

    def release(self, worker: str) -> int:
        """Make all sessions of a dead worker claimable at once; return their number."""
        return sum(self._each(lambda client: self._release(client, worker)))

    def _release(self, client: redis.Redis, worker: str) -> int:
        released: list[Any] = [
            client.eval(task_scripts.RELEASE, 1, stream, keys.GROUP, worker) for stream in self._streams(client)
        ]
        return sum(map(int, released))

    def retire(self, worker: str) -> None:
        """Remove a worker's name from each group in which no entry is pending for it any more.

        XGROUP DELCONSUMER would throw such an entry away.
        """
        self._each(lambda client: self._retire(client, worker))

    def _retire(self, client: redis.Redis, worker: str) -> int:
        for stream in self._streams(client):
            if not client.exists(stream):
                continue  # Redis was emptied
            pending: Any = client.xpending_range(stream, keys.GROUP, "-", "+", 1, consumername=worker)
            if not pending:
                client.xgroup_delconsumer(stream, keys.GROUP, worker)
        return 0

    @staticmethod
    def _streams(client: redis.Redis) -> list[str]:
        """The streams of tasks: whichever of them the worker read."""
        offered: Any = client.zrange(keys.OFFERED, 0, -1)
        return [keys.TASKS, *(keys.tasks_key(model.decode()) for model in offered)]

    def strike(self, sid: str, entry: str) -> int:
        """Count the death of a worker that was processing this audio entry; return how many there were."""
        found: list[Any] = self._each(lambda client: client.eval(event_scripts.STRIKE, 1, keys.session_key(sid), entry))
        return sum(map(int, found))  # 0 where the session is not

    def _each(self, work: Callable[[redis.Redis], Any]) -> list[Any]:
        """Do the work in every Redis that answers; then raise Unavailable if one did not."""
        done, failed = [], None
        for client in self._clients:
            try:
                with _errors():
                    done.append(work(client))
            except Unavailable as exc:
                failed = exc
        if failed is not None:
            raise failed
        return done

    def close(self) -> None:
        """Disconnect."""
        for client in self._clients:
            client.close()


@contextmanager
def _errors() -> Iterator[None]:
    """Raise Unavailable for the errors of redis-py."""
    try:
        yield
    except (redis.RedisError, OSError) as exc:
        raise Unavailable("broker_unavailable", str(exc) or type(exc).__name__) from exc


def _blocking_client(url: str) -> redis.Redis:
    return blocking_client(
        url,
        protocol=2,
        socket_timeout=3,
        socket_connect_timeout=3,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 1),
    )
