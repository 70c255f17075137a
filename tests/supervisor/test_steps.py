"""The supervisor step by step, with children that are no processes."""

from __future__ import annotations

import errno
import signal
from typing import Any, cast

import pytest

from asrserver.config import Settings
from asrserver.supervisor import supervisor as module
from asrserver.supervisor.supervisor import Slot, Supervisor


class Child:
    """Stands for a process that ends when it is asked to."""

    pid = 0

    def __init__(self) -> None:
        self.exitcode: int | None = None

    def start(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...

    def terminate(self) -> None:
        self.exitcode = 0


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Supervisor:
    """A supervisor of so many workers, all of them ready."""
    start: Any = lambda _supervisor, _slot: Child()  # noqa: E731
    monkeypatch.setattr(Supervisor, "_start_worker", start)
    monkeypatch.setattr(Supervisor, "_release_sessions", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(module, "notify", lambda *_args: None)
    made = Supervisor(Settings(workers=request.param), {}, workers=True, servers=[])
    turn(made)
    for slot in made._slots:
        slot.ready = True
    return made


def turn(supervisor: Supervisor) -> None:
    """One turn of the loop, but for what it waits for."""
    supervisor._reap()
    supervisor._roll()
    supervisor._start_due()


def living(supervisor: Supervisor) -> list[Slot]:
    return [slot for slot in supervisor._slots if slot.running and not slot.retired]


@pytest.mark.parametrize("supervisor", [1, 2, 3], indirect=True, ids=["1 worker", "2 workers", "3 workers"])
@pytest.mark.parametrize("fewer", [1, 2])
@pytest.mark.parametrize("when", ["the new one starts", "the old one drains"])
def test_fewer_workers_during_a_rolling_restart(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, fewer: int, when: str
) -> None:
    """As many as asked for stay, and the last one always: both of a pair were retired, and so the last worker."""
    before = len(living(supervisor))
    supervisor._on_signal(signal.SIGHUP)
    turn(supervisor)
    if when == "the old one drains":
        with monkeypatch.context() as patched:
            patched.setattr(Child, "terminate", lambda _child: None)
            supervisor._slots[-1].ready = True
            turn(supervisor)
        assert supervisor._slots[0].retired
    for _ in range(fewer):
        supervisor._on_signal(signal.SIGTTOU)
    if when == "the old one drains":
        cast(Any, supervisor._slots[0].process).terminate()
    replaced = {slot.name for slot in supervisor._slots[:before]}
    for _ in range(2 * before + 2):
        turn(supervisor)
        for slot in supervisor._slots:
            slot.ready = True
    assert len(living(supervisor)) == max(1, before - fewer)
    assert supervisor._replacing is None
    assert not replaced & {slot.name for slot in living(supervisor)}


@pytest.mark.parametrize("supervisor", [2], indirect=True)
@pytest.mark.parametrize("rolling", [False, True])
def test_a_child_that_the_system_has_no_room_for(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rolling: bool
) -> None:
    """It is started later, or not replaced; the supervisor died of it, and so did all its children."""

    def start(_child: Child) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    first, second = living(supervisor)
    with monkeypatch.context() as patched:
        patched.setattr(Child, "start", start)
        if rolling:
            supervisor._on_signal(signal.SIGHUP)
        else:
            cast(Any, second.process).exitcode = -9
        for _ in range(2):
            turn(supervisor)
            second.due = 0.0
    assert "could not start: [Errno 11]" in caplog.text
    assert first in living(supervisor)
    turn(supervisor)
    assert living(supervisor) == [first, second]
    assert (second.failures, supervisor._replacing) == (0 if rolling else 2, None)
