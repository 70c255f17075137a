"""A call with a party on each channel, through the whole system, by every way in and out."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from asrserver.audio import wav
from asrserver.auth.keys import KeyLimits
from tests.gateway.limits.support import Keyed, connect
from tests.inference.test_channels import call
from tests.program import System, cli
from tests.recordings import Utterance
from tests.system.support import Start, robust
from tests.system.test_deepgram_client import client_of, finals, talk
from tests.waiting import until
from tests.ws_client import look, query

pytestmark = [
    pytest.mark.gen_test(timeout=150),
    pytest.mark.filterwarnings("ignore:websockets.* is deprecated:DeprecationWarning"),
]


def asked(system: System, key: str, path: str, data: bytes | None = None) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{system.port}/api/v1/{path}", data)
    request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(response.read().decode())


def of_channel(segments: list[dict[str, Any]], channel: int) -> str:
    return " ".join(one["text"] for one in segments if one["channel"] == channel)


class Call:
    """A recorded call, and the system that recognises it."""

    def __init__(self, system: System, key: str, agent: list[Utterance], customer: list[Utterance]) -> None:
        self.system, self.key = system, key
        self.first = [agent[0].text, customer[0].text]
        self.texts = [" ".join(one.text for one in party) for party in (agent, customer)]
        self.pcm = call(agent, customer, overlap=1.5)
        self.file = wav.encode(wav.Format.of("pcm_s16le", 2, 16000), self.pcm)
        self.pieces = [self.pcm[at : at + 6400] for at in range(0, len(self.pcm), 6400)]
        self.seconds = len(self.pcm) / 64000


async def test_a_call_of_two_parties(
    start: Start, utterances: list[Utterance], redis_url: str, database_url: str, tmp_path: Path
) -> None:
    keys = Keyed(tmp_path / "keys.json", KeyLimits())
    system = start("run", "--workers", "2", "--keys-file", str(keys.file.path)).wait_ready()
    said = robust(utterances, 4)
    one = Call(system, keys.text, said[:2], said[2:])
    count = await check_live(one)
    with look(redis_url) as client:
        charged = sum(float(client.get(name) or 0) for name in client.scan_iter("asr_quota:*"))
    assert charged == pytest.approx(2 * one.seconds, abs=0.1)
    rows = "SELECT channel, text FROM asr_segments WHERE session_id = 'call' ORDER BY start_time"
    await until(lambda: len(query(database_url, rows)) == count, what="stored")
    assert {channel for channel, _ in query(database_url, rows)} == {0, 1}
    for format, speaker in (("vtt", "<v Channel 2>"), ("srt", "Channel 2: "), ("txt", "Channel 2: ")):
        assert speaker + one.first[1] in asked(system, keys.text, f"session/call?format={format}")
    check_file(one)
    check_openai(one)
    check_deepgram(one)
    check_command(one, tmp_path / "call.wav")


async def check_live(one: Call) -> int:
    """Live; both workers die in the middle. Returns the number of segments."""
    async with await connect(one.system.url, one.key) as ws:
        options = {"mode": "stream", "format": "pcm_s16le", "channels": 2, "partials": True, "word_timestamps": True}
        await ws.start("call", channel_mode="separate", **options)
        for number, piece in enumerate(one.pieces):
            await ws.send(piece)
            if number == len(one.pieces) // 2:
                await ws.find("call", "segment_result")
                for worker in one.system.children("worker"):
                    worker.kill()
        final = await ws.finish("call")
        segments = ws.of("call", "segment_result")
        assert {partial["channel"] for partial in ws.of("call", "partial_result")} <= {0, 1}
    assert [of_channel(segments, channel) for channel in (0, 1)] == one.texts
    assert all(segment["words"] for segment in segments)
    assert final["text"] == " ".join(segment["text"] for segment in sorted(segments, key=lambda one: one["start"]))
    assert final["duration"] == pytest.approx(one.seconds, abs=0.01)
    return len(segments)


def check_file(one: Call) -> None:
    def transcribed(query: str) -> str:
        return asked(one.system, one.key, f"transcribe?channel_mode=separate&{query}", one.file)

    answer = json.loads(transcribed("words=true"))
    assert [of_channel(answer["segments"], channel) for channel in (0, 1)] == one.texts
    assert answer["text"] == " ".join(segment["text"] for segment in answer["segments"])
    *lines, last = [json.loads(line) for line in transcribed("format=ndjson").splitlines() if line]
    assert [of_channel(lines, channel) for channel in (0, 1)] == one.texts
    assert last["text"] == answer["text"]
    assert f"<v Channel 1>{one.first[0]}" in transcribed("format=vtt")


def check_openai(one: Call) -> None:
    with contextlib.closing(openai.OpenAI(api_key=one.key, base_url=f"http://127.0.0.1:{one.system.port}/v1")) as other:
        found: Any = other.audio.transcriptions.create(
            model="whisper-1",
            file=("call.wav", one.file),
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
            extra_body={"channel_mode": "separate"},
        )
    assert [" ".join(s.text.strip() for s in found.segments if s.channel == number) for number in (0, 1)] == one.texts
    assert {word.channel for word in found.words} == {0, 1}


def check_deepgram(one: Call) -> None:
    with client_of(one.system, one.key) as client:
        query: dict[str, Any] = {"encoding": "linear16", "sample_rate": 16000, "channels": 2, "multichannel": True}
        heard = talk(client, one.pieces, interim_results=True, **query)
        for number, text in enumerate(one.texts):
            said = [result for result in finals(heard) if result.channel_index == [number, 2]]
            assert " ".join(result.channel.alternatives[0].transcript for result in said) == text
        assert heard[-1].channels == 2
        slices = [one.file[at : at + 20_000] for at in range(0, len(one.file), 20_000)]
        assert talk(client, slices, multichannel=True)[-1].channels == 2  # the file says so, and not the query
        found: Any = client.listen.v1.media.transcribe_file(
            request=one.file, model="nova-3", multichannel=True, utterances=True
        )
    assert found.metadata.channels == 2
    assert [channel.alternatives[0].transcript for channel in found.results.channels] == one.texts
    assert {utterance.channel for utterance in found.results.utterances} == {0, 1}


def check_command(one: Call, path: Path) -> None:
    path.write_bytes(one.file)
    arguments = ("transcribe", "--server", one.system.url, "--key", one.key, path)
    done = cli(*arguments, "--channels", "separate", "--format", "vtt")
    assert done.returncode == 0, done.stderr
    assert f"<v Channel 2>{one.first[1]}" in done.stdout
    live = cli(*arguments, "--channels", "separate", "--live")
    assert live.returncode == 0, live.stderr
    assert f"Channel 1: {one.first[0]}" in live.stdout
    assert "there is no audio track 3: there is 1 audio track" in cli(*arguments, "--track", "3").stderr
