"""Official clients that other languages, or environments of their own, run: a real model and the voice of a person.

`make clients` installs them, and runs these tests with those of the Python libraries.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import real_voices
from real_voices import Voice
from websockets.sync.client import connect

from asrserver.audio import wav
from asrserver.auth.keys import KeyLimits
from asrserver.text.wer import word_errors
from tests.gateway.limits.support import Keyed
from tests.program import NONE, System
from tests.system import test_many_clients as python

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent

#: Where `make clients` puts them.
PROGRAMS = HERE.parents[1] / "build" / "clients"
PYTHON = PROGRAMS / "bin" / "python"

#: Seconds that a client may take, with the start of its interpreter.
PATIENCE = 90.0

#: Share of wrong words.
MOST = 0.08


@dataclass
class Place:
    """A server with Whisper base.

    Attributes:
        port: Its port.
        key: An API key.
        limited: One that has as many sessions as it may have.
        voice: What is spoken, and `file` has it as WAV.
    """

    port: int
    key: str
    limited: str
    voice: Voice
    file: Path

    def run(self, program: str, task: str, key: str) -> dict[str, Any]:
        """Run a client to its end; what it prints."""
        command = ["node", str(PROGRAMS / program)] if program.endswith(".mjs") else [str(PYTHON), str(HERE / program)]
        last = real_voices.words(self.voice.text)[-1]
        done = subprocess.run(
            [*command, task, str(self.port), key, str(self.file), last],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=self.file.parent,  # WhisperLive's client writes beside where it is
            check=False,
        )
        assert done.stdout.strip(), done.stderr[-3000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def check(self, text: str) -> None:
        """Check that a text is what is said."""
        said, heard = real_voices.words(self.voice.text), real_voices.words(text)
        assert word_errors(said, heard) <= MOST * len(said), text


@pytest.fixture(scope="module")
def place(processes: None) -> Iterator[Place]:
    directory = Path(tempfile.mkdtemp(prefix="asrserver-clients-"))
    keys = Keyed(directory / "keys.json", KeyLimits(sessions=1))
    [voice] = real_voices.prompts(["vm-newuser"])
    file = directory / "voice.wav"
    file.write_bytes(wav.encode(wav.Format.of("pcm_s16le", 1, real_voices.RATE), voice.pcm))
    options = ("--keys-file", str(keys.file.path), "--data-dir", str(directory / "data"))
    system = System("run", "--model", "base", "--port", "0", *options, env=NONE)
    try:
        system.wait_ready()
        with connect(f"{system.url}?key={keys.text}") as held:
            held.send(orjson.dumps({"action": "start"}).decode())
            held.recv(10)
            yield Place(system.port, keys.free_text, keys.text, voice, file)
        assert system.stop() == 0
        assert "Traceback" not in system.output()
    finally:
        system.close()
        shutil.rmtree(directory, ignore_errors=True)


def installed(what: Path) -> None:
    """Skip what is not installed, but not where `make clients` runs."""
    if not what.exists():
        assert not os.environ.get("CI"), f"{what} is not there: run make clients"
        pytest.skip(f"{what} is not there: run make clients")


#: What gives the text; of a live client also the code with which the server closes the connection.
NODE = ["file", "words", "srt", "stream", "deepgram file", "deepgram live"]

LIVEKIT = ["file", "live", "deepgram file", "deepgram live"]
PIPECAT = ["file", "live", "deepgram live"]
TEXTS = [
    *(("node.mjs", task) for task in NODE),
    *(("livekit_agents.py", task) for task in LIVEKIT),
    *(("pipecat_ai.py", task) for task in PIPECAT),
    ("whisperlive.py", "file"),
]


@pytest.mark.parametrize(("program", "task"), TEXTS)
def test_a_text(place: Place, program: str, task: str) -> None:
    installed(PROGRAMS / program if program.endswith(".mjs") else PYTHON)
    found = place.run(program, task, place.key)
    assert "text" in found, found
    place.check(found["text"])
    assert found.get("code", 1000) == 1000


#: Program, task, the key, the name of the exception and the status or code that it tells.
ERRORS = [
    ("node.mjs", "unknown_model", "key", "NotFoundError", 404),
    ("node.mjs", "undecodable", "key", "BadRequestError", 400),
    ("node.mjs", "file", "wrong", "AuthenticationError", 401),
    ("node.mjs", "file", "limited", "RateLimitError", 429),
    ("node.mjs", "deepgram unknown_model", "key", "BadRequestError", 400),
    ("node.mjs", "deepgram undecodable", "key", "BadRequestError", 400),
    ("node.mjs", "deepgram file", "wrong", "DeepgramError", 401),
    ("node.mjs", "deepgram file", "limited", "DeepgramError", 429),
    ("node.mjs", "deepgram live", "wrong", "ErrorEvent", 401),
    ("node.mjs", "deepgram live", "limited", "ErrorEvent", 429),
    ("livekit_agents.py", "file unknown", "key", "APIStatusError", 404),
    ("livekit_agents.py", "file", "wrong", "APIStatusError", 401),
    ("livekit_agents.py", "file", "limited", "APIStatusError", 429),
    ("livekit_agents.py", "live", "wrong", "WSServerHandshakeError", 401),
    ("livekit_agents.py", "deepgram live unknown", "key", "APIStatusError", 400),
    ("livekit_agents.py", "deepgram live", "wrong", "APIStatusError", 401),
    ("livekit_agents.py", "deepgram live", "limited", "APIStatusError", 429),
    ("pipecat_ai.py", "file", "wrong", "Unknown error occurred: Error code: 401 - a valid API key is required", 401),
    ("pipecat_ai.py", "live", "wrong", "Error connecting to OpenAI Realtime STT: server rejected WebSocket", 401),
    ("pipecat_ai.py", "live", "limited", "connection failed 3 times", "too_many_sessions"),
    ("pipecat_ai.py", "deepgram live", "wrong", "Deepgram rejected the connection (status 401)", 401),
]


@pytest.mark.parametrize(("program", "task", "key", "error", "status"), ERRORS)
def test_an_error(place: Place, program: str, task: str, key: str, error: str, status: int | str) -> None:
    installed(PROGRAMS / program if program.endswith(".mjs") else PYTHON)
    found = place.run(program, task, {"key": place.key, "limited": place.limited}.get(key, key))
    assert "error" in found, found
    told = f"{found['error']} {found.get('status')} {found['message']}"
    assert error in told
    assert str(status) in told


@pytest.mark.gen_test(timeout=PATIENCE)
@pytest.mark.filterwarnings("ignore:websockets.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("client", [python.deepgram, python.realtime])
async def test_python_s_live_clients(place: Place, client: Any) -> None:
    place.check(await asyncio.wait_for(client(place.port, place.voice.pcm, place.key), PATIENCE))
