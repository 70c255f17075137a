"""asrserver drain: live sessions move to other workers, and nothing of them is lost or doubled."""

from __future__ import annotations

import asyncio
import re
import signal
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.program import System, cli
from tests.recordings import Utterance
from tests.system.live_streams import check_live_streams
from tests.system.support import Start
from tests.waiting import until
from tests.ws_client import health

#: Streams, and sentences in each.
COUNT, LENGTH = 6, 6


def workers(system: System) -> list[dict[str, Any]]:
    """The heartbeats of the system's workers, as the health document shows them."""
    found: list[dict[str, Any]] = health(system.port)["workers"]
    return found


def metrics(system: System) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{system.port}/metrics", timeout=10) as response:
        return str(response.read().decode())


async def run(*arguments: str, **env: str) -> tuple[int, str]:
    """Run a command to its end: its exit status, and what it printed."""
    done = await asyncio.get_running_loop().run_in_executor(None, partial(cli, *arguments, env=env))
    return done.returncode, done.stdout + done.stderr


@pytest.mark.gen_test(timeout=170)
async def test_live_streams_are_moved(
    start: Start, redis_url: str, database_url: str, utterances: list[Utterance]
) -> None:
    """The drained worker is shown as such; the last one cannot be drained; it serves again after --undo, and takes the
    sessions of the other one when that ends."""
    system = start("run", "--workers", "2").wait_ready()

    async def drain(segments: Callable[[], int]) -> None:
        await until(lambda: segments() >= 8, 60)
        await until(lambda: all(worker["sessions"] for worker in workers(system)), 30, "both have sessions")
        drained, other = (worker["name"] for worker in workers(system))
        status, told = await run("drain", drained, REDIS_URL=redis_url)
        assert (status, told.splitlines()[-1]) == (0, "sessions left: 0"), told
        moved = [(True, 0), (False, COUNT)]
        await until(lambda: [(worker["drained"], worker["sessions"]) for worker in workers(system)] == moved, 20)
        assert re.search(rf"{drained} .* drained ", (await run("status", "--server", system.url))[1])
        assert "\nasrserver_drained_workers 1.0" in await asyncio.to_thread(metrics, system)
        status, told = await run("drain", other, REDIS_URL=redis_url)
        assert (status, "no other worker could take" in told) == (2, True)
        assert await run("drain", drained, "--undo", REDIS_URL=redis_url) == (0, "workers that claim again: 1\n")
        await until(lambda: not any(worker["drained"] for worker in workers(system)), 20)
        taken = system.output().count("taken over")
        system.process.send_signal(signal.SIGTTOU)  # it ends the other one, as a rolling restart would
        await until(lambda: system.output().count("taken over") == taken + COUNT, 30, "it hands all over")

    await check_live_streams(system, database_url, utterances, COUNT, LENGTH, drain, pause=0.1)
    assert "taken over by another worker" in system.output()


@pytest.mark.gen_test(timeout=170)
async def test_sessions_that_nobody_can_take_go_on_where_they_are(
    start: Start, redis_url: str, database_url: str, utterances: list[Utterance]
) -> None:
    """The other worker stands still, as if it were full; --undo takes back what stands in line."""
    system = start("run", "--workers", "2", "--hang-timeout", "60").wait_ready()

    async def drain(segments: Callable[[], int]) -> None:
        first = await until(lambda: next((w for w in workers(system) if w["sessions"]), None), 30, "one has sessions")
        (other,) = (process for process in system.children("worker") if process.pid != first["pid"])
        other.suspend()
        try:
            status, told = await run("drain", first["name"], "--timeout", "3", REDIS_URL=redis_url)
            assert (status, "nothing is lost" in told) == (1, True)
            before = segments()
            await until(lambda: segments() > before, 60, "results come")
            assert (await run("drain", first["name"], "--undo", REDIS_URL=redis_url))[0] == 0
            await until(lambda: "drained no more" in system.output(), 20)
        finally:
            other.resume()

    await check_live_streams(system, database_url, utterances, COUNT, LENGTH, drain, pause=0.1)
