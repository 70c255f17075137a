"""stream.py and demux/: streams of bytes, sliced anywhere, become samples."""

from __future__ import annotations

from collections import deque
from itertools import product

import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, files
from asrserver.audio.decoders import PcmStreamDecoder, open_decoder, resume_decoder
from asrserver.audio.stream import StreamDecoder
from tests.audio.signals import decoded_by_ffmpeg, encode, s16
from tests.audio.streams import (
    STREAMS,
    correlation,
    decoded,
    handed_on,
    kind,
    packets_of,
    slices,
    speech,
    stream,
    tolerant,
    whole,
)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_what_ffmpeg_makes_of_the_file(name: str) -> None:
    """Streamed and as a whole file, the samples equal FFmpeg's, up to a few at the end."""
    reference = decoded_by_ffmpeg(stream(name), kind(name))
    for found in (whole(name), files.decode(stream(name), kind(name), 60)):
        assert abs(len(found) - len(reference)) <= (2048 if "vorbis" in name else 64)  # whose end is not trimmed
        length = min(len(found), len(reference))
        scale = np.sqrt(0.5) if "stereo" in name else 1.0  # FFmpeg mixes down with a gain, we take the mean
        np.testing.assert_allclose(found[:length], reference[:length] * scale, atol=0.005)


@pytest.mark.parametrize("name", STREAMS)
def test_slicing_changes_nothing(name: str) -> None:
    """Single bytes, small slices and large ones give bit-identical samples."""
    data = stream(name)
    for seed, largest in enumerate((max(7, len(data) // 5000), 1500, 20000)):
        assert np.array_equal(decoded(StreamDecoder(kind(name)), slices(data, seed, largest)), whole(name))
    short = data[:6000]
    one_by_one = decoded(StreamDecoder(kind(name)), (short[at : at + 1] for at in range(len(short))))
    assert np.array_equal(one_by_one, decoded(StreamDecoder(kind(name)), [short]))


@pytest.mark.parametrize("name", STREAMS)
def test_samples_come_as_soon_as_they_can(name: str) -> None:
    """After three quarters of the bytes there are about three quarters of the samples; none waits for the end."""
    data = stream(name)
    decoder = StreamDecoder(kind(name))
    found = len(decoder.feed(data[: len(data) * 3 // 4]))
    assert found == decoder.position
    assert found > 0.55 * len(whole(name))


@pytest.mark.parametrize(
    ("format", "channels", "rate"),
    [
        *product(("pcm_s16le", "pcm_f32le"), (1, 2), (8000, 16000, 22050, 44100, 48000)),
        ("pcm_mulaw", 1, 8000),
        ("pcm_mulaw", 2, 16000),
    ],
)
def test_raw_pcm(format: str, channels: int, rate: int) -> None:
    """Any slicing, and a resume anywhere by this version or by one that decoded all PCM alike, gives the same
    numbers."""
    random = np.random.default_rng(rate)
    samples = random.uniform(-0.9, 0.9, rate * channels * 2).astype(np.float32)
    data = {"pcm_s16le": s16(samples), "pcm_f32le": samples.astype("<f4").tobytes()}.get(format, s16(samples)[1::2])
    wanted = decoded(StreamDecoder(format, rate, channels), [data])
    assert abs(len(wanted) - 2 * SAMPLE_RATE) <= 2
    opened = open_decoder(format, rate, channels)
    assert isinstance(opened, PcmStreamDecoder) == (rate == SAMPLE_RATE)
    for decoder in (StreamDecoder(format, rate, channels), opened):
        found, at = [], 0
        for piece in slices(data, rate, 9000):
            found.append(decoder.feed(piece))
            at += len(piece)
            point = handed_on(decoder.resume_point(decoder.position))
            assert point.offset <= at
            for resume in (StreamDecoder.resume, resume_decoder):
                resumed = decoded(resume(point), [data[point.offset :]])
                assert np.array_equal(resumed, wanted[point.sample :])
        assert point.sample > SAMPLE_RATE
        assert np.array_equal(np.concatenate([*found, decoder.flush()]), wanted)
    short = data[:3001]
    one_by_one = decoded(open_decoder(format, rate, channels), (short[at : at + 1] for at in range(len(short))))
    assert np.array_equal(one_by_one, decoded(StreamDecoder(format, rate, channels), [short]))


@pytest.mark.parametrize("options", ["-b:a 24k -application voip", "-b:a 64k -ac 2 -frame_duration 60"])
def test_packets_of_opus_without_a_container(options: str) -> None:
    """Each push is a packet. The samples are those of the file, and a takeover goes on with any packet."""
    file = encode(speech(), f"-c:a libopus {options} -f ogg")
    packets = packets_of(file)
    decoder = StreamDecoder("opus")
    found, at = [], 0
    for packet in packets:
        found.append(decoder.feed(packet))
        at += len(packet)
    wanted = decoded(StreamDecoder("ogg"), [file])
    skip = 104  # which the file says are none
    assert correlation(np.concatenate(found)[skip : len(wanted) + skip], wanted) > 0.999
    point = handed_on(decoder.resume_point(decoder.position // 2))
    passed, rest = 0, deque(packets)
    while passed < point.offset:
        passed += len(rest.popleft())
    assert passed == point.offset > 0
    successor = StreamDecoder.resume(point)
    resumed = np.concatenate([successor.feed(packet) for packet in rest])
    assert correlation(resumed, np.concatenate(found)[point.sample :]) > 0.999


def test_what_is_no_packet_of_opus_costs_itself() -> None:
    packets = packets_of(encode(speech(), "-c:a libopus -f ogg"))
    samples, errors = tolerant(StreamDecoder("opus"), [*packets[:50], b"\3", b"", *packets[50:]])
    assert [error.code for error in errors] == ["undecodable_audio"]
    assert len(samples) == pytest.approx(len(packets) * 320, abs=320)


def test_a_resume_point_of_plain_pcm_is_exact() -> None:
    """There is a point for every sample, also after an earlier point."""
    decoder = open_decoder("pcm_s16le", SAMPLE_RATE, 1)
    decoder.feed(bytes(2 * 1000 + 1))
    assert [(one.offset, one.sample) for one in map(decoder.resume_point, (-5, 0, 777, 2000))] == [
        (0, 0), (0, 0), (2 * 777, 777), (2 * 1000, 1000),
    ]  # fmt: skip
    successor = resume_decoder(decoder.resume_point(777))
    successor.feed(bytes(2 * 23 + 1))
    assert successor.position == 800
    assert [(one.offset, one.sample) for one in map(successor.resume_point, (0, 790))] == [
        (2 * 777, 777),
        (2 * 790, 790),
    ]


def test_a_resume_point_of_stereo_is_the_beginning_of_a_block() -> None:
    """How two channels are mixed is decided for 20 ms at a time."""
    decoder = open_decoder("pcm_s16le", SAMPLE_RATE, 2)
    decoder.feed(bytes(4 * 1000))
    assert decoder.position == 960
    assert decoder.resume_point(777).sample == 640
    assert len(decoder.flush()) == 40


def test_pcm_that_is_no_number() -> None:
    data = np.array([np.nan, np.inf, -np.inf, 5, 0.5], "<f4").tobytes()
    assert np.array_equal(decoded(StreamDecoder("pcm_f32le"), [data]), np.array([0, 0, 0, 1, 0.5], np.float32))
