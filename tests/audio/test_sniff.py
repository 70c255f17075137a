"""audio/sniff.py: the kind of some bytes, by their beginning."""

from __future__ import annotations

import re

import numpy as np
import pytest

from asrserver.audio import frame_headers, sniff
from asrserver.errors import AudioError
from tests.audio import streams


def test_pcm_is_no_container() -> None:
    """Noise of any kind never contains a strong signature, and a weak one counts only at the start."""
    random = np.random.default_rng(3)
    for _ in range(2000):
        assert sniff.container(random.bytes(64), first=False) is None
    assert sniff.container(b"\xff\xfb\x90\x00" + bytes(60), first=False) is None
    assert sniff.container(b"\xff\xfb\x90\x00" + bytes(60)) == "mp3"
    for sign in (b"\xff\xff" * 50, b"\xff\xfe" * 50, bytes(100), b"", b"\xff"):
        assert sniff.container(sign) is None
    assert sniff.container(b"OggS\x00\x00" + bytes(60)) is None  # a page in the middle


def test_one_header_of_a_frame_proves_nothing() -> None:
    """Where the next is at hand it must follow; noise holds a header in some thousand bytes."""
    random = np.random.default_rng(4)
    for head in (b"\xff\xfb\x90\x00", b"\xff\xfd\x90\x00", b"\xff\xf1\x50\x80\x2e\x7f\xfc", b"\x0b\x77\0\0\x1c\x40"):
        assert sniff.container(head + bytes(30)) is not None
        assert sniff.container(head + random.bytes(5000)) is None
    noise = random.normal(size=(300, 2500))
    for samples in (noise * 3, noise * 1000):
        for one in samples.astype("<i2"):
            assert sniff.container(one.tobytes()) is None
    with pytest.raises(AudioError) as caught:
        sniff.of_file(random.bytes(5000))
    assert caught.value.code == "not_audio"


def test_an_empty_file_is_called_so() -> None:
    with pytest.raises(AudioError, match="the file is empty"):
        sniff.of_file(b"")


@pytest.mark.parametrize("name", ["mp3", "mp3-bare", "mp3-vbr-44k", "aac"])
def test_a_broadcast_begins_within_a_frame(name: str) -> None:
    data = streams.stream(name)
    for at in range(1000, 3000, 137):
        assert sniff.container(data[at:]) == streams.kind(name)


@pytest.mark.parametrize(
    "data",
    [
        *(b"%PDF-1.7", b"\x89PNG\r\n", b"PK\x03\x04", b"hello, world! " * 20, b"MZ\x90\0\x03\0\0\0", b"II*\0\x08"),
        b"BM" + (9000).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + bytes(90),
        "\ufeff你好，世界。\r\n这是一个文本文件。".encode() * 200,
        ("Grüß Gott, schöne Welt.\r\n " * 9).encode("utf-16"),
    ],
)
def test_what_is_certainly_no_audio(data: bytes) -> None:
    with pytest.raises(AudioError) as caught:
        sniff.reject_non_audio(data)
    assert caught.value.code == "not_audio"
    assert re.fullmatch("this is .+, not audio", caught.value.message)


@pytest.mark.parametrize(
    "data",
    [b"\x7f\xfe\x80\x01", b"nut/multimedia container\0", b"\x64\xa3\1\0\x80\x3e\0\0", b"\xf0\0\0\0\xf8rob", b"CWS\x0a"],
)
def test_audio_that_is_not_decoded(data: bytes) -> None:
    with pytest.raises(AudioError, match="not supported") as caught:
        sniff.of_file(data + bytes(100))
    assert caught.value.code == "undecodable_audio"
    sniff.reject_non_audio(data + bytes(100), first=False)


@pytest.mark.parametrize(
    "data", [bytes(100), b"short text", b"\xff\xff" * 50, b"\xff\xfe" * 50, b"\xff\xfe\1\0\2\0\0\0\3\0" * 9]
)
def test_what_may_be_audio(data: bytes) -> None:
    sniff.reject_non_audio(data)


@pytest.mark.parametrize("long", [8, 2000], ids=["one after the other", "all to one"])
def test_no_frame_is_read_again_and_again(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for in event loops: where many frames are in front of something else, each is read a few times."""

    def frame(size: int) -> bytes:
        return bytes((0xFF, 0xF1, 0x50, 0x80 | size >> 11, size >> 3 & 0xFF, (size & 7) << 5, 0xFC, 0))

    count, read = 0, frame_headers.adts_length

    def counted(head: bytes) -> int:
        nonlocal count
        count += 1
        return read(head)

    monkeypatch.setattr(frame_headers, "adts_length", counted)
    data = b"".join(frame(8 if at >= long else long - at) for at in range(0, 4088, 8)) + bytes(8)
    assert frame_headers.container(data) is None
    assert count < 2000
