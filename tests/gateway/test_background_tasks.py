"""The tasks of a gateway that no request waits for: their names, and what becomes of their failures."""

from __future__ import annotations

import asyncio
import os

import pytest

from asrserver.errors import Unavailable
from asrserver.gateway.background_tasks import BackgroundTasks


def test_every_task_has_a_name() -> None:
    """As an operator sees it who lists the tasks of a gateway that hangs."""

    async def forever() -> None:
        await asyncio.Event().wait()

    async def _look() -> None:
        await forever()

    async def run() -> None:
        runner = BackgroundTasks()
        runner.critical(forever(), "subscribe")
        runner.periodic(60.0, _look)
        runner.spawn(forever(), "end s")
        await asyncio.sleep(0)
        names = {task.get_name() for task in asyncio.all_tasks()} - {asyncio.current_task().get_name()}  # type: ignore[union-attr]
        assert names == {"subscribe", "look", "end s"}
        await runner.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_what_fails_is_logged_and_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        runner, calls, done = BackgroundTasks(), 0, asyncio.Event()

        async def look() -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise Unavailable("broker_unavailable", "Redis is away")
            if calls == 2:
                raise RuntimeError("a defect")
            done.set()

        async def job() -> None:
            raise RuntimeError("another defect")

        runner.periodic(0.0, look)
        runner.spawn(job(), "job 7")
        await asyncio.wait_for(done.wait(), 5)
        await runner.close()

    asyncio.run(run())
    lines = [record.getMessage() for record in caplog.records]
    assert "look: Redis is away" in lines
    assert "look failed" in lines
    assert "job 7 failed" in lines


def test_the_process_ends_with_its_critical_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)

    async def work() -> None:
        raise RuntimeError("a defect")

    async def run() -> None:
        runner = BackgroundTasks()
        runner.critical(work(), "subscribe")
        await runner.standing["subscribe"]

    asyncio.run(run())
    assert exits == [1]
    assert "subscribe" in caplog.text
