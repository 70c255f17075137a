"""access.py and handlers/door.py: who is let in, over real sockets; what is written of them, in no log."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import tornado.httputil
from click.testing import CliRunner, Result
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.websocket import WebSocketClientConnection, websocket_connect

from asrserver.auth import Access, KeyLimits, KeysFile, bearer, is_loopback, neighbourhood
from asrserver.cli.main import main
from asrserver.config import Settings, check
from asrserver.errors import Refused, SettingError
from asrserver.gateway import gateway as gateway_module
from asrserver.gateway.gateway import Gateway
from asrserver.handlers.app import AsrApplication
from tests.conftest import DATA, System, Utterance, until, wait_until
from tests.fakes import Pretender
from tests.ws_client import Talk

pytestmark = pytest.mark.gen_test(timeout=60)

TLS = DATA / "tls"

#: A key as an operator would give it by environment.
GIVEN = "0123456789abcdefghijklmnop"


class Keys:
    """A file of keys and two keys in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = KeysFile(str(path))
        self.a, self.text_a = self.file.create("a", KeyLimits(), operator=False)
        self.b, self.text_b = self.file.create("b", KeyLimits(), operator=False)
        self.operator, self.text_operator = self.file.create("boss", KeyLimits(), operator=True)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.json")


# -- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_opens_and_nothing_else_does(keys: Keys) -> None:
    access = Access(str(keys.path), f"ops:{GIVEN}")
    assert access.authenticate(f"Bearer {keys.text_a}") == keys.a
    assert access.authenticate(f"bearer  {keys.text_b} ") == keys.b
    given = access.authenticate(f"Bearer {GIVEN}")
    assert given is not None
    assert (given.id, given.scope) == ("ops", "ops")
    wrong = [
        None,
        "",
        "Bearer",
        "Bearer ",
        keys.text_a,
        f"Basic {keys.text_a}",
        f"Bearer {keys.text_a[:-1]}",
        f"Bearer {keys.text_a}x",
        f"Bearer asr_{keys.a.id}_{keys.text_b[17:]}",
        f"Bearer {keys.a.sha256}",
        f"Bearer {GIVEN[:-1]}",
        "Bearer \udcff\u1234",
    ]
    for header in wrong:
        with pytest.raises(Refused) as refused:
            access.authenticate(header)
        assert (refused.value.status, refused.value.code) == (401, "unauthorized")


def test_the_file_has_no_secret_and_is_its_owner_s_alone(keys: Keys) -> None:
    written = keys.path.read_text()
    assert keys.text_a[17:] not in written
    assert keys.path.stat().st_mode & 0o777 == 0o600
    keys.path.chmod(0o640)
    keys.file.revoke(keys.b.id)
    assert keys.path.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in keys.path.parent.iterdir()] == ["keys.json"]


