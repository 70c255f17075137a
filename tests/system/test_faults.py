"""The system under fault: processes killed and stopped, connections cut, servers away. Nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import redis
from psycopg2.extensions import make_dsn

from asrserver.inference.consumer import Feed
from asrserver.text.wer import word_errors
from tests import poison
from tests.conftest import Servers, System, Utterance, until, wait_until
from tests.worker_harness import LIVE, encode
from tests.ws_client import Talk, check_stored, chunk, health, look, query, stored

Start = Callable[..., System]


@contextlib.asynccontextmanager
async def connections(url: str, count: int) -> AsyncIterator[list[Talk]]:
    talks = [await Talk.open(url) for _ in range(count)]
    try:
        yield talks
    finally:
        await asyncio.gather(*(talk.close() for talk in talks))


def script(utterances: Sequence[Utterance], sessions: int, chunks: int) -> dict[str, list[Utterance]]:
    """What is said in each of so many sessions: each another stretch of the utterances."""
    voices = itertools.cycle(utterances)
    return {f"session-{number}": [next(voices) for _ in range(chunks)] for number in range(sessions)}


def results(talks: Sequence[Talk]) -> int:
    """Chunk results so far."""
    return sum(message["type"] == "chunk_result" for talk in talks for message in talk.messages)


async def everything(talks: Sequence[Talk], said: dict[str, list[Utterance]], fault: Callable[[], object]) -> None:
    """Stream all sessions over all connections while `fault` does its worst; then every message must be right."""

    async def stream(talk: Talk, sid: str) -> None:
        await talk.stream(sid, said[sid])

    pairs = list(zip(itertools.cycle(talks), said, strict=False))
    async with asyncio.timeout(150):
        await asyncio.gather(*(stream(talk, sid) for talk, sid in pairs), fault())  # type: ignore[call-overload]
    for talk, sid in pairs:
        talk.check(sid, said[sid])


async def check_rows(dsn: str, said: dict[str, list[Utterance]]) -> None:
    await until(lambda: all(stored(dsn, sid) for sid in said), 60, "all sessions are stored")
    for sid, spoken in said.items():
        check_stored(dsn, sid, spoken)


# -- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=170)
async def test_the_only_worker_is_killed(start: Start, database_url: str, utterances: list[Utterance]) -> None:
    """kill -9 of the only worker, twice, while twenty sessions stream: all finish, each result once, all rows."""
    system = start("run", "--workers", "1").wait_ready()
    said = script(utterances, 20, 5)

    async def fault() -> None:
        for count in (15, 50):
            await until(lambda count=count: results(talks) >= count, 60)
            (worker,) = await until(lambda: system.children("worker"), 30)
            worker.kill()
            await until(lambda dead=worker: not dead.is_running() or dead.status() == psutil.STATUS_ZOMBIE)

    async with connections(system.url, 4) as talks:
        await everything(talks, said, fault)
    await check_rows(database_url, said)
    assert system.output().count("died: SIGKILL") == 2


def live_streams(utterances: Sequence[Utterance], count: int, length: int) -> dict[str, tuple[list[Utterance], bytes]]:
    """What is said in each of so many live recordings of `length` utterances, and its bytes: half of them are PCM."""
    voices = itertools.cycle(sorted(utterances, key=lambda one: -len(one.pcm))[:30])
    streams = {}
    for number in range(count):
        said = [next(voices) for _ in range(length)]
        pcm = bytes(32000).join(one.pcm for one in said)
        kind = [None, *LIVE][(number // 2) % 3 + 1] if number % 2 else None
        streams[f"live-{number}"] = (said, pcm if kind is None else encode(pcm, *LIVE[kind]))
    return streams


async def killed_in_live_streams(
    system: System, database_url: str, utterances: list[Utterance], count: int, length: int, kills: Sequence[int]
) -> None:
    """Kill a worker whenever so many segments are out; every sentence must be in one segment, of rows too."""
    streams = live_streams(utterances, count, length)

    async def stream(talk: Talk, sid: str, data: bytes) -> None:
        await talk.start(sid, mode="stream", partials=True)
        step = -(-len(data) // (length * 12))  # some 300 ms
        for index, begin in enumerate(range(0, len(data), step)):
            await talk.chunk(sid, index, data[begin : begin + step])
            await asyncio.sleep(0.05)  # a live source is as slow as time: here a few times faster
        await talk.finish(sid)

    def found(talk: Talk, sid: str) -> list[dict[str, object]]:
        return talk.of(sid, "segment_result")

    async def fault() -> None:
        for out in kills:
            await until(lambda out=out: sum(len(found(talk, sid)) for talk, sid in pairs) >= out, 600)
            (worker, *_) = await until(lambda: system.children("worker"), 30)
            worker.kill()
            await until(lambda dead=worker: not alive(dead))

    async with connections(system.url, 4) as talks:
        pairs = list(zip(itertools.cycle(talks), streams, strict=False))
        await asyncio.gather(*(stream(talk, sid, streams[sid][1]) for talk, sid in pairs), fault())
        wrong = words = 0
        for talk, sid in pairs:
            said, _ = streams[sid]
            segments = found(talk, sid)
            (final,) = talk.of(sid, "final_result")
            assert not talk.of(sid, "error")
            assert [segment["number"] for segment in segments] == list(range(length)), segments
            assert final["text"] == " ".join(str(segment["text"]) for segment in segments)
            wrong += word_errors(" ".join(one.text for one in said), final["text"])
            words += len(final["text"].split())
            await until(lambda sid=sid: stored(database_url, sid), 60, "stored")
            rows = query(database_url, "SELECT number, text FROM asr_segments WHERE session_id = %s ORDER BY 1", sid)
            assert rows == [(segment["number"], segment["text"]) for segment in segments]
        assert wrong <= 0.05 * words


@pytest.mark.gen_test(timeout=170)
async def test_a_worker_is_killed_in_live_streams(start: Start, database_url: str, utterances: list[Utterance]) -> None:
    """Half of them PCM, the others WebM, Ogg and MP4: every sentence in exactly one segment."""
    system = start("run", "--workers", "1").wait_ready()
    await killed_in_live_streams(system, database_url, utterances, 6, 4, (8, 16))
    assert system.output().count("died: SIGKILL") == 2


@pytest.mark.slow
@pytest.mark.gen_test(timeout=900)
async def test_a_worker_is_killed_in_twenty_live_streams_over_a_minute_old(
    start: Start, database_url: str, utterances: list[Utterance]
) -> None:
    """Each of them two minutes long."""
    system = start("run", "--workers", "2").wait_ready()
    await killed_in_live_streams(system, database_url, utterances, 20, 30, (320, 400))
    assert system.output().count("died: SIGKILL") == 2


async def stopped_worker(
    system: System, database_url: str, utterances: list[Utterance], seconds: float, others: bool
) -> None:
    """SIGSTOP one worker for a time in the middle; with others there, it must find itself fenced."""
    said = script(utterances, 20, 5)
    victim = system.children("worker")[0]

    async def fault() -> None:
        own = rf"feed\[{victim.pid}\] session=\S+ claimed"
        await until(lambda: results(talks) >= 10 and len(re.findall(own, system.output())) >= 2, 60)
        victim.suspend()
        try:
            await asyncio.sleep(seconds)  # the fault itself
            if others:
                await until(lambda: " claimed epoch=2 " in system.output(), 60, "another worker takes over")
        finally:
            victim.resume()

    async with connections(system.url, 4) as talks:
        await everything(talks, said, fault)
        if others:
            dropped = rf"feed\[{victim.pid}\] session=\S+ dropped"
            await until(lambda: re.search(dropped, system.output()), 20, "the stopped worker drops its sessions")
        for talk in talks:  # and nothing more was said
            for sid in said:
                if talk.of(sid):
                    talk.check(sid, said[sid])
    await check_rows(database_url, said)
    assert victim.is_running(), system.output()[-6000:]
    with look(system_redis(system)) as client:
        assert client.xlen("asr_tasks") == 0
        for sid in said:  # Redis itself took each event once, those of an older owner before those of a newer
            entries = client.xrange(f"asr_events:{{{sid}}}")
            numbers = [int(fields["seq"]) for _, fields in entries if "seq" in fields]
            assert numbers == list(range(1, len(said[sid]) + 2))


def system_redis(system: System) -> str:
    """The Redis that a system was given."""
    return psutil.Process(system.process.pid).environ()["REDIS_URL"]


@pytest.mark.gen_test(timeout=170)
async def test_a_worker_is_stopped_and_woken(start: Start, database_url: str, utterances: list[Utterance]) -> None:
    """SIGSTOP past its lease, then SIGCONT: another worker has its sessions, Redis refuses the sleeper's results."""
    system = start("run", "--workers", "2", "--lease", "2", "--max-backlog", "5").wait_ready()
    await stopped_worker(system, database_url, utterances, 2.5, others=True)


