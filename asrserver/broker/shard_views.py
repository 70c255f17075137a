"""What gateways ask of several Redis servers together: the state of the fleet, quotas of API keys, client secrets.

Each class answers with what the reachable shards say. If none of them knows a thing, and one shard is away, there is no
answer: Unavailable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from asrserver.broker.client_secrets import ClientSecretStore
from asrserver.broker.quota import Quota
from asrserver.broker.shards import Answer, Shard, Shards
from asrserver.broker.status import BrokerStatus


class ShardedStatus(BrokerStatus):
    """The state of all shards. What decides where new sessions go is noted with each shard as it is asked."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def heartbeats(self, kind: str) -> list[dict[str, Any]]:
        """The newest heartbeat of each process, which may have one in several shards."""

        async def ask(shard: Shard) -> list[dict[str, Any]]:
            found = await shard.broker.status.heartbeats(kind)
            if kind == "worker":
                shard.workers = len(found)
            return found

        newest: dict[str, dict[str, Any]] = {}
        for states in await self._all(ask):
            for state in states:
                if state["name"] not in newest or newest[state["name"]]["time"] < state["time"]:
                    newest[state["name"]] = state
        return [newest[name] for name in sorted(newest)]

    async def queue(self) -> dict[str, int]:
        """The sums."""

        async def ask(shard: Shard) -> dict[str, int]:
            found = await shard.broker.status.queue()
            shard.waiting, shard.processing, shard.started = found["waiting"], found["processing"], 0
            return found

        return _sums(await self._all(ask))

    async def waiting(self, model: str | None) -> int:
        """The sum."""
        return sum(await self._all(lambda shard: shard.broker.status.waiting(model)))

    async def stage(self, sid: str, owner: str | None) -> str | None:
        """How far it is in the shard that has it."""
        answers = await self._shards.ask(lambda shard: shard.broker.status.stage(sid, owner))
        stage = next(filter(None, answers.values()), None)
        if stage is None:
            self._shards.require_all(answers)
        return stage

    async def oldest_waiting(self) -> float:
        """The longest."""
        return max(await self._all(lambda shard: shard.broker.status.oldest_waiting()))

    async def offered(self, within: float) -> set[str]:
        """Those that are offered in any of them."""
        return set().union(*await self._all(lambda shard: shard.broker.status.offered(within)))

    async def fullness(self) -> float:
        """That of the least full shard, which gets the new sessions."""

        async def ask(shard: Shard) -> float:
            shard.broker.fullness = await shard.broker.status.fullness()
            return shard.broker.fullness

        return min(await self._all(ask))

    async def describe(self) -> dict[str, Any]:
        """The sums, and the warnings of each with its name."""
        answers = await self._shards.ask(lambda shard: shard.broker.status.describe())
        warnings = [f"{shard.name}: {text}" for shard, found in answers.items() for text in found.pop("warnings")]
        return {**_sums(answers.values()), "warnings": warnings}

    async def _all(self, question: Callable[[Shard], Awaitable[Answer]]) -> list[Answer]:
        return list((await self._shards.ask(question)).values())


class ShardedQuota(Quota):
    """Counts what an API key holds, for all gateways, in one shard: the first in its rank that can be reached.

    While that shard is away, the next one counts: what is held is there after the next renewal; the starts of the
    minute begin anew. Seconds of audio are charged in the shard of each session, and added up.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def hold(self, kind: str, owner: str, member: str, limit: int) -> bool:
        """In the key's shard."""
        return await self._home(owner).hold(kind, owner, member, limit)

    def renew(self, kind: str, owner: str, members: Iterable[str]) -> None:
        """In the key's shard."""
        self._home(owner).renew(kind, owner, members)

    def release(self, kind: str, owner: str, member: str) -> None:
        """In every shard: it may have been held in one that has been away since."""
        for shard in self._shards.members:
            shard.broker.quota.release(kind, owner, member)

    async def count_start(self, owner: str, limit: int) -> bool:
        """In the key's shard."""
        return await self._home(owner).count_start(owner, limit)

    async def spent(self, owners: Iterable[str]) -> dict[str, float]:
        """The sums."""
        names = list(owners)
        if not names:
            return {}
        spent = (await self._shards.ask(lambda shard: shard.broker.quota.spent(names))).values()
        return {owner: sum(seconds[owner] for seconds in spent) for owner in names}

    def _home(self, owner: str) -> Quota:
        return self._shards.reachable(owner)[0].broker.quota


class ShardedSecretStore(ClientSecretStore):
    """Keeps client secrets in every shard that can be reached, and finds them in any."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def keep(self, digest: str, owner: str, session: dict[str, Any], seconds: int) -> int | None:
        """In all; None if the owner has too many in one of them."""
        kept = await self._shards.ask(lambda shard: shard.broker.client_secrets.keep(digest, owner, session, seconds))
        expires = list(kept.values())
        return None if None in expires else expires[0]

    async def find(self, digest: str) -> tuple[str, dict[str, Any]] | None:
        """In the first shard that has it: one that was away when it was made does not."""
        found = await self._shards.ask(lambda shard: shard.broker.client_secrets.find(digest))
        return next(filter(None, found.values()), None)


def _sums(answers: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for answer in answers:
        total.update(answer)
    return dict(total)
