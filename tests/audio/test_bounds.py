"""bounds.py: no channel count, rate or layout in a header can end the process, on any path to a decoder."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, bounds, files, sniff
from asrserver.audio.bounds import MAX_CHANNELS, MAX_RATE, MIN_RATE, ImplausibleAudio
from asrserver.audio.codec import check_frame, samples_of
from asrserver.audio.demux.base import Packet, Track
from asrserver.audio.demux.flac import Flac
from asrserver.audio.pcm import PcmDecoder, Resampler
from asrserver.audio.recording import TrackDecoder
from asrserver.audio.selection import MIXED
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError
from asrserver.gateway import archive_files, archive_parts
from tests.audio.signals import encode, frequency, tone

#: (format tag, bits a sample) of WAV: PCM, floating point, A-law, µ-law, and ADPCM of two kinds.
FORMATS = [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64), (6, 8), (7, 8), (2, 4), (17, 4)]
PLAIN = FORMATS[:8]


def wav(channels: int, rate: int, tag: int = 1, bits: int = 16, size: int = 4000) -> bytes:
    """A WAV file of noise whose header claims this format, as far as its fields can hold it."""
    frame = channels * bits // 8
    fmt = struct.pack("<IHHIIHH", 16, tag, channels, rate, rate * frame & 0xFFFFFFFF, frame & 0xFFFF, bits)
    body = b"WAVEfmt " + fmt + b"data" + struct.pack("<I", size) + np.random.default_rng(channels).bytes(size)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def whole(data: bytes, _: Path) -> int:
    """Decode a chunk that is a file, as a worker does; return the number of samples."""
    return len(files.decode(data, sniff.container(data) or "", 60))


def streamed(data: bytes, _: Path) -> int:
    """Decode a stream of pieces, as a worker does."""
    decoder = StreamDecoder(sniff.container(data) or "")
    return sum(len(decoder.feed(data[at : at + 700])) for at in range(0, len(data), 700)) + len(decoder.flush())


def read(data: bytes, folder: Path) -> int:
    """Read a file as the command line and the load tester do."""
    path = folder / "audio"
    path.write_bytes(data)
    assert files.probe(path).seconds >= 0
    return sum(map(len, files.read_s16(path, 0.5))) // 2


WAYS = [whole, streamed, read]
Way = Callable[[bytes, Path], int]


def refusal(way: Way, data: bytes, folder: Path) -> str:
    """The error message for a format."""
    with pytest.raises(AudioError) as caught:
        way(data, folder)
    assert caught.value.code == "undecodable_audio"
    return caught.value.message


def test_the_bounds() -> None:
    accepted = [channels for channels in range(65536) if not _refused(channels, SAMPLE_RATE)]
    assert accepted == list(range(1, MAX_CHANNELS + 1))
    rates = [0, 1, MIN_RATE - 1, MIN_RATE, 8000, 44100, 192000, MAX_RATE, MAX_RATE + 1, 655350, 2**27, 2**32 - 1]
    assert [rate for rate in rates if not _refused(1, rate)] == [MIN_RATE, 8000, 44100, 192000, MAX_RATE]


def _refused(channels: int, rate: int) -> bool:
    try:
        bounds.check(channels, rate)
    except ImplausibleAudio:
        return True
    return False


def outcome(way: Way, data: bytes, folder: Path) -> int | str:
    """The number of samples, or the code of the error."""
    try:
        return way(data, folder)
    except AudioError as exc:
        return exc.code


@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_channels(way: Way, tmp_path: Path) -> None:
    """Every format gives audio or an error that names the number of channels; the process survives."""
    random = np.random.default_rng(16)
    drawn = random.integers(0, 65536, 40).tolist() + random.integers(33, 300, 40).tolist()
    for channels in [*range(34), 63, 64, 65, 128, 178, 254, 255, 256, 512, 65535, *drawn]:
        for tag, bits in FORMATS if channels < 300 else PLAIN[:2]:
            data = wav(channels, SAMPLE_RATE, tag, bits)
            if not 1 <= channels <= MAX_CHANNELS:
                assert f"the audio claims {channels} channels" in refusal(way, data, tmp_path)
            elif (tag, bits) in PLAIN:
                assert way(data, tmp_path) == 4000 // (channels * bits // 8)
            else:
                assert outcome(way, data, tmp_path) in {"undecodable_audio", "not_streamable", *range(8001)}


@pytest.mark.parametrize("way", WAYS)
def test_any_rate(way: Way, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    drawn = np.exp(random.uniform(0, np.log(2**32), 60)).astype(np.int64).tolist()
    edges = [
        0,
        1,
        100,
        MIN_RATE - 1,
        MIN_RATE,
        7999,
        11025,
        96000,
        MAX_RATE,
        MAX_RATE + 1,
        655350,
        134_217_728,
        2**32 - 1,
    ]
    for rate in [*edges, *drawn]:
        data = wav(1, rate)
        if MIN_RATE <= rate <= MAX_RATE:
            assert way(data, tmp_path) == pytest.approx(2000 * SAMPLE_RATE / rate, abs=2)
        else:
            assert f"the audio claims {rate} samples/s" in refusal(way, data, tmp_path)


def flac(rate: int) -> bytes:
    """A FLAC file whose STREAMINFO claims this format; its frames refer to it for the rate."""
    data = bytearray(encode(tone(1.0), "-f flac"))
    at = data.index(b"fLaC") + 8 + 10
    data[at : at + 3] = (rate << 4 | data[at + 2] & 0x0F).to_bytes(3, "big")
    return bytes(data)


def matroska(channels: int) -> bytes:
    """PCM whose track entry claims this format."""
    data = bytearray(encode(tone(1.0), "-c:a pcm_s16le -ac 2 -f matroska"))
    data[data.index(b"\x9f\x81\x02") + 2] = channels
    return bytes(data)


def mp4(channels: int) -> bytes:
    """AAC whose sample entry claims this format."""
    data = bytearray(encode(tone(1.0), "-c:a aac -movflags frag_keyframe+empty_moov -f mp4"))
    at = data.index(b"mp4a") + 4 + 16
    data[at : at + 2] = struct.pack(">H", channels)
    return bytes(data)


def quicktime(channels: int) -> bytes:
    """PCM in QuickTime whose sample entry claims this format."""
    data = bytearray(encode(tone(1.0), "-c:a pcm_u8 -movflags frag_keyframe+empty_moov -f mov"))
    at = data.index(b"raw ") + 4 + 16
    data[at : at + 2] = struct.pack(">H", channels)
    return bytes(data)


def opus(channels: int) -> bytes:
    """WebM whose OpusHead claims this format, but whose track entry does not."""
    data = bytearray(encode(tone(1.0), "-c:a libopus -f webm"))
    data[data.index(b"OpusHead") + 9] = channels
    return bytes(data)


CLAIMS = [
    (flac(655_350), "655350 samples/s"),
    (matroska(178), "178 channels"),
    (matroska(255), "255 channels"),
    (mp4(178), "178 channels"),
    (mp4(65535), "65535 channels"),
    (quicktime(0), "0 channels"),
    (quicktime(300), "300 channels"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("data", "claim"), CLAIMS, ids=[claim for _, claim in CLAIMS])
def test_other_containers_claims(way: Way, data: bytes, claim: str, tmp_path: Path) -> None:
    assert f"the audio claims {claim}" in refusal(way, data, tmp_path)


def test_a_codec_s_head_that_claims_more_than_its_container() -> None:
    assert "the audio claims 178 channels" in refusal(streamed, opus(178), Path())


@pytest.mark.parametrize("way", [whole, read])
def test_a_file_that_changes_on_the_way(way: Way, tmp_path: Path) -> None:
    """Rate and channels change where two files were joined byte by byte: both parts are decoded."""
    formats = ("-ar 16000 -ac 1", "-ar 44100 -ac 2", "-ar 8000 -ac 1")
    data = b"".join(encode(tone(1.0), f"-c:a aac {one} -f adts") for one in formats)
    assert way(data, tmp_path) == pytest.approx(3 * SAMPLE_RATE, abs=0.3 * SAMPLE_RATE)


def test_a_frame_is_not_believed_either() -> None:
    """Decoders may find a format that no header names."""
    for layout, rate in (("33C", 48000), ("178C", 48000), ("mono", 655_350), ("mono", 0)):
        for format in ("s16", "s16p"):
            frame = av.AudioFrame(format=format, layout=av.AudioLayout(layout), samples=100)
            frame.sample_rate = rate
            with pytest.raises(ImplausibleAudio):
                check_frame(frame, MIXED)
    for rate in (0, MIN_RATE - 1, MAX_RATE + 1):
        with pytest.raises(ImplausibleAudio):
            Resampler(rate)
        with pytest.raises(ImplausibleAudio):
            PcmDecoder("pcm_s16le", rate, 1)


@pytest.mark.parametrize("format", ["s16", "s16p", "flt", "fltp", "dblp", "s32", "u8p"])
@pytest.mark.parametrize("channels", [1, 2, 3, 8, 9, 16, 32])
def test_channels_become_one(channels: int, format: str) -> None:
    """All channels have the same weight if their loudspeaker positions are unknown."""
    dtype = {"s16": "i2", "flt": "f4", "dbl": "f8", "s32": "i4", "u8": "u1"}[format.removesuffix("p")]
    full = {"i2": 2.0**15, "i4": 2.0**31, "u1": 2.0**7}.get(dtype, 1.0)
    values = np.arange(1, channels + 1) / channels / 2
    rows = np.tile(values * full + (128 if dtype == "u1" else 0), (100, 1)).astype(dtype)
    frame = av.AudioFrame(format=format, layout=av.AudioLayout(f"{channels}C"), samples=100)
    frame.sample_rate = 48000
    raw = [np.ascontiguousarray(rows[:, n]) for n in range(channels)] if format.endswith("p") else [rows.reshape(-1)]
    for number, plane in enumerate(raw):
        av.audio.plane.AudioPlane(frame, number).update(_padded(plane.tobytes(), frame, number))
    np.testing.assert_allclose(samples_of([frame], MIXED), np.full(100, values.mean()), atol=0.01)


def _padded(data: bytes, frame: av.AudioFrame, number: int) -> bytes:
    return data.ljust(av.audio.plane.AudioPlane(frame, number).buffer_size, b"\0")


def test_a_film_s_dialogue_is_not_drowned() -> None:
    """5.1: the centre is louder than left and right, and the bass channel is left out."""
    found = {}
    for name in ("FL", "FC", "LFE", "BL"):
        data = encode(tone(1.0), f"-af pan=5.1|{name}=c0 -c:a flac -f flac")
        found[name] = float(np.abs(files.decode(data, "flac", 10)).max())
    assert found == pytest.approx({"FL": 0.25, "FC": 0.3536, "LFE": 0.0, "BL": 0.1768}, abs=0.01)


@pytest.mark.usefixtures("processes")  # of its own: before, it died
def test_channels_in_an_order_of_their_own(tmp_path: Path) -> None:
    """QuickTime files may have right before left: PyAV freed that layout twice, and the process died."""
    path = tmp_path / "reversed.mov"
    swap = "pan=stereo|c0=c0|c1=0*c0,channelmap=map=FL-FR|FR-FL:channel_layout=FR+FL"
    source = ["-f", "lavfi", "-i", "sine=440:duration=3:sample_rate=16000"]
    subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, "-af", swap, "-c:a", "pcm_s16le", str(path)],
        check=True,
    )
    code = (
        "import sys, pathlib; from asrserver.audio import files; path = pathlib.Path(sys.argv[1]);"
        "[len(files.decode(path.read_bytes(), 'mp4', 60)) for _ in range(3)];"
        "print(sum(map(len, files.read_s16(path, 0.5))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{3 * 2 * SAMPLE_RATE}\n"), done.stderr
    assert frequency(files.decode(path.read_bytes(), "mp4", 60)) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_an_archive_of_claims(kind: str, tmp_path: Path) -> None:
    """The gateway keeps such a file as it came; it neither joins it with others nor encodes it."""
    (tmp_path / "incoming").mkdir()
    header = b'{"sid": "s", "mode": "auto", "format": "auto", "rate": 16000, "channels": 1}\n'
    random = np.random.default_rng(3)
    formats = [(178, 16000), (0, 16000), (65535, 16000), (1, 134_217_728), (2, 1), (33, 8000)]
    formats += zip(random.integers(33, 65536, 20).tolist(), random.integers(1, 2**32, 20).tolist(), strict=True)
    for channels, rate in formats:
        data = wav(channels, rate)
        record = archive_parts.RECORD.pack(0, len(data)) + data
        archive_files.part_path(tmp_path, "s", "one").write_bytes(header + record)
        made = archive_files.assemble(tmp_path, "s", kind)
        assert made is not None
        path = tmp_path / made.path
        assert (path.suffix, path.read_bytes()) == (".wav", data)


@pytest.mark.parametrize("channels", [3, 6, 8, 32])
def test_an_archive_of_many_channels_is_wav(channels: int, tmp_path: Path) -> None:
    """Earlier they were written as two channels, in a FLAC file that played too slowly."""
    (tmp_path / "incoming").mkdir()
    header = b'{"sid": "s", "mode": "chunk", "format": "auto", "rate": 16000, "channels": 1}\n'
    data = wav(channels, 16000, size=3840)
    records = b"".join(archive_parts.RECORD.pack(index, len(data)) + data for index in range(2))
    archive_files.part_path(tmp_path, "s", "one").write_bytes(header + records)
    made = archive_files.assemble(tmp_path, "s", "flac")
    assert made is not None
    assert made.path.endswith(".wav")
    joined = (tmp_path / made.path).read_bytes()
    assert struct.unpack_from("<H", joined, 22) == (channels,)
    assert joined[44:] == data[44:] * 2


def test_many_channels_do_not_wait_for_each_other() -> None:
    """A second of all of them would be many megabytes."""
    demuxer = Flac()
    demuxer.push(encode(tone(2.0), "-ar 192000 -ac 8 -f flac"))
    track = demuxer.pull()
    assert isinstance(track, Track)
    recording, most, packets = TrackDecoder(track, 0), 0, 0
    while isinstance(packet := demuxer.pull(), Packet):
        assert recording.decode(packet)
        most, packets = max(most, recording.waiting), packets + 1
    assert packets > 20
    assert most * 8 < 1 << 19