def test_the_file_is_read_again_when_it_changes(keys: Keys) -> None:
    """New keys open, revoked ones do not; what is not a file of keys changes nothing and is told once."""
    access = Access(str(keys.path))
    assert not access.reread()
    _, text = keys.file.create("c", KeyLimits(sessions=3), operator=False)
    keys.file.revoke(keys.a.id)
    keys.file.limit(keys.b.id, {"sessions": 7})
    assert access.reread()
    found = access.authenticate(f"Bearer {text}")
    assert found is not None
    assert found.limits.sessions == 3
    changed = access.key(keys.b.id)
    assert changed is not None
    assert changed.limits == KeyLimits(sessions=7)
    with pytest.raises(Refused):
        access.authenticate(f"Bearer {keys.text_a}")
    keys.path.write_text("{")
    with pytest.raises(SettingError, match=str(keys.path)):
        access.reread()
    assert not access.reread()
    assert access.authenticate(f"Bearer {text}") == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a file of keys"),
        ("[]", "not a file of keys"),
        ('{"keys": [{"id": "a b", "sha256": "' + "0" * 64 + '"}]}', "id"),
        ('{"keys": [{"id": "a", "sha256": "0"}]}', "sha256"),
        ('{"keys": [{"id": "a", "sha256": "' + "0" * 64 + '", "limits": {"session": 1}}]}', "session is no limit"),
        ('{"keys": [{"id": "a", "sha256": "' + "0" * 64 + '", "limits": {"sessions": -1}}]}', "negative"),
        ('{"keys": [' + ",".join(['{"id": "a", "sha256": "' + "0" * 64 + '"}'] * 2) + "]}", "one id"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(SettingError, match=words) as refused:
        Access(str(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [GIVEN, "ops:short", f"a b:{GIVEN}", f":{GIVEN}", f"ops:{GIVEN}ü"])
def test_bad_keys_of_the_environment_are_not_quoted(given: str) -> None:
    with pytest.raises(SettingError, match="ASRSERVER_API_KEYS") as refused:
        Access(api_keys=f"fine:{GIVEN},{given}")
    assert GIVEN not in str(refused.value)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ((None, None, None), (None, None)),
        (("Bearer x", None, None), ("Bearer x", None)),
        ((None, "asr.v1, bearer.x", None), ("Bearer x", "asr.v1")),
        ((None, "bearer.x", None), ("Bearer x", None)),
        ((None, "asr.v1", "x"), ("Bearer x", "asr.v1")),
        (("Basic y", "bearer.z", "x"), ("Basic y", None)),
        ((None, "bearer.", ""), (None, None)),
    ],
)
def test_three_ways_to_show_a_key(shown: tuple[Any, Any, Any], expected: tuple[Any, Any]) -> None:
    assert bearer(*shown) == expected


