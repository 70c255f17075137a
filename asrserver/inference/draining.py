"""Draining: a worker hands its sessions over to other workers and claims none, as long as an operator wants it.

A session that is handed over stands in line for whichever worker has room. Until one takes it, this worker goes on
with it: so there is no gap while it waits, and nothing happens to it if nobody has room. The epoch of the new owner
ends what this worker still does, as after every change of owners.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from asrserver.broker.worker_side import WorkerBroker
from asrserver.errors import Unavailable
from asrserver.inference.transcriber import Transcriber

log = logging.getLogger("asrserver.consumer")

#: Sessions of a stream of tasks that stand in line at a time. The worker that takes them must process their audio since
#: the last checkpoint again; with a hundred at once, the last of them would have to wait.
MAX_IN_LINE = 16


class Drain:
    """Hands the sessions of a worker over while it is `asked`.

    Attributes:
        asked: Whether an operator wants the worker drained.
    """

    def __init__(
        self, broker: WorkerBroker, sessions: Mapping[str, Transcriber], drop: Callable[[str], None], patience: float
    ) -> None:
        """Hand nothing over yet.

        Args:
            broker: Redis.
            sessions: The sessions that the worker owns, by id.
            drop: Stops the work on a session.
            patience: Seconds for which a session stays that has audio in hand: another worker would have to do that
                again. One whose audio comes without a pause is handed over then.
        """
        self.asked = False
        self._broker = broker
        self._sessions = sessions
        self._drop = drop
        self._patience = patience
        self._impatient_at = 0.0
        self._handed: set[str] = set()

    def ask(self, wanted: bool) -> None:
        """Begin to drain, or stop it: then this worker claims the sessions again that no other has taken."""
        if wanted != self.asked:
            self.asked = wanted
            self._impatient_at = asyncio.get_running_loop().time() + self._patience
            log.info("drained: no more sessions are claimed" if wanted else "drained no more: sessions are claimed")

    def has_handed(self, sid: str) -> bool:
        """Whether a session that this worker goes on with stands in line for another worker."""
        return sid in self._handed

    def forget(self, sid: str) -> None:
        """Forget a session that this worker has dropped."""
        self._handed.discard(sid)

    async def step(self) -> None:
        """Drop what others have taken, and hand over more; raises Unavailable."""
        if self._handed:
            await self._drop_taken()
        if self.asked:
            chosen = list(self._next())
            self._handed.update(session.sid for session in chosen)  # now: a renewal of leases may find them in line
            try:
                await self._broker.hand_over(session.claim for session in chosen)
            except Unavailable:
                self._handed.difference_update(session.sid for session in chosen)
                raise

    async def _drop_taken(self) -> None:
        self._handed &= self._sessions.keys()
        handed = {self._sessions[sid].claim.task: sid for sid in self._handed}
        for task in handed.keys() - await self._broker.in_line(handed):
            session = self._sessions.get(handed[task])
            if session is not None and session.claim.task == task and not session.over:
                log.info("session=%s taken over by another worker", session.sid)
                self._drop(session.sid)

    def _next(self) -> Iterator[Transcriber]:
        """The sessions to hand over now: those without audio in hand, in the end all; a few at a time."""
        room = Counter[str]()
        for sid in self._handed & self._sessions.keys():
            room[self._sessions[sid].claim.task.stream] += 1
        impatient = asyncio.get_running_loop().time() >= self._impatient_at
        for sid, session in self._sessions.items():
            stream = session.claim.task.stream
            if sid in self._handed or session.over or room[stream] >= MAX_IN_LINE:
                continue
            if impatient or not session.is_busy:
                room[stream] += 1
                yield session
