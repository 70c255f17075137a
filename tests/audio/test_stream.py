"""decoding.py and demux/: streams of bytes, cut anywhere, to samples; and going on in the middle."""

from __future__ import annotations

import contextlib
import functools
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import orjson
import psutil
import pytest

from asrserver.audio import files as audio
from asrserver.audio import stream as decoding
from asrserver.audio.decoders import Decoder, PlainDecoder, open_decoder, resume_decoder
from asrserver.audio.files import RATE, Samples
from asrserver.audio.stream import Border, StreamDecoder
from asrserver.errors import AudioError
from tests.audio.test_files import encode, frequency, s16, tone
from tests.conftest import DATA

FRAGMENTS = "-movflags frag_keyframe+empty_moov"

#: Without noise substitution (ISO/IEC 14496-3, 4.6.13): every decoder draws that noise anew, and no two are alike.
AAC = "-c:a aac -aac_pns 0"

#: ffmpeg's arguments, what `container` says, and the correlation that a resumed decoder's first 0.1 s reaches at least.
STREAMS = {
    "wav": ("-f wav", "wav", 1.0),
    "wav-f32-48k": ("-c:a pcm_f32le -ar 48000 -f wav", "wav", 1.0),
    "wav-s24-44k-stereo": ("-c:a pcm_s24le -ar 44100 -ac 2 -f wav", "wav", 1.0),
    "wav-u8-8k": ("-c:a pcm_u8 -ar 8000 -f wav", "wav", 1.0),
    "wav-mulaw": ("-c:a pcm_mulaw -ar 8000 -f wav", "wav", 1.0),
    "webm": ("-c:a libopus -f webm", "matroska", 0.99),
    "webm-live-stereo": ("-c:a libopus -ac 2 -f webm -live 1", "matroska", 0.99),
    "webm-vorbis": ("-c:a libvorbis -f webm", "matroska", 0.99),
    "mkv-aac": (f"{AAC} -f matroska", "matroska", 0.99),
    "mkv-pcm": ("-c:a pcm_f32le -ar 48000 -f matroska", "matroska", 1.0),
    "ogg-opus": ("-c:a libopus -f ogg", "ogg", 0.99),
    "ogg-opus-pages": ("-c:a libopus -page_duration 20000 -f ogg", "ogg", 0.99),
    "ogg-vorbis": ("-c:a libvorbis -f ogg", "ogg", 0.99),
    "ogg-flac": ("-c:a flac -f ogg", "ogg", 1.0),
    "flac": ("-f flac", "flac", 1.0),
    "flac-44k-stereo": ("-ar 44100 -ac 2 -f flac", "flac", 1.0),
    "mp3": ("-c:a libmp3lame -f mp3", "mp3", 0.99),
    "mp3-vbr-44k": ("-c:a libmp3lame -ar 44100 -q:a 4 -f mp3", "mp3", 0.99),
    "mp3-bare": ("-c:a libmp3lame -id3v2_version 0 -write_xing 0 -f mp3", "mp3", 0.99),
    "aac": (f"{AAC} -f adts", "aac", 0.99),
    "mp4": (f"{AAC} {FRAGMENTS} -frag_duration 500000 -f mp4", "mp4", 0.99),
    "mp4-moof-44k": (
        f"{AAC} -ar 44100 {FRAGMENTS}+default_base_moof+delay_moov -frag_duration 250000 -f mp4",
        "mp4",
        0.99,
    ),
    "mp4-opus": (f"-c:a libopus {FRAGMENTS} -frag_duration 300000 -f mp4", "mp4", 0.99),
    "mp4-flac": (f"-c:a flac -strict -2 {FRAGMENTS} -frag_duration 300000 -f mp4", "mp4", 1.0),
}


@functools.cache
def speech() -> Samples:
    """Some seconds of it."""
    files = sorted((DATA / "utterances").glob("*.opus"))[:2]
    return np.concatenate([audio.decode(file.read_bytes(), "ogg", 60) for file in files])


@functools.cache
def stream(name: str) -> bytes:
    return encode(speech(), STREAMS[name][0])


