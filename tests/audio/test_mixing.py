"""Channels become one: they cannot cancel each other, and quiet ones do not make others quiet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, files, library, sniff
from asrserver.audio.codec import Codec, samples_of
from asrserver.audio.decoders import open_decoder
from asrserver.audio.demux.base import Track
from asrserver.audio.mixing import mix
from asrserver.audio.pcm import Samples
from asrserver.audio.selection import MIXED, Selection
from asrserver.audio.stream import StreamDecoder
from asrserver.inference.vad import Endpointer, SegmentEnded
from tests.audio.signals import encode, encode_file, frequency, s16, tone
from tests.audio.streams import AAC, correlation, decoded, slices, speech

#: Two channels that are not the same, of which one is silent at times.
SPREAD = "-af pan=stereo|c0=c0|c1=0.5*c0,agate,adelay=0|5"

#: Samples of a block.
BLOCK = 320


def mixed(channels: Sequence[Samples], gains: Samples | None = None) -> Samples:
    return mix(np.stack(channels), [BLOCK] * (len(channels[0]) // BLOCK), gains)


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
    """Equal, different, or with noise of their own; only what nearly cancels is inverted."""
    random = np.random.default_rng(1)
    one, other = tone(1.0), random.uniform(-0.5, 0.5, SAMPLE_RATE).astype(np.float32)
    for left, right in ((one, one), (one, other), (one, np.float32(-0.5) * one), (other, other)):
        np.testing.assert_allclose(mixed([left, right]), (left + right) / 2, atol=1e-7)
    np.testing.assert_allclose(mixed([one, -one]), one, atol=1e-7)
    half = np.concatenate([one[:8000], -one[8000:]])
    np.testing.assert_allclose(mixed([one, half]), one, atol=1e-7)


def test_channels_without_sound_make_nobody_quieter() -> None:
    """One of six microphones is in use, or one side of a stereo cable is dead: quiet speech would not be found."""
    one, nothing = tone(1.0), np.zeros(SAMPLE_RATE, np.float32)
    noise = np.random.default_rng(1).normal(0, 1e-5, SAMPLE_RATE).astype(np.float32)
    for channels in ([one, nothing], [nothing, one], [nothing, noise, one, nothing, noise, nothing]):
        np.testing.assert_allclose(mixed(channels), one, atol=1e-7)
    assert not mixed([nothing, nothing]).any()


def test_more_than_two_channels_do_not_cancel() -> None:
    """In 5.1, and in the microphones of a conference, some may be inverted too."""
    one, nothing = tone(1.0), np.zeros(SAMPLE_RATE, np.float32)
    surround = np.array([0.5, 0.5, 0.7, 0.0, 0.35, 0.35], np.float32)
    for channels, gains, wanted in (
        ([one, -one, one, -one], None, 1.0),
        ([one, nothing, -one, nothing], None, 1.0),
        ([one, -one, nothing, nothing, nothing, nothing], surround, 1.0),
        ([one, one, one, nothing, nothing, nothing], surround, 1.7),
    ):
        np.testing.assert_allclose(mixed(channels, gains), np.float32(wanted) * one, atol=1e-6)
    data = s16(np.stack([one, -one, nothing, nothing], axis=1).reshape(-1))
    whole = decoded(open_decoder("pcm_s16le", 16000, 4), [data])
    assert np.array_equal(decoded(open_decoder("pcm_s16le", 16000, 4), slices(data, 1, 900)), whole)
    assert np.sqrt(np.mean(whole**2)) > 0.9 * np.sqrt(np.mean(one**2))


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


def test_blocks_are_mixed_alike_however_many_come_together() -> None:
    one, nothing = tone(0.02), np.zeros(320, np.float32)
    other = np.random.default_rng(1).normal(0, 0.1, 320).astype(np.float32)
    blocks = ([one, -one], [one, other], [one, nothing], [nothing, nothing])
    together = [np.concatenate(channel) for channel in zip(*blocks, strict=True)]
    for gains in (None, np.array([0.5, 0.7], np.float32)):
        apart = np.concatenate([mixed(block, gains) for block in blocks])
        np.testing.assert_array_equal(mixed(together, gains), apart)


@pytest.mark.parametrize(
    "arguments", [f"{AAC} -f adts", "-c:a libvorbis -f ogg", "-f flac", "-c:a libopus -f ogg -ac 6"]
)
@pytest.mark.parametrize("selection", [MIXED, Selection(separate=True)])
def test_frames_are_converted_alike_however_many_come_together(arguments: str, selection: Selection) -> None:
    data = encode(speech(), f"{SPREAD} {arguments}")
    with library.opened(io.BytesIO(data)) as source:
        frames = [frame for packet in source.demux(source.streams.audio[0]) for frame in packet.decode()]
    apart = np.concatenate([samples_of([frame], selection) for frame in frames])
    np.testing.assert_array_equal(samples_of(frames, selection), apart)


def test_frames_of_a_packet_that_are_unlike_each_other() -> None:
    """They would be converted as one of them: the packet is damaged."""
    codec = Codec(Track("aac"))
    frames = [av.AudioFrame(format=format, layout="mono", samples=100) for format in ("fltp", "s16")]
    for frame in frames:
        frame.sample_rate = SAMPLE_RATE
    codec._context = SimpleNamespace(decode=lambda packet: frames)
    assert codec.decode(b"packet") is None
    assert "changes" in codec.reason
