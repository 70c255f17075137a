"""Two channels become one, and cannot cancel each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, files, pcm, sniff
from asrserver.audio.decoders import open_decoder
from asrserver.audio.stream import StreamDecoder
from asrserver.inference.vad import Endpointer, SegmentEnded
from tests.audio.signals import encode_file, frequency, s16, tone
from tests.audio.streams import AAC, correlation, decoded, slices, speech

OPPOSED = "-af pan=stereo|c0=c0|c1=-1*c0"


@pytest.mark.parametrize(
    "arguments",
    [f"{OPPOSED} {AAC} -f mp4", f"{OPPOSED} -f wav", f"{OPPOSED} -f flac", f"{OPPOSED} -c:a libopus -f webm"],
)
def test_opposed_channels_do_not_cancel(arguments: str, tmp_path: Path) -> None:
    data = encode_file(speech(), arguments, tmp_path)
    kind = sniff.container(data) or ""
    found = files.decode(data, kind, 60)
    streamed = decoded(StreamDecoder(kind), slices(data, 1, 3000))
    for samples in (found, streamed):
        assert np.sqrt(np.mean(samples**2)) > 0.8 * np.sqrt(np.mean(speech() ** 2))
    if "wav" in arguments:
        assert correlation(found, speech()) > 0.999


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_headerless_pcm_with_opposed_channels(rate: int) -> None:
    one = tone(1.003, rate)
    data = s16(np.stack([one, -one], axis=1).reshape(-1))
    whole = decoded(open_decoder("pcm_s16le", rate, 2), [data])
    assert frequency(whole) == pytest.approx(440, abs=2)
    assert len(whole) == pytest.approx(1.003 * SAMPLE_RATE, abs=3)
    for seed in range(3):
        assert np.array_equal(decoded(open_decoder("pcm_s16le", rate, 2), slices(data, seed, 900)), whole)


def test_other_channels_are_their_mean() -> None:
    """Equal, different, or with noise of their own; only what is nearly an inversion is subtracted."""
    random = np.random.default_rng(1)
    one, other = tone(1.0), random.uniform(-0.5, 0.5, SAMPLE_RATE).astype(np.float32)
    for left, right in (
        (one, one),
        (one, other),
        (one, np.zeros_like(one)),
        (one, np.float32(-0.5) * one),
        (other, other),
    ):
        np.testing.assert_allclose(pcm.pair(left, right, 320), (left + right) / 2, atol=1e-7)
    np.testing.assert_allclose(pcm.pair(one, -one, 320), one, atol=1e-7)
    half = np.concatenate([one[:8000], -one[8000:]])
    np.testing.assert_allclose(pcm.pair(one, half, 320), one, atol=1e-7)


def found(samples: np.ndarray) -> list[tuple[int, int]]:
    endpointer = Endpointer(0.5)
    events = endpointer.feed(samples) + endpointer.flush()
    return [(event.start, event.end) for event in events if isinstance(event, SegmentEnded)]


def quiet_speech() -> np.ndarray:
    """As of someone far from the microphone."""
    quiet: np.ndarray = speech() * np.float32(0.006 / np.sqrt(np.mean(speech() ** 2)))
    return quiet


def test_an_offset_does_not_hide_quiet_speech() -> None:
    """A sound card's constant voltage is louder than who speaks far from the microphone."""
    wanted = found(quiet_speech())
    assert wanted
    for offset in (0.02, -0.05, 0.2):
        segments = found(quiet_speech() + np.float32(offset))
        assert len(segments) == len(wanted)
        np.testing.assert_allclose(segments, wanted, atol=0.2 * SAMPLE_RATE)


@pytest.mark.parametrize("hertz", [20, 30, 50])
def test_rumble_neither_hides_speech_nor_becomes_it(hertz: int) -> None:
    """Traffic, wind or mains hum, 10 dB louder than the speech of someone far from the microphone."""
    times = np.arange(len(speech())) / SAMPLE_RATE
    rumble = (0.027 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)
    assert found(rumble) == []
    segments, wanted = found(quiet_speech() + rumble), found(quiet_speech())
    assert len(segments) == len(wanted)
    np.testing.assert_allclose(segments, wanted, atol=0.2 * SAMPLE_RATE)
