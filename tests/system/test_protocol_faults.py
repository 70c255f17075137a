"""What a client of each protocol has when a worker or a gateway dies, or the server is stopped, in its stream."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence

import pytest
from dialects import DIALECTS, Dialect, Native, NativePartials, Vosk, WebSocketDialect

from tests.program import System, free_port
from tests.recordings import Utterance
from tests.system.support import Start, overdue, robust
from tests.waiting import until
from tests.ws_client import look

pytestmark = pytest.mark.gen_test(timeout=120)

#: After so much quiet a segment ends in every protocol: 2.25 s.
PAUSE = bytes(72000)


@pytest.fixture
def said(utterances: list[Utterance]) -> list[Utterance]:
    return robust(utterances, 4)


def text_of(said: Sequence[Utterance]) -> str:
    return " ".join(one.text for one in said)


@contextlib.asynccontextmanager
async def streams(system: System, wyoming: int, kinds: Sequence[type[Dialect]]) -> AsyncIterator[list[Dialect]]:
    """A stream in each of these protocols."""
    opened = [await kind.open({"http": system.port, "wyoming": wyoming}) for kind in kinds]
    try:
        yield opened
    finally:
        for one in opened:
            with contextlib.suppress(OSError):
                await one.close()


async def say(clients: Sequence[Dialect], said: Sequence[Utterance]) -> None:
    """Send these utterances in all streams, in pieces of 100 ms."""
    for one in clients:
        pcm = b"".join(utterance.pcm + PAUSE for utterance in said)
        for at in range(0, len(pcm), 3200):
            await one.send(pcm[at : at + 3200])


def heard(url: str) -> dict[str, int]:
    """The segments that are durable so far, of each session."""
    with look(url) as client:
        names = list(client.scan_iter("asr_events:*"))
        return {name: sum("seq" in fields for _, fields in client.xrange(name)) for name in names}


async def until_heard(url: str, streams: int, segments: int) -> None:
    await until(lambda: sum(count >= segments for count in heard(url).values()) == streams, 30, "all is recognised")


async def test_a_worker_is_killed(start: Start, redis_url: str, said: list[Utterance]) -> None:
    """Before anything is recognised of the second half, which all streams are in."""
    port = free_port()
    system = start("run", "--workers", "1", "--wyoming-port", str(port)).wait_ready()
    async with streams(system, port, DIALECTS) as clients:
        await say(clients, said[:2])
        await until_heard(redis_url, len(clients), 1)
        [worker] = system.children("worker")
        worker.suspend()
        await say(clients, said[2:])
        worker.kill()
        texts = await asyncio.gather(*(one.finish() for one in clients))
    assert {one.name: text for one, text in zip(clients, texts, strict=True)} == dict.fromkeys(
        [one.name for one in clients], text_of(said)
    )
    assert system.output().count("died: SIGKILL") == 1
    await until(lambda: system.get("/history?status=done")["total"] == len(clients), 20, "all are stored as done")


#: Whose streams end with the connection. The clients of the native protocol resume theirs; what has been recognised of
#: a file or a command is told at its end.
LIVE = [kind for kind in DIALECTS if issubclass(kind, WebSocketDialect) and kind not in (Native, NativePartials)]


async def test_a_gateway_is_killed(start: Start, redis_url: str, said: list[Utterance]) -> None:
    """All connections end, and what was said is in the history."""
    port = free_port()
    system = start("run", "--workers", "1", "--resume-timeout", "1", "--wyoming-port", str(port)).wait_ready()
    async with streams(system, port, DIALECTS) as clients:
        await say(clients, said[:2])
        await until_heard(redis_url, len(clients), 2)
        [gateway] = system.children("gateway")
        gateway.kill()
        await until(lambda: all(one.closed for one in clients), 10, "their connections are closed")
        # Vosk's answers come with the frames after them.
        assert {one.text() for one in clients if type(one) in LIVE and type(one) is not Vosk} == {text_of(said[:2])}
    with look(redis_url) as client:
        overdue(redis_url, client.zrange("asr_open", 0, -1))
    await until(lambda: [p for p in system.children("gateway") if p.pid != gateway.pid], 30)

    def records() -> list[str]:
        found = system.get("/history?status=interrupted")["records"]
        return found if len(found) == len(clients) else []

    assert {record["text"] for record in await until(records, 30, "all are stored")} == {text_of(said[:2])}


async def test_the_server_is_stopped(start: Start, redis_url: str, said: list[Utterance]) -> None:
    """Those who go on talking have the text of all that they said, and the end of their protocol."""
    port = free_port()
    system = start("run", "--workers", "1", "--drain-timeout", "1", "--wyoming-port", str(port)).wait_ready()
    async with streams(system, port, LIVE) as clients:
        await say(clients, said[:1])
        await until_heard(redis_url, len(clients), 1)
        pcm = said[1].pcm
        for one in clients:
            await one.send(pcm)
        system.process.send_signal(signal.SIGTERM)
        await until(lambda: all(one.closed for one in clients), 20, "their connections are closed")
        assert {one.name: one.text() for one in clients} == {one.name: text_of(said[:2]) for one in clients}
        assert {one.close_code for one in clients} <= {1012, 1013}  # the clients that can come again do so
        kinds = {one.name: one.messages[-1].get("type") for one in clients}
        assert (kinds["deepgram"], kinds["assemblyai"]) == ("Metadata", "Termination")
    assert await asyncio.to_thread(system.process.wait, 30) == 0
    assert "Traceback" not in system.output()
