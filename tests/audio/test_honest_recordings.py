"""No limit against hostile bytes may cost an ordinary recording anything: long ones, damaged ones, many tracks."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, files, library, mp4_claims
from asrserver.audio.bounds import TooMuchWork
from asrserver.audio.demux.base import STEPS_AT_ONCE
from asrserver.audio.pcm import Samples, joined
from asrserver.audio.selection import MIXED, Selection
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError
from tests.audio.bombs import adts_frame, amr, box, fragmented
from tests.audio.signals import encode, encode_file, tone


def streamed(data: bytes, kind: str, step: int = 4096) -> tuple[Samples, list[AudioError]]:
    """What a live stream's decoder makes of data, and of what it complains."""
    decoder = StreamDecoder(kind)
    pieces: list[Samples] = []
    errors = []
    for at in range(0, len(data), step):
        try:
            pieces.extend(decoder.pieces(data[at : at + step]))
        except AudioError as exc:
            errors.append(exc)
    return joined([*pieces, decoder.flush()]), errors


def seconds(samples: Samples) -> float:
    return len(samples) / SAMPLE_RATE


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_mulaw", "pcm_s24le"])
def test_pcm_in_quicktime(codec: str, tmp_path: Path) -> None:
    """Its index counts each moment as a sample."""
    data = encode_file(tone(60), f"-c:a {codec} -ar 48000 -f mov", tmp_path)
    path = tmp_path / "file"
    assert files.probe(path).seconds == 60
    assert sum(map(len, files.read_s16(path, 1.0))) == 2 * 60 * SAMPLE_RATE
    assert seconds(files.decode_file(data, "mp4", 3600).samples) == 60
    assert seconds(streamed(data, "mp4", len(data))[0]) == 60


def test_pcm_in_quicktime_that_is_cut_off(tmp_path: Path) -> None:
    """Its index comes first, and claims a minute; there are less than twelve seconds."""
    data = encode_file(tone(60), "-c:a pcm_s16le -ar 48000 -movflags faststart -f mov", tmp_path)
    data = data[: 12 * 48000 * 2]
    path = tmp_path / "file"
    path.write_bytes(data)
    assert files.probe(path).seconds == 60
    assert seconds(files.decode_file(data, "mp4", 3600).samples) == pytest.approx(11.88, abs=0.01)


@pytest.mark.parametrize("fill", ["zeros", "noise"])
def test_an_m4a_with_its_first_40_seconds_damaged(fill: str, tmp_path: Path) -> None:
    data = bytearray(encode_file(tone(90), "-c:a aac -ar 48000 -ac 2 -movflags faststart -f mp4", tmp_path))
    begin = data.index(b"mdat") + 4
    length = (len(data) - begin) * 4 // 9
    data[begin : begin + length] = bytes(length) if fill == "zeros" else np.random.default_rng(3).bytes(length)
    found = files.decode_file(bytes(data), "mp4", 3600)
    assert found.damage is not None
    samples, errors = streamed(bytes(data), "mp4")
    assert errors
    for one in (found.samples, samples):
        assert seconds(one) == pytest.approx(90, abs=0.1)
        assert np.abs(one[-30 * SAMPLE_RATE :]).max() == pytest.approx(0.35, abs=0.1)


def test_live_fragments_of_which_half_are_damaged() -> None:
    """What follows is heard: the decoder does not go on to believe what damaged packets say of their channels."""
    arguments = (
        "-c:a aac -ar 48000 -ac 2 -movflags frag_keyframe+empty_moov+default_base_moof -frag_duration 1000000 -f mp4"
    )
    data, at, number = bytearray(encode(tone(60), arguments)), 0, 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"mdat":
            number += 1
            if 2 < number <= 32:
                data[at + 8 : at + size] = np.random.default_rng(number).bytes(size - 8)
        at += size
    samples, _ = streamed(bytes(data), "mp4")
    assert seconds(samples) == pytest.approx(60, abs=0.1)
    assert np.abs(samples[-26 * SAMPLE_RATE :]).max() == pytest.approx(0.35, abs=0.1)


