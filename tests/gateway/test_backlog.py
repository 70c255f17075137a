"""backlog.py: seconds of audio estimated from bytes, and how many of them wait."""

from __future__ import annotations

import pytest

from asrserver.audio.chunking import COMPRESSED_BYTES_PER_SECOND
from asrserver.audio.wav import Format, encode
from asrserver.gateway.backlog import TRANSIT_SECONDS, Backlog
from asrserver.gateway.rate_limits import RateMeter
from tests.recordings import Utterance

pytestmark = pytest.mark.gen_test(timeout=60)


def length(backlog: Backlog) -> float:
    """Seconds of audio of session s so far."""
    return backlog.measure("s", b"", 0, 32000)[1]


@pytest.mark.parametrize(("offset", "claim"), [(28, 2**32 - 1), (28, 0), (32, 65535)])
def test_a_wav_cannot_claim_to_be_short(offset: int, claim: int) -> None:
    """The byte rate follows from the other fields: with a false one, hours of audio would count as nothing."""
    wav = bytearray(Utterance("", "", bytes(64000)).wav)
    wav[offset : offset + 4] = claim.to_bytes(4, "little")
    wav[34:36] = (16).to_bytes(2, "little")
    assert Backlog().measure("s", bytes(wav), 64000, 96000)[0] == 2.0


def test_a_wav_that_cannot_be_counts_as_what_is_compressed() -> None:
    wav = bytearray(Utterance("", "", bytes(64000)).wav)
    wav[22:24] = (65535).to_bytes(2, "little")
    assert Backlog().measure("s", bytes(wav), 64000, 96000)[0] == 64000 / COMPRESSED_BYTES_PER_SECOND


def test_seconds_of_audio_by_its_bytes() -> None:
    """A WAV counts by its header, compressed audio by an estimate, until results give the length."""
    backlog = Backlog()
    wav = Utterance("", "", bytes(64000)).wav
    assert backlog.measure("s", wav, len(wav), 96000)[0] == pytest.approx(2.0, abs=0.01)
    assert backlog.measure("s", bytes(96), 96000, 96000)[0] == 1.0
    assert backlog.measure("s", b"OggS\0\2", 8000, 96000)[0] == 8000 / COMPRESSED_BYTES_PER_SECOND
    backlog.taken("s", 0, b"OggS\0\2", 8000, 96000, live=False)
    assert backlog.waiting("s") == length(backlog) == 1.0
    backlog.answered("s", 0, 4.0)
    assert (backlog.waiting("s"), length(backlog)) == (0.0, 4.0)
    assert backlog.measure("s", bytes(8), 8000, 96000)[0] == 4.0
    for index in (1, 2, 3):
        backlog.taken("s", index, bytes(8), 2000, 96000, live=False)
    backlog.progressed("s", 2, 6.0)
    assert (backlog.waiting("s"), length(backlog)) == (1.0, 7.0)
    backlog.over("s")
    assert length(backlog) == 0.0


def test_seconds_of_a_session_that_came_from_another_gateway() -> None:
    backlog = Backlog()
    backlog.restore("s", 100.0, 32000, live=False)
    backlog.taken("s", 7, bytes(8), 32000, 32000, live=False)
    backlog.taken("s", 8, bytes(8), 32000, 32000, live=False)
    assert (backlog.waiting("s"), length(backlog)) == (2.0, 102.0)
    backlog.answered("s", 7, 101.0)
    assert (backlog.waiting("s"), length(backlog)) == (1.0, 102.0)


def test_what_is_on_its_way_is_no_backlog() -> None:
    """A stream is read once a second and reported every two; of files, everything without a result waits."""
    backlog = Backlog()
    for sid, live in (("stream", True), ("files", False)):
        backlog.taken(sid, 0, bytes(8), int(3.5 * 32000), 32000, live)
    assert backlog.seconds == 3.5
    backlog.taken("stream", 9, bytes(8), 32000, 32000, live=True)
    assert backlog.seconds == 3.5 + 3.5 + 1.0 - TRANSIT_SECONDS
    assert backlog.waiting("stream") == 4.5
    backlog.restore("resumed", 100.0, 32000, live=True)
    backlog.taken("resumed", 0, bytes(8), int(3.5 * 32000), 32000, live=True)
    assert backlog.seconds == 3.5 + 3.5 + 1.0 - TRANSIT_SECONDS


def test_bytes_without_audio_cost_next_to_nothing() -> None:
    """A picture in a file's tags, which is read first: it is no backlog, and what it seemed to be is given back."""
    backlog = Backlog()
    refunds: list[float] = []
    backlog.on_shorter = lambda sid, seconds: refunds.append(seconds)
    backlog.taken("s", 0, b"ID3\4" + bytes(100), 800_000, 32000, live=True)
    assert backlog.waiting("s") == 100.0
    backlog.progressed("s", 0, 0.0)
    assert refunds == [100.0]
    assert backlog.measure("s", bytes(8), 5_200_000, 32000)[0] == 6.5
    backlog.taken("s", 1, bytes(8), 80_000, 32000, live=True)
    backlog.progressed("s", 1, 10.0)
    assert len(refunds) == 1  # ten seconds of audio are ten seconds
    assert length(backlog) == 10.0


def test_plain_pcm_is_never_given_back() -> None:
    backlog = Backlog()
    refunds: list[float] = []
    backlog.on_shorter = lambda sid, seconds: refunds.append(seconds)
    backlog.taken("s", 0, bytes(8), 320_000, 32000, live=True)
    backlog.progressed("s", 0, 5.0)
    assert not refunds


def test_a_refund_makes_room() -> None:
    meter = RateMeter(2.0, 30.0)
    meter.record(750.0)
    assert meter.debt > 300
    meter.refund(740.0)
    assert meter.debt == 0.0
    assert meter.lead < 11


def test_each_channel_that_is_recognised_counts() -> None:
    """A WAV of two channels is twice as much work as its length says, if they are recognised separately."""
    wav = encode(Format.of("pcm_s16le", 2, 16000), bytes(64000))
    assert Backlog().measure("s", wav, 64000, 32000)[0] == 1.0
    assert Backlog().measure("s", wav, 64000, 32000, True)[0] == 2.0
    backlog = Backlog()
    backlog.taken("s", 0, wav, 64000, 32000, False, separate=True)
    assert backlog.waiting("s") == 2.0