def test_the_commands(tmp_path: Path) -> None:
    """A key's text is shown at its creation and never again."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["keys", *arguments], env={"ASRSERVER_KEYS_FILE": str(path)})

    path = tmp_path / "keys.json"
    created = run("create", "mobile app", "--sessions", "5")
    assert created.exit_code == 0, created.stderr
    text = created.stdout.strip()
    [key] = KeysFile(str(path)).read()
    assert key.id in created.stderr
    assert Access(str(path)).authenticate(f"Bearer {text}") == key
    assert run("limit", key.id, "--audio-per-minute", "90").exit_code == 0
    listed = run("list").stdout
    assert re.search(rf"{key.id}\s+mobile app\s.*valid\s+-\s+5\s+-\s+90", listed), listed
    assert text[17:] not in listed
    assert run("revoke", key.id).exit_code == 0
    assert "revoked" in run("list").stdout
    for arguments in (("revoke", "nobody"), ("limit", "nobody", "--sessions", "1")):
        done = run(*arguments)
        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
    path.unlink()
    assert run("list").stderr.count("\n") == 1


# -- addresses, origins, where to listen -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proxies", "peer", "headers", "expected"),
    [
        ("", "10.0.0.1", {"X-Forwarded-For": "1.2.3.4"}, "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", {"X-Forwarded-For": "1.2.3.4"}, "1.2.3.4"),
        ("10.0.0.0/8", "::ffff:10.0.0.1", {"X-Forwarded-For": "1.2.3.4"}, "1.2.3.4"),
        ("10.0.0.0/8", "10.0.0.1", {"X-Forwarded-For": "6.6.6.6, 1.2.3.4, 10.9.9.9"}, "1.2.3.4"),
        ("10.0.0.0/8", "10.0.0.1", {"X-Forwarded-For": "10.1.1.1,10.9.9.9"}, "10.1.1.1"),
        ("10.0.0.0/8", "10.0.0.1", {"X-Forwarded-For": "6.6.6.6, <script>"}, "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", {"X-Real-Ip": "1.2.3.4"}, "1.2.3.4"),
        ("10.0.0.0/8", "10.0.0.1", {}, "10.0.0.1"),
        ("10.0.0.0/8", "9.0.0.1", {"X-Forwarded-For": "1.2.3.4"}, "9.0.0.1"),
        ("fd00::/8, ::1", "::1", {"X-Forwarded-For": "2001:db8::5"}, "2001:db8::5"),
    ],
)
def test_whose_word_on_addresses_counts(proxies: str, peer: str, headers: dict[str, str], expected: str) -> None:
    assert Access(proxies=proxies).address(peer, tornado.httputil.HTTPHeaders(headers)) == expected


def test_what_counts_as_one_address() -> None:
    assert neighbourhood("1.2.3.4") == "1.2.3.4"
    assert neighbourhood("2001:db8:1:2:3::5") == neighbourhood("2001:db8:1:2:4::6") == "2001:db8:1:2::/64"


@pytest.mark.parametrize("origin", ["http://[", "null", "", "file://", "http://other.example", "//"])
def test_origins_that_are_nobody_s(origin: str) -> None:
    assert not Access(origins="http://page.example").allows_origin(origin, "")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("", False)],
)
def test_what_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 .*--access-control off"),
        ({"host": "::"}, "host"),
        ({"access_control": "off", "api_keys": f"ops:{GIVEN}"}, "access-control"),
        ({"keys_file": "/nowhere/keys.json"}, "keys-file: /nowhere/keys.json: No such file"),
        ({"trusted_proxies": "10.0.0.0/33"}, "trusted-proxies"),
        ({"tls_key": "x"}, "tls-cert"),
        ({"tls_cert": "/nowhere/cert.pem"}, "tls-cert: /nowhere/cert.pem"),
        ({"tls_cert": str(TLS / "cert.pem")}, "tls-cert"),
        ({"tls_cert": __file__, "tls_key": str(TLS / "key.pem")}, "tls-cert"),
    ],
)
def test_settings_that_stop_the_start(given: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words) as refused:
        check(Settings(**given), "run")
    assert "\n" not in str(refused.value)


def test_settings_that_may_listen_beyond_loopback() -> None:
    check(Settings(host="0.0.0.0", access_control="off"), "run")
    check(Settings(host="0.0.0.0", api_keys=f"ops:{GIVEN}"), "run")
    check(Settings(tls_cert=str(TLS / "cert.pem"), tls_key=str(TLS / "key.pem")), "run")


# -- over a socket ---------------------------------------------------------------------------------------------------


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str, keys: Keys) -> Settings:
    return Settings(
        redis_url=redis_url,
        database_url=database_url,
        keys_file=str(keys.path),
        allowed_origins="https://page.example",
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "KEYS_EVERY", 0.05)


@pytest.fixture
def fetch(base_url: str, http_server: HTTPServer, http_client: AsyncHTTPClient) -> Callable[..., Any]:
    """fetch("/api/v1/health", key="…", method="GET", headers={…})"""

    async def get(path: str, key: str = "", headers: dict[str, str] | None = None, **options: Any) -> HTTPResponse:
        shown = {"Authorization": f"Bearer {key}"} if key else {}
        return await http_client.fetch(
            base_url + path,
            headers={**shown, **(headers or {})},
            raise_error=False,
            allow_nonstandard_methods=True,
            **options,
        )

    return get


async def connect(base_url: str, path: str = "/ws/asr", **headers: str) -> WebSocketClientConnection:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return await websocket_connect(HTTPRequest(base_url.replace("http", "ws", 1) + path, headers=names))


def paths(app: AsrApplication) -> list[str]:
    """A path of every route, and one of none."""
    rules = [rule for host in app.wildcard_router.rules for rule in [host]]
    found = [re.sub(r"\(.*?\)", "x", rule.matcher.regex.pattern.rstrip("$")) for rule in rules]  # type: ignore[attr-defined]
    assert "/ws/asr" in found
    assert "/api/v1/session/x" in found
    return [*found, "/nothing", "/", "/api/v1/session/%ff?token=x"]


async def test_without_a_key_nothing_opens_but_livez(
    app: AsrApplication, fetch: Callable[..., Any], keys: Keys
) -> None:
    """Every route there is, by every method; with a wrong key too."""
    for path in paths(app):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
            if path == "/livez" and method in ("GET", "HEAD"):
                assert (await fetch(path)).code == 200
                continue
            for key in ("", keys.text_a[:-1] + "-"):
                response = await fetch(path, key, method=method)
                if "%ff" in path:
                    assert response.code == 400
                    continue
                if path == "/livez":  # public: what is wrong is the method
                    assert response.code == (204 if method == "OPTIONS" else 405)
                    continue
                assert response.code == 401, (path, method)
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
                if method != "HEAD":
                    assert orjson.loads(response.body)["error"]["code"] == "unauthorized"


async def test_a_key_is_shown_in_three_ways(base_url: str, fetch: Callable[..., Any], keys: Keys) -> None:
    for path in ("/api/v1/history", f"/api/v1/history?token={keys.text_a}&limit=5"):
        assert (await fetch(path, "" if "token" in path else keys.text_a)).code == 200
    for arguments, protocol in (
        ({"Authorization": f"Bearer {keys.text_a}"}, None),
        ({"path": f"/ws/asr?uid=1&token={keys.text_a}"}, None),
        ({"Sec_WebSocket_Protocol": f"asr.v1, bearer.{keys.text_a}"}, "asr.v1"),
        ({"Sec_WebSocket_Protocol": f"bearer.{keys.text_a},asr.v1"}, "asr.v1"),
        ({"Sec_WebSocket_Protocol": f"bearer.{keys.text_a}"}, None),
    ):
        connection = await connect(base_url, **arguments)
        assert connection.selected_subprotocol == protocol
        await connection.write_message(json.dumps({"action": "start"}))
        assert json.loads(await connection.read_message() or "")["status"] == "session_started"
        connection.close()
        assert await connection.read_message() is None
    with pytest.raises(HTTPClientError, match="401"):
        await connect(base_url, Sec_WebSocket_Protocol="asr.v1")
    with pytest.raises(HTTPClientError, match="401"):
        await connect(base_url, Sec_WebSocket_Protocol="asr.v1, bearer.x", Authorization="Bearer y")


async def test_a_revoked_key_loses_its_connections(
    quick: None, base_url: str, http_server: HTTPServer, gateway: Gateway, keys: Keys
) -> None:
    """And its sessions, which nobody can resume, end with what they have; another's go on."""
    object.__setattr__(gateway.settings, "resume_timeout", 0.1)
    mine = await connect(base_url, Authorization=f"Bearer {keys.text_a}")
    other = await connect(base_url, Authorization=f"Bearer {keys.text_b}")
    for connection, sid in ((mine, "mine"), (other, "other")):
        await connection.write_message(json.dumps({"action": "start", "session_id": sid}))
        assert json.loads(await connection.read_message() or "")["status"] == "session_started"
    assert (gateway.sessions["mine"].owner, gateway.sessions["other"].owner) == (keys.a.id, keys.b.id)
    keys.file.revoke(keys.a.id)
    assert await mine.read_message() is None
    assert mine.close_code == 1008
    await until(lambda: gateway.sessions["mine"].state != "recording")
    assert gateway.sessions["other"].state == "recording"
    with pytest.raises(HTTPClientError, match="401"):
        await connect(base_url, Authorization=f"Bearer {keys.text_a}")
    for connection in (mine, other):
        connection.close()
    assert await other.read_message() is None


