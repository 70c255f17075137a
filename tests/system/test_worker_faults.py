"""Workers are killed or stopped: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

import psutil
import pytest

from asrserver.supervisor.children import WORKER_NICENESS
from tests import poison
from tests.audio import misbehaving
from tests.program import System, alive
from tests.recordings import Utterance
from tests.system.live_streams import check_live_streams
from tests.system.support import Start, check_rows, connections, everything, results, script
from tests.waiting import until
from tests.ws_client import WsClient, look, query, stored


@pytest.mark.gen_test(timeout=170)
async def test_the_only_worker_is_killed(start: Start, database_url: str, utterances: list[Utterance]) -> None:
    """kill -9 of the only worker, twice, during twenty sessions: all finish, each result comes once, all rows are
    there."""
    system = start("run", "--workers", "1").wait_ready()
    said = script(utterances, 20, 5)

    async def fault() -> None:
        for count in (15, 50):
            await until(lambda count=count: results(clients) >= count, 60)
            (worker,) = await until(lambda: system.children("worker"), 30)
            await until(lambda ready=worker: ready.nice() >= WORKER_NICENESS, 30, "it is ready: others go first")
            worker.kill()
            await until(lambda dead=worker: not alive(dead))

    async with connections(system.url, 4) as clients:
        await everything(clients, said, fault)
    await check_rows(database_url, said)
    assert system.output().count("died: SIGKILL") == 2


async def killed_in_live_streams(
    system: System, database_url: str, utterances: list[Utterance], count: int, length: int, kills: Sequence[int]
) -> None:
    """Kill a worker after each number of segments; every sentence must be in one segment."""

    async def fault(segments: Callable[[], int]) -> None:
        for out in kills:
            await until(lambda out=out: segments() >= out, 600)
            (worker, *_) = await until(lambda: system.children("worker"), 30)
            worker.kill()
            await until(lambda dead=worker: not alive(dead))

    await check_live_streams(system, database_url, utterances, count, length, fault)


@pytest.mark.gen_test(timeout=170)
async def test_a_worker_is_killed_in_live_streams(start: Start, database_url: str, utterances: list[Utterance]) -> None:
    """Half of them are PCM, the others WebM, Ogg and MP4: every sentence is in exactly one segment."""
    system = start("run", "--workers", "1").wait_ready()
    await killed_in_live_streams(system, database_url, utterances, 6, 4, (8, 16))
    assert system.output().count("died: SIGKILL") == 2


@pytest.mark.slow
@pytest.mark.gen_test(timeout=900)
async def test_a_worker_is_killed_in_twenty_live_streams_over_a_minute_old(
    start: Start, database_url: str, utterances: list[Utterance]
) -> None:
    """Each stream has two minutes."""
    system = start("run", "--workers", "2").wait_ready()
    await killed_in_live_streams(system, database_url, utterances, 20, 30, (320, 400))
    assert system.output().count("died: SIGKILL") == 2


async def stopped_worker(
    system: System, database_url: str, utterances: list[Utterance], seconds: float, others: bool
) -> None:
    """Stop a worker for some seconds with SIGSTOP; if there are others, it must find itself fenced."""
    said = script(utterances, 20, 5)

    def busy_worker() -> psutil.Process | None:
        """A worker with two sessions: the first to load its model may have taken them all."""
        for worker in system.children("worker"):
            if len(re.findall(rf"consumer\[{worker.pid}\] session=\S+ claimed", system.output())) >= 2:
                return worker
        return None

    async def fault() -> psutil.Process:
        await until(lambda: results(clients) >= 10, 60, "ten results")
        victim: psutil.Process = await until(busy_worker, 60, "a worker with two sessions")
        victim.suspend()
        try:
            await asyncio.sleep(seconds)  # the fault itself
            if others:
                await until(lambda: " claimed epoch=2 " in system.output(), 60, "another worker takes over")
        finally:
            victim.resume()
        return victim

    async with connections(system.url, 4) as clients:
        victim = await everything(clients, said, fault)
        if others:
            dropped = rf"consumer\[{victim.pid}\] session=\S+ dropped"
            await until(lambda: re.search(dropped, system.output()), 20, "the stopped worker drops its sessions")
        for ws in clients:  # and nothing more was said
            for sid in said:
                if ws.of(sid):
                    ws.check(sid, said[sid])
    await check_rows(database_url, said)
    assert victim.is_running(), system.output()[-6000:]
    with look(system_redis(system)) as client:
        assert client.xlen("asr_tasks") == 0
        for sid in said:  # Redis itself took each event once, those of an older owner before those of a newer
            entries = client.xrange(f"asr_events:{{{sid}}}")
            numbers = [int(fields["seq"]) for _, fields in entries if "seq" in fields]
            assert numbers == list(range(1, len(said[sid]) + 2))


def system_redis(system: System) -> str:
    """The URL of a system's Redis."""
    return psutil.Process(system.process.pid).environ()["REDIS_URL"]


