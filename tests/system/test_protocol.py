"""The whole system as users meet it: the program as processes, a WebSocket client, PostgreSQL."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from asrserver.text.wer import word_errors
from tests.recordings import Utterance
from tests.system.support import Running
from tests.waiting import until
from tests.ws_client import WsClient, check_stored, chunk, look, stored


@pytest.mark.gen_test(timeout=120)
async def test_lock_step_client_gets_exactly_its_messages(running: Running, all_utterances: list[Utterance]) -> None:
    """A client that waits for each answer; a hundred utterances with at most 5 % word errors."""
    async with await WsClient.open(running.url + "?uid=1&device_id=2") as ws:
        ack = await ws.call({"action": "start", "session_id": "lock-step", "user_id": "someone"})
        assert (ack["type"], ack["session_id"], ack["status"]) == ("ack", "lock-step", "session_started")
        errors = words = 0
        texts = []
        for index, utterance in enumerate(all_utterances):
            ack = await ws.call(chunk("lock-step", index, utterance.wav))
            assert (ack["type"], ack["chunk_index"], ack["status"]) == ("ack", index, "received")
            result = await ws.next()
            assert (result["type"], result["session_id"], result["chunk_index"]) == ("chunk_result", "lock-step", index)
            texts.append(result["text"])
            errors += word_errors(utterance.text, result["text"])
            words += len(utterance.text.split())
        final = await ws.call({"action": "finish", "session_id": "lock-step"})
        assert (final["type"], final["session_id"], final["chunk_count"]) == ("final_result", "lock-step", 100)
        assert final["text"] == " ".join(texts)
        assert final["duration"] == pytest.approx(sum(len(u.pcm) for u in all_utterances) / 32000, abs=0.1)
        assert errors / words <= 0.05


@pytest.mark.gen_test(timeout=170)
async def test_fifty_sessions_of_ten_chunks(running: Running, utterances: list[Utterance]) -> None:
    """Every chunk has one result in its own session; all rows are stored; every Redis key has a TTL."""
    voices = itertools.cycle(utterances)
    said = {f"fifty-{number}": [next(voices) for _ in range(10)] for number in range(50)}
    names = list(said)
    lanes = [names[:5], names[5:10], *([name] for name in names[10:])]
    clients = [await WsClient.open(running.url) for _ in lanes]

    async def interleaved(ws: WsClient, sids: list[str]) -> None:
        for sid in sids:
            await ws.start(sid)
        for index in range(10):
            for sid in sids:
                await ws.send(chunk(sid, index, said[sid][index].wav))
        for sid in sids:
            await ws.send({"action": "finish", "session_id": sid})
        for sid in sids:
            await ws.find(sid, "final_result")

    try:
        async with asyncio.timeout(160):
            await asyncio.gather(*(interleaved(ws, sids) for ws, sids in zip(clients, lanes, strict=True)))
        for ws, sids in zip(clients, lanes, strict=True):
            for sid in sids:
                ws.check(sid, said[sid])
            assert len(ws.messages) == len(sids) * 22
    finally:
        await asyncio.gather(*(ws.close() for ws in clients))
    await until(lambda: all(stored(running.database_url, sid) for sid in said), 30, "all sessions are stored")
    for sid, spoken in said.items():
        check_stored(running.database_url, sid, spoken)
    with look(running.redis_url) as client:
        await until(lambda: not client.zcard("asr_open") and not client.xlen("asr_tasks"), 10, "nothing is open")
        assert client.xpending("asr_tasks", "asr_workers")["pending"] == 0
        for sid in said:
            for kind in ("session", "audio", "events"):
                assert 0 < client.pttl(f"asr_{kind}:{{{sid}}}") <= 600_000


@pytest.mark.gen_test(timeout=60)
async def test_sessions_one_after_another_on_one_connection(
    running: Running, utterances: list[Utterance], sid: str
) -> None:
    """The connection of a finished session takes another; an empty id gets one; a used id is refused, also later."""
    async with await WsClient.open(running.url) as ws:
        await ws.stream(f"{sid}-a", utterances[:1])
        await ws.stream(f"{sid}-b", utterances[1:2])
        ws.check(f"{sid}-a", utterances[:1])
        ws.check(f"{sid}-b", utterances[1:2])
        count = len(ws.messages)
        await ws.send({"action": "start", "session_id": ""})
        await until(lambda: len(ws.messages) == count + 1)
        made = ws.messages[-1]["session_id"]
        assert len(made) == 36
        await ws.chunk(made, 0, utterances[2].wav)
        assert (await ws.finish(made))["text"] == utterances[2].text
    async with await WsClient.open(running.url) as ws:
        error = await ws.call({"action": "start", "session_id": f"{sid}-a"})
        assert (error["type"], error["code"]) == ("error", "session_exists")
        assert (await ws.call({"action": "start", "session_id": f"{sid}-c"}))["type"] == "ack"
        await ws.finish(f"{sid}-c")


@pytest.mark.gen_test(timeout=60)
async def test_silence_and_noise_give_no_words(running: Running, sid: str) -> None:
    """Nothing is invented."""
    np = pytest.importorskip("numpy")
    noise = (np.random.default_rng(1).normal(0, 300, 5 * 16000)).astype("<i2").tobytes()
    async with await WsClient.open(running.url) as ws:
        await ws.start(sid)
        await ws.chunk(sid, 0, bytes(5 * 32000))
        await ws.chunk(sid, 1, noise)
        final = await ws.finish(sid)
        assert [message["text"] for message in ws.of(sid, "chunk_result")] == ["", ""]
        assert final["text"] == ""
        assert final["duration"] == pytest.approx(10, abs=0.01)