def test_live_aac_of_which_ten_seconds_are_damaged() -> None:
    """Another process can continue at its end."""
    data = bytearray(encode(tone(60), "-c:a aac -b:a 128k -ar 48000 -ac 2 -f adts"))
    second = len(data) // 60
    data[2 * second : 12 * second] = np.random.default_rng(1).bytes(10 * second)
    decoder = StreamDecoder("aac")
    count = 0
    for at in range(0, len(data), 4096):
        with suppress(AudioError):
            count += len(decoder.feed(bytes(data[at : at + 4096])))
    assert decoder.resume_point(decoder.position).offset > len(data) - 3 * second
    count += len(decoder.flush())
    assert count / SAMPLE_RATE == pytest.approx(50, abs=0.2)


def cluster(milliseconds: int, blocks: int) -> bytes:
    """Blocks of silence of 20 ms in WebM, which begin at some time."""
    body = b"\xe7\x88" + struct.pack(">Q", milliseconds)
    body += b"".join(
        b"\xa3\x87\x81" + struct.pack(">hB", 20 * number, 0x80) + b"\xfc\xff\xfe" for number in range(blocks)
    )
    return b"\x1fC\xb6u" + struct.pack(">I", 1 << 28 | len(body)) + body


@pytest.mark.parametrize("separate", [False, True])
def test_who_goes_on_within_damage_is_not_early(separate: bool) -> None:
    """The fragments of seconds 5 to 15 are zeros: none of the points from which another worker goes on is off."""
    flags = "-movflags frag_keyframe+empty_moov+default_base_moof -frag_duration 500000 -f mp4"
    data = bytearray(encode(tone(30), f"-c:a aac -ar 48000 -ac 2 {flags}"))
    at = number = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"mdat":
            number += 1
            if 10 < number <= 30:
                data[at + 8 : at + size] = bytes(size - 8)
        at += size
    selection = Selection(separate=separate)
    decoder = StreamDecoder("mp4", selection=selection)
    points = dict.fromkeys(decoder.resume_point(decoder.position) for _ in fed(decoder, bytes(data)))
    assert len(points) > 20
    for point in points:
        other = StreamDecoder.resume(point, selection)
        for _ in fed(other, bytes(data[point.offset :])):
            pass
        assert other.position == pytest.approx(decoder.position, abs=0.15 * SAMPLE_RATE)


def fed(decoder: StreamDecoder, data: bytes) -> Iterator[None]:
    """Decode data, to the end of the stream."""
    for at in range(0, len(data), 2048):
        with suppress(AudioError):
            for _ in decoder.pieces(data[at : at + 2048]):
                pass
        yield
    for _ in decoder.ending():
        pass


def test_a_file_for_the_library_with_half_a_minute_of_damage(tmp_path: Path) -> None:
    """What came after it was lost."""
    data = bytearray(encode_file(tone(90), "-c:a aac -ar 48000 -ac 2 -f mp4", tmp_path))
    begin = data.index(b"mdat") + 4
    second = (data.index(b"moov") - begin) // 90
    data[begin + 30 * second : begin + 60 * second] = bytes(30 * second)
    with library.opened(io.BytesIO(data), "mp4") as source:
        found = sum(len(samples) / rate for samples, rate, _ in library.Reader(source, MIXED).frames())
    assert found > 55


@pytest.mark.parametrize("as_file", [False, True])
def test_video_beside_a_sound_that_pauses_for_minutes(as_file: bool) -> None:
    """Each frame of the video is four elements without audio."""
    whole = encode(tone(2), "-c:a libopus -f webm")
    begin = whole.index(b"\x1fC\xb6u")
    video = b"".join(cluster_of(1000 * second, video_frames(60)) for second in range(2, 182))
    data = whole + video + cluster_of(182_000, b"") + whole[begin:]
    if as_file:
        found = files.decode_file(data, "matroska", 3600)
        assert found.damage is None
        assert seconds(found.samples) == pytest.approx(4, abs=0.05)
        return
    samples, errors = streamed(data, "matroska")
    assert not errors
    assert seconds(samples) == pytest.approx(4, abs=0.05)


