"""Files of every kind that is sent: decoded alike in every mode, or refused by name, and never heard as PCM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, demux, files, library, sniff
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError
from asrserver.gateway import archive_files
from tests.audio.signals import decoded_by_ffmpeg, encode, encode_file, frequency, s16, tone
from tests.audio.streams import AAC, FRAGMENTS, INDEXED, OTHER_CODECS, WHOLE, slices, speech, tolerant


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_stream_is_decoded_whole_and_refused_by_name(name: str, tmp_path: Path) -> None:
    arguments, kind = WHOLE[name]
    data = encode_file(tone(3.0), arguments, tmp_path)
    assert sniff.container(data) == kind
    found = files.decode_file(data, kind, 60)
    assert len(found.samples) / SAMPLE_RATE == pytest.approx(3.0, abs=0.15)
    assert frequency(found.samples) == pytest.approx(440, abs=2)
    (error,) = _refused(kind, data)
    assert error.code == "not_streamable"
    assert sniff.WHOLE[kind] in error.message


@pytest.mark.parametrize("name", OTHER_CODECS)
def test_other_codecs_are_decoded_whole_and_refused_by_name(name: str, tmp_path: Path) -> None:
    arguments, kind = OTHER_CODECS[name]
    data = encode_file(tone(3.0), arguments, tmp_path)
    assert sniff.container(data) == kind
    found = files.decode_file(data, kind, 60)
    assert len(found.samples) / SAMPLE_RATE == pytest.approx(3.0, abs=0.15)
    assert frequency(found.samples) == pytest.approx(440, abs=2)
    assert [error.code for error in _refused(kind, data)] == ["not_streamable"]


def _refused(kind: str, data: bytes) -> list[AudioError]:
    """The errors of a stream without samples: none at its end where there was one before."""
    samples, errors = tolerant(StreamDecoder(kind), slices(data, 1, 3000))
    assert not len(samples)
    return errors


@pytest.mark.parametrize(
    "head",
    [
        b"RIFF\x24\x00\x00\x00QLCM",
        b"\x02#!SILK_V3" + bytes(100),
        b".RMF\0\0\0\x12" + bytes(100),
        b"NIST_1A\n   1024\n" + bytes(100),
        b"Creative Voice File\x1a" + bytes(100),
        b"MThd\0\0\0\x06" + bytes(100),
        b"TTA1" + bytes(100),
    ],
)
def test_what_is_known_and_not_decoded_is_refused(head: bytes) -> None:
    assert sniff.container(head) is None
    with pytest.raises(AudioError):
        sniff.reject_non_audio(head)
    sniff.reject_non_audio(head, first=False)  # what continues PCM may look like anything


def test_pcm_is_not_taken_for_a_container() -> None:
    """Noise of every loudness, silence, tones and speech."""
    random = np.random.default_rng(3)
    for loudness in (0, 1, 3, 100, 3000, 32767):
        for _ in range(300):
            noise = random.integers(-loudness, loudness + 1, 500).astype("<i2").tobytes()
            assert sniff.container(noise) in (None, "mp3", "aac")  # one in 2,000, as ever
    for samples in (tone(1.0), speech()):
        data = s16(samples)
        for at in range(0, len(data) - 1000, 640):
            assert sniff.container(data[at : at + 1000]) is None


def test_quicktime_without_a_type() -> None:
    """Old QuickTime files have no `ftyp`."""
    data = encode(tone(2.0), f"{AAC} {FRAGMENTS}+default_base_moof -f mp4")
    size = int.from_bytes(data[:4], "big")
    bare = data[size:]
    assert bare[4:8] == b"moov"
    assert sniff.container(bare) == "mp4"
    assert len(files.decode(bare, "mp4", 60)) / SAMPLE_RATE == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("arguments", ["-c:a libmp3lame -f mp3", f"{AAC} -f mp4", f"{AAC} {FRAGMENTS} -f mp4"])
def test_damage_in_a_file_costs_itself_alone(arguments: str, tmp_path: Path) -> None:
    """600 bytes of 13 s are overwritten: nearly all is heard, and the error says which seconds are not."""
    data = bytearray(encode_file(np.concatenate([speech()] * 3)[: 13 * SAMPLE_RATE], arguments, tmp_path))
    whole = len(files.decode(bytes(data), sniff.container(bytes(data)) or "", 60))
    at = data.index(b"mdat") + 10000 if b"mdat" in data else len(data) // 4
    data[at : at + 600] = np.random.default_rng(1).bytes(600)
    kind = sniff.container(bytes(data)) or ""
    found = files.decode_file(bytes(data), kind, 60)
    assert len(found.samples) > whole - 0.5 * SAMPLE_RATE
    assert found.damage is not None
    assert found.damage.code == "undecodable_audio"
    assert " s" in found.damage.message
    samples, errors = tolerant(StreamDecoder(kind), slices(bytes(data), 2, 5000))
    assert np.array_equal(samples, found.samples)
    assert errors


def test_damage_names_its_seconds(tmp_path: Path) -> None:
    data = bytearray(encode(tone(8.0), "-c:a libmp3lame -b:a 64k -f mp3"))
    data[32000:32600] = bytes(600)
    found = files.decode_file(bytes(data), "mp3", 60)
    assert found.damage is not None
    assert "at 4.0" in found.damage.message or "from 3.9" in found.damage.message


@pytest.mark.parametrize(
    "arguments",
    ["-c:a libopus -f ogg", "-c:a libvorbis -f ogg", f"{AAC} {FRAGMENTS} -f mp4", "-f flac", "-c:a libopus -f webm"],
)
def test_joined_files_are_heard_to_the_end(arguments: str, tmp_path: Path) -> None:
    """By a server, and by the command line, which decodes files itself."""
    data = encode(tone(2.0), arguments) + encode(tone(3.0), arguments)
    found = files.decode_file(data, sniff.container(data) or "", 60)
    assert len(found.samples) / SAMPLE_RATE == pytest.approx(5.0, abs=0.25)
    assert found.damage is None
    path = tmp_path / "joined"
    path.write_bytes(data)
    assert sum(map(len, files.read_s16(path, 0.5))) == 2 * len(found.samples)


@pytest.mark.parametrize(
    ("first", "second", "form"),
    [
        ("", "", "wav"),
        ("-ar 8000", "-ar 48000 -ac 2", "wav"),
        ("-ar 44100", "-ar 22050 -ac 2", "mp3"),
        ("-ar 44100", "-ar 22050 -ac 2", "adts"),
        ("", "-ar 44100 -ac 2", "flac"),
        ("-c:a libvorbis -ar 44100", "-c:a libvorbis -ar 22050 -ac 2", "ogg"),
    ],
)
def test_joined_files_of_different_rates(first: str, second: str, form: str, tmp_path: Path) -> None:
    parts = [encode_file(tone(2.0), f"{how} -f {form}", tmp_path) for how in (first, second)]
    data = b"".join(parts)
    kind = sniff.container(data) or ""
    found = files.decode_file(data, kind, 60)
    assert found.damage is None
    assert len(found.samples) / SAMPLE_RATE == pytest.approx(4.0, abs=0.25)
    assert frequency(found.samples[-SAMPLE_RATE:]) == pytest.approx(440, abs=2)
    samples, errors = tolerant(StreamDecoder(kind), slices(data, 3, 3000))
    assert not errors
    assert np.array_equal(samples, found.samples)


def test_only_formats_of_speech_are_within_reach(tmp_path: Path) -> None:
    """Neither a demuxer nor a decoder beside the listed ones can be reached, whatever a file is."""
    for arguments in ("-c:a pcm_s16le -f nut", "-c:a tta -f tta"):
        path = tmp_path / "one"
        path.write_bytes(encode_file(tone(1.0), arguments, tmp_path))
        with pytest.raises(AudioError):
            list(files.read_s16(path, 1.0))
    data = encode_file(tone(1.0), "-c:a dca -strict -2 -ar 48000 -f matroska", tmp_path)
    with pytest.raises(AudioError):
        files.decode(data, "matroska", 60)
    assert set(demux.CONTAINERS) - {"mp4", "opus"} <= set(library.FORMATS.split(","))


def test_the_seconds_that_a_file_claims_are_not_believed(tmp_path: Path) -> None:
    with pytest.raises(AudioError) as caught:
        files.decode(encode_file(tone(5.0), "-f caf", tmp_path), "caf", 3)
    assert caught.value.code == "utterance_too_long"


@pytest.mark.parametrize("name", INDEXED)
def test_modes_agree(name: str, tmp_path: Path) -> None:
    """A whole file, and a stream cut anywhere, give the same samples: those of the ffmpeg program."""
    arguments, kind = INDEXED[name]
    data = encode_file(speech(), arguments, tmp_path)
    assert sniff.container(data) == kind
    found = files.decode_file(data, kind, 60)
    assert found.damage is None
    for seed, largest in ((1, 500), (2, 16000)):
        samples, errors = tolerant(StreamDecoder(kind), slices(data, seed, largest))
        assert not errors
        assert np.array_equal(samples, found.samples)
    if name == "m4a-opus":
        return  # whose pre-skip FFmpeg does not cut off: its samples are 4 ms late
    reference = decoded_by_ffmpeg(tmp_path / "file", kind)
    assert len(found.samples) == pytest.approx(len(reference), abs=0.02 * SAMPLE_RATE)
    length = min(len(reference), len(found.samples))
    scale = np.sqrt(0.5) if "stereo" in name else 1.0  # FFmpeg mixes down with a gain, we take the mean
    np.testing.assert_allclose(found.samples[:length], reference[:length] * scale, atol=0.005)


def test_recordings_of_every_kind_can_be_kept() -> None:
    """Each container has a suffix, and each suffix a media type. Packets without a container become Ogg."""
    for kind in {*demux.CONTAINERS, *sniff.WHOLE} - {"opus"}:
        assert archive_files.suffix_of(kind) in archive_files.MEDIA


def test_a_track_that_begins_in_the_middle_spoils_nothing() -> None:
    """The tags of another codec are a track that the head does not name, and PyAV did not know it at the end."""
    first, other = (encode(tone(3.0), f"-c:a {codec} -ar 44100 -f flv") for codec in ("libmp3lame", "pcm_s16le"))
    found = files.decode(first + other[13:], "flv", 60)
    assert len(found) / SAMPLE_RATE == pytest.approx(3.0, abs=0.15)
