"""audio/chunking.py: worker and archive must agree on what a chunk is."""

from __future__ import annotations

import pytest

from asrserver.audio import wav
from asrserver.audio.chunking import Chunking, Role

SECOND = 32000
WEBM = b"\x1aE\xdf\xa3" + bytes(60)
MP3 = b"\xff\xfb\x90\x00" + bytes(60)


def chunking(mode: str, format: str = "auto", sample_rate: int = 16000, channels: int = 1) -> Chunking:
    return Chunking(mode, format, sample_rate, channels)


@pytest.mark.parametrize(
    ("mode", "container", "size", "in_container", "role"),
    [
        ("auto", None, SECOND, False, Role.UTTERANCE),
        ("auto", None, SECOND - 1, False, Role.PIECE),
        ("auto", None, 10 * SECOND, True, Role.PIECE),  # of the file before it
        ("auto", "matroska", 100, False, Role.FILE),
        ("auto", "matroska", 100, True, Role.FILE),  # another
        ("chunk", None, 10, False, Role.UTTERANCE),
        ("chunk", None, 10, True, Role.UTTERANCE),
        ("chunk", "wav", 10, False, Role.FILE),
        ("stream", None, 10 * SECOND, False, Role.PIECE),
        ("stream", "ogg", 10 * SECOND, True, Role.PIECE),
    ],
)
def test_roles(mode: str, container: str | None, size: int, in_container: bool, role: Role) -> None:
    assert chunking(mode).role(container, size, in_container) is role


def test_a_second_is_one_of_the_session_s_own_audio() -> None:
    rules = chunking("auto", "pcm_f32le", 48000, 2)
    assert rules.headerless == wav.Format.of("pcm_f32le", 2, 48000)
    assert rules.role(None, 4 * 2 * 48000 - 1, False) is Role.PIECE
    assert rules.role(None, 4 * 2 * 48000, False) is Role.UTTERANCE
    assert chunking("auto").headerless == wav.Format.of("pcm_s16le", 1, 16000)


@pytest.mark.parametrize("mode", ["auto", "chunk", "stream"])
def test_what_opens_a_container(mode: str) -> None:
    """Weak signatures count only where a recording cannot continue, and not if the client sends headerless audio."""
    rules = chunking(mode)
    assert [rules.container(WEBM, first) for first in (True, False)] == ["matroska", "matroska"]
    assert [rules.container(MP3, first) for first in (True, False)] == ["mp3", "mp3" if mode == "chunk" else None]
    assert rules.container(bytes(64), True) is None
    assert chunking(mode, "pcm_s16le").container(WEBM, True) is None


def test_a_file_is_one_file_whatever_its_middle_looks_like() -> None:
    rules = chunking("stream", "file")
    assert [rules.container(WEBM, first) for first in (True, False)] == ["matroska", None]
    assert [rules.container(MP3, first) for first in (True, False)] == ["mp3", None]
    assert rules.codec == "pcm_s16le"