def video_frames(count: int) -> bytes:
    """Groups of a block of track 2, as some muxers write them."""
    block = b"\xa1\x40\x3c\x82\x00\x00\x00" + bytes(56)
    body = block + b"\x9b\x81\x10" + b"\xfb\x81\xf0"
    return (b"\xa0" + struct.pack(">H", 0x4000 | len(body)) + body) * count


def cluster_of(milliseconds: int, body: bytes) -> bytes:
    body = b"\xe7\x88" + struct.pack(">Q", milliseconds) + body
    return b"\x1fC\xb6u" + struct.pack(">I", 1 << 28 | len(body)) + body


@pytest.mark.parametrize("chunk", [1 << 12, 1 << 24])
def test_elements_without_audio_leave_others_their_turn(chunk: int) -> None:
    """However many come at once, and however often a packet comes between them."""
    whole = encode(tone(2), "-c:a libopus -f webm")
    data = whole + 20 * (b"\xec\x80" * 19_000 + cluster_of(0, b"\xa3\x85\x81\x00\x00\x80\x00"))
    decoder, turns, pulled = StreamDecoder("matroska"), 0, []
    pull = decoder._demuxer.pull

    def noted() -> object:
        item = pull()
        pulled.append(decoder._demuxer.steps)
        return item

    decoder._demuxer.pull = noted  # type: ignore[method-assign,assignment]
    for at in range(0, len(data), chunk):
        with suppress(AudioError):
            turns += sum(not len(piece) for piece in decoder.pieces(data[at : at + chunk]))
    assert max(pulled) <= STEPS_AT_ONCE
    assert turns > 10 or chunk < len(data)


def test_a_recorder_that_is_muted_for_long() -> None:
    """An hour of gaps becomes silence, before a minute of speech."""
    data, begin = encode(tone(0.5), "-c:a libopus -f webm"), 0
    found = [data[: data.index(b"\x1fC\xb6u")]]
    for _ in range(2):
        found.append(cluster(begin, 50))
        begin += 1000 + 29 * 60_000
    found += [cluster(begin + 1000 * second, 50) for second in range(60)]
    samples, errors = streamed(b"".join(found), "matroska", 200)
    assert not errors
    assert seconds(samples) == pytest.approx(2 * (1 + 29 * 60) + 60, abs=0.01)


@pytest.mark.parametrize("codec", ["ac3", "libopus"])
def test_matroska_of_twenty_tracks(codec: str, tmp_path: Path) -> None:
    """AC-3 is read by FFmpeg, Opus is not."""
    data = encode_file(tone(2), f"{'-map 0 ' * 20} -c:a {codec} -ar 48000 -f matroska", tmp_path)
    found = files.decode_file(data, "matroska", 60)
    assert seconds(found.samples) == pytest.approx(2, abs=0.05)
    assert np.abs(found.samples).max() == pytest.approx(0.5, abs=0.1)
    assert files.probe(tmp_path / "file").seconds == pytest.approx(2, abs=0.05)


def two_tracks(samples: int, heard: int) -> bytes:
    """An MP4 file of two tracks with so many samples each by turns, of which the first so many have their bytes.

    That of the first track, which is the default one, is silent.
    """
    loud = adts_frame()
    quiet = encode(np.zeros(8000, np.float32), "-c:a aac -f adts")[7:]
    quiet = quiet[: len(loud)] if len(quiet) > len(loud) else quiet.ljust(len(loud), b"\0")
    head = fragmented()
    at = head.index(b"stsd") - 4
    entry = head[at : at + int.from_bytes(head[at : at + 4], "big")]

    def track(number: int, begin: int) -> bytes:
        stbl = entry + box(b"stsc", struct.pack(">5I", 0, 1, 1, 1, 1))
        stbl += box(b"stsz", struct.pack(">III", 0, len(loud), samples))
        offsets = begin + len(loud) * (2 * np.arange(samples) + number - 1)
        stbl += box(b"stco", struct.pack(">II", 0, samples) + offsets.astype(">u4").tobytes())
        stbl += box(b"stts", struct.pack(">4I", 0, 1, samples, 1024))
        mdhd = box(b"mdhd", struct.pack(">6I", 0, 0, 0, 16000, 0, 0))
        mdia = box(b"mdia", mdhd + box(b"hdlr", bytes(8) + b"soun" + bytes(13)) + box(b"minf", box(b"stbl", stbl)))
        return box(b"trak", box(b"tkhd", struct.pack(">6I", 1, 0, 0, number, 0, 0)) + mdia)

    def index(begin: int) -> bytes:
        mvhd = box(b"mvhd", struct.pack(">6I", 0, 0, 0, 1, 0, 0))
        return box(b"ftyp", b"isom" + bytes(4)) + box(b"moov", mvhd + track(1, begin) + track(2, begin))

    return index(len(index(0)) + 8) + box(b"mdat", (quiet + loud) * heard)


