"""The broker of a gateway that has several Redis servers: it routes the commands of each session to its shard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from asrserver.broker.addresses import addresses, label
from asrserver.broker.clock import BrokerClock
from asrserver.broker.gateway_side import NONE_MISSING, GatewayBroker
from asrserver.broker.shard_views import ShardedQuota, ShardedSecretStore, ShardedStatus
from asrserver.broker.shards import Answer, RoutingTable, Shard, Shards, open_any
from asrserver.errors import BadRequest, Unavailable
from asrserver.protocol.events import Published, Result

log = logging.getLogger("asrserver.broker")


def gateway_broker(url: str, name: str) -> GatewayBroker:
    """Make the broker of a gateway: of the one Redis that REDIS_URL names, or of several."""
    urls = addresses(url)
    return GatewayBroker(url, name) if len(urls) == 1 else ShardedGatewayBroker(urls, name)


class ShardedGatewayBroker(GatewayBroker):
    """Has a GatewayBroker for each shard, and the interface of one.

    Commands of one session go to its shard and wait for it, as they do where there is only one Redis. Questions about
    many sessions, or about all, go to the shards that can be reached, and do not wait for the others.
    """

    def __init__(self, urls: Sequence[str], name: str) -> None:
        """Connect to these Redis servers when it is opened, as the gateway of this name."""
        # Not super().__init__: each shard has what it makes.
        self.name = name
        self.clock = BrokerClock()  # this machine's; the deadlines in each shard are by its own clock, see `_at`
        self._shards = Shards([Shard(label(url), GatewayBroker(url, name)) for url in urls])
        self.status = ShardedStatus(self._shards)
        self.quota = ShardedQuota(self._shards)
        self.client_secrets = ShardedSecretStore(self._shards)
        self._routes = RoutingTable(self._shards)
        self._lost: set[Shard] = set()  # shards that the log says are away

    # -- the connections ---------------------------------------------------------------------------------------------

    @property
    def members(self) -> Sequence[GatewayBroker]:
        return [shard.broker for shard in self._shards.members]

    def of(self, sid: str) -> GatewayBroker:
        # If its shard is unknown, another one says that the session is gone.
        return self._routes.any(sid).broker

    def shards(self) -> list[dict[str, Any]]:
        return [
            {"name": shard.name, "ready": not shard.error}
            | ({"error": shard.error} if shard.error else {"latency_ms": round(shard.latency * 1000, 2)})
            | {"memory_ratio": round(shard.broker.fullness, 3)}
            | {"waiting": shard.waiting, "processing": shard.processing, "workers": shard.workers}
            for shard in self._shards.members
        ]

    async def open(self) -> None:
        await open_any(self.members)

    async def close(self) -> None:
        await asyncio.gather(*(broker.close() for broker in self.members))

    async def ping(self) -> float:
        async def probe(shard: Shard) -> None:
            try:
                shard.latency, shard.error = await shard.broker.ping(), ""
            except Unavailable as exc:
                shard.error = str(exc)

        await asyncio.gather(*map(probe, self._shards.members))
        latencies = [shard.latency for shard in self._shards.members if not shard.error]
        if not latencies:
            raise Unavailable("broker_unavailable", self._shards.members[0].error)
        return max(latencies)

    def heartbeat(self, state: Mapping[str, Any]) -> None:
        for shard in self._shards.members:
            shard.broker.heartbeat(state)
            shard.error = "" if shard.is_reachable else shard.error or "it cannot be reached"
            if shard.error and shard not in self._lost:
                log.error("the Redis %s cannot be reached: its sessions wait, new ones go to others", shard.name)
                self._lost.add(shard)
            elif shard in self._lost and not shard.error:
                log.warning("the Redis %s is back", shard.name)
                self._lost.discard(shard)

    async def deregister(self) -> None:
        await self._shards.ask(lambda shard: shard.broker.deregister())

    async def dead_letter(self, sid: str, entry: str, reason: str) -> None:
        home = self._routes.get(sid)
        shard = home if home is not None and home.is_reachable else self._shards.reachable(sid)[0]
        await shard.broker.dead_letter(sid, entry, reason)

    async def subscribe(self, on_event: Callable[[Published], None], on_subscribed: Callable[[], None]) -> None:
        await asyncio.gather(*(broker.subscribe(on_event, on_subscribed) for broker in self.members))

    # -- sessions ----------------------------------------------------------------------------------------------------

    async def open_session(
        self,
        sid: str,
        nonce: str,
        fields: Mapping[str, str],
        deadline: float,
        model: str | None = None,
        chosen: bool = False,
    ) -> bool:
        """Create a session in the less loaded of two shards; where nobody offers its model there, in another.

        Of two, not of all: the load is known as it was a moment ago, and all gateways would choose the same shard.
        Mitzenmacher, The power of two choices in randomized load balancing, 2001.

        A session whose id the client chose goes to the shard that ranks first for the id: so two gateways that get the
        same id at the same time ask the same Redis.
        """
        candidates = self._shards.reachable(sid)
        if chosen:
            if any((await self._shards.ask(lambda shard: shard.broker.known([sid]))).values()):
                return False
        else:
            candidates[:2] = sorted(candidates[:2], key=lambda shard: shard.load)
        refused: BadRequest | None = None
        for shard in candidates:
            try:
                opened = await shard.broker.open_session(sid, nonce, fields, self._at(shard, deadline), model)
            except BadRequest as exc:
                refused = exc
                continue
            if opened:
                self._routes.keep(sid, shard)
                shard.started += 1
            return opened
        assert refused is not None
        raise refused

    async def resume_session(
        self, sid: str, deadline: float, owner: str, detached: bool = False, last_seq: int = 0
    ) -> dict[str, str] | None:
        """Take a session over, in whichever shard has it; raises Unavailable if that may be one that is away."""

        def resume(shard: Shard) -> Awaitable[dict[str, str] | None]:
            return shard.broker.resume_session(sid, self._at(shard, deadline), owner, detached, last_seq)

        home = self._routes.get(sid)
        if home is not None and (fields := (await self._shards.ask(resume, [home]))[home]) is not None:
            return fields
        answers = await self._shards.ask(resume)
        for shard, fields in answers.items():
            if fields is not None:
                self._routes.keep(sid, shard)
                return fields
        self._shards.require_all(answers)
        return None

    async def end_session(
        self,
        sid: str,
        status: str,
        deadline: float,
        seen: str | None = None,
        overdue: float | None = None,
        last: int | None = None,
    ) -> bool:
        home = self._routes.get(sid)
        if home is None:
            return False
        before = None if overdue is None else self._at(home, overdue)
        return await home.broker.end_session(sid, status, self._at(home, deadline), seen, before, last)

    def detach_session(self, sid: str) -> None:
        self.of(sid).detach_session(sid)

    def flush_session(self, sid: str, number: int, last: int | None) -> asyncio.Future[Any]:
        return self.of(sid).flush_session(sid, number, last)

    async def change_options(self, sid: str, options: str) -> None:
        await self.of(sid).change_options(sid, options)

    async def refresh(
        self, deadlines: Mapping[str, float], missing: Mapping[str, str] = NONE_MISSING
    ) -> dict[str, str]:
        """Set the deadlines in the shards that can be reached; in the others nobody can see that they have passed."""
        self._routes.touch(deadlines)

        def refresh(shard: Shard, sids: Collection[str]) -> Awaitable[dict[str, str]]:
            return shard.broker.refresh({sid: self._at(shard, deadlines[sid]) for sid in sids}, missing)

        return _joined(await self._routes.ask(deadlines, refresh))

    async def overdue(self, now: float, count: int) -> list[str]:
        found = await self._shards.ask(lambda shard: shard.broker.overdue(self._at(shard, now), count))
        for shard, sids in found.items():
            for sid in sids:
                self._routes.keep(sid, shard)
        return [sid for sids in found.values() for sid in sids]

    async def close_session(self, sid: str, ttl: float) -> None:
        home = self._routes.get(sid)
        await self._shards.ask(lambda shard: shard.broker.close_session(sid, ttl), None if home is None else [home])

    async def unstored(self, sids: Collection[str] = ()) -> list[str]:
        """Those in the shards that can be reached."""
        found = await self._shards.ask(lambda shard: shard.broker.unstored(sids))
        return [sid for some in found.values() for sid in some]

    async def delete_session(self, sid: str, owner: str | None) -> bool:
        """Delete it in whichever shard has it; raises Unavailable if that may be one that is away."""
        answers = await self._shards.ask(lambda shard: shard.broker.delete_session(sid, owner))
        if not any(answers.values()):
            self._shards.require_all(answers)
        return any(answers.values())

    async def open_sessions(self, sids: Iterable[str]) -> set[str]:
        wanted = set(sids)
        return await self._those(wanted, lambda shard: shard.broker.open_sessions(wanted))

    async def known(self, sids: Iterable[str]) -> set[str]:
        wanted = set(sids)
        return await self._those(wanted, lambda shard: shard.broker.known(wanted))

    # -- audio and events --------------------------------------------------------------------------------------------

    def append(
        self,
        sid: str,
        index: int,
        before: int | None,
        pieces: list[bytes],
        joins: bool,
        done: Callable[[Exception | None], None],
    ) -> None:
        self.of(sid).append(sid, index, before, pieces, joins, done)

    async def read_events(self, sid: str, after: str = "0-1") -> list[Result]:
        """Read them within ASK_SECONDS: a gateway that waited for one shard would neglect the sessions in others."""
        home = self._routes.any(sid)
        return (await self._shards.ask(lambda shard: shard.broker.read_events(sid, after), [home]))[home]

    async def read_sessions(
        self, after: Mapping[str, str], known: Collection[str] = ()
    ) -> dict[str, tuple[dict[str, str], list[Result]]]:
        """Read the sessions whose shards can be reached; the others are not among those that are returned."""
        gone = await self._routes.locate(after)

        def read(shard: Shard, sids: Collection[str]) -> Awaitable[dict[str, tuple[dict[str, str], list[Result]]]]:
            return shard.broker.read_sessions({sid: after[sid] for sid in sids}, known)

        found = _joined(await self._routes.ask(after, read))
        return found | {sid: ({}, []) for sid in gone}

    async def trim_events(self, sid: str, upto: str) -> None:
        home = self._routes.any(sid)
        await self._shards.ask(lambda shard: shard.broker.trim_events(sid, upto), [home])

    # -- where sessions are ------------------------------------------------------------------------------------------

    def _at(self, shard: Shard, at: float) -> float:
        """Convert a time of this broker's clock to the clock of a shard, by which its deadlines are set."""
        return at - self.clock.now() + shard.broker.clock.now()

    async def _those(self, sids: set[str], question: Callable[[Shard], Awaitable[set[str]]]) -> set[str]:
        """Join the answers; raises Unavailable if a session may be in a shard that is away."""
        answers = await self._shards.ask(question)
        found = set[str]().union(*answers.values())
        if found != sids:
            self._shards.require_all(answers)
        return found


def _joined(answers: Iterable[Mapping[str, Answer]]) -> dict[str, Answer]:
    return {sid: answer for some in answers for sid, answer in some.items()}
