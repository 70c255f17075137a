"""audio/wav.py: headers are read and written, whatever they claim or lack, with the samples behind them."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, files, pcm, wav
from asrserver.audio.bounds import ImplausibleAudio
from asrserver.audio.decoders import open_decoder
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError
from tests.audio.signals import decoded_by_ffmpeg, encode, s16, tone
from tests.audio.streams import decoded, slices

#: ffmpeg's arguments for what the reader knows.
CODECS = ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_alaw", "pcm_mulaw")

#: The end of the GUID of a WAVE_FORMAT_EXTENSIBLE, behind its two bytes of a format tag.
GUID = b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"


def chunks(*parts: tuple[bytes, bytes]) -> bytes:
    """A WAV file of RIFF chunks, each padded."""
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in parts)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def fmt(tag: int, channels: int, rate: int, bits: int, speed: int = 0, frame: int = 0, more: bytes = b"") -> bytes:
    """The content of a format chunk; byte rate and block size are as claimed, right or wrong."""
    return struct.pack("<HHIIHH", tag, channels, rate, speed, frame, bits) + more


def patched(data: bytes, name: bytes, size: int) -> bytes:
    """A file whose data chunk and RIFF size claim another size."""
    at = data.index(name) + 4
    return data[:4] + struct.pack("<I", size) + data[8:at] + struct.pack("<I", size) + data[at + 4 :]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_files_of_ffmpeg(codec: str, channels: int) -> None:
    """Six channels, and 24 bits or more, are written as WAVE_FORMAT_EXTENSIBLE."""
    data = encode(tone(0.5), f"-c:a {codec} -ac {channels} -ar 8000 -f wav")
    header = wav.read_header(data)
    assert header is not None
    assert header.format == wav.Format.of(codec, channels, 8000)
    assert header.size is None  # written to a pipe
    assert header.offset == data.index(b"data") + 8
    frames = (len(data) - header.offset) / header.format.frame
    assert frames == 4000
    assert header.format.bytes_per_second == 8000 * channels * wav.WIDTHS[codec]


@pytest.mark.parametrize("codec", pcm.TABLES)
def test_telephony_is_as_ffmpeg_decodes_it(codec: str) -> None:
    data = bytes(range(256)) * 40
    raw = wav.encode(wav.Format.of(codec, 1, SAMPLE_RATE), data)
    assert np.array_equal(pcm.samples(data, codec, 1), decoded_by_ffmpeg(raw, "wav"))


@pytest.mark.parametrize("codec", pcm.CODECS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_samples_are_ffmpeg_s(codec: str, channels: int) -> None:
    noise = np.random.default_rng(3).uniform(-0.9, 0.9, 3001 * channels)
    exact = {"u1": noise * 128 + 128, "i4": noise * 2.0**31, "i2": noise * 2.0**15}.get(
        pcm.CODECS[codec].str[1:], noise
    )
    raw = exact.astype(pcm.CODECS[codec]).tobytes()
    if codec == "pcm_s24le":
        raw = np.frombuffer(raw, np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    data = wav.encode(wav.Format.of(codec, channels, SAMPLE_RATE), raw)
    found = files.decode(data, "wav", 10)
    assert len(found) == 3001
    np.testing.assert_array_equal(found, decoded(StreamDecoder("wav"), slices(data, 1, 999)))
    np.testing.assert_allclose(
        found, noise.reshape(-1, channels).mean(axis=1), atol=0.01 if codec == "pcm_u8" else 1e-4
    )
    if channels == 1:
        np.testing.assert_allclose(found, decoded_by_ffmpeg(data, "wav"), atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_the_standard_library_reads_what_is_written(width: int, channels: int) -> None:
    """And the other way round; also with an odd number of bytes, which is padded."""
    codec = {1: "pcm_u8", 2: "pcm_s16le", 3: "pcm_s24le", 4: "pcm_s32le"}[width]
    raw = np.random.default_rng(width).bytes(width * channels * 501)
    ours = wav.encode(wav.Format.of(codec, channels, 22050), raw)
    assert len(ours) % 2 == 0
    assert struct.unpack_from("<I", ours, 4) == (len(ours) - 8,)
    with wave.open(io.BytesIO(ours)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (channels, width, 22050)
        assert file.readframes(501) == raw
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, width, 22050, 0, "NONE", ""))
        file.writeframes(raw)
    header = wav.read_header(buffer.getvalue())
    assert header == wav.read_header(ours) == wav.Header(wav.Format.of(codec, channels, 22050), 44, len(raw))


@pytest.mark.parametrize("tag", [1, 3, 6, 7])
def test_extensible(tag: int) -> None:
    """The format is the beginning of its GUID; of 32 bits only the upper 20 may be valid."""
    bits = {1: 32, 3: 32}.get(tag, 8)
    more = struct.pack("<HHI", 22, min(bits, 20), 3) + struct.pack("<H", tag) + GUID
    data = chunks((b"fmt ", fmt(0xFFFE, 2, 48000, bits, more=more)), (b"data", bytes(800)))
    header = wav.read_header(data)
    assert header is not None
    assert header.format.codec == {1: "pcm_s32le", 3: "pcm_f32le", 6: "pcm_alaw", 7: "pcm_mulaw"}[tag]
    assert (header.format.channels, header.format.rate, header.size) == (2, 48000, 800)


@pytest.mark.parametrize(
    ("bits", "codec"), [(12, "pcm_s16le"), (20, "pcm_s24le"), (7, "pcm_u8"), (0, None), (40, None)]
)
def test_bits_that_fill_no_bytes(bits: int, codec: str | None) -> None:
    assert wav.parse_format(fmt(1, 1, 8000, bits)).codec == codec


def test_what_follows_from_something_else_is_not_believed() -> None:
    """A header may claim any byte rate: with it a gateway would count hours of audio as nothing."""
    for speed, frame in ((0, 0), (2**32 - 1, 1), (1, 65535)):
        format = wav.parse_format(fmt(1, 2, 44100, 16, speed, frame))
        assert (format.frame, format.bytes_per_second) == (4, 176400)
        data = chunks((b"fmt ", fmt(1, 1, SAMPLE_RATE, 16, speed, frame)), (b"data", s16(tone(0.1))))
        assert len(files.decode(data, "wav", 1)) == len(decoded(StreamDecoder("wav"), [data])) == SAMPLE_RATE // 10


def test_chunks_around_the_samples() -> None:
    """Chunks before the samples, of odd sizes, and with the letters of a chunk name in their content."""
    pcm16 = s16(tone(0.1))
    parts = [(b"LIST", b"data" + bytes(3)), (b"fmt ", fmt(1, 1, SAMPLE_RATE, 16, more=b"\0\0")), (b"bext", bytes(601))]
    data = chunks(*parts, (b"data", pcm16), (b"id3 ", bytes(99)))
    header = wav.read_header(data)
    assert header is not None
    assert data[header.offset :][: header.size] == pcm16
    for found in (files.decode(data, "wav", 1), decoded(StreamDecoder("wav"), slices(data, 1, 50))):
        np.testing.assert_array_equal(found, np.frombuffer(pcm16, "<i2") / np.float32(32768))


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_that_is_not_known(size: int) -> None:
    """Programs that write to a pipe leave the length open: everything that follows is audio."""
    data = patched(wav.encode(wav.Format.of("pcm_s16le", 1, SAMPLE_RATE), s16(tone(0.5))), b"data", size)
    header = wav.read_header(data)
    assert header is not None
    assert header.size is None
    assert len(files.decode(data, "wav", 1)) == len(decoded(StreamDecoder("wav"), [data])) == SAMPLE_RATE // 2


def test_a_length_of_more_than_there_is() -> None:
    data = patched(wav.encode(wav.Format.of("pcm_s16le", 1, SAMPLE_RATE), s16(tone(0.5))), b"data", 10**6)
    assert len(files.decode(data, "wav", 1)) == SAMPLE_RATE // 2
    assert len(files.decode(data[:-1001], "wav", 1)) == SAMPLE_RATE // 2 - 501


@pytest.mark.parametrize("codec", ["pcm_s24le", "pcm_f64le"])
def test_too_long_is_known_by_the_header(codec: str) -> None:
    data = wav.encode(wav.Format.of(codec, 2, 8000), bytes(2 * 8000 * wav.WIDTHS[codec] * 3))
    assert len(files.decode(data, "wav", 3)) == pytest.approx(3 * SAMPLE_RATE, abs=2)
    with pytest.raises(AudioError) as caught:
        files.decode(data, "wav", 2.9)
    assert caught.value.code == "utterance_too_long"


def test_a_header_that_is_cut_anywhere() -> None:
    """Nothing is known until it is there; the format is known before the rest."""
    data = chunks((b"LIST", bytes(7)), (b"fmt ", fmt(1, 1, 8000, 16)), (b"data", bytes(100)))
    whole = wav.read_header(data)
    assert whole is not None
    for length in range(len(data)):
        assert wav.read_header(data[:length]) == (whole if length >= whole.offset else None)
        assert (wav.read_format(data[:length]) is not None) == (length >= data.index(b"fmt ") + 24)


def test_what_is_no_header() -> None:
    for data in (b"", b"RIFF", b"RIFF\0\0\0\0AVI LIST", b"RIFX\0\0\0\0WAVEfmt ", bytes(100)):
        assert wav.read_header(data) is None
    assert wav.read_header(chunks((b"data", bytes(10)), (b"fmt ", fmt(1, 1, 8000, 16)))) is not None
    assert wav.read_header(chunks((b"fmt ", bytes(15)), (b"data", bytes(10)))) is None
    assert wav.read_header(chunks(*[(b"junk", b"")] * 100, (b"fmt ", fmt(1, 1, 8000, 16)), (b"data", b"12"))) is None
    with pytest.raises(ImplausibleAudio):
        wav.read_header(chunks((b"fmt ", fmt(1, 178, 8000, 16))))


def test_random_headers_are_read_or_not() -> None:
    """There is never another exception, and never a format beyond the bounds."""
    random = np.random.default_rng(5)
    clean = np.frombuffer(chunks((b"LIST", bytes(7)), (b"fmt ", fmt(1, 1, 8000, 16)), (b"data", bytes(30))), np.uint8)
    known = 0
    for _ in range(5000):
        data = clean.copy()
        data[random.integers(12, len(data), 4)] = random.integers(0, 256, 4)
        try:
            header = wav.read_header(data.tobytes())
        except ImplausibleAudio:
            continue
        if header is not None:
            known += 1
            assert header.offset <= len(data)
            assert 1 <= header.format.channels <= 32
            assert 4000 <= header.format.rate <= 384_000
    assert known > 500


def test_more_than_a_file_holds() -> None:
    format = wav.Format.of("pcm_s24le", 2, 48000)
    assert wav.fitting(format, 6001) == 6000
    most = wav.fitting(format, 2**33)
    assert most % format.frame == 0
    assert most > 2**32 - 60
    assert struct.unpack_from("<I", wav.write_header(format, most), 40) == (most,)
    with pytest.raises(ValueError, match="limit"):
        wav.write_header(format, most + 100)
    with pytest.raises(KeyError):
        wav.write_header(wav.parse_format(fmt(2, 1, 8000, 4)), 100)


@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le"])
@pytest.mark.parametrize("channels", [1, 2])
def test_floats_that_nobody_divided(codec: str, channels: int) -> None:
    """16-bit integers as floating-point numbers, with full scale 32768: as loud as they were meant, however they are
    cut, and quiet stretches are no noise. Numbers that go a little beyond full scale are clipped."""
    quiet = np.random.default_rng(1).integers(-3, 4, SAMPLE_RATE // 2)
    numbers = np.concatenate([quiet, (tone(0.5) * 32768).round(), quiet])
    interleaved = np.repeat(numbers, channels).astype(pcm.CODECS[codec])
    data = wav.encode(wav.Format.of(codec, channels, SAMPLE_RATE), interleaved.tobytes())
    found = files.decode(data, "wav", 10)
    np.testing.assert_allclose(found, numbers / 32768, atol=1e-6)
    for seed in (1, 2):
        np.testing.assert_array_equal(found, decoded(StreamDecoder("wav"), slices(data, seed, 999)))
        raw = open_decoder(codec, SAMPLE_RATE, channels)
        np.testing.assert_array_equal(found, decoded(raw, slices(interleaved.tobytes(), seed, 999)))
    loud = (tone(0.5) * 3).astype(pcm.CODECS[codec])
    data = wav.encode(wav.Format.of(codec, 1, SAMPLE_RATE), loud.tobytes())
    np.testing.assert_allclose(files.decode(data, "wav", 10), loud.clip(-1, 1), atol=1e-6)
