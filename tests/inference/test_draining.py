"""draining.py: which sessions are handed over when, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from asrserver.broker.replies import Claim, Task
from asrserver.errors import Unavailable
from asrserver.inference.draining import MAX_IN_LINE, Drain

pytestmark = pytest.mark.gen_test


class Line:
    """A broker with a line of sessions, and other workers that may take them."""

    def __init__(self) -> None:
        self.handed: list[str] = []
        self.waiting: set[Task] = set()
        self.away = False

    async def hand_over(self, claims: Iterable[Claim]) -> None:
        claims = list(claims)
        if self.away:
            raise Unavailable("broker_unavailable", "away")
        self.handed += [claim.sid for claim in claims]
        self.waiting |= {claim.task for claim in claims}

    async def in_line(self, tasks: Iterable[Task]) -> set[Task]:
        return self.waiting & set(tasks)

    def take(self, *sids: str) -> None:
        self.waiting -= {task for task in self.waiting if task.id in sids}


class Worker:
    """A worker's sessions and its drain."""

    def __init__(self, *sids: str, patience: float = 1000.0) -> None:
        self.line = Line()
        self.sessions = {sid: session(sid) for sid in sids}
        self.drain = Drain(self.line, self.sessions, self.drop, patience)  # type: ignore[arg-type]

    def drop(self, sid: str) -> None:
        self.drain.forget(sid)
        del self.sessions[sid]


def session(sid: str, stream: str = "asr_tasks") -> SimpleNamespace:
    claim = SimpleNamespace(sid=sid, task=Task(stream, sid))
    return SimpleNamespace(sid=sid, claim=claim, is_busy=False, over=False)


async def test_nothing_is_handed_over_unasked() -> None:
    worker = Worker("a")
    await worker.drain.step()
    assert worker.line.handed == []


async def test_a_session_is_dropped_when_another_worker_has_taken_it() -> None:
    worker = Worker("a", "b")
    worker.drain.ask(True)
    await worker.drain.step()
    await worker.drain.step()
    assert worker.line.handed == ["a", "b"]  # once
    assert worker.drain.has_handed("a")
    worker.line.take("a")
    await worker.drain.step()
    assert list(worker.sessions) == ["b"]
    assert not worker.drain.has_handed("a")


async def test_a_session_with_audio_in_hand_stays_for_a_while() -> None:
    """Another worker would have to do the same again."""
    worker = Worker("busy", "idle")
    worker.sessions["busy"].is_busy = True
    worker.drain.ask(True)
    await worker.drain.step()
    assert worker.line.handed == ["idle"]
    worker.drain._impatient_at = 0.0
    await worker.drain.step()
    assert worker.line.handed == ["idle", "busy"]


async def test_a_few_at_a_time_of_each_model() -> None:
    """A model that nobody else offers does not keep the sessions of others here."""
    worker = Worker(*(f"s{number}" for number in range(MAX_IN_LINE + 5)))
    for number in range(MAX_IN_LINE):
        worker.sessions[f"s{number}"].claim.task = Task("asr_tasks:rare", f"s{number}")
    worker.sessions |= {f"t{number}": session(f"t{number}") for number in range(MAX_IN_LINE)}
    worker.drain.ask(True)
    await worker.drain.step()
    assert len(worker.line.handed) == 2 * MAX_IN_LINE
    worker.line.take("s20")
    await worker.drain.step()
    assert len(worker.line.handed) == 2 * MAX_IN_LINE + 1


async def test_what_nobody_takes_goes_on_here_and_is_claimed_again_after_an_undo() -> None:
    worker = Worker("a")
    worker.drain.ask(True)
    await worker.drain.step()
    worker.drain.ask(False)
    await worker.drain.step()
    assert list(worker.sessions) == ["a"]
    worker.drop("a")  # as the consumer does when it claims it
    worker.sessions["a"] = session("a")
    worker.line.take("a")
    await worker.drain.step()
    assert list(worker.sessions) == ["a"]


async def test_a_session_is_the_worker_s_own_again_where_it_could_not_be_handed_over() -> None:
    """Or its lease would not be renewed."""
    worker = Worker("a")
    worker.drain.ask(True)
    worker.line.away = True
    with pytest.raises(Unavailable):
        await worker.drain.step()
    assert not worker.drain.has_handed("a")