@pytest.mark.gen_test(timeout=170)
async def test_the_only_worker_is_stopped_and_woken(
    start: Start, database_url: str, utterances: list[Utterance]
) -> None:
    """SIGSTOP of the only worker past its lease: it goes on, and does nothing twice."""
    system = start("run", "--workers", "1", "--lease", "1").wait_ready()
    await stopped_worker(system, database_url, utterances, 3.0, others=False)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.gen_test(timeout=300)
async def test_a_worker_is_stopped_for_twenty_seconds(
    start: Start, database_url: str, utterances: list[Utterance], workers: int
) -> None:
    """The same with the default lease and a stop of 20 s."""
    system = start("run", "--workers", str(workers)).wait_ready()
    await stopped_worker(system, database_url, utterances, 20.0, others=workers > 1)


@pytest.mark.gen_test
async def test_sessions_are_lost_while_one_is_to_be_handed_back(servers: Servers) -> None:
    """A worker woken from a long stop: behind, it asks for others' room, and meanwhile loses all that it had."""

    class Behind:
        backlog = 100.0
        live = False

    class Away:
        name = "sleeper"

        async def heartbeats(self, _kind: str) -> list[dict[str, object]]:
            feed.sessions.clear()
            return [{"name": "other", "backlog": 0.0}]

    feed = Feed(Away(), None, url=servers.redis.url, lease=10, max_backlog=30)  # type: ignore[arg-type]
    feed.sessions = {"one": Behind(), "two": Behind()}  # type: ignore[dict-item]
    await feed.hand_back()


