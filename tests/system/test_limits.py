"""Limits of a real system, reached while other clients are served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import hostile
import orjson
import pytest

from asrserver.auth.keys import KeyLimits
from tests.gateway.limits.support import PIECE, Keyed, connect, error
from tests.program import System
from tests.recordings import Utterance
from tests.waiting import until
from tests.ws_client import chunk, look

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_a_quota_of_a_real_system(
    start: Callable[..., System], tmp_path: Path, utterances: list[Utterance], redis_url: str
) -> None:
    """Two gateways and a real worker: both gateways know the quota."""
    made = Keyed(tmp_path / "keys.json", KeyLimits(audio_per_minute=6.0))
    system = start("run", "--gateways", "2", "--keys-file", str(made.file.path))
    await asyncio.get_running_loop().run_in_executor(None, system.wait_ready)
    async with await connect(system.url, made.text) as client, await connect(system.url, made.free_text) as free:
        await client.start("s")
        await free.start("free")
        index = 0
        while not any(message.get("code") == "quota_exceeded" for message in client.messages):
            assert index < 50  # a minute that ends meanwhile costs a few
            await client.send(chunk("s", index, utterances[0].wav))
            await until(
                lambda i=index: any(
                    m.get("chunk_index") == i and m["type"] in ("chunk_result", "error") for m in client.messages
                )
            )
            index += 1
        assert (await error(client, "quota_exceeded"))["retry_after"] > 0
        await free.chunk("free", 0, utterances[1].wav)
        assert (await free.finish("free"))["text"] == utterances[1].text
        # A stream that is silent has no results; its audio does not count as waiting for ever.
        await free.start("silent", mode="stream")
        for number in range(30):
            await free.chunk("silent", number, PIECE)
        acknowledged = time.time()
        with look(redis_url) as redis:

            def nothing_waits() -> bool:
                beats = [orjson.loads(redis.get(key) or "{}") for key in redis.scan_iter("gateway:*:heartbeat")]
                return all(beat and beat["time"] > acknowledged and beat["backlog"] == 0 for beat in beats)

            await until(nothing_waits)
        final = await client.finish("s")
        assert final["chunk_count"] == index - 1
        assert final["text"] == " ".join([utterances[0].text] * (index - 1))


#: Bytes by which a gateway may grow while one of its limits is hammered at.
GROWTH = 32 * 2**20


@pytest.mark.gen_test(timeout=170)
async def test_others_do_not_feel_it(start: Callable[..., System], tmp_path: Path, utterances: list[Utterance]) -> None:
    """Each limit is reached many times while a client speaks: all its chunks are acknowledged in order, its text is
    right, and the gateway does not grow."""
    options, keys = hostile.flags(tmp_path)
    system = start("run", "--workers", "1", *options)
    await asyncio.get_running_loop().run_in_executor(None, system.wait_ready)
    [gateway] = system.children("gateway")
    speech = b"".join(utterance.pcm for utterance in utterances)[: 24 * 32000]
    for attack, said in zip(hostile.ATTACKS, utterances, strict=False):
        target = hostile.Target(system.port, keys, speech)
        peer, sid = await target.bystander()
        before = gateway.memory_info().rss
        attacking = asyncio.ensure_future(attack.run(target))
        pieces = [said.pcm[at : at + 3200] for at in range(0, len(said.pcm), 3200)]
        index = 0
        try:
            while index < len(pieces) or target.tally[attack.code] < attack.often:
                await peer.send(chunk(sid, index, pieces[index] if index < len(pieces) else bytes(320)))
                ack = await peer.answer(sid, "ack", "error")
                assert ack.get("chunk_index") == index, (attack.limit, ack)
                assert gateway.memory_info().rss - before < GROWTH, attack.limit
                assert not attacking.done(), (attack.limit, attacking)
                await asyncio.sleep(0.02)
                index += 1
        finally:
            attacking.cancel()
            await asyncio.gather(attacking, return_exceptions=True)
        await peer.finish(sid)
        final = await peer.answer(sid, "final_result")
        assert (final["text"], final["chunk_count"]) == (said.text, index), attack.limit
        await peer.close()
