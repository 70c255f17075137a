"""hotwords.py: the operator's words, from a file, for all sessions and for those of a key."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from asrserver.auth.keys import Key
from asrserver.config import Settings
from asrserver.errors import SettingError
from asrserver.gateway import gateway as gateway_module
from asrserver.gateway import hotwords
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.hotwords import Hotwords, parse
from asrserver.protocol import codec
from asrserver.protocol.options import MAX_TEXT, Options, Start
from tests.fakes import FakeWorker
from tests.waiting import until

FILE = """\ufeff# all
Kubernetes
  Nextcloud   Talk   # two words

[ward]
metoprolol
Kubernetes
[0123456789ab]
Anna
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(FILE, "utf-8")
    return path


def test_the_lines_of_a_file() -> None:
    assert parse(FILE.removeprefix("\ufeff").splitlines(keepends=True)) == {
        "": ["Kubernetes", "Nextcloud Talk"],
        "ward": ["metoprolol", "Kubernetes"],
        "0123456789ab": ["Anna"],
    }


@pytest.mark.parametrize(
    ("own", "key", "expected"),
    [
        ("", None, "Kubernetes, Nextcloud Talk"),
        ("mine", None, "Kubernetes, Nextcloud Talk, mine"),
        ("", Key("x", "other", ""), "Kubernetes, Nextcloud Talk"),
        ("mine", Key("0123456789ab", "ward", ""), "Kubernetes, Nextcloud Talk, metoprolol, Anna, mine"),
        ("m" * (MAX_TEXT - 10), None, "m" * (MAX_TEXT - 10)),
        ("m" * (MAX_TEXT - 16), None, "Nextcloud Talk, " + "m" * (MAX_TEXT - 16)),
    ],
)
def test_the_words_of_a_session(path: Path, own: str, key: Key | None, expected: str) -> None:
    joined = Hotwords(str(path)).join(own, key)
    assert joined == expected
    assert len(joined) <= MAX_TEXT


def test_without_a_file() -> None:
    words = Hotwords("")
    assert not words.reread()
    assert words.join("mine", None) == "mine"


def test_a_file_that_changes(path: Path) -> None:
    words = Hotwords(str(path))
    assert not words.reread()
    path.write_text("Zeppelin\n", "utf-8")
    assert words.reread()
    assert words.join("", None) == "Zeppelin"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff", "is not text in UTF-8"), (b"x" * (hotwords.MAX_FILE_BYTES + 1), "more than"), (None, "No such file")],
)
def test_a_file_that_cannot_be_used(path: Path, content: bytes | None, message: str) -> None:
    """It is told once; the words that were loaded stay."""
    words = Hotwords(str(path))
    if content is None:
        os.unlink(path)
    else:
        path.write_bytes(content)
    with pytest.raises(SettingError, match=message):
        words.reread()
    assert words.join("", None) == "Kubernetes, Nextcloud Talk"
    with pytest.raises(SettingError, match=message):
        Hotwords(str(path))


class TestGateway:
    @pytest.fixture
    def gateway_settings(self, gateway_settings: Settings, path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
        monkeypatch.setattr(gateway_module, "FILES_EVERY", 0.05)
        return replace(gateway_settings, hotwords_file=str(path))

    @pytest.mark.gen_test
    async def test_sessions_have_them(self, gateway: Gateway, worker: FakeWorker, path: Path) -> None:
        """Also those of a file that changed while the gateway runs."""
        rounds = {"a": (FILE, "Kubernetes, Nextcloud Talk, mine"), "b": ("Zeppelin", "Zeppelin, mine")}
        for sid, (content, expected) in rounds.items():
            await asyncio.to_thread(path.write_text, content, "utf-8")
            await until(lambda expected=expected: gateway._hotwords.join("mine", None) == expected)
            await gateway.start(Start(sid, "", Options(hotwords="mine"), False), lambda event: None)
            await worker.take(sid)
            assert codec.decode_options(worker.claims[sid].fields["options"]).hotwords == expected