@pytest.mark.gen_test(timeout=170)
async def test_a_recording_that_kills_its_worker(
    start: Start,
    redis_url: str,
    database_url: str,
    utterances: list[Utterance],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three dead workers, then the client gets an error; other chunks and sessions are right and have no strike."""
    monkeypatch.setattr(System, "program", (poison.__file__,))
    system = start("run", "--workers", "1").wait_ready()
    said = script(utterances, 6, 4)
    deadly = utterances[0].wav + poison.MARK

    async def fault() -> None:
        async with await Talk.open(system.url) as talk:
            await talk.start("deadly")
            await talk.chunk("deadly", 0, utterances[1].wav)
            await talk.chunk("deadly", 1, deadly)
            await talk.chunk("deadly", 2, utterances[2].wav)
            error = await talk.find("deadly", "error")
            assert (error["code"], error["chunk_index"]) == ("audio_rejected", 1)
            final = await talk.finish("deadly")
            assert final["text"] == f"{utterances[1].text} {utterances[2].text}"
            assert final["chunk_count"] == 3
            kinds = [(m["type"], m.get("chunk_index")) for m in talk.of("deadly") if m["type"] != "ack"]
            assert kinds == [("chunk_result", 0), ("error", 1), ("chunk_result", 2), ("final_result", None)]

    async with connections(system.url, 2) as talks:
        await everything(talks, said, fault)
    await check_rows(database_url, said)
    assert system.output().count("died: SIGABRT") == 3
    with look(redis_url) as client:
        ((_, buried),) = client.xrange("asr_dead")
        assert (buried["sid"], buried["entry"]) == ("deadly", "2-0")
        struck = [key for sid in said for key in client.hgetall(f"asr_session:{{{sid}}}").items() if "strike" in key[0]]
        # Whatever was in hand beside it at first; since then, what is under suspicion runs alone.
        assert all(number == "1" for _, number in struck)
    await until(lambda: stored(database_url, "deadly"))
    rows = query(database_url, "SELECT chunk_index, error_code FROM asr_chunks WHERE session_id = 'deadly' ORDER BY 1")
    assert rows == [(0, None), (1, "audio_rejected"), (2, None)]


# -- gateways and clients --------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=170)
async def test_the_subscription_is_cut_again_and_again(
    start: Start, redis_url: str, database_url: str, utterances: list[Utterance]
) -> None:
    """Results published while nobody is subscribed are read from the events: none is lost, none comes twice."""
    system = start("run", "--workers", "1").wait_ready()
    said = script(utterances, 10, 5)
    cuts = 0

    async def fault() -> None:
        nonlocal cuts
        with look(redis_url) as client:
            for count in range(1, 45, 4):
                await until(lambda count=count: results(talks) >= count, 60)
                cuts += int(client.client_kill_filter(_type="pubsub"))

    async with connections(system.url, 3) as talks:
        await everything(talks, said, fault)
    assert cuts >= 5
    assert "subscribing again" in system.output()
    await check_rows(database_url, said)


def overdue(url: str, sids: Sequence[str]) -> None:
    """Let the time run out in which these sessions' dead gateway might have answered for them."""
    with look(url) as client:
        for sid in sids:
            client.zadd("asr_open", {sid: 1}, xx=True)


async def check_interrupted(dsn: str, said: dict[str, list[Utterance]], acknowledged: dict[str, int]) -> None:
    """Each session is stored as interrupted with at least what was acknowledged, and all of it right."""
    await until(lambda: all(stored(dsn, sid) for sid in said), 60, "all sessions are stored")
    for sid, spoken in said.items():
        row = stored(dsn, sid)
        assert row is not None
        assert row[2] >= acknowledged[sid]
        check_stored(dsn, sid, spoken[: row[2]], "interrupted")


def acknowledgements(talks: Sequence[Talk], said: dict[str, list[Utterance]]) -> dict[str, int]:
    return {sid: sum("chunk_index" in m for talk in talks for m in talk.of(sid, "ack")) for sid in said}


async def until_killed(talks: Sequence[Talk], said: dict[str, list[Utterance]], kill: Callable[[], object]) -> None:
    """Stream without finishing until some results are out, then kill; returns when every connection is closed."""

    async def send(talk: Talk, sid: str) -> None:
        await talk.start(sid)
        for index, utterance in enumerate(said[sid]):
            await talk.send(chunk(sid, index, utterance.wav))

    pairs = list(zip(itertools.cycle(talks), said, strict=False))
    await asyncio.gather(*(send(talk, sid) for talk, sid in pairs))
    await until(lambda: results(talks) >= 5, 60)
    kill()
    await until(lambda: all(talk.closed for talk in talks), 30, "the connections are closed")


@pytest.mark.gen_test(timeout=120)
async def test_a_gateway_is_killed(
    start: Start, redis_url: str, database_url: str, utterances: list[Utterance]
) -> None:
    """Its clients lose the connection; another gateway finishes its sessions with all that was acknowledged."""
    system = start("run", "--workers", "1").wait_ready()
    said = script(utterances, 6, 4)
    (gateway,) = system.children("gateway")
    async with connections(system.url, 2) as talks:
        await until_killed(talks, said, gateway.kill)
    await until(lambda: [p for p in system.children("gateway") if p.pid != gateway.pid], 30)
    overdue(redis_url, list(said))
    await check_interrupted(database_url, said, acknowledgements(talks, said))
    async with connections(system.url, 1) as (talk,):  # the new one serves
        await talk.stream("next", utterances[:2])
        talk.check("next", utterances[:2])
    with look(redis_url) as client:
        await until(lambda: not client.zcard("asr_open") and not client.xlen("asr_tasks"), what="nothing is open")


@pytest.mark.gen_test(timeout=120)
async def test_a_finished_session_of_a_killed_gateway_is_stored(
    start: Start, redis_url: str, database_url: str, utterances: list[Utterance]
) -> None:
    """Finished, and its gateway killed before the rows were written: it is stored as done."""
    system = start("run", "--workers", "1").wait_ready()
    (gateway,) = system.children("gateway")
    async with connections(system.url, 1) as (talk,):
        await talk.start("one")
        await talk.chunk("one", 0, utterances[0].wav)
        await talk.find("one", "chunk_result", 0)
        await talk.send({"action": "finish", "session_id": "one"})
        with look(redis_url) as client:
            await until(lambda: client.hget("asr_session:{one}", "end"), what="the end is in Redis")
        gateway.kill()
        await until(lambda: talk.closed)
    overdue(redis_url, ["one"])
    await until(lambda: stored(database_url, "one"), 40, "stored")
    check_stored(database_url, "one", utterances[:1])


@pytest.mark.gen_test(timeout=120)
async def test_a_client_drops(start: Start, redis_url: str, database_url: str, utterances: list[Utterance]) -> None:
    """No closing handshake, mid-stream, and never back: stored as interrupted, while its neighbours go on."""
    system = start("run", "--workers", "1", "--resume-timeout", "1").wait_ready()
    said = script(utterances, 3, 4)
    other = utterances[20:23]
    async with connections(system.url, 2) as (lost, kept):
        await kept.start("kept")
        await kept.chunk("kept", 0, other[0].wav)
        await until_killed([lost], said, lost.drop)
        await kept.chunk("kept", 1, other[1].wav)
        await kept.chunk("kept", 2, other[2].wav)
        await kept.finish("kept")
        kept.check("kept", other)
    await check_interrupted(database_url, said, acknowledgements([lost], said))
    with look(redis_url) as client:
        await until(lambda: not client.zcard("asr_open") and not client.xlen("asr_tasks"), what="nothing is open")


# -- servers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """For embedded servers. Not tmp_path: PostgreSQL's user must reach it where the tests run as root."""
    directory = Path(tempfile.mkdtemp(prefix="asrserver-faults-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def embedded(data_dir: Path) -> Iterator[Callable[..., System]]:
    """embedded(): the program with its own servers in `data_dir`; again, after it was killed."""
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
    """kill -9 of the embedded Redis, twice, while sessions stream: it is started again, and nothing is lost."""
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
    """A Redis that answers nobody is no reason to kill gateways and workers: the connections are still there after."""
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
    assert "no sign of life" not in system.output()
    await check_rows(database_url, said)


@pytest.mark.gen_test(timeout=120)
async def test_postgres_is_away(start: Start, servers: Servers, database_url: str, utterances: list[Utterance]) -> None:
    """Sessions go on without PostgreSQL and are stored when it is back; health says so while it lasts."""
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
    """A gateway that starts while PostgreSQL is away serves, and stores when it comes."""
    await asyncio.get_running_loop().run_in_executor(None, servers.postgres.stop, 10)
    try:
        system = start("run", "--workers", "1").wait_ready()
        async with connections(system.url, 1) as (talk,):
            await talk.stream("early", utterances[:2])
            talk.check("early", utterances[:2])
    finally:
        servers.postgres.start()
    await until(lambda: stored_safely(database_url, "early"), 40, "stored")
    check_stored(database_url, "early", utterances[:2])


def stored_safely(dsn: str, sid: str) -> object:
    """`stored`, of a database that is perhaps still to be made."""
    import psycopg2

    try:
        return stored(dsn, sid)
    except psycopg2.OperationalError:
        return None


@pytest.mark.gen_test(timeout=170)
async def test_everything_is_killed_at_once(
    embedded: Callable[..., System], data_dir: Path, utterances: list[Utterance]
) -> None:
    """kill -9 of supervisor, children and servers, mid-session: started again, all that was acknowledged is stored."""
    system = embedded()
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
    again = embedded()
    overdue(redis_of(data_dir), list(said))
    await check_interrupted(dsn_of(data_dir), said, acknowledgements(talks, said))
    async with connections(again.url, 1) as (talk,):
        await talk.stream("next", utterances[:2])
        talk.check("next", utterances[:2])
    assert again.stop() == 0


def test_nothing_outlives_a_killed_supervisor(embedded: Callable[..., System], data_dir: Path) -> None:
    """SIGKILL of the supervisor alone takes gateways, workers and servers along, and the next start is clean."""
    system = embedded()
    family = psutil.Process(system.process.pid).children(recursive=True)
    assert len(family) >= 4
    system.process.kill()
    system.process.wait()
    wait_until(lambda: not any(alive(process) for process in family), 30, "every process is gone")
    again = embedded()
    assert again.get("/health")["status"] == "ok"
    assert again.stop() == 0
    with pytest.raises(redis.ConnectionError), look(redis_of(data_dir)) as client:
        client.ping()


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
