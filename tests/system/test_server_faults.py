"""Redis and PostgreSQL are killed or away, or everything is killed: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from psycopg2.extensions import make_dsn

from tests.program import System, alive
from tests.recordings import Utterance
from tests.servers import Servers
from tests.system.support import (
    Start,
    acknowledgements,
    check_interrupted,
    check_rows,
    connections,
    everything,
    overdue,
    results,
    script,
    until_killed,
)
from tests.waiting import until, wait_until
from tests.ws_client import check_stored, health, look, stored


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory for embedded servers. Not tmp_path: PostgreSQL's user must be able to enter it."""
    directory = Path(tempfile.mkdtemp(prefix="asrserver-faults-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def embedded(processes: None, data_dir: Path) -> Iterator[Callable[..., System]]:
    """Return a function that starts the program with its own servers in `data_dir`, also again after a kill."""
    systems: list[System] = []

    def starter(*arguments: str) -> System:
        # An empty value counts as none: what the caller of the tests has set must not matter.
        none = dict.fromkeys(("REDIS_URL", "REDIS_ADDR", "DATABASE_URL", "DB_HOST", "DB_USER", "DB_NAME"), "")
        systems.append(
            System("run", "--port", "0", "--data-dir", str(data_dir), "--workers", "1", *arguments, env=none)
        )
        return systems[-1].wait_ready()

    yield starter
    for system in systems:
        if system.process.poll() is None:
            family = psutil.Process(system.process.pid).children(recursive=True)
            system.process.kill()
            system.process.wait()
            psutil.wait_procs(family, 30)
        system.log.close()


def dsn_of(data_dir: Path) -> str:
    return str(make_dsn(host=str(data_dir / "postgres"), port=5432, user="asrserver", dbname="asrserver"))


def redis_of(data_dir: Path) -> str:
    return f"unix://{data_dir / 'redis' / 'redis.sock'}"


def pid_of(data_dir: Path, server: str) -> int:
    return int((data_dir / server / "lock").read_text())


@pytest.mark.gen_test(timeout=170)
async def test_redis_is_killed_and_comes_back(
    embedded: Callable[..., System], data_dir: Path, utterances: list[Utterance]
) -> None:
    """kill -9 of the embedded Redis, twice, during sessions: it is restarted, and nothing is lost."""
    system = embedded()
    said = script(utterances, 8, 5)

    async def fault() -> None:
        for count in (8, 20):
            await until(lambda count=count: results(talks) >= count, 60)
            old = pid_of(data_dir, "redis")
            psutil.Process(old).kill()
            await until(lambda old=old: pid_of(data_dir, "redis") != old, 30, "Redis is started again")

    async with connections(system.url, 3) as talks:
        await everything(talks, said, fault)
    await check_rows(dsn_of(data_dir), said)
    assert system.output().count("the embedded redis died: SIGKILL") == 2
    health = system.get("/health")
    assert health["status"] == "ok"


@pytest.mark.gen_test(timeout=120)
async def test_redis_hangs_for_longer_than_children_may(
    start: Start, servers: Servers, database_url: str, utterances: list[Utterance]
) -> None:
    """The supervisor kills no child because Redis does not answer: the connections survive."""
    system = start("run", "--workers", "1", "--hang-timeout", "3").wait_ready()
    said = script(utterances, 4, 4)
    process = psutil.Process(servers.redis.pid)

    async def fault() -> None:
        await until(lambda: results(talks) >= 3, 60)
        process.suspend()
        try:
            await asyncio.sleep(5)  # the fault itself
        finally:
            process.resume()

    async with connections(system.url, 2) as talks:
        await everything(talks, said, fault)
    assert "has not responded" not in system.output()
    await check_rows(database_url, said)


@pytest.mark.gen_test(timeout=120)
async def test_postgres_is_away(start: Start, servers: Servers, database_url: str, utterances: list[Utterance]) -> None:
    """Sessions continue without PostgreSQL and are stored when it is back; meanwhile /health says so."""
    loop = asyncio.get_running_loop()
    system = start("run", "--workers", "1").wait_ready()
    before, during, after = (dict(itertools.islice(script(utterances, 9, 3).items(), n, n + 3)) for n in (0, 3, 6))

    async def stop() -> None:
        await until(lambda: results(talks) >= 2, 60)
        await loop.run_in_executor(None, servers.postgres.stop, 10)

    async def nothing() -> None:
        pass

    async with connections(system.url, 2) as talks:
        try:
            await everything(talks, before, stop)
            document = await loop.run_in_executor(None, health, system.port)
            assert (document["status"], document["redis_ready"]) == ("degraded", True)
            assert (document["postgres_ready"], document["postgres"]["ready"]) == (False, False)
            await everything(talks, during, nothing)
            await talks[0].start("open")
            await talks[0].chunk("open", 0, utterances[0].wav)
        finally:
            if servers.postgres.poll() is not None:
                servers.postgres.start()  # here and not in a thread: the server ends with the thread that started it
        await everything(talks, after, nothing)
        await talks[0].chunk("open", 1, utterances[1].wav)
        await talks[0].finish("open")
        await check_rows(database_url, {**before, **during, **after, "open": utterances[:2]})
    assert (await loop.run_in_executor(None, health, system.port))["status"] == "ok"


@pytest.mark.gen_test(timeout=120)
async def test_start_without_postgres(
    start: Start, servers: Servers, database_url: str, utterances: list[Utterance]
) -> None:
    """A gateway that starts without PostgreSQL serves sessions, and stores them later."""
    await asyncio.get_running_loop().run_in_executor(None, servers.postgres.stop, 10)
    try:
        system = start("run", "--workers", "1").wait_ready()
        async with connections(system.url, 1) as (ws,):
            await ws.stream("early", utterances[:2])
            ws.check("early", utterances[:2])
    finally:
        servers.postgres.start()
    await until(lambda: stored_safely(database_url, "early"), 40, "stored")
    check_stored(database_url, "early", utterances[:2])


def stored_safely(dsn: str, sid: str) -> object:
    """`stored`, also while the database does not exist."""
    import psycopg2

    try:
        return stored(dsn, sid)
    except psycopg2.OperationalError:
        return None


@pytest.mark.gen_test(timeout=170)
async def test_everything_is_killed_at_once(
    embedded: Callable[..., System], data_dir: Path, utterances: list[Utterance]
) -> None:
    """kill -9 of supervisor, children and servers: after a restart all acknowledged audio is stored."""
    resume = ("--resume-timeout", "1")  # after a start no session is ended before
    system = embedded(*resume)
    said = script(utterances, 6, 4)

    def kill() -> None:
        supervisor = psutil.Process(system.process.pid)
        family = [supervisor, *supervisor.children(recursive=True)]
        assert {pid_of(data_dir, "redis"), pid_of(data_dir, "postgres")} <= {process.pid for process in family}
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert system.process.wait(10) == -signal.SIGKILL
        _, alive = psutil.wait_procs(family[1:], 30)
        assert not alive

    async with connections(system.url, 2) as talks:
        await until_killed(talks, said, kill)
    again = embedded(*resume)
    overdue(redis_of(data_dir), list(said))
    await check_interrupted(dsn_of(data_dir), said, acknowledgements(talks, said))
    async with connections(again.url, 1) as (ws,):
        await ws.stream("next", utterances[:2])
        ws.check("next", utterances[:2])
    assert again.stop() == 0


def test_nothing_outlives_a_killed_supervisor(embedded: Callable[..., System], data_dir: Path) -> None:
    """SIGKILL of the supervisor ends its gateways, workers and servers, and the next start works."""
    system = embedded()
    family = psutil.Process(system.process.pid).children(recursive=True)
    assert len(family) >= 4
    system.process.kill()
    system.process.wait()
    wait_until(lambda: not any(alive(process) for process in family), 30, "every process is gone")
    again = embedded()
    # A gateway that has just begun to listen may have heard of no worker.
    wait_until(lambda: health(again.port)["status"] == "ok", 30, "the server is ready")
    assert again.stop() == 0
    with pytest.raises(redis.ConnectionError), look(redis_of(data_dir)) as client:
        client.ping()
