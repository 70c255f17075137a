"""Streams that cannot be decoded, are damaged, or never end."""

from __future__ import annotations

import contextlib
import subprocess

import imageio_ffmpeg
import numpy as np
import psutil
import pytest

from asrserver.audio import SAMPLE_RATE
from asrserver.audio import stream as decoding
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError
from tests.audio.signals import encode, frequency, s16, tone
from tests.audio.streams import FRAGMENTS, STREAMS, decoded, handed_on, kind, slices, speech, stream, tolerant


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
    """It gives an error with a reason, at the end at the latest, and no other exception."""
    for size in (1, 1000):
        with pytest.raises(AudioError) as caught:
            decoded(StreamDecoder(container), (data[at : at + size] for at in range(0, len(data), size)))
        assert caught.value.code == code
        assert caught.value.message


@pytest.mark.parametrize(
    ("arguments", "container", "why"),
    [
        ("-c:a g726 -ar 8000 -f wav", "wav", "G.726"),
        ("-c:a ac3 -ar 48000 -f matroska", "matroska", "A_AC3"),
        ("-c:a ac3 -ar 48000 " + FRAGMENTS + "+delay_moov -f mp4", "mp4", "ac-3"),
    ],
)
def test_what_is_no_stream(arguments: str, container: str, why: str, tmp_path: object) -> None:
    """There is one error, with the reason, and none more at the end."""
    file = f"{tmp_path}/file"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "-"]
    subprocess.run([*command, *arguments.split(), file], input=s16(tone(2.0)), check=True)
    with open(file, "rb") as opened:
        data = opened.read()
    samples, errors = tolerant(StreamDecoder(container), slices(data, 1, 1500))
    assert not len(samples)
    assert [error.code for error in errors] == ["not_streamable"]
    assert why in errors[0].message


@pytest.mark.parametrize("name", ["webm", "ogg-opus-pages", "mp4", "mp3", "aac", "flac", "wav"])
def test_damage_costs_itself_alone(name: str) -> None:
    """A piece in the middle is overwritten: there is an error, and the audio before and after it is intact."""
    clean, data = encode(tone(8.0), STREAMS[name][0]), b""
    middle = len(clean) // 2
    data = clean[:middle] + np.random.default_rng(1).bytes(700) + clean[middle + 700 :]
    found, errors = tolerant(StreamDecoder(kind(name)), slices(data, 1, 1500))
    if name != "wav":  # whose every byte is a sample
        assert errors
        assert all(error.code == "undecodable_audio" for error in errors)
    assert len(found) > 7 * SAMPLE_RATE
    for part in (found[: 3 * SAMPLE_RATE], found[-2 * SAMPLE_RATE :]):
        assert frequency(part) == pytest.approx(440, abs=2)


def test_a_block_after_damage_has_its_time() -> None:
    """What is lost within a cluster is silence, and what follows as late as it was."""
    data = bytearray(
        encode(np.concatenate([tone(2.0), np.zeros(SAMPLE_RATE, np.float32), tone(5.0)]), STREAMS["webm"][0])
    )
    at = len(data) // 8
    data[at : at + 2000] = bytes(2000)
    found, errors = tolerant(StreamDecoder("matroska"), slices(bytes(data), 1, 1500))
    assert errors
    assert len(found) == pytest.approx(8 * SAMPLE_RATE, abs=SAMPLE_RATE // 50)
    assert not np.abs(found[int(2.1 * SAMPLE_RATE) : int(2.9 * SAMPLE_RATE)]).max() > 0.05
    assert np.abs(found[int(3.1 * SAMPLE_RATE) : int(3.2 * SAMPLE_RATE)]).max() > 0.1


def test_a_cluster_whose_beginning_is_damaged() -> None:
    """Its blocks are heard, though nobody knows when; the next cluster knows."""
    data = bytearray(encode(tone(16.0), STREAMS["webm"][0]))
    second = data.index(b"\x1f\x43\xb6\x75", data.index(b"\x1f\x43\xb6\x75") + 4)
    data[second : second + 20] = bytes(20)
    found, errors = tolerant(StreamDecoder("matroska"), slices(bytes(data), 1, 1500))
    assert errors
    assert len(found) == pytest.approx(16 * SAMPLE_RATE, abs=SAMPLE_RATE // 10)
    assert np.abs(found[: 15 * SAMPLE_RATE]).reshape(-1, SAMPLE_RATE // 5).max(axis=1).min() > 0.1


@pytest.mark.parametrize("name", STREAMS)
def test_damaged_streams_are_decoded_or_refused(name: str) -> None:
    """Bytes are overwritten, pieces are lost or repeated: samples or AudioError, never another exception."""
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
    """Opus can encode two minutes of silence in a kilobyte: too much is refused, and nothing else is lost."""
    head = stream("webm")[: stream("webm").index(b"\x1fC\xb6u")] + b"\x1fC\xb6u\xff"
    block = bytes((0xA3, 0x86, 0x81, 0, 0, 0x80, 0x1B, 0x02))  # two frames of 60 ms of nothing
    monkeypatch.setattr(decoding, "_MAX_FEED_SECONDS", 60)
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
    """Elements that claim to be long, and headers without audio, do not fill the buffer."""
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
    """WebM in slices, with a resume point for each, as a worker does it."""
    data = stream("webm")
    head = data.index(b"\x1fC\xb6u")
    decoder = StreamDecoder("matroska")
    decoder.feed(data[:head])
    process = psutil.Process()
    begun = 0
    for number in range(60):
        for at in range(head, len(data), 4000):
            decoder.feed(data[at : at + 4000])
            decoder.resume_point(decoder.position - SAMPLE_RATE)
        if number == 10:
            begun = process.memory_info().rss
    assert process.memory_info().rss - begun < 8 << 20
    assert decoder.position > 55 * len(speech())


@pytest.mark.parametrize("heard", [False, True])
def test_what_is_refused_need_not_be_kept(heard: bool) -> None:
    """A head of 40 MiB without audio, or as much in the middle, is refused. What is passed over then is behind the
    point where another worker goes on, and the recording after it is decoded."""
    data = stream("webm")
    head = data.index(b"\x1fC\xb6u")
    void = b"\xec\x01" + (1 << 20).to_bytes(7, "big") + bytes(1 << 20)
    decoder, offset, codes = StreamDecoder("matroska"), 0, []
    for piece in (data if heard else data[:head], *[void] * 60):
        try:
            decoder.feed(piece)
        except AudioError as exc:
            codes.append(exc.code)
        offset += len(piece)
    assert codes == ["not_streamable"]
    point = handed_on(decoder.resume_point(decoder.position))
    assert point.offset > offset - (2 << 20)
    assert point.sample == decoder.position
    assert bool(point.sample) == heard
    for one in (decoder, StreamDecoder.resume(point)):
        if one is not decoder:
            offset = point.offset
        found = np.concatenate([one.feed(data), one.flush()])
        assert len(found) == pytest.approx(len(speech()), abs=0.02 * SAMPLE_RATE)
