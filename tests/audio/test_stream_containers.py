"""Containers that hold more than one stream of audio, or unusual values."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, files, sniff
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError
from tests.audio.signals import encode, frequency, s16, tone
from tests.audio.streams import FRAGMENTS, correlation, decoded, sized, slices, speech, stream, whole


@pytest.mark.parametrize(
    ("arguments", "muxer"),
    [
        ("-c:a aac", "mp4"),
        ("-c:a aac -movflags faststart", "mp4"),
        ("-c:a aac -movflags frag_keyframe -frag_duration 500000", "mp4"),
        ("-c:a aac -ar 44100 -ac 2", "mov"),
    ],
)
def test_a_whole_mp4_file(arguments: str, muxer: str, tmp_path: Path) -> None:
    """Its index is at the end, at the beginning or in fragments; sliced and whole give the same samples."""
    file = tmp_path / "file"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-"]
    subprocess.run([*command, *arguments.split(), "-f", muxer, file], input=s16(speech()), check=True)
    data = file.read_bytes()
    reference = files.decode(data, "mp4", 60)
    decoder = StreamDecoder("mp4")
    found = decoded(decoder, slices(data, 1, 1500))
    assert abs(len(found) - len(reference)) <= 1100
    length = min(len(found), len(reference))
    assert correlation(found[:length], reference[:length]) > 0.999
    assert np.array_equal(decoded(StreamDecoder("mp4"), [data]), found)
    point = decoder.resume_point(decoder.position)
    resumed = decoded(StreamDecoder.resume(point), [data[point.offset :]])
    assert len(resumed) == len(found) - point.sample


def test_video_is_passed_over() -> None:
    """The sound of a screen recording is decoded."""
    for arguments, container in (
        ("-c:v libvpx -c:a libopus -f webm -live 1", "matroska"),
        (f"{FRAGMENTS} -f mp4", "mp4"),
    ):
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-v",
            "error",
            "-f",
            "lavfi",
            "-i",
            "testsrc=duration=3:size=96x72:rate=5",
        ]
        command += ["-f", "lavfi", "-i", "sine=frequency=440:duration=3", "-map", "0", "-map", "1"]
        data = subprocess.run([*command, *arguments.split(), "-"], stdout=subprocess.PIPE, check=True).stdout
        found = decoded(StreamDecoder(container), slices(data, 1, 1500))
        reference = files.decode(data, container, 60)
        assert abs(len(found) - len(reference)) <= 64
        assert frequency(found) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("arguments", ["-ac 8 -f flac", "-c:a libvorbis -ac 8 -f ogg"])
def test_eight_channels(arguments: str) -> None:
    """FFmpeg's frames have room for eight planes; PyAV 18 reports more planes than exist."""
    data = encode(tone(2.0), arguments)
    kind = sniff.container(data)
    assert kind is not None
    found = decoded(StreamDecoder(kind), slices(data, 1, 1500))
    assert len(found) / SAMPLE_RATE == pytest.approx(2.0, abs=0.15)
    assert frequency(found) == pytest.approx(440, abs=2)
    assert np.abs(found).max() < 1


@pytest.mark.parametrize("field", ["number", "rate"])
def test_numbers_that_cannot_be(field: str) -> None:
    """A track number of nine bytes and an impossible rate are refused: the resume point would be no JSON."""
    data = bytearray(stream("mkv-pcm"))
    if field == "rate":
        at = data.index(b"\xb5\x88") + 2
        data[at : at + 8] = struct.pack(">d", float("nan"))
    else:  # the track's number takes the place of its flags too
        at = data.index(b"\xae") + 1
        at = data.index(b"\xd7\x81", at)
        data[at : at + 2] = b"\xd7\x8d"  # thirteen bytes
    with pytest.raises(AudioError):
        decoded(StreamDecoder("matroska"), slices(bytes(data), 1, 1500))


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_whose_header_does_not_know_its_length(size: int) -> None:
    data = bytearray(stream("wav"))
    at = data.index(b"data")
    data[at + 4 : at + 8] = data[4:8] = size.to_bytes(4, "little")
    assert np.array_equal(decoded(StreamDecoder("wav"), slices(bytes(data), 1, 999)), whole("wav"))


def test_what_follows_the_samples_of_a_wav_is_no_audio() -> None:
    """This also holds for a decoder that was resumed just before it."""
    data = sized(stream("wav")) + b"LIST\x09\x00\x00\x00INFOabcde\x00"
    assert np.array_equal(decoded(StreamDecoder("wav"), slices(data, 1, 999)), whole("wav"))
    decoder = StreamDecoder("wav")
    decoder.feed(data[:-100])
    point = decoder.resume_point(decoder.position)
    resumed = decoded(StreamDecoder.resume(point), [data[point.offset :]])
    assert np.array_equal(resumed, whole("wav")[point.sample :])


def test_an_mp3_s_pictures_and_tags_are_no_audio() -> None:
    picture = b"ID3\x04\x00\x00" + bytes((0, 30, 0, 0)) + b"\xff\xfb\x90\x00" * (30 * 16384 // 4)
    data = picture + stream("mp3-bare") + b"TAG" + bytes(125)
    assert np.array_equal(decoded(StreamDecoder("mp3"), slices(data, 1, 5000)), whole("mp3-bare"))
