"""auth/: API keys and their file, addresses, origins, and where to listen."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import tornado.httputil
from click.testing import CliRunner, Result

from asrserver.auth.access import Access, bearer
from asrserver.auth.addresses import address_block, is_loopback
from asrserver.auth.keys import KeyLimits, KeysFile
from asrserver.cli.main import main
from asrserver.cli.startup import check_settings
from asrserver.config import Settings
from asrserver.errors import Refused, SettingError
from tests.api_keys import GIVEN, TLS, Keys

pytestmark = pytest.mark.gen_test(timeout=60)


def test_a_key_opens_and_nothing_else_does(keys: Keys) -> None:
    access = Access(str(keys.path), f"ops:{GIVEN}")
    assert access.authenticate(f"Bearer {keys.text_a}") == keys.a
    assert access.authenticate(f"bearer  {keys.text_b} ") == keys.b
    assert access.authenticate(f"Token {keys.text_b}") == access.authenticate(keys.text_b) == keys.b
    given = access.authenticate(f"Bearer {GIVEN}")
    assert given is not None
    assert (given.id, given.scope) == ("ops", "ops")
    wrong = [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer Bearer {keys.text_a}",
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
    """New keys are accepted, revoked ones are not; a file that is no keys file changes nothing and is logged once."""
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
        ("{", "not a valid keys file"),
        ("[]", "not a valid keys file"),
        ('{"keys": [{"id": "a b", "sha256": "' + "0" * 64 + '"}]}', "id"),
        ('{"keys": [{"id": "a", "sha256": "0"}]}', "sha256"),
        ('{"keys": [{"id": "a", "sha256": "' + "0" * 64 + '", "limits": {"session": 1}}]}', "session is not a limit"),
        ('{"keys": [{"id": "a", "sha256": "' + "0" * 64 + '", "limits": {"sessions": -1}}]}', "negative"),
        ('{"keys": [' + ",".join(['{"id": "a", "sha256": "' + "0" * 64 + '"}'] * 2) + "]}", "the same id"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(SettingError, match=words) as refused:
        Access(str(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_key_of_the_environment_may_be_an_operator_s() -> None:
    access = Access(api_keys=f"app:{GIVEN},ops:{GIVEN}x:operator")
    found = [access.authenticate(f"Bearer {text}") for text in (GIVEN, f"{GIVEN}x")]
    assert [(key.id, key.operator, key.scope) for key in found if key] == [("app", False, "app"), ("ops", True, None)]


@pytest.mark.parametrize(
    "given", [GIVEN, "ops:short", f"a b:{GIVEN}", f":{GIVEN}", f"ops:{GIVEN}ü", f"ops:{GIVEN}:boss", f"ops:{GIVEN}:"]
)
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
        ((None, "token, x", None), ("Bearer x", "token")),
        ((None, "bearer, x, asr.v1", None), ("Bearer x", "bearer, asr.v1")),
        ((None, "realtime, openai-insecure-api-key.x, openai-beta.y", None), ("Bearer x", "realtime, openai-beta.y")),
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
    assert address_block("1.2.3.4") == "1.2.3.4"
    assert address_block("2001:db8:1:2:3::5") == address_block("2001:db8:1:2:4::6") == "2001:db8:1:2::/64"


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
def test_settings_that_stop_the_start(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words) as refused:
        check_settings(Settings(**given), "run")
    assert "\n" not in str(refused.value)


def test_settings_that_may_listen_beyond_loopback() -> None:
    check_settings(Settings(host="0.0.0.0", access_control="off"), "run")
    check_settings(Settings(host="0.0.0.0", api_keys=f"ops:{GIVEN}"), "run")
    check_settings(Settings(tls_cert=str(TLS / "cert.pem"), tls_key=str(TLS / "key.pem")), "run")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("192.168.1.7", True),
        ("localhost:8080", True),
        ("a.localhost", True),
        ("LOCALHOST.", True),
        ("asr:8080", True),  # a name without a dot: of a container, for example
        ("", True),  # HTTP/1.0
        ("evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("[::1].evil.example", False),
        ("[::1]:8080.evil.example", False),
        ("asr.example:1", True),
        ("page.example", True),  # an allowed origin
        (socket.gethostname(), True),
    ],
)
def test_names_of_a_server_without_keys(host: str, expected: bool) -> None:
    assert Access(origins="https://page.example", hosts="asr.example").allows_host(host) is expected
    assert Access(hosts="*").allows_host(host)


def test_a_server_with_keys_may_have_any_name() -> None:
    assert Access(api_keys=f"a:{'k' * 24}").allows_host("evil.example")
