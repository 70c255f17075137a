"""Adoption: a gateway finds sessions whose own gateway is dead, ends those that were not resumed, and stores them.

A living gateway renews the deadlines of its sessions (`Sessions.repair`). One that has passed belongs to a session that
nobody answers for: its client may still resume it at any gateway, until one of them has ended it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.gateway.persistence import WriteBehind
from asrserver.gateway.session import Session
from asrserver.gateway.sessions import Sessions
from asrserver.protocol import codec
from asrserver.protocol.events import Final, Result
from asrserver.telemetry import gateway_traces

log = logging.getLogger("asrserver.sessions")

#: Sessions that are adopted in one sweep, at most.
ADOPT_BATCH = 100


class Adoption:
    """Takes over the sessions of dead gateways, for one that lives."""

    def __init__(self, broker: GatewayBroker, write_behind: WriteBehind, sessions: Sessions) -> None:
        self._broker = broker
        self._write_behind = write_behind
        self._sessions = sessions
        self._overdue: set[str] = set()  # sessions that the last sweep found to be overdue

    async def sweep(self, spare: bool) -> None:
        """Adopt the sessions that were overdue at the last sweep and still are.

        At two sweeps: when Redis was away, or its clock was set, gateways have the time between to renew theirs.

        Args:
            spare: Whether to end none now, because clients may not have had a gateway to resume at.

        Raises:
            Unavailable: Redis is away.
        """
        overdue = set(await self._broker.overdue(self._broker.clock.now(), ADOPT_BATCH))
        sids, self._overdue = (overdue & self._overdue) - self._sessions.keys(), overdue
        found = await self._broker.read_sessions(dict.fromkeys(sids, "0-1"))
        for sid, (fields, events) in found.items():
            if not fields:
                self._write_behind.mark_dirty(sid)
            elif "end" in fields or not spare:
                try:
                    await self._adopt(sid, fields, events)
                except (ValueError, KeyError) as exc:  # another program wrote there, and nobody else notices
                    if events:
                        self._write_behind.mark_dirty(sid)
                    await self._broker.of(sid).give_up_session(sid, f"{type(exc).__name__}: {exc}")

    async def _adopt(self, sid: str, fields: Mapping[str, str], events: Sequence[Result]) -> None:
        """Adopt a session with this hash and these events; raises ValueError or KeyError if it is damaged."""
        holder, options = fields["gateway"], codec.decode_options(fields["options"])
        session = Session(sid, fields["user_id"], options, None, fields.get("owner", ""))
        now = self._broker.clock.now()
        deadline = now + self._sessions.grace
        if not await self._broker.end_session(sid, "interrupted", deadline, seen=holder, overdue=now):
            return  # it was resumed meanwhile
        if events and isinstance(events[-1], Final):
            self._write_behind.mark_dirty(sid)
        elif sid not in self._sessions:
            session.trace = gateway_traces.resume_session(sid, fields)
            self._sessions.add_ended(session)
            log.info("session=%s adopted from gateway %s", sid, holder)