async def test_a_key_sees_its_own_sessions_only(
    base_url: str, fetch: Callable[..., Any], keys: Keys, gateway: Gateway, worker: Pretender
) -> None:
    """Another's is 404 whatever is asked, open or stored; in no history, sum or search; nor can it be resumed."""
    client = Talk(await connect(base_url, Authorization=f"Bearer {keys.text_a}"))
    for sid in ("stored", "open"):
        await client.start(sid)
        await client.chunk(sid, 0, bytes(100))
    await worker.take("stored", "open")
    await worker.chunk("stored", 0, "mine alone")
    await client.send({"action": "finish", "session_id": "stored"})
    await worker.final("stored", "mine alone")
    await client.find("stored", "final_result")
    await until(gateway.recorder.settled)

    async def seen(key: str, query: str = "") -> list[str]:
        response = await fetch("/api/v1/history" + query, key)
        body = orjson.loads(response.body)
        assert body["total"] == len(body["records"])
        return sorted(record["session_id"] for record in body["records"])

    paths = ("/api/v1/session/stored", "/api/v1/session/stored?format=txt", "/api/v1/session/open")
    for path in paths:
        assert (await fetch(path, keys.text_a)).code == 200
        assert (await fetch(path, keys.text_operator)).code == 200
        for method in ("GET", "HEAD", "DELETE"):
            assert (await fetch(path, keys.text_b, method=method)).code == 404, (path, method)
    for query in ("", "?q=alone"):
        assert await seen(keys.text_b, query) == []
    assert await seen(keys.text_a) == await seen(keys.text_operator) == ["open", "stored"]
    assert await seen(keys.text_a, "?q=alone") == ["stored"]
    assert orjson.loads((await fetch("/api/v1/stats", keys.text_b)).body)["total_tasks"] == 0
    other = Talk(await connect(base_url, Authorization=f"Bearer {keys.text_b}"))
    assert (await other.call({"action": "resume", "session_id": "open"}))["code"] == "no_session"
    await client.chunk("open", 1, bytes(100))  # it is still where it was
    assert (await fetch("/api/v1/session/stored", keys.text_a, method="DELETE")).code == 200
    assert (await fetch("/api/v1/session/open", keys.text_operator, method="DELETE")).code == 200
    await other.close()
    await client.close()