def kind(name: str) -> str:
    return STREAMS[name][1]


def slices(data: bytes, seed: int, largest: int) -> Iterable[bytes]:
    random = np.random.default_rng(seed)
    at = 0
    while at < len(data):
        size = int(random.integers(1, largest + 1))
        yield data[at : at + size]
        at += size


def decoded(decoder: Decoder, pieces: Iterable[bytes]) -> Samples:
    samples = np.concatenate([*(decoder.feed(piece) for piece in pieces), decoder.flush()])
    assert samples.dtype == np.float32
    return samples


@functools.cache
def whole(name: str) -> Samples:
    return decoded(StreamDecoder(kind(name)), [stream(name)])


def tolerant(decoder: StreamDecoder, pieces: Iterable[bytes]) -> tuple[Samples, list[AudioError]]:
    """All samples, and the errors on the way."""
    found, errors = [], []
    for piece in pieces:
        try:
            found.append(decoder.feed(piece))
        except AudioError as exc:
            errors.append(exc)
    found.append(decoder.flush())
    return np.concatenate(found), errors


def correlation(one: Samples, other: Samples) -> float:
    if np.array_equal(one, other):
        return 1.0
    return float(np.dot(one, other) / np.sqrt(np.dot(one, one) * np.dot(other, other)))


# -- the same samples, whatever the slicing


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_what_ffmpeg_makes_of_the_file(name: str) -> None:
    """As long, to a few samples, and the same."""
    reference = audio.decode(stream(name), kind(name), 60)
    found = whole(name)
    assert abs(len(found) - len(reference)) <= (2048 if "vorbis" in name else 64)  # whose end is not trimmed
    length = min(len(found), len(reference))
    scale = np.sqrt(0.5) if "stereo" in name else 1.0  # FFmpeg mixes down with a gain, we take the mean
    np.testing.assert_allclose(found[:length], reference[:length] * scale, atol=0.005)


