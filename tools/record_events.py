#!/usr/bin/env python3
"""Record what a release writes to Redis and sends to clients, for tests that later releases still understand it.

    python tools/record_events.py tests/data/events-VERSION.json

Run it once before a release, at the commit that is released. It starts a real system, runs a few short sessions in
every mode, and records for each of them:

    hash         the session's hash, asr_session:{sid}, at its end
    checkpoints  the values of the hash's field `state`, in the order in which the worker wrote them
    events       the durable events: the entries of the stream asr_events
    published    everything that went through the gateway's Pub/Sub channel for the session, in order
    messages     what the client received on its WebSocket, in order

Host names are replaced; the recordings are those of the package.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import socket
import subprocess
import threading
import wave
from importlib.resources import files
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import redis
from benching import servers, system
from tornado.websocket import WebSocketClientConnection, websocket_connect

from asrserver import __version__
from asrserver.broker.keys import events_key, session_key

RECORDINGS = files("asrserver").joinpath("data", "recordings")

#: Seconds between the 200 ms chunks of a stream: faster than real time, but slow enough for partial results.
PACE = 0.1

#: Seconds that the next message may take.
MESSAGE_TIMEOUT = 60.0

Message = dict[str, Any]


class Recorder:
    """Records every published event, and every checkpoint in a session's hash, from Redis."""

    def __init__(self, url: str) -> None:
        self.published: list[str] = []
        self.checkpoints: dict[str, list[str]] = {}
        self._redis = redis.Redis.from_url(url, decode_responses=True)
        self._subscription = self._redis.pubsub(ignore_subscribe_messages=True)
        self._subscription.psubscribe("asr_results:*")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            message = self._subscription.get_message(timeout=0.1)
            if message is None:
                continue
            self.published.append(str(message["data"]))
            sid = json.loads(message["data"])["session_id"]
            state: Any = self._redis.hget(session_key(sid), "state")
            known = self.checkpoints.setdefault(sid, [])
            if state is not None and state not in known:
                known.append(state)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._redis.close()

    def session(self, sid: str) -> Message:
        """Everything that Redis holds, or held, of a finished session."""
        entries: Any = self._redis.xrange(events_key(sid))
        return {
            "hash": self._redis.hgetall(session_key(sid)),
            "checkpoints": self.checkpoints[sid],
            "events": [fields["data"] for _, fields in entries if "data" in fields],
            "published": [data for data in self.published if json.loads(data)["session_id"] == sid],
        }


async def messages_of(connection: WebSocketClientConnection, last: str) -> list[Message]:
    """Read the messages up to the first of type `last`."""
    found: list[Message] = []
    while not found or found[-1]["type"] != last:
        text = await asyncio.wait_for(connection.read_message(), MESSAGE_TIMEOUT)
        assert text is not None, f"the connection was closed after {found}"
        found.append(json.loads(text))
    return found


async def talk(url: str, sid: str, chunks: list[bytes], pace: float = 0.0, **options: Any) -> list[Message]:
    """Run one session; return all messages that its client received."""
    connection = await websocket_connect(url)
    await connection.write_message(json.dumps({"action": "start", "session_id": sid, "user_id": "u", **options}))
    found = await messages_of(connection, "ack")
    for index, data in enumerate(chunks):
        audio = base64.b64encode(data).decode()
        message = {"action": "chunk", "session_id": sid, "chunk_index": index, "audio_data": audio}
        await connection.write_message(json.dumps(message))
        await asyncio.sleep(pace)
    await connection.write_message(json.dumps({"action": "finish", "session_id": sid}))
    found += await messages_of(connection, "final_result")
    connection.close()
    return found


async def moving(url: str, sid: str) -> list[Message]:
    """Run a session that is resumed on a second connection; return the messages of the first."""
    first, second = await websocket_connect(url), await websocket_connect(url)
    await first.write_message(json.dumps({"action": "start", "session_id": sid, "mode": "chunk"}))
    found = await messages_of(first, "ack")
    await second.write_message(json.dumps({"action": "resume", "session_id": sid}))
    found += await messages_of(first, "error")
    await messages_of(second, "ack")
    await second.write_message(json.dumps({"action": "finish", "session_id": sid}))
    await messages_of(second, "final_result")
    first.close()
    second.close()
    return found


def pcm(name: str) -> bytes:
    with RECORDINGS.joinpath(name).open("rb") as file, wave.open(file) as wav:
        return bytes(wav.readframes(wav.getnframes()))


def wav(name: str) -> bytes:
    return RECORDINGS.joinpath(name).read_bytes()


def webm(samples: bytes) -> bytes:
    """Encode 16 kHz PCM as a browser's recorder does."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-"]
    options = ["-c:a", "libopus", "-b:a", "32k", "-f", "webm", "-cluster_time_limit", "500", "-live", "1", "-"]
    return subprocess.run([*command, *options], input=samples, stdout=subprocess.PIPE, check=True).stdout


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


async def record(url: str, recorder: Recorder) -> dict[str, Message]:
    """Run a session of each kind; return the records by session id."""
    english = pcm("english-1.wav") + bytes(32000) + pcm("english-2.wav")
    live = {"mode": "stream", "format": "pcm_s16le", "partials": True, "partial_interval": 0.2}
    sessions: dict[str, list[Message]] = {
        "stream": await talk(url, "stream", pieces(english, 6400), PACE, word_timestamps=True, **live),
        "chunk": await talk(
            url, "chunk", [wav("english-1.wav"), b"<html>" + bytes(range(32, 127)), wav("mandarin.wav")], mode="chunk"
        ),
        "auto": await talk(url, "auto", [*pieces(pcm("english-2.wav"), 20000), wav("english-1.wav")], language="en"),
        "webm": await talk(url, "webm", pieces(webm(english), 4000), PACE),
        "damaged": await talk(url, "damaged", [webm(english)[:80]], mode="stream"),
        "silence": await talk(url, "silence", pieces(bytes(32000), 16000), mode="stream", format="pcm_s16le"),
        "moving": await moving(url, "moving"),
    }
    return {sid: {**recorder.session(sid), "messages": messages} for sid, messages in sessions.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    with servers() as own, system(own, "run", "--workers", "1", "--gateways", "2") as running:
        recorder = Recorder(own.redis.url)
        try:
            sessions = asyncio.run(record(f"ws://127.0.0.1:{running.port}/ws/asr", recorder))
        finally:
            recorder.close()
    text = json.dumps({"version": __version__, "sessions": sessions}, ensure_ascii=False, indent=1)
    options.file.write_text(text.replace(socket.gethostname(), "host") + "\n")


if __name__ == "__main__":
    main()
