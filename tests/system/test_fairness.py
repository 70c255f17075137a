"""A client with many sessions, and another one's live session beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from asrserver.auth.keys import KeyLimits
from tests.gateway.limits.support import Keyed, connect
from tests.program import System
from tests.recordings import Utterance

#: Sessions of the greedy key, and utterances that each has waiting.
SESSIONS, EACH = 40, 40


@pytest.mark.gen_test(timeout=120)
async def test_a_key_s_sessions_do_not_wait_for_all_of_another_s(
    start: Callable[..., System], tmp_path: Path, utterances: list[Utterance]
) -> None:
    """Between the end of what one says and its text, few of the segments that the greedy key has waiting are
    recognised: before, it waited until most of them were."""
    made = Keyed(tmp_path / "keys.json", KeyLimits())
    options = ("--workers", "1", "--keys-file", str(made.file.path), "--max-ahead", "0", "--max-queue", "0")
    system = start("run", *options)
    await asyncio.get_running_loop().run_in_executor(None, system.wait_ready)
    live = {"mode": "stream", "format": "pcm_s16le", "sample_rate": 16000}
    recording = b"".join(utterances[number % len(utterances)].pcm + bytes(32000) for number in range(EACH))
    async with await connect(system.url, made.text) as greedy, await connect(system.url, made.free_text) as other:

        def recognised() -> int:
            return sum(message["type"] == "segment_result" for message in greedy.messages)

        for number in range(SESSIONS):
            await greedy.start(f"greedy-{number}", **live)
            await greedy.send(recording)
            await greedy.send({"action": "finish", "session_id": f"greedy-{number}"})
        meanwhile = []
        for number, one in enumerate(utterances[:4]):
            before = recognised()
            await other.start(f"other-{number}", **live)
            await other.send(one.pcm)
            assert (await other.finish(f"other-{number}"))["text"] == one.text
            meanwhile.append(recognised() - before)
        assert recognised() < SESSIONS * EACH / 2, "the greedy key had nothing waiting any more"
        assert max(meanwhile) <= SESSIONS * EACH / 10, meanwhile
