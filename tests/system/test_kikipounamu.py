"""`asrserver run --kikipounamu`: the flow of kikipounamu's clients, over real HTTP."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from asrserver.text.wer import word_errors
from tests.program import System
from tests.recordings import Utterance
from tests.servers import Servers, drop_database
from tests.system.support import overdue
from tests.waiting import until
from tests.ws_client import WsClient, chunk, look

pytestmark = pytest.mark.gen_test(timeout=120)


@pytest.fixture
def served(processes: None, servers: Servers, tmp_path: Path) -> Iterator[System]:
    name = f"test_kikipounamu_{os.getpid()}"
    database = make_dsn(**{**parse_dsn(servers.postgres.dsn), "dbname": name})
    with look(servers.redis.url) as client:
        client.flushall()
    environment = {"REDIS_URL": servers.redis.url, "DATABASE_URL": database, "ASRSERVER_KIKIPOUNAMU": "1"}
    system = System("run", "--model", "demo", "--port", "0", "--save-audio", str(tmp_path), env=environment)
    try:
        yield system.wait_ready()
        assert system.stop() == 0
    finally:
        system.close()
        drop_database(servers, name)


async def submit(client: httpx.AsyncClient, file: Utterance) -> str:
    form = {"audio": (f"{file.name}.wav", file.wav, "audio/wav")}
    response = await client.post("/api/v1/asr/submit", files=form, data={"batch_size": 500})
    response.raise_for_status()
    assert response.json().keys() == {"task_id", "status", "position", "estimated_wait"}
    return str(response.json()["task_id"])


async def test_a_file_is_submitted_asked_for_and_heard(
    served: System, servers: Servers, utterances: list[Utterance]
) -> None:
    """Also when its gateway dies right after it has answered."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=30) as client:

        async def done(task: str) -> dict[str, str]:
            while True:
                found: dict[str, str] = (await client.get(f"/api/v1/asr/result/{task}")).json()
                if found["status"] not in ("queued", "processing"):
                    return found
                await asyncio.sleep(0.1)

        files = utterances[:5]
        tasks = [await submit(client, file) for file in files]
        results = [await done(task) for task in tasks]
        assert [(one["status"], one["text"]) for one in results] == [("done", file.text) for file in files]
        recording = await client.get(results[0]["audio_url"])
        assert recording.content == files[0].wav

        [before] = served.children("gateway")
        task = await submit(client, files[0])
        before.send_signal(signal.SIGKILL)
        await until(lambda: served.children("gateway") not in ([], [before]), 30)
        overdue(servers.redis.url, [task])
        for _ in range(300):  # until the next gateway listens
            try:
                found = await done(task)
                break
            except (httpx.TransportError, KeyError):
                await asyncio.sleep(0.1)
        assert (found["status"], found["text"]) == ("done", files[0].text)


async def test_ten_minutes_in_one_message_stop_no_live_stream(served: System, utterances: list[Utterance]) -> None:
    """A live stream beside it is acknowledged while it is on its way; the whole file has its text."""
    words = list(itertools.islice(itertools.cycle(utterances[:8]), 240))
    spoken = b"".join(utterance.pcm + bytes(32_000) for utterance in words)
    recording = Utterance("long", " ".join(utterance.text for utterance in words), spoken)
    assert len(spoken) > 600 * 32_000
    url = f"ws://127.0.0.1:{served.port}/ws/asr"
    async with await WsClient.open(url) as live, await WsClient.open(url) as ws:
        await live.start("live", mode="stream", format="pcm_s16le")
        await ws.start("long")
        await ws.send(chunk("long", 0, recording.wav))
        beside = 0
        while len(ws.of("long", "ack")) == 1:  # that of the start
            await live.chunk("live", beside, utterances[0].pcm[:3200])
            beside += 1
        assert beside > 2
        final = await ws.finish("long")
        assert (final["status"], final["chunk_count"]) == ("done", 1)
        assert final["duration"] == pytest.approx(len(spoken) / 32_000, abs=0.1)
        assert word_errors(recording.text, final["text"]) < 0.02 * len(recording.text.split())
        assert (await live.finish("live"))["status"] == "done"
