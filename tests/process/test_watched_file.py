"""watched_file.py: a file is read again when it has changed, and when it could not be read."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from asrserver.auth.access import Access
from asrserver.errors import SettingError
from asrserver.process import watched_file
from asrserver.process.watched_file import WatchedFile
from tests.api_keys import Keys


def fail_to_read(*_arguments: Any, **_options: Any) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it has not changed since; the reason is told once."""
    path = tmp_path / "words"
    path.write_text("one")
    file = WatchedFile("--words", str(path), 10)
    with monkeypatch.context() as patched:
        patched.setattr(watched_file, "open", fail_to_read, raising=False)
        with pytest.raises(SettingError, match=f"--words {path}: Too many open files"):
            file.read_changed()
        assert file.read_changed() is None
    assert file.read_changed() == "one"
    assert file.read_changed() is None


def test_a_revoked_key_is_known_though_the_file_could_not_be_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(tmp_path / "keys.json")
    access = Access(str(keys.path))
    keys.file.revoke(keys.a.id)
    with monkeypatch.context() as patched:
        patched.setattr(watched_file, "open", fail_to_read, raising=False)
        with pytest.raises(SettingError, match="Too many open files"):
            access.reread()
        assert access.key(keys.a.id) is not None
    assert access.reread()
    assert access.key(keys.a.id) is None


def test_a_file_of_keys_that_is_gone_is_told_once(tmp_path: Path) -> None:
    """It was told every second; its keys stay valid."""
    keys = Keys(tmp_path / "keys.json")
    access = Access(str(keys.path))
    kept = keys.path.read_text()
    keys.path.unlink()
    with pytest.raises(SettingError, match=r"keys\.json: No such file or directory; asrserver keys create creates it"):
        access.reread()
    assert not access.reread()
    assert access.key(keys.a.id) is not None
    keys.path.write_text(kept)
    assert access.reread()


def test_what_is_wrong_with_a_file_is_told_once_for_each_change(tmp_path: Path) -> None:
    path = tmp_path / "words"
    file = WatchedFile("--words", str(path), 10)
    for content, what in ((None, "No such file"), (b"\xff", "UTF-8"), (b"x" * 11, "more than 10 bytes")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SettingError, match=what):
            file.read_changed()
        assert file.read_changed() is None
    path.write_text("two")
    assert file.read_changed() == "two"
