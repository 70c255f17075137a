"""OpenAI's library and a system of its own for each test: API keys, limits, the death of a worker."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import openai
import pytest

from asrserver.auth.keys import KeyLimits
from tests.gateway.limits.support import Keyed
from tests.program import System
from tests.recordings import Utterance
from tests.system.support import append, client_of, robust, turns
from tests.waiting import wait_until


def test_keys_and_limits(start: Callable[..., System], utterances: list[Utterance], tmp_path: Path) -> None:
    keys = Keyed(tmp_path / "keys.json", KeyLimits(starts_per_minute=1))
    arguments = ("--served-model-names", "ours", "--max-upload", "100000", "--workers", "1")
    system = start("run", *arguments, "--keys-file", str(keys.file.path)).wait_ready()
    with client_of(system, "wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.audio.transcriptions.create(model="whisper-1", file=bytes(90_000))
    assert caught.value.code == "invalid_api_key"
    with client_of(system, keys.free_text) as client:
        short = min(utterances, key=lambda one: len(one.pcm))
        assert client.audio.transcriptions.create(model="ours", file=short.wav).text == short.text
        with pytest.raises(openai.APIStatusError) as large:
            client.audio.transcriptions.create(model="ours", file=bytes(3_000_000))
        assert large.value.status_code == 413
        secret = client.realtime.client_secrets.create(
            session={"type": "transcription", "audio": {"input": {"turn_detection": None}}}
        ).value
    with client_of(system, keys.text) as client:
        assert client.audio.transcriptions.create(model="ours", file=short.wav).text == short.text
        with pytest.raises(openai.RateLimitError) as early:
            client.audio.transcriptions.create(model="ours", file=short.wav)
        assert 1 <= int(early.value.response.headers["Retry-After"]) <= 60
    for key in ("wrong", secret[:-1]):
        with client_of(system, key) as client, pytest.raises(Exception, match="HTTP 401"):
            client.realtime.connect(model="ours").enter()
    with client_of(system, secret) as client:
        assert client.audio.transcriptions.create(model="ours", file=short.wav).text == short.text
        with client.realtime.connect(model="ours") as live:
            append(live, short.pcm)
            live.input_audio_buffer.commit()
            assert turns(live, 1) == [short.text]


def test_the_death_of_a_worker_costs_no_text(start: Callable[..., System], utterances: list[Utterance]) -> None:
    """Killed in the middle of a file, and of a live session; the file's is in the history, whole."""
    said: Sequence[Utterance] = robust(utterances, 12) * 5
    pcm = bytes(48000).join(one.pcm for one in said)
    system = start("run", "--workers", "2", "--lease", "1").wait_ready()
    killed, text, deltas = False, "", []
    with client_of(system) as client:
        for event in client.audio.transcriptions.create(
            model="whisper-1", file=Utterance("", "", pcm).wav, stream=True
        ):
            if event.type == "transcript.text.delta":
                deltas.append(event.delta)
                if not killed:
                    killed = True
                    busy = max(system.children("worker"), key=lambda one: one.cpu_times().user)
                    busy.send_signal(signal.SIGKILL)
            elif event.type == "transcript.text.done":
                text = event.text
    assert text == "".join(deltas)
    assert len(text.split()) == pytest.approx(len(" ".join(one.text for one in said).split()), rel=0.03)
    [record] = wait_until(lambda: system.get("/history?status=done")["records"], 20, "the session is stored")
    assert record["text"] == text
    with client_of(system) as client, client.realtime.connect(extra_query={"intent": "transcription"}) as live:
        for one in said[:6]:
            append(live, one.pcm + bytes(48000))
        found = turns(live, 3)
        for worker in system.children("worker"):
            worker.send_signal(signal.SIGKILL)
        for one in said[6:12]:
            append(live, one.pcm + bytes(48000))
        found += turns(live, 9)
    assert found == [one.text for one in said[:12]]
