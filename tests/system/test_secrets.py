"""The program with keys and TLS; no log contains a secret."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

from tests.api_keys import GIVEN, TLS, Keys
from tests.program import System
from tests.recordings import Utterance
from tests.waiting import wait_until
from tests.ws_client import WsClient

pytestmark = pytest.mark.gen_test(timeout=60)


def run(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asrserver", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


def test_tls_with_a_key(start: Callable[..., System], keys: Keys, utterances: list[Utterance], tmp_path: Path) -> None:
    """The program's commands over https and wss; without a key or without TLS there is no access."""
    pair = [shutil.copy(TLS / name, tmp_path / name) for name in ("cert.pem", "key.pem")]
    system = start("run", "--tls-cert", pair[0], "--tls-key", pair[1], "--keys-file", str(keys.path)).wait_ready()
    server = f"https://127.0.0.1:{system.port}"
    trust = {"SSL_CERT_FILE": str(TLS / "cert.pem")}
    wav = tmp_path / "hello.wav"
    wav.write_bytes(utterances[0].wav)
    good = {**trust, "ASRSERVER_KEY": keys.text_a}
    done = run("transcribe", str(wav), "--server", server, env=good)
    assert (done.returncode, done.stdout.strip()) == (0, utterances[0].text), done.stderr
    assert run("status", "--server", server, env=good).returncode == 0
    distrusting = {"ASRSERVER_KEY": keys.text_a}
    assert "certificate" in run("status", "--server", server, env=distrusting).stderr
    assert run("status", "--server", server, "--ca", str(TLS / "cert.pem"), env=distrusting).returncode == 0
    by_variable = {**distrusting, "ASRSERVER_CA": str(TLS / "cert.pem")}
    assert run("transcribe", str(wav), "--server", server, env=by_variable).returncode == 0
    for command in (("transcribe", str(wav)), ("status",)):
        done = run(*command, "--server", server, env=trust)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert "set --key or ASRSERVER_KEY" in done.stderr
        assert run(*command, "--server", server.replace("https", "http"), env=good).returncode == 1
    for name, path in zip(("renewed-cert.pem", "renewed-key.pem"), pair, strict=True):
        shutil.copy(TLS / name, path)
    wait_until(lambda: "the TLS certificate was loaded again" in system.output(), 30)
    shown = ssl.get_server_certificate(("127.0.0.1", system.port))
    assert shown.split() == (TLS / "renewed-cert.pem").read_text().split()


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's tmp_path: its parents are closed to the user that PostgreSQL runs as where the tests run as root.
    with tempfile.TemporaryDirectory(prefix="asrserver-access-") as name:
        yield Path(name)


PROMPT, HOTWORD, WRONG = "promptprompt", "hotwordhotword", f"wrong-{GIVEN}"


async def sessions_with_keys(base: str, keys: Keys, spoken: list[Utterance]) -> list[str]:
    """Run a session for each way to send a key; return their ids."""
    ways: list[tuple[str, dict[str, str]]] = [
        ("", {"Authorization": f"Bearer {keys.text_a}"}),
        ("", {"Sec-WebSocket-Protocol": f"asr.v1, bearer.{keys.text_a}"}),
        (f"?token={keys.text_b}", {}),
        (f"?x=1&token={GIVEN}&y=%20", {}),
    ]
    sids: list[str] = []
    for (query, headers), utterance in zip(ways, spoken, strict=True):
        request = HTTPRequest(base.replace("http", "ws", 1) + "/ws/asr" + query, headers=headers)
        async with WsClient(await websocket_connect(request)) as ws:
            sids.append(f"s{len(sids)}")
            # In the first session only: with so odd a prompt the model may recognise nothing.
            await ws.start(sids[-1], **({"prompt": PROMPT, "hotwords": HOTWORD} if len(sids) == 1 else {}))
            await ws.chunk(sids[-1], 0, utterance.wav)
            await ws.send('{"action":"' + utterance.text)
            await ws.send({"action": "finish"})
            final = await ws.find(sids[-1], "final_result")
            assert final["text"] == utterance.text or len(sids) == 1
    return sids