@pytest.mark.parametrize("name", STREAMS)
def test_slicing_changes_nothing(name: str) -> None:
    """Byte for byte, in small slices, in large ones: equal to the bit."""
    data = stream(name)
    for seed, largest in enumerate((max(7, len(data) // 5000), 1500, 20000)):
        assert np.array_equal(decoded(StreamDecoder(kind(name)), slices(data, seed, largest)), whole(name))
    short = data[:6000]
    one_by_one = decoded(StreamDecoder(kind(name)), (short[at : at + 1] for at in range(len(short))))
    assert np.array_equal(one_by_one, decoded(StreamDecoder(kind(name)), [short]))


@pytest.mark.parametrize("name", STREAMS)
def test_samples_come_as_soon_as_they_can(name: str) -> None:
    """After three quarters of the bytes, about three quarters of the samples; none is kept until the end."""
    data = stream(name)
    decoder = StreamDecoder(kind(name))
    found = len(decoder.feed(data[: len(data) * 3 // 4]))
    assert found == decoder.position
    assert found > 0.55 * len(whole(name))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("format", ["pcm_s16le", "pcm_f32le"])
def test_raw_pcm(format: str, channels: int, rate: int) -> None:
    """Any slicing, and resumed anywhere, by a worker of this version or of one that decoded all PCM alike: the same
    numbers."""
    random = np.random.default_rng(rate)
    samples = random.uniform(-0.9, 0.9, rate * channels * 2).astype(np.float32)
    data = s16(samples) if format == "pcm_s16le" else samples.astype("<f4").tobytes()
    wanted = decoded(StreamDecoder(format, rate, channels), [data])
    assert abs(len(wanted) - 2 * RATE) <= 2
    opened = open_decoder(format, rate, channels)
    assert isinstance(opened, PlainDecoder) == (rate == RATE)
    for decoder in (StreamDecoder(format, rate, channels), opened):
        found, at = [], 0
        for piece in slices(data, rate, 9000):
            found.append(decoder.feed(piece))
            at += len(piece)
            border = Border.fromdict(orjson.loads(orjson.dumps(decoder.border(decoder.position).asdict())))
            assert border.offset <= at
            for resume in (StreamDecoder.resume, resume_decoder):
                resumed = decoded(resume(border), [data[border.offset :]])
                assert np.array_equal(resumed, wanted[border.sample :])
        assert border.sample > RATE
        assert np.array_equal(np.concatenate([*found, decoder.flush()]), wanted)
    short = data[:3001]
    one_by_one = decoded(open_decoder(format, rate, channels), (short[at : at + 1] for at in range(len(short))))
    assert np.array_equal(one_by_one, decoded(StreamDecoder(format, rate, channels), [short]))


def test_a_border_of_plain_pcm_is_exact() -> None:
    """Any sample that is asked for, also after another border."""
    decoder = open_decoder("pcm_s16le", RATE, 2)
    decoder.feed(bytes(4 * 1000 + 3))
    assert [(one.offset, one.sample) for one in map(decoder.border, (-5, 0, 777, 2000))] == [
        (0, 0), (0, 0), (4 * 777, 777), (4 * 1000, 1000),
    ]  # fmt: skip
    successor = resume_decoder(decoder.border(777))
    successor.feed(bytes(4 * 23 + 1))
    assert successor.position == 800
    assert [(one.offset, one.sample) for one in map(successor.border, (0, 790))] == [(4 * 777, 777), (4 * 790, 790)]


def test_pcm_that_is_no_number() -> None:
    data = np.array([np.nan, np.inf, -np.inf, 5, 0.5], "<f4").tobytes()
    assert np.array_equal(StreamDecoder("pcm_f32le").feed(data), np.array([0, 0, 0, 1, 0.5], np.float32))


# -- going on elsewhere


@pytest.mark.parametrize("name", STREAMS)
def test_another_process_goes_on(name: str) -> None:
    """Killed at any moment, with the border as JSON: no sample lost or doubled, and the joint cannot be heard."""
    data, wanted = stream(name), whole(name)
    random = np.random.default_rng(len(data))
    decoder = StreamDecoder(kind(name))
    seen = set()
    at = 0
    for piece in slices(data, 5, len(data) // 20):
        decoder.feed(piece)
        at += len(piece)
        sample = max(0, decoder.position - int(random.integers(0, RATE)))
        border = Border.fromdict(orjson.loads(orjson.dumps(decoder.border(sample).asdict())))
        if border.offset in seen:
            continue
        seen.add(border.offset)
        assert border.sample <= sample
        assert border.offset <= at
        successor = StreamDecoder.resume(border)
        assert successor.position == border.sample
        found = decoded(successor, slices(data[border.offset :], at, 3000))
        assert successor.position == border.sample + len(found)
        surplus = len(found) - (len(wanted) - border.sample)
        assert 0 <= surplus <= (0.02 * RATE if kind(name) == "ogg" else 0)
        old, new = wanted[border.sample :], found[: len(wanted) - border.sample]
        first = slice(0, RATE // 10)
        if len(old) > RATE // 10 and np.abs(old[first]).max() > 0.02:
            assert correlation(old[first], new[first]) >= STREAMS[name][2]
        if len(old):
            assert np.abs(old - new).max() < 0.1
    assert len(seen) >= (3 if kind(name) == "ogg" and name != "ogg-opus-pages" else 4)


@pytest.mark.parametrize("name", ["webm", "mp4", "ogg-opus-pages", "mp3", "aac", "flac", "wav"])
def test_going_on_more_than_once(name: str) -> None:
    """Each of a row of owners dies: the borders that a resumed decoder gives are as good."""
    data, wanted = stream(name), whole(name)
    pieces: list[Samples] = []
    border = StreamDecoder(kind(name)).border(0)
    for death in range(1, 6):
        decoder = StreamDecoder.resume(border)
        samples = decoder.feed(data[border.offset : len(data) * death // 6])
        following = decoder.border(decoder.position)
        pieces.append(samples[: following.sample - border.sample])
        border = following
    found = np.concatenate([*pieces, decoded(StreamDecoder.resume(border), [data[border.offset :]])])
    assert len(found) == len(wanted)
    assert correlation(found, wanted) > 0.9995


def test_borders_are_near_and_few() -> None:
    """A border for any sample, within half a second before it; and an hour without asking keeps a bounded number."""
    decoder = StreamDecoder("matroska")
    decoder.feed(stream("webm"))
    for sample in range(0, decoder.position, RATE // 3):
        border = decoder.border(sample)
        assert sample - RATE // 2 < border.sample <= sample
    assert len(orjson.dumps(border.asdict())) < 400
    pcm = StreamDecoder("pcm_s16le")
    for _ in range(3600):
        pcm.feed(bytes(2 * RATE))
    assert len(pcm._borders) <= 1024
    assert pcm.border(1000 * RATE).sample > 990 * RATE
    pcm.feed(bytes(2 * RATE))
    assert pcm.border(3600 * RATE + RATE // 2).sample > 3599 * RATE


def test_the_recorder_is_started_again() -> None:
    """A second head in the stream, of another kind of track: the audio goes on, also for another process."""
    for name in ("webm", "ogg-opus", "mp4", "wav", "flac"):
        first, second = stream(name), encode(tone(2.0), STREAMS[name][0].replace("-f ", "-ac 2 -f "))
        both = (sized(first) if name == "wav" else first) + second
        wanted = np.concatenate([whole(name), decoded(StreamDecoder(kind(name)), [second])])
        decoder = StreamDecoder(kind(name))
        found = [decoder.feed(piece) for piece in slices(both, 1, 1500)]
        border = decoder.border(decoder.position)
        found.append(decoder.flush())
        assert np.array_equal(np.concatenate(found), wanted)
        assert border.offset > len(first)
        assert border.sample > len(whole(name))
        for place in (border, _border_at(kind(name), both, len(whole(name)))):
            resumed = decoded(StreamDecoder.resume(place), [both[place.offset :]])
            assert abs(len(resumed) - (len(wanted) - place.sample)) <= (0.02 * RATE if name == "ogg-opus" else 0)
            assert correlation(resumed[: len(wanted) - place.sample], wanted[place.sample :]) > 0.995


def sized(wav: bytes) -> bytes:
    """A WAV file that knows its length."""
    at = wav.index(b"data")
    return wav[: at + 4] + (len(wav) - at - 8).to_bytes(4, "little") + wav[at + 8 :]


def _border_at(kind: str, data: bytes, sample: int) -> Border:
    decoder = StreamDecoder(kind)
    decoder.feed(data)
    return decoder.border(sample)


# -- what containers hold besides


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
    """Its index at the end, at the beginning, or for a part of it: in slices as at once."""
    file = tmp_path / "file"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-"]
    subprocess.run([*command, *arguments.split(), "-f", muxer, file], input=s16(speech()), check=True)
    data = file.read_bytes()
    reference = audio.decode(data, "mp4", 60)
    decoder = StreamDecoder("mp4")
    found = decoded(decoder, slices(data, 1, 1500))
    assert abs(len(found) - len(reference)) <= 1100
    length = min(len(found), len(reference))
    assert correlation(found[:length], reference[:length]) > 0.999
    assert np.array_equal(decoded(StreamDecoder("mp4"), [data]), found)
    border = decoder.border(decoder.position)
    resumed = decoded(StreamDecoder.resume(border), [data[border.offset :]])
    assert len(resumed) == len(found) - border.sample


def test_video_is_passed_over() -> None:
    """Of a recording of the screen, the sound."""
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
        reference = audio.decode(data, container, 60)
        assert abs(len(found) - len(reference)) <= 64
        assert frequency(found) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("arguments", ["-ac 8 -f flac", "-c:a libvorbis -ac 8 -f ogg"])
def test_eight_channels(arguments: str) -> None:
    """As many as FFmpeg's frames have room for: PyAV 18 sees more planes of them than there are."""
    data = encode(tone(2.0), arguments)
    kind = audio.container(data)
    assert kind is not None
    found = decoded(StreamDecoder(kind), slices(data, 1, 1500))
    assert len(found) / RATE == pytest.approx(2.0, abs=0.15)
    assert frequency(found) == pytest.approx(440, abs=2)
    assert np.abs(found).max() < 1


@pytest.mark.parametrize("field", ["number", "rate"])
def test_numbers_that_cannot_be(field: str) -> None:
    """A track with a number of nine bytes, a rate that is none: refused, or its border would be no JSON."""
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
    """Also for a decoder that is resumed just before."""
    data = sized(stream("wav")) + b"LIST\x09\x00\x00\x00INFOabcde\x00"
    assert np.array_equal(decoded(StreamDecoder("wav"), slices(data, 1, 999)), whole("wav"))
    decoder = StreamDecoder("wav")
    decoder.feed(data[:-100])
    border = decoder.border(decoder.position)
    resumed = decoded(StreamDecoder.resume(border), [data[border.offset :]])
    assert np.array_equal(resumed, whole("wav")[border.sample :])


def test_an_mp3_s_pictures_and_tags_are_no_audio() -> None:
    picture = b"ID3\x04\x00\x00" + bytes((0, 30, 0, 0)) + b"\xff\xfb\x90\x00" * (30 * 16384 // 4)
    data = picture + stream("mp3-bare") + b"TAG" + bytes(125)
    assert np.array_equal(decoded(StreamDecoder("mp3"), slices(data, 1, 5000)), whole("mp3-bare"))


# -- what cannot be decoded


@pytest.mark.parametrize(
    ("data", "container", "code"),
    [
        (b"RIFF\x24\x00\x00\x00WAVE", "wav", "undecodable_audio"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(200), "wav", "undecodable_audio"),
        (b"\x1aE\xdf\xa3" + bytes(1000), "matroska", "undecodable_audio"),
        (b"OggS\x00\x02" + bytes(1000), "ogg", "undecodable_audio"),
        (b"fLaC" + bytes(1000), "flac", "undecodable_audio"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(1000), "mp4", "undecodable_audio"),
        (b"ID3" + bytes(1000), "mp3", "undecodable_audio"),
        (b"\xff\xf1" + bytes(1000), "aac", "undecodable_audio"),
    ],
)
def test_what_only_begins_like_a_container(data: bytes, container: str, code: str) -> None:
    """An error with a reason, at the latest at the end, and no other exception."""
    for size in (1, 1000):
        with pytest.raises(AudioError) as caught:
            decoded(StreamDecoder(container), (data[at : at + size] for at in range(0, len(data), size)))
        assert caught.value.code == code
        assert caught.value.message


@pytest.mark.parametrize(
    ("arguments", "container", "why"),
    [
        ("-c:a adpcm_ms -f wav", "wav", "format"),
        ("-c:a ac3 -ar 48000 -f matroska", "matroska", "A_AC3"),
        ("-c:a ac3 -ar 48000 " + FRAGMENTS + "+delay_moov -f mp4", "mp4", "ac-3"),
    ],
)
def test_what_is_no_stream(arguments: str, container: str, why: str, tmp_path: object) -> None:
    """Said once, with the reason."""
    file = f"{tmp_path}/file"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-"]
    subprocess.run([*command, *arguments.split(), file], input=s16(tone(2.0)), check=True)
    with open(file, "rb") as opened:
        data = opened.read()
    errors = []
    decoder = StreamDecoder(container)
    for piece in slices(data, 1, 1500):
        try:
            assert not len(decoder.feed(piece))
        except AudioError as exc:
            errors.append(exc)
    assert [error.code for error in errors] == ["not_streamable"]
    assert why in errors[0].message
    with pytest.raises(AudioError):
        decoder.flush()


@pytest.mark.parametrize("name", ["webm", "ogg-opus-pages", "mp4", "mp3", "aac", "flac", "wav"])
def test_damage_costs_itself_alone(name: str) -> None:
    """A chunk overwritten in the middle: an error, and before and after it the audio as it was."""
    clean, data = encode(tone(8.0), STREAMS[name][0]), b""
    middle = len(clean) // 2
    data = clean[:middle] + np.random.default_rng(1).bytes(700) + clean[middle + 700 :]
    found, errors = tolerant(StreamDecoder(kind(name)), slices(data, 1, 1500))
    if name != "wav":  # whose every byte is a sample
        assert errors
        assert all(error.code == "undecodable_audio" for error in errors)
    lost = 3.0 if name == "webm" else 1.0  # of a cluster, which is 5 s here; a recorder's are as long as its slices
    assert len(found) > (8 - lost) * RATE
    for part in (found[: 3 * RATE], found[-2 * RATE :]):
        assert frequency(part) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("name", STREAMS)
def test_damaged_streams_are_decoded_or_refused(name: str) -> None:
    """Random bytes overwritten, pieces lost or sent twice: samples or AudioError, never another exception."""
    random = np.random.default_rng(7)
    clean = np.frombuffer(stream(name)[:40000], np.uint8)
    for number in range(12):
        data = clean.copy()
        data[random.integers(0, 3000 if number % 2 else len(data), 30)] = random.integers(0, 256, 30)
        pieces = list(slices(data.tobytes(), number, 1500))
        if number % 3 == 0:
            del pieces[int(random.integers(0, len(pieces)))]
        try:
            samples, _ = tolerant(StreamDecoder(kind(name)), pieces)
        except AudioError:  # of flush: there never was any audio
            continue
        assert samples.ndim == 1
        assert np.isfinite(samples).all()


def test_a_few_bytes_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two minutes of silence a kilobyte: Opus can say that. What is too long is refused; nothing else is lost."""
    head = stream("webm")[: stream("webm").index(b"\x1fC\xb6u")] + b"\x1fC\xb6u\xff"
    block = bytes((0xA3, 0x86, 0x81, 0, 0, 0x80, 0x1B, 0x02))  # two frames of 60 ms of nothing
    monkeypatch.setattr(decoding, "_MOST", 60)
    decoder = StreamDecoder("matroska")
    before = psutil.Process().memory_info().rss
    with pytest.raises(AudioError) as caught:
        decoder.feed(head + block * 100_000)
    assert caught.value.code == "utterance_too_long"
    assert psutil.Process().memory_info().rss - before < 100 << 20
    assert len(decoder._demuxer._buffer) == 0
    found, _ = tolerant(decoder, [stream("webm")])
    assert len(found) > 0


@pytest.mark.parametrize("container", ["matroska", "ogg", "mp4", "flac", "mp3", "aac", "wav"])
def test_what_never_ends_is_not_kept(container: str) -> None:
    """Elements that claim to be long, heads that never come to audio: the buffer stays small."""
    heads = {
        "matroska": b"\x1aE\xdf\xa3\x80\x18S\x80g\x01\xff\xff\xff\xff\xff\xff\xff\x16T\xaek\x08\x7f\xff\xff\xff",
        "ogg": b"OggS\x00\x02" + bytes(20) + b"\x01\x13OpusHead\x01\x01" + bytes(9),
        "mp4": b"\x00\x00\x00\x08ftyp\x7f\xff\xff\xffmoov",
        "flac": b"fLaC\x04\xff\xff\xff",
        "mp3": b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
        "aac": b"\xff\xf1\x50\x80\x1f\xff\xfc",
        "wav": b"RIFF\xff\xff\xff\xffWAVEfmt \xff\xff\x00\x00",
    }
    decoder = StreamDecoder(container)
    random = np.random.default_rng(1)
    for number in range(300):
        with contextlib.suppress(AudioError):
            decoder.feed(heads[container] if number == 0 else random.bytes(20000))
        assert len(decoder._demuxer._buffer) < 3 << 20


def test_minutes_take_no_memory() -> None:
    """Of WebM in slices, with borders asked for as a worker does."""
    data = stream("webm")
    head = data.index(b"\x1fC\xb6u")
    decoder = StreamDecoder("matroska")
    decoder.feed(data[:head])
    process = psutil.Process()
    begun = 0
    for number in range(60):
        for at in range(head, len(data), 4000):
            decoder.feed(data[at : at + 4000])
            decoder.border(decoder.position - RATE)
        if number == 10:
            begun = process.memory_info().rss
    assert process.memory_info().rss - begun < 8 << 20
    assert decoder.position > 55 * len(speech())
