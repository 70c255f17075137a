#!/usr/bin/env python3
"""Send a real server what no client should send, and fail on a crash, a defect, a hang, or growth.

    python tools/fuzz_wire.py [--messages 20000] [--seed 1] [--clients 8] [--only messages,frames,rest,redis]

A server with Redis and PostgreSQL of its own is attacked from all sides at once:

    messages  sessions whose messages are mutated: fields are lost, doubled, of other types, endless, out of order
    frames    WebSocket frames with random heads, sizes, fragments, masks, and bytes that are none
    rest      requests with random paths, parameters, methods, headers and bodies
    redis     entries of nobody in the server's own streams, hashes and sets, as by a program that shares the Redis

Meanwhile a client that does nothing wrong sends one utterance after another. Findings are: answers `internal_error` and
500, tracebacks in the log, processes that die, utterances of the harmless client that fail or take longer than 30 s,
sessions and connections that stay, and a gateway that grows by more than 50 MB after a tenth of the messages. The exit
status is 1 if there is one. A run follows from its seed, as far as timing does not decide.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import redis.asyncio as redis

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hostile import Peer, open_streams
from live import Server, load, server

from tests.ws_client import frame

#: Seconds that an utterance of the harmless client may take, and that leftovers may take to go.
PATIENCE = 30.0

#: Bytes by which a gateway may grow.
GROWTH = 50 << 20

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, "", "x", "\0", "\u2028", "é" * 200, "{}",
    "a b", "s" * 129, [], [[]] * 50, {}, {"a": {"b": [1]}}, "💥", "\ud800", "../../etc", "%00", "NaN", {"": None},
]  # fmt: skip

ACTIONS = ("start", "chunk", "finish", "resume", "flush", "configure", "ping", "stop", "")
PATHS = (
    "/", "/livez", "/readyz", "/metrics", "/api/v1/health", "/api/v1/history", "/api/v1/session/x", "/api/v1/stats",
    "/api/v1/session/x/audio", "/api/v1/transcribe", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/listen",
    "/v1/models", "/v1/realtime/client_secrets", "/api/v1/asr/queue/status", "/ws/asr", "/v1/realtime", "/nothing",
)  # fmt: skip
PARAMETERS = (
    "limit",
    "cursor",
    "user_id",
    "status",
    "from",
    "to",
    "q",
    "format",
    "language",
    "model",
    "token",
    "words",
    "x",
)
KINDS = ("messages", "frames", "rest", "redis")


class Fuzzer:
    """One run.

    Attributes:
        sent: Messages, frames, requests and entries so far, by kind.
        answers: Answers by code or status.
        findings: What must not happen.
    """

    def __init__(self, server: Server, arguments: argparse.Namespace) -> None:
        self.sent = Counter[str]()
        self.answers = Counter[str]()
        self.findings: list[str] = []
        self._server = server
        self._port = server.port
        self._arguments = arguments
        self._random = random.Random(arguments.seed)
        self._sids = [f"fuzz-{number}" for number in range(40)]
        speech = load()[:3]
        self._texts = [text for text, _ in speech]
        self._pcm = [(samples * 32767).astype("<i2").tobytes() for _, samples in speech]
        self.waits: list[float] = []

    async def run(self) -> None:
        """Attack until the number of messages is reached."""
        kinds = self._arguments.only.split(",")
        tasks = [asyncio.create_task(self._repeat(kind)) for kind in kinds for _ in range(self._arguments.clients)]
        harmless = asyncio.create_task(self._harmless())
        begun, gateways, early = time.monotonic(), self._server.processes("gateway"), 0
        total = self._arguments.messages
        while (count := self.sent.total()) < total and not harmless.done():
            await asyncio.sleep(1)
            if not early and count > total / 10:
                early = gateways[0].memory_info().rss
            if int(time.monotonic() - begun) % 60 == 0:
                print(f"{count} sent, {len(self.waits)} utterances, {len(self.findings)} findings", flush=True)
        for task in (*tasks, harmless):
            task.cancel()
        for result in await asyncio.gather(*tasks, harmless, return_exceptions=True):
            if isinstance(result, Exception):
                self.findings.append(f"a client failed: {result!r}")
        grown = gateways[0].memory_info().rss - early
        if early and grown > GROWTH:
            self.findings.append(f"the gateway grew by {grown / 2**20:.0f} MB")
        print(f"the gateway grew by {grown / 2**20:.1f} MB after the first tenth")
        if "redis" not in kinds:  # who damages a session's keys may leave it open
            await self._left()

    async def _repeat(self, kind: str) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError, TimeoutError, ValueError):
                async with asyncio.timeout(60):
                    await getattr(self, f"_{kind}")()
            await asyncio.sleep(0.05)

    # -- who attacks ---------------------------------------------------------------------------------------------

    async def _messages(self) -> None:
        async with self._peer() as peer:
            reading = asyncio.create_task(self._read(peer))
            try:
                for _ in range(self._random.randrange(1, 60)):
                    data = self._message()
                    binary = isinstance(data, bytes)
                    text = data if binary else json.dumps(data).encode("utf-8", "surrogatepass")
                    peer.writer.write(frame(2 if binary else 1, text))
                    self.sent["messages"] += 1
                    await peer.writer.drain()
                    await asyncio.sleep(self._random.random() * 0.02)
                await asyncio.sleep(0.1)
            finally:
                reading.cancel()

    def _message(self) -> Any:
        dice = self._random
        sid = dice.choice(self._sids)
        pcm = dice.choice(self._pcm)
        at = dice.randrange(len(pcm) - 8000) & ~1
        audio = pcm[at : at + dice.choice((0, 1, 320, 3200, 7999))]
        if dice.random() < 0.2:
            return audio if dice.random() < 0.8 else dice.randbytes(dice.randrange(300))
        message: dict[str, Any] = {"action": dice.choice(ACTIONS[:5]), "session_id": sid}
        match message["action"]:
            case "start":
                message |= {"mode": dice.choice(("auto", "chunk", "stream")), "format": "pcm_s16le", "user_id": "fuzz"}
            case "chunk":
                message |= {"chunk_index": dice.randrange(6), "audio_data": base64.b64encode(audio).decode()}
            case "resume":
                message |= {"last_seq": dice.choice((0, 0, 1, 7, 10**9))}
        for _ in range(dice.choice((0, 0, 1, 1, 2))):
            match dice.randrange(4):
                case 0:
                    message.pop(dice.choice(list(message)), None)
                case 1:
                    message[dice.choice([*message, "language", "hotwords", "partials", "word_timestamps"])] = (
                        dice.choice(ODD)
                    )
                case 2:
                    message["action"] = dice.choice(ACTIONS)
                case 3:
                    message = {"action": dice.choice(ODD), **message}
            if not message:
                return dice.choice(ODD)
        return message

    async def _frames(self) -> None:
        dice = self._random
        async with self._peer() as peer:
            reading = asyncio.create_task(self._read(peer))
            try:
                for _ in range(dice.randrange(1, 20)):
                    payload = dice.choice(
                        (b"", b"{}", b'{"action":"start"}', dice.randbytes(dice.randrange(200)), b"\xff\xfe")
                    )
                    data = bytearray(frame(dice.choice((0, 1, 1, 2, 2, 8, 9, 10, 3, 11)), payload, dice.random() < 0.8))
                    for _ in range(dice.choice((0, 0, 1, 3))):
                        data[dice.randrange(len(data))] = dice.randrange(256)
                    if dice.random() < 0.1:
                        del data[dice.randrange(len(data)) :]
                    peer.writer.write(bytes(data))
                    self.sent["frames"] += 1
                    await peer.writer.drain()
                await asyncio.sleep(0.05)
            finally:
                reading.cancel()

    async def _rest(self) -> None:
        dice = self._random
        reader, writer = await open_streams(self._port)
        try:
            for _ in range(dice.randrange(1, 6)):
                method = dice.choice(("GET", "GET", "GET", "POST", "DELETE", "PUT", "OPTIONS", "HEAD", "PATCH"))
                words = [str(one)[:200] for one in ODD] + [
                    "10",
                    "done",
                    "2026-01-01",
                    "0001-01-01T00:00:00+23:59",
                    "%ff",
                ]
                query = "&".join(f"{dice.choice(PARAMETERS)}={dice.choice(words)}" for _ in range(dice.randrange(3)))
                path = dice.choice(PATHS).replace("/x", f"/{dice.choice(self._sids)}") + (f"?{query}" if query else "")
                path = re.sub(
                    r"[^!-~]",
                    lambda found: "".join(f"%{byte:02x}" for byte in found[0].encode("utf-8", "ignore")),
                    path,
                )
                body = (
                    dice.choice((b"", b"{}", b'{"a":1}', dice.randbytes(500), self._pcm[0][:3000]))
                    if method in ("POST", "PUT", "PATCH")
                    else b""
                )
                kind = dice.choice(
                    ("application/json", "multipart/form-data; boundary=x", "audio/wav", "nonsense", "x" * 300)
                )
                head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
                head += f"Content-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode("latin-1", "replace") + body)
                self.sent["rest"] += 1
                status = (await reader.readuntil(b"\r\n")).decode("latin-1").split()[1]
                self.answers[status] += 1
                if status == "500":
                    self.findings.append(f"500: {method} {path} {kind} {body[:60]!r}")
                rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                size = re.search(r"content-length: (\d+)", rest)
                if size is None or method == "HEAD":
                    return
                await reader.readexactly(int(size[1]))
        finally:
            writer.close()

    async def _redis(self) -> None:
        dice = self._random
        client = redis.Redis(unix_socket_path=str(self._server.data / "redis" / "redis.sock"))
        try:
            keys = [key.decode() async for key in client.scan_iter("asr_*fuzz-*", count=500)]
            sid = dice.choice(self._sids)
            names = [
                *keys,
                "asr_tasks",
                "asr_tasks:nonsense",
                f"asr_session:{{{sid}}}",
                f"asr_audio:{{{sid}}}",
                f"asr_events:{{{sid}}}",
            ]
            for _ in range(dice.randrange(1, 10)):
                key = dice.choice(names)
                value = dice.choice(("", "x", "{}", "[1]", "-1", "nan", sid, dice.randbytes(20)))
                field = dice.choice(
                    ("sid", "options", "first", "last", "state", "end", "audio", "data", "n", "kind", "strike:1-0", "x")
                )
                with contextlib.suppress(redis.RedisError):  # of another type
                    match dice.randrange(6):
                        case 0 | 1:
                            await client.xadd(key if "session" not in key else "asr_tasks", {field: value})
                        case 2 | 3:
                            await client.hset(f"asr_session:{{{sid}}}", field, value)
                        case 4:
                            await client.publish("asr_ended", value)
                        case 5:
                            await client.zadd(
                                dice.choice(("asr_open", "asr_finished")),
                                {f"fuzz-{value!r}"[:40]: dice.choice((0, 1e18))},
                            )
                self.sent["redis"] += 1
        finally:
            await client.aclose()
        await asyncio.sleep(0.2)

    # -- who watches ---------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _peer(self) -> Any:
        peer = await Peer.open(self._port, "", "127.0.0.1")
        try:
            yield peer
        finally:
            peer.writer.transport.abort()

    async def _read(self, peer: Peer) -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError, ValueError):
            while True:
                message = await peer.read()
                code = message.get("code") or message["type"]
                self.answers[code] += 1
                if code == "internal_error":
                    self.findings.append(f"internal_error: {message}")

    async def _harmless(self) -> None:
        while True:
            number = len(self.waits)
            begun, waits_for = time.monotonic(), "a connection"
            try:
                async with asyncio.timeout(PATIENCE), self._peer() as peer:
                    waits_for = "a session"
                    sid = await peer.session()
                    waits_for = f"the text of {sid}"
                    await peer.send(self._pcm[number % 3])
                    await peer.finish(sid)
                    final = await peer.answer(sid, "final_result", "error")
                if final.get("text") != self._texts[number % 3]:
                    self.findings.append(f"the harmless client got {final}")
            except (OSError, EOFError, TimeoutError) as exc:
                waited = time.monotonic() - begun
                self.findings.append(f"the harmless client waited {waited:.0f} s for {waits_for}: {exc!r}")
            self.waits.append(time.monotonic() - begun)
            await asyncio.sleep(1)

    async def _left(self) -> None:
        """Wait until no connection and session is left."""
        deadline = time.monotonic() + 3 * PATIENCE
        while time.monotonic() < deadline:
            await asyncio.sleep(1)
            reader, writer = await open_streams(self._port)
            writer.write(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            body = (await reader.read()).partition(b"\r\n\r\n")[2]
            writer.close()
            gateways = json.loads(body)["gateways"]
            if gateways and not any(one["connections"] or one["sessions"] for one in gateways):
                return
        self.findings.append(f"connections or sessions stay: {gateways}")


def log_findings(text: str) -> list[str]:
    """What in a log must not be there."""
    found = re.findall(r"^.*(?: died: |Traceback|CRITICAL|could not be stored:|internal error).*$", text, re.M)
    return [f"log: {line}" for line in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=8, help="of each kind")
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--log", default="", help="where to keep the server's log")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends, too
    options = ("--workers", "1", "--model", "demo", "--resume-timeout", "2", "--max-session", "60")
    with server(*options, log=arguments.log) as running:
        fuzzer = Fuzzer(running, arguments)
        asyncio.run(fuzzer.run())
        running.stop()
        fuzzer.findings += log_findings(running.log.read_text())
    waits = sorted(fuzzer.waits) or [float("nan")]
    print(f"sent: {dict(fuzzer.sent)}\nanswers: {dict(fuzzer.answers.most_common())}")
    print(
        f"the harmless client: {len(waits)} utterances, "
        f"median {waits[len(waits) // 2]:.2f} s, longest {waits[-1]:.2f} s"
    )
    for text, count in Counter(fuzzer.findings).most_common(20):
        print(f"FINDING ({count}): {text}")
    sys.exit(1 if fuzzer.findings else 0)


if __name__ == "__main__":
    main()