@pytest.mark.gen_test(timeout=170)
async def test_a_worker_is_stopped_and_woken(start: Start, database_url: str, utterances: list[Utterance]) -> None:
    """SIGSTOP for longer than its lease: another worker takes its sessions, Redis refuses its results."""
    system = start("run", "--workers", "2", "--lease", "2", "--max-backlog", "5").wait_ready()
    await stopped_worker(system, database_url, utterances, 2.5, others=True)


@pytest.mark.gen_test(timeout=170)
async def test_the_only_worker_is_stopped_and_woken(
    start: Start, database_url: str, utterances: list[Utterance]
) -> None:
    """SIGSTOP of the only worker for longer than its lease: it continues, and does nothing twice."""
    system = start("run", "--workers", "1", "--lease", "1").wait_ready()
    await stopped_worker(system, database_url, utterances, 3.0, others=False)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.gen_test(timeout=300)
async def test_a_worker_is_stopped_for_twenty_seconds(
    start: Start, database_url: str, utterances: list[Utterance], workers: int
) -> None:
    """With the default lease and a stop of 20 s."""
    system = start("run", "--workers", str(workers)).wait_ready()
    await stopped_worker(system, database_url, utterances, 20.0, others=workers > 1)


@pytest.mark.gen_test(timeout=170)
async def test_a_recording_that_kills_its_worker(
    start: Start,
    redis_url: str,
    database_url: str,
    utterances: list[Utterance],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After three dead workers the client gets an error; other chunks and sessions are right and have no strike."""
    monkeypatch.setattr(System, "program", (poison.__file__,))
    system = start("run", "--workers", "1").wait_ready()
    said = script(utterances, 6, 4)
    deadly = utterances[0].wav + poison.MARK

    async def fault() -> None:
        async with await WsClient.open(system.url) as ws:
            await ws.start("deadly")
            await ws.chunk("deadly", 0, utterances[1].wav)
            await ws.chunk("deadly", 1, deadly)
            await ws.chunk("deadly", 2, utterances[2].wav)
            error = await ws.find("deadly", "error")
            assert (error["code"], error["chunk_index"]) == ("audio_rejected", 1)
            final = await ws.finish("deadly")
            assert final["text"] == f"{utterances[1].text} {utterances[2].text}"
            assert final["chunk_count"] == 3
            kinds = [(m["type"], m.get("chunk_index")) for m in ws.of("deadly") if m["type"] != "ack"]
            assert kinds == [("chunk_result", 0), ("error", 1), ("chunk_result", 2), ("final_result", 0)]

    async with connections(system.url, 2) as clients:
        await everything(clients, said, fault)
    await check_rows(database_url, said)
    assert system.output().count("died: SIGABRT") == 3
    with look(redis_url) as client:
        ((_, buried),) = client.xrange("asr_dead")
        assert (buried["sid"], buried["entry"]) == ("deadly", "2-0")
        fields = {sid: client.hgetall(f"asr_session:{{{sid}}}") for sid in ("deadly", *said)}
    strikes = {
        (sid, name.removeprefix("strike:")): int(number)
        for sid, known in fields.items()
        for name, number in known.items()
        if name.startswith("strike:")
    }
    assert strikes.pop(("deadly", "2-0")) == 3
    # Whatever was in hand beside it at first; since then, what is under suspicion runs alone.
    assert set(strikes.values()) <= {1}
    await until(lambda: stored(database_url, "deadly"))
    rows = query(database_url, "SELECT chunk_index, error_code FROM asr_chunks WHERE session_id = 'deadly' ORDER BY 1")
    assert rows == [(0, None), (1, "audio_rejected"), (2, None)]


@pytest.mark.gen_test(timeout=170)
async def test_a_decoder_that_hangs(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    redis_url: str,
    database_url: str,
    utterances: list[Utterance],
) -> None:
    """The event loop goes on, but the thread that decodes does not: the worker is replaced, a piece of a live stream
    gets its error, what comes before and after it is recognised, and nobody else loses anything."""
    monkeypatch.setattr(System, "program", (poison.__file__,))
    system = start("run", "--workers", "1", "--hang-timeout", "2").wait_ready()
    said = script(utterances, 4, 4)
    endless = poison.ENDLESS * 1000

    async def fault() -> None:
        async with await WsClient.open(system.url) as ws:
            await ws.start("endless", mode="stream")
            wav = utterances[1].wav + bytes(32000)
            await ws.chunk("endless", 0, wav[:4] + b"\xff\xff\xff\x7f" + wav[8:40] + b"\xff\xff\xff\x7f" + wav[44:])
            await ws.find("endless", "segment_result")
            await ws.chunk("endless", 1, endless)
            await ws.chunk("endless", 2, bytes(32000) + utterances[2].pcm)
            error = await ws.find("endless", "error")
            assert (error["code"], error["chunk_index"]) == ("audio_rejected", 1)
            final = await ws.finish("endless")
            assert final["text"] == f"{utterances[1].text} {utterances[2].text}"

    async with connections(system.url, 2) as clients:
        await everything(clients, said, fault)
    await check_rows(database_url, said)
    assert system.output().count("no progress in audio: the worker will be replaced") == 3
    with look(redis_url) as client:
        fields = {sid: client.hgetall(f"asr_session:{{{sid}}}") for sid in said}
    assert not [name for known in fields.values() for name in known if name.startswith("strike:")]


@pytest.mark.gen_test(timeout=170)
async def test_a_file_whose_decoder_hangs_or_crashes_costs_nobody_else(
    start: Start, monkeypatch: pytest.MonkeyPatch, redis_url: str, utterances: list[Utterance]
) -> None:
    """It has a process of its own. The worker goes on with its streams; nothing gets a strike."""
    monkeypatch.setattr(System, "program", (poison.__file__,))
    system = start("run", "--workers", "1").wait_ready()
    (worker,) = system.children("worker")
    assert worker.children() == []
    bad = misbehaving.HEAD + misbehaving.AT_ONCE
    async with await WsClient.open(system.url) as ws:
        await ws.start("bad", mode="chunk")
        for index, data in enumerate((bad + b"wait", bad + b"crash", utterances[0].wav)):
            await ws.chunk("bad", index, data)
        for number in range(3):
            await ws.start(f"live-{number}", mode="stream", format="pcm_s16le")
            await ws.chunk(f"live-{number}", 0, utterances[1].pcm)
            assert (await ws.finish(f"live-{number}"))["text"] == utterances[1].text
        # The warm process, and the one that decodes.
        await until(lambda: len(worker.children(recursive=True)) == 2, 60, "its decoder hangs")
        ((warm,), children) = worker.children(), worker.children(recursive=True)
        (hung,) = set(children) - {warm}
        assert not ws.of("bad", "error")
        hung.kill()
        assert (await ws.finish("bad"))["text"] == utterances[0].text
        errors = [(error["code"], error["chunk_index"], error["message"]) for error in ws.of("bad", "error")]
    assert errors == [
        ("undecodable_audio", 0, "the amr data cannot be decoded: the decoder was ended by SIGKILL"),
        ("undecodable_audio", 1, "the amr data cannot be decoded: the decoder was ended by SIGSEGV"),
    ]
    assert system.children("worker") == [worker]
    assert "no progress in audio" not in system.output()
    with look(redis_url) as client:
        assert not [name for name in client.hgetall("asr_session:{bad}") if name.startswith("strike:")]
    worker.kill()
    await until(lambda: not alive(warm), 30, "its warm process ends with it")
