"""Bad networks, clients that do not read, and upgrades, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from asrserver.client import Client, ClientSession
from tests.program import System, alive
from tests.recordings import Utterance
from tests.waiting import until, wait_until
from tests.ws_client import WsClient, check_stored, look, said, stored

Start = Callable[..., System]

#: Bytes of 100 ms of 16 kHz 16-bit mono PCM.
PIECE = 3200


def cut(client: Client) -> None:
    """Lose the network: no closing handshake."""
    assert client.connection is not None
    assert client.connection.protocol is not None
    assert client.connection.protocol.stream is not None
    client.connection.protocol.stream.close()


def recording(utterances: Sequence[Utterance], seconds: float) -> list[bytes]:
    """Seconds of speech, in pieces of 100 ms."""
    pcm = b""
    for utterance in utterances:
        pcm += utterance.pcm + bytes(16000)
        if len(pcm) >= seconds * 32000:
            break
    return [pcm[begin : begin + PIECE] for begin in range(0, len(pcm), PIECE)]


async def events_of(session: ClientSession) -> list[dict[str, Any]]:
    return [event async for event in session.events()]


def check_once(events: list[dict[str, Any]], chunks: int) -> None:
    """Check that every result came once, in order."""
    assert [event["seq"] for event in events] == list(range(1, chunks + 2))
    assert [event["chunk_index"] for event in events[:-1]] == list(range(chunks))
    assert [event["type"] for event in events] == ["chunk_result"] * chunks + ["final_result"]
    assert (events[-1]["status"], events[-1]["chunk_count"]) == ("done", chunks)


# -- bad networks ----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=170)
async def test_a_connection_lost_at_twenty_points_of_a_minute(
    start: Start, database_url: str, utterances: list[Utterance]
) -> None:
    """It is resumed on the other of two gateways each time: same text as undisturbed, every result once."""
    systems = start("run", "--workers", "1"), start("gateway")
    urls = [system.wait_ready().url for system in systems]
    pieces = recording(utterances, 60)
    cuts = set(random.Random(5).sample(range(len(pieces)), 20))
    connections = set()
    async with await Client.connect(urls) as client, await Client.connect(urls[1]) as calm:
        session = await client.start("disturbed")

        async def send() -> None:
            for index, piece in enumerate(pieces):
                await session.send(piece)
                await asyncio.sleep(0.005)  # twenty times as fast as spoken
                if index in cuts:
                    await until(lambda: client.connection is not None and not session.opening)
                    connections.add(client.connection)
                    cut(client)
            await session.end()

        sending = asyncio.ensure_future(send())
        events = await events_of(session)
        await sending
        undisturbed = await calm.start("undisturbed")
        for piece in pieces:
            await undisturbed.send(piece)
        expected = await undisturbed.finish()
    assert len(connections) == 20
    check_once(events, len(pieces))
    assert events[-1]["text"] == expected["text"]
    assert events[-1]["duration"] == expected["duration"]
    assert len(expected["text"].split()) > 50
    await until(lambda: stored(database_url, "disturbed") and stored(database_url, "undisturbed"))
    assert stored(database_url, "disturbed") == stored(database_url, "undisturbed")
    resumed = [system.output().count("session=disturbed resumed") for system in systems]
    assert min(resumed) >= 9
    assert sum(resumed) >= 20


@pytest.mark.gen_test(timeout=120)
async def test_a_gateway_is_killed_and_its_sessions_go_on_elsewhere(
    start: Start, database_url: str, utterances: list[Utterance]
) -> None:
    """kill -9 during ten sessions: their clients resume on the other gateway, and nothing is missing."""
    first, second = start("gateway"), start("run", "--workers", "1")
    urls = [system.wait_ready().url for system in (first, second)]
    said = {f"s{number}": utterances[number : number + 6] for number in range(10)}
    (victim,) = first.children("gateway")
    halfway = asyncio.Event()

    async def stream(sid: str) -> list[dict[str, Any]]:
        async with await Client.connect(urls) as client:
            session = await client.start(sid)
            for utterance in said[sid][:3]:
                await session.send(utterance.wav)
            await halfway.wait()
            for utterance in said[sid][3:]:
                await session.send(utterance.wav)
            await session.end()
            return await events_of(session)

    streams = {sid: asyncio.ensure_future(stream(sid)) for sid in said}
    await until(lambda: len(re.findall(r"session=\S+ open", first.output())) == 10)
    victim.kill()
    halfway.set()
    for sid, events in zip(streams, await asyncio.gather(*streams.values()), strict=True):
        check_once(events, 6)
        assert [event["text"] for event in events[:-1]] == [utterance.text for utterance in said[sid]]
    await until(lambda: all(stored(database_url, sid) for sid in said))
    for sid, spoken in said.items():
        check_stored(database_url, sid, spoken)
    assert len(re.findall(r"session=\S+ resumed", second.output())) > 0


# -- upgrades --------------------------------------------------------------------------------------------------------


async def send_in_pieces(session: ClientSession, utterance: Utterance) -> None:
    """Send an utterance in pieces of several hundred milliseconds."""
    for begin in range(0, len(utterance.pcm), 4 * PIECE):
        await session.send(utterance.pcm[begin : begin + 4 * PIECE])


async def roll(start: Start, database_url: str, utterances: list[Utterance], sessions: int) -> None:
    """SIGHUP during live sessions, some with utterances and some with pieces: all results are right."""
    options = ("--gateways", "2", "--workers", "2", "--drain-timeout", "2")
    system = start("run", *options).wait_ready()
    old = [*system.children("gateway"), *system.children("worker")]
    assert len(old) == 4
    rolled = asyncio.Event()
    voices = itertools.cycle(utterances)
    said: dict[str, list[Utterance]] = {f"s{number}": [] for number in range(sessions)}
    in_pieces = [sid for number, sid in enumerate(said) if number % 4 == 0]
    dice = random.Random(7)

    async def pause() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(rolled.wait(), dice.uniform(1.5, 3.0))

    async def speak(session: ClientSession) -> None:
        spoken = said[session.id]
        while not rolled.is_set() or len(spoken) < 3:
            spoken.append(next(voices))
            if session.id in in_pieces:
                await send_in_pieces(session, spoken[-1])
            else:
                await session.send(spoken[-1].wav)
            await pause()
        await session.end()

    async def stream(sid: str) -> list[dict[str, Any]]:
        async with await Client.connect(system.url) as client:
            session = await client.start(sid)
            speaking = asyncio.ensure_future(speak(session))
            events = await events_of(session)
            await speaking
            return events

    streams = {sid: asyncio.ensure_future(stream(sid)) for sid in said}
    await until(lambda: len(re.findall(r"session=\S+ open", system.output())) == sessions, 60)
    system.process.send_signal(signal.SIGHUP)
    await until(lambda: "rolling restart finished" in system.output(), 250, "every process is replaced")
    rolled.set()
    results = dict(zip(streams, await asyncio.gather(*streams.values()), strict=True))
    assert not any(alive(process) for process in old)
    assert len(system.children("gateway")) == len(system.children("worker")) == 2
    async with await Client.connect(system.url) as client:
        for sid, events in results.items():
            check_once(events, events[-1]["chunk_count"])
            if sid in in_pieces:
                session = await client.start(f"{sid}-again")
                for utterance in said[sid]:
                    await send_in_pieces(session, utterance)
                assert events[-1]["text"] == (await session.finish())["text"]
            else:
                assert [event["text"] for event in events[:-1]] == [utterance.text for utterance in said[sid]]
    await until(lambda: all(stored(database_url, sid) for sid in said), 60)
    for sid in said.keys() - set(in_pieces):
        check_stored(database_url, sid, said[sid])
    assert system.stop() == 0
    assert "Traceback" not in system.output(), system.output().partition("Traceback")[2][:3000]
    assert " died: " not in system.output()


@pytest.mark.timeout(300)
@pytest.mark.gen_test(timeout=290)
async def test_rolling_restart_under_load(start: Start, database_url: str, utterances: list[Utterance]) -> None:
    """Two gateways and two workers are replaced during twenty sessions: all are right, none is lost."""
    await roll(start, database_url, utterances, 20)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.gen_test(timeout=590)
async def test_rolling_restart_under_fifty_streams(
    start: Start, database_url: str, utterances: list[Utterance]
) -> None:
    """The same with fifty sessions."""
    await roll(start, database_url, utterances, 50)


def test_a_rolling_restart_that_cannot_work_is_given_up(start: Start, tmp_path: Path) -> None:
    """The new worker cannot load its model: the old processes continue, and another SIGHUP may succeed.

    systemd is told each time; without it, `systemctl start` and upgrades would not know when they have ended.
    """
    from asrserver.models import find_model

    model = tmp_path / "model"
    shutil.copytree(find_model("demo").path, model)
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(tmp_path / "notify"))
    systemd.settimeout(60)
    told = partial(systemd.recv, 4096)
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    system = start("run", "--workers", "1", "--model", str(model), env=env).wait_ready()
    assert told() == b"READY=1\nSTATUS=serving"
    (gateway,), (worker,) = system.children("gateway"), system.children("worker")
    (model / "model.bin").rename(model / "away.bin")
    system.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "rolling restart aborted" in system.output(), 60)
    assert told() == b"STATUS=rolling restart"
    assert told().startswith(
        b"STATUS=rolling restart aborted, the old processes keep running: the new worker could not"
    )
    assert worker in system.children("worker")
    assert gateway in system.children("gateway")  # its turn comes after the workers'
    assert system.get("/health")["status"] == "ok"
    (model / "away.bin").rename(model / "model.bin")
    system.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "rolling restart finished" in system.output(), 60)
    assert (told(), told()) == (b"STATUS=rolling restart", b"STATUS=rolling restart finished")
    assert worker not in system.children("worker")
    assert gateway not in system.children("gateway")
    order = re.findall(r"(\w+) \S+ is ready and replaces", system.output())
    assert order == ["worker", "gateway"]
    assert system.stop() == 0
    assert told() == b"STOPPING=1\nSTATUS=draining"
    systemd.close()


# -- deaf clients ----------------------------------------------------------------------------------------------------

#: Clients that never read, what each may cost in memory (twice what waits for it, for a buffer grows by copying), and
#: what else a gateway may grow by.
DEAF = 200
EACH = 512 << 10
BESIDES = 64 << 20


@pytest.mark.gen_test(timeout=150)
async def test_clients_that_never_read(start: Start, database_url: str, utterances: list[Utterance]) -> None:
    """Two hundred clients: each costs a bounded buffer and loses its connection; their sessions end, others
    continue."""
    # Pings would find them out too: not here.
    options = ("--workers", "1", "--resume-timeout", "1", "--ping-interval", "600", "--unread-timeout", "5")
    system = start("run", *options).wait_ready()
    (process,) = system.children("gateway")
    before = peak = process.memory_info().rss
    loop = asyncio.get_running_loop()
    # The answer is five times as long: what cannot be printed is spelt out.
    flood = said({"action": "\U0010ffff" * 50}) * 20
    caused = 0

    async def deaf(number: int) -> None:
        nonlocal caused, peak
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", system.port))
            upgrade = (
                f"GET /ws/asr HTTP/1.1\r\nHost: 127.0.0.1:{system.port}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            await loop.sock_sendall(client, upgrade.encode())
            assert (await loop.sock_recv(client, 100)).startswith(b"HTTP/1.1 101")
            await loop.sock_sendall(client, said({"action": "start", "session_id": f"deaf-{number}"}))
            with contextlib.suppress(ConnectionError):
                while True:
                    await loop.sock_sendall(client, flood)
                    caused += 20 * 500
                    peak = max(peak, process.memory_info().rss)

    async with await WsClient.open(system.url) as ws:
        await ws.start("hears")
        tasks = [asyncio.ensure_future(deaf(number)) for number in range(DEAF)]
        for index, utterance in enumerate(utterances[:5]):
            await ws.chunk("hears", index, utterance.wav)
            await ws.find("hears", "chunk_result", index)
        await asyncio.gather(*tasks)
        await ws.finish("hears")
        ws.check("hears", utterances[:5])
    assert caused > DEAF * EACH // 2
    assert peak - before < DEAF * EACH + BESIDES
    assert system.output().count("does not read: cut") == DEAF
    with look(psutil.Process(system.process.pid).environ()["REDIS_URL"]) as redis:
        await until(lambda: not redis.zcard("asr_open"), 60, "all their sessions are over")
    assert stored(database_url, "deaf-0") == ("interrupted", "", 0)
    assert process in system.children("gateway")