def test_a_long_index_of_two_tracks_of_which_the_default_one_is_silent() -> None:
    """Three hours of AAC at 44.1 kHz: the other track is looked at, and chosen."""
    data = two_tracks(465_000, 1000)
    decoder = StreamDecoder("mp4")
    samples = joined([decoder.feed(data), decoder.flush()])
    assert seconds(samples) == pytest.approx(64, abs=0.1)
    assert np.abs(samples).max() > 0.3


def test_a_refused_recording_before_a_good_one() -> None:
    """Its packets are passed over."""
    data = bytearray(encode(tone(0.5), "-c:a libopus -f webm"))
    data[data.index(b"OpusHead") + 9] = 40
    head = bytes(data[: data.index(b"\x1fC\xb6u")])
    refused = head + b"\x1fC\xb6u\x01\xff\xff\xff\xff\xff\xff\xff" + b"\xa3\x86\x81\0\0\x80\x01\x02" * 60_000
    samples, errors = streamed(refused + encode(tone(5), "-c:a libopus -f webm"), "matroska", 8192)
    assert [str(error) for error in errors] == ["the audio claims 40 channels; 1 to 32 are accepted"]
    assert seconds(samples) == 5


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.count += len(found)
        return found


def test_an_index_is_compared_with_the_bytes_of_the_file() -> None:
    """Eleven hours of video at 60 frames a second, with two tracks of sound, claim three million samples."""
    sizes = [struct.pack(">III", 0, 0, count) + bytes(4 * count) for count in (2_400_000, 1_800_000, 1_800_000)]
    traks = [box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", box(b"stsz", one))))) for one in sizes]
    mp4_claims.check(io.BytesIO(box(b"moov", b"".join(traks)) + box(b"mdat", bytes(1000))))
    with pytest.raises(TooMuchWork, match="more samples than there are bytes"):
        mp4_claims.check(io.BytesIO(amr(2_000_000, 1) + box(b"mdat", bytes(1000))))
    mp4_claims.check(io.BytesIO(amr(2_000_000, 1) + box(b"mdat", bytes(1_000_000))))


def test_a_compressed_index() -> None:
    """As QuickTime wrote them in the nineties."""

    def compressed(index: bytes) -> io.BytesIO:
        packed = box(b"cmvd", struct.pack(">I", len(index)) + zlib.compress(index))
        return io.BytesIO(box(b"moov", box(b"cmov", box(b"dcom", b"zlib") + packed)) + box(b"mdat", bytes(1000)))

    mp4_claims.check(compressed(amr(900_000, 1)))
    for index in (amr(2_000_000, 1), bytes(65 << 20)):
        with pytest.raises(TooMuchWork):
            mp4_claims.check(compressed(index))
    mp4_claims.check(io.BytesIO(box(b"moov", box(b"cmov", box(b"cmvd", b"damaged and no index")))))


def test_what_is_no_index_is_not_read() -> None:
    file = Counting(box(b"uuid", bytes(1 << 20)) + box(b"mdat", bytes(1 << 20)) + amr(1000, 1))
    mp4_claims.check(file)
    assert file.count < 2000
    assert file.tell() == 0