async def requests_with_keys(base: str, keys: Keys, sid: str, http_client: AsyncHTTPClient) -> None:
    """Requests with right and wrong keys wherever a key may stand, in well-formed and malformed headers."""
    for path, headers in (
        (f"/api/v1/session/{sid}?token={keys.text_a}", {}),
        (f"/api/v1/session/%ff?token={keys.text_a}", {}),
        (f"/nothing?token={keys.text_a}", {}),
        (f"/api/v1/history?token={WRONG}", {}),
        (f"/ws/asr?token={keys.text_a}", {}),
        (f"/ws/asr?token={WRONG}", {}),
        ("/ws/asr", {"Sec-WebSocket-Protocol": f"bearer.{WRONG}"}),
        ("/api/v1/history", {"Authorization": f"Bearer {WRONG}"}),
        ("/api/v1/history", {"Authorization": f"Basic {WRONG}"}),
    ):
        for method in ("GET", "DELETE", "BREW"):
            await http_client.fetch(
                base + path, headers=headers, method=method, raise_error=False, allow_nonstandard_methods=True
            )
    for line in (f"Authorization: Bearer {WRONG}\x01", f"Authorization Bearer {WRONG}"):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rpartition(":")[2]))
        writer.write(f"GET /?token={WRONG} HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())
        await reader.read()
        writer.close()
        await writer.wait_closed()


@pytest.mark.usefixtures("processes")
async def test_no_log_has_a_key_or_what_was_said(
    directory: Path, keys: Keys, utterances: list[Utterance], http_client: AsyncHTTPClient
) -> None:
    """A real server at debug level gets keys in every way, and real speech; no log has a key or a transcript."""
    spoken = utterances[:4]
    none = dict.fromkeys(("REDIS_URL", "REDIS_ADDR", "DATABASE_URL", "DB_HOST", "DB_USER", "DB_PASSWORD"), "")
    arguments = ("--port", "0", "--log-level", "debug", "--keys-file", str(keys.path), "--data-dir", str(directory))
    system = System("run", *arguments, env={**none, "ASRSERVER_API_KEYS": f"ops:{GIVEN}"})
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(None, system.wait_ready)
        base = f"http://127.0.0.1:{system.port}"
        sids = await sessions_with_keys(base, keys, spoken)
        await requests_with_keys(base, keys, sids[0], http_client)
        system.children("worker")[0].kill()  # the supervisor logs what it was working on
        assert await loop.run_in_executor(None, system.stop) == 0
        logs = {"the program": system.output()}
        logs |= {str(path): path.read_text(errors="replace") for path in (directory / "log").iterdir()}
    finally:
        system.close()
    assert len(logs) == 3
    assert len(sids) == 4
    assert all(f"session={sid}" in logs["the program"] for sid in sids)
    assert f"key={keys.a.id}" in logs["the program"]
    assert "refused code=unauthorized" in logs["the program"]
    assert " DEBUG " in logs["the program"]
    texts = {utterance.text for utterance in spoken}
    secrets = [keys.text_a[17:], keys.text_b[17:], GIVEN, PROMPT, HOTWORD, *texts]
    for name, text in logs.items():
        for secret in secrets:
            assert secret.lower() not in text.lower(), name


@pytest.mark.usefixtures("real_servers")
def test_postgresql_s_log_quotes_no_rows(directory: Path) -> None:
    import psycopg2

    from asrserver.embedded.postgres import EmbeddedPostgres

    postgres = EmbeddedPostgres(directory)
    postgres.start()
    try:
        connection = psycopg2.connect(postgres.dsn)
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE t (text text, n integer NOT NULL)")
            with pytest.raises(psycopg2.errors.NotNullViolation):
                cursor.execute("INSERT INTO t VALUES ('somebody said this', NULL)")
        connection.close()
        log = directory / "log" / "postgres.log"
        wait_until(lambda: "null value" in log.read_text(), what="the error is logged")
        assert "somebody said" not in log.read_text()
    finally:
        postgres.stop(10)
