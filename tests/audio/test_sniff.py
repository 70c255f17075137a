"""audio/sniff.py: the kind of some bytes, by their beginning."""

from __future__ import annotations

import numpy as np
import pytest

from asrserver.audio import sniff
from asrserver.errors import AudioError


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


@pytest.mark.parametrize("data", [b"%PDF-1.7", b"\x89PNG\r\n", b"PK\x03\x04", b"hello, world! " * 20])
def test_what_is_certainly_no_audio(data: bytes) -> None:
    with pytest.raises(AudioError) as caught:
        sniff.reject_non_audio(data)
    assert caught.value.code == "not_audio"


@pytest.mark.parametrize("data", [bytes(100), b"short text", b"\xff\xff" * 50])
def test_what_may_be_audio(data: bytes) -> None:
    sniff.reject_non_audio(data)