async def test_pages_of_other_origins(fetch: Callable[..., Any], keys: Keys, base_url: str) -> None:
    """What CORS says of an allowed one, errors included; a preflight asks without a key; others get 403."""
    page = {"Origin": "https://page.example"}
    for key, path, code in (
        (keys.text_a, "/api/v1/history", 200),
        ("", "/api/v1/history", 401),
        (keys.text_a, "/nothing", 404),
    ):
        response = await fetch(path, key, page)
        assert (response.code, response.headers["Access-Control-Allow-Origin"]) == (code, "https://page.example")
        assert response.headers["Vary"] == "Origin"
    asks = {**page, "Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}
    response = await fetch("/api/v1/session/x", headers=asks, method="OPTIONS")
    assert response.code == 204
    assert "DELETE" in response.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
    for headers in ({"Origin": "https://evil.example"}, {**asks, "Origin": "https://evil.example"}):
        for method in ("GET", "OPTIONS"):
            response = await fetch("/api/v1/history", keys.text_a, headers, method=method)
            assert response.code == 403
            assert "Access-Control-Allow-Origin" not in response.headers
            assert orjson.loads(response.body)["error"]["code"] == "origin_not_allowed"
    response = await fetch("/api/v1/history", keys.text_a, {"Origin": base_url})
    assert response.code == 200
    assert "Access-Control-Allow-Origin" not in response.headers


# -- the program -----------------------------------------------------------------------------------------------------


def run(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asrserver", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


def test_tls_with_a_key(start: Callable[..., System], keys: Keys, utterances: list[Utterance], tmp_path: Path) -> None:
    """The server's own commands over https and wss; nobody is let in without a key, or in the clear."""
    system = start(
        "run", "--tls-cert", str(TLS / "cert.pem"), "--tls-key", str(TLS / "key.pem"), "--keys-file", str(keys.path)
    ).wait_ready()
    server = f"https://127.0.0.1:{system.port}"
    trust = {"SSL_CERT_FILE": str(TLS / "cert.pem")}
    wav = tmp_path / "hello.wav"
    wav.write_bytes(utterances[0].wav)
    good = {**trust, "ASRSERVER_KEY": keys.text_a}
    done = run("transcribe", str(wav), "--server", server, env=good)
    assert (done.returncode, done.stdout.strip()) == (0, utterances[0].text), done.stderr
    assert run("status", "--server", server, env=good).returncode == 0
    for command in (("transcribe", str(wav)), ("status",)):
        done = run(*command, "--server", server, env=trust)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert "401" in done.stderr
        assert run(*command, "--server", server.replace("https", "http"), env=good).returncode == 1


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's tmp_path: its parents are closed to the user that PostgreSQL runs as where the tests run as root.
    with tempfile.TemporaryDirectory(prefix="asrserver-access-") as name:
        yield Path(name)


async def test_no_log_has_a_key_or_what_was_said(
    directory: Path, keys: Keys, utterances: list[Utterance], http_client: AsyncHTTPClient
) -> None:
    """A real server at debug level, used in all the ways that show a key, rightly and wrongly; real transcripts."""
    spoken = utterances[:4]
    none = dict.fromkeys(("REDIS_URL", "REDIS_ADDR", "DATABASE_URL", "DB_HOST", "DB_USER", "DB_PASSWORD"), "")
    arguments = ("--port", "0", "--log-level", "debug", "--keys-file", str(keys.path), "--data-dir", str(directory))
    system = System("run", *arguments, env={**none, "ASRSERVER_API_KEYS": f"ops:{GIVEN}"})
    prompt, hotword, wrong = "promptprompt", "hotwordhotword", f"wrong-{GIVEN}"
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(None, system.wait_ready)
        base = f"http://127.0.0.1:{system.port}"
        ways: list[tuple[str, dict[str, str]]] = [
            ("", {"Authorization": f"Bearer {keys.text_a}"}),
            ("", {"Sec-WebSocket-Protocol": f"asr.v1, bearer.{keys.text_a}"}),
            (f"?token={keys.text_b}", {}),
            (f"?x=1&token={GIVEN}&y=%20", {}),
        ]
        sids = []
        for (query, headers), utterance in zip(ways, spoken, strict=True):
            request = HTTPRequest(base.replace("http", "ws", 1) + "/ws/asr" + query, headers=headers)
            async with Talk(await websocket_connect(request)) as talk:
                sids.append(f"s{len(sids)}")
                # In the first: with so odd a prompt the model may well hear nothing.
                await talk.start(sids[-1], **({"prompt": prompt, "hotwords": hotword} if len(sids) == 1 else {}))
                await talk.chunk(sids[-1], 0, utterance.wav)
                await talk.send('{"action":"' + utterance.text)
                await talk.send({"action": "finish"})
                final = await talk.find(sids[-1], "final_result")
                assert final["text"] == utterance.text or len(sids) == 1
        texts = {utterance.text for utterance in spoken}
        for path, headers in (
            (f"/api/v1/session/{sids[0]}?token={keys.text_a}", {}),
            (f"/api/v1/session/%ff?token={keys.text_a}", {}),
            (f"/nothing?token={keys.text_a}", {}),
            (f"/api/v1/history?token={wrong}", {}),
            (f"/ws/asr?token={keys.text_a}", {}),
            (f"/ws/asr?token={wrong}", {}),
            ("/ws/asr", {"Sec-WebSocket-Protocol": f"bearer.{wrong}"}),
            ("/api/v1/history", {"Authorization": f"Bearer {wrong}"}),
            ("/api/v1/history", {"Authorization": f"Basic {wrong}"}),
        ):
            for method in ("GET", "DELETE", "BREW"):
                await http_client.fetch(
                    base + path, headers=headers, method=method, raise_error=False, allow_nonstandard_methods=True
                )
        # A header that is malformed, and one that is none.
        for line in (f"Authorization: Bearer {wrong}\x01", f"Authorization Bearer {wrong}"):
            reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
            writer.write(f"GET /?token={wrong} HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())
            await reader.read()
            writer.close()
            await writer.wait_closed()
        system.children("worker")[0].kill()  # what is in hand then is logged too
        assert await loop.run_in_executor(None, system.stop) == 0
        logs = {"the program": system.output()}
        logs |= {str(path): path.read_text(errors="replace") for path in (directory / "log").iterdir()}
    finally:
        system.close()
    assert len(logs) == 3
    assert all(f"session={sid}" in logs["the program"] for sid in sids)
    assert f"key={keys.a.id}" in logs["the program"]
    assert "refused code=unauthorized" in logs["the program"]
    assert " DEBUG " in logs["the program"]
    secrets = [keys.text_a[17:], keys.text_b[17:], GIVEN, prompt, hotword, *texts]
    for name, text in logs.items():
        for secret in secrets:
            assert secret.lower() not in text.lower(), name


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
