"""Shards: several independent Redis servers, each with whole sessions. REDIS_URL lists them, separated by commas.

Each session is in one of them as a whole, and none of them knows of the others. The gateway that holds a session knows
its shard; any other gateway finds it by asking all.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from asrserver.broker.addresses import label
from asrserver.broker.connection import BrokerConnection
from asrserver.broker.fullness import FULL_FOR_SESSIONS
from asrserver.broker.pipeline import ASK_SECONDS, RETRY_AFTER
from asrserver.errors import Unavailable

if TYPE_CHECKING:
    from asrserver.broker.gateway_side import GatewayBroker

log = logging.getLogger("asrserver.broker")

#: Seconds between checks whether a shard that has not answered yet is away.
LOOK_SECONDS = 0.1

#: Sessions that are over, or held elsewhere, whose shard is remembered. The shard of any other is asked for again.
MAX_REMEMBERED = 20_000

Answer = TypeVar("Answer")


def ranked(names: Iterable[str], key: str) -> list[str]:
    """Order names by rendezvous hashing: each comes first for equally many keys, and only those move when it is gone.

    Thaler and Ravishankar, Using name-based mappings to increase hit rates, 1998.
    """
    return sorted(names, key=lambda name: hashlib.blake2b(f"{name}\n{key}".encode(), digest_size=8).digest())


@dataclass(eq=False)
class Shard:
    """One of several Redis servers, as a gateway sees it.

    Attributes:
        name: Its label.
        broker: Its connection.
        waiting, processing, workers: Sessions without and with a worker, and workers, when last counted.
        started: Sessions that this gateway has started there since then.
        latency: Seconds that its last PING took.
        error: Why it did not answer; empty if it did.
    """

    name: str
    broker: GatewayBroker
    waiting: int = 0
    processing: int = 0
    workers: int = 0
    started: int = 0
    latency: float = 0.0
    error: str = ""

    @property
    def is_reachable(self) -> bool:
        """Whether it answered when it was last sent something."""
        return not self.broker.pipeline.away

    @property
    def load(self) -> tuple[bool, bool, int, float]:
        """What decides between two shards for a new session: the lower is preferred.

        Fewer waiting sessions than workers are no backlog: they are being claimed.
        """
        workers = max(1, self.workers)
        sessions = self.waiting + self.processing + self.started
        return (
            self.broker.fullness >= FULL_FOR_SESSIONS,
            not self.workers,
            self.waiting // workers,
            sessions / workers,
        )


class Shards:
    """The shards of one gateway. A shard that cannot be reached only costs its own answer."""

    def __init__(self, members: Sequence[Shard]) -> None:
        self.members = members

    def reachable(self, key: str) -> list[Shard]:
        """Return the shards that can be reached, ranked for a key.

        Raises:
            Unavailable: None can.
        """
        named = {shard.name: shard for shard in self.members if shard.is_reachable}
        if not named:
            raise Unavailable("broker_unavailable", "no Redis can be reached", RETRY_AFTER)
        return [named[name] for name in ranked(named, key)]

    async def ask(
        self, question: Callable[[Shard], Awaitable[Answer]], among: Collection[Shard] | None = None
    ) -> dict[Shard, Answer]:
        """Ask shards at the same time.

        Args:
            question: What to ask of each.
            among: The shards; by default, all.

        Returns:
            The answers of those that can be reached and answer within ASK_SECONDS.

        Raises:
            Unavailable: None of them does.
        """
        deadline = time.monotonic() + ASK_SECONDS
        among = self.members if among is None else among
        asked = {shard: asyncio.ensure_future(question(shard)) for shard in among if shard.is_reachable}
        try:
            while left := [task for shard, task in asked.items() if shard.is_reachable and not task.done()]:
                if time.monotonic() > deadline:
                    break
                await asyncio.wait(left, timeout=LOOK_SECONDS)  # or until one of them is found to be away
        finally:
            late = [task for task in asked.values() if task.cancel()]
        errors = {shard: task.exception() for shard, task in asked.items() if task not in late}
        for error in errors.values():
            if error is not None and not isinstance(error, Unavailable):
                raise error
        answers = {shard: asked[shard].result() for shard, error in errors.items() if error is None}
        if not answers:
            raise next(filter(None, errors.values()), Unavailable("broker_unavailable", "Redis cannot be reached", 5.0))
        return answers

    def require_all(self, answers: Collection[Shard]) -> None:
        """Check that every shard has answered: only then is unknown what none of them knows. Raises Unavailable."""
        for shard in self.members:
            if shard not in answers:
                raise Unavailable("broker_unavailable", f"the Redis {shard.name} cannot be reached", RETRY_AFTER)


class RoutingTable:
    """Which session is in which shard: the sessions of one gateway, and others that it has dealt with lately."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._routes: dict[str, Shard] = {}  # by session id, the newest last

    def get(self, sid: str) -> Shard | None:
        """Return the shard of a session; None if it is not known."""
        return self._routes.get(sid)

    def any(self, sid: str) -> Shard:
        """Return the shard of a session; if it is unknown, any shard, which will say that the session is gone."""
        return self._routes.get(sid, self._shards.members[0])

    def keep(self, sid: str, shard: Shard) -> None:
        """Note where a session is."""
        self._routes.pop(sid, None)
        self._routes[sid] = shard

    def touch(self, sids: Collection[str]) -> None:
        """Keep the sessions that this gateway holds, and of the others the newest MAX_REMEMBERED."""
        for sid in sids:
            if sid in self._routes:
                self._routes[sid] = self._routes.pop(sid)
        while len(self._routes) > MAX_REMEMBERED + len(sids):
            del self._routes[next(iter(self._routes))]

    async def locate(self, sids: Iterable[str]) -> set[str]:
        """Find the shards of sessions whose shard is not known; return the sessions that no shard has."""
        unknown = [sid for sid in sids if sid not in self._routes]
        if not unknown:
            return set()
        answers = await self._shards.ask(lambda shard: shard.broker.known(unknown))
        for shard, found in answers.items():
            for sid in found:
                self.keep(sid, shard)
        return set(unknown) - self._routes.keys() if len(answers) == len(self._shards.members) else set()

    async def ask(
        self, sids: Iterable[str], question: Callable[[Shard, Collection[str]], Awaitable[Answer]]
    ) -> list[Answer]:
        """Ask each shard about its sessions. Sessions whose shard is not known are left out."""
        groups: defaultdict[Shard, list[str]] = defaultdict(list)
        for sid in sids:
            if (home := self._routes.get(sid)) is not None:
                groups[home].append(sid)
        if not groups:
            return []
        return list((await self._shards.ask(lambda shard: question(shard, groups[shard]), groups)).values())


async def open_any(brokers: Sequence[BrokerConnection]) -> None:
    """Wait for the shards of a process: until all are open, or ASK_SECONDS after the first one is.

    Those that come later are made ready by the heartbeats.

    Raises:
        Unavailable: None can be reached.
    """
    opening = [asyncio.ensure_future(broker.open()) for broker in brokers]
    late = set(opening)
    try:
        while late and all(task in late or task.exception() for task in opening):
            _, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
        if late:
            await asyncio.wait(late, timeout=ASK_SECONDS)
    finally:
        late = {task for task in opening if task.cancel()}
    errors = [task.exception() for task in opening if task not in late]
    for broker, task in zip(brokers, opening, strict=True):
        error = None if task in late else task.exception()
        nowhere = len(errors) == len(brokers) and all(errors)
        if error is not None and (nowhere or not isinstance(error, Unavailable)):
            raise error
        if task in late or error is not None:
            log.error("the Redis %s cannot be reached: its sessions wait", label(broker.url))
