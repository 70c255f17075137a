"""The choice among the audio tracks of a stream: alike however it is cut, and wherever it is continued."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import imageio_ffmpeg
import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, files, library
from asrserver.audio.bounds import ImplausibleAudio
from asrserver.audio.look_ahead import LOOK_SECONDS
from asrserver.audio.pcm import Samples
from asrserver.audio.recording import PIECE_SECONDS
from asrserver.audio.selection import Selection
from asrserver.audio.stream import StreamDecoder
from asrserver.audio.turns import finished
from asrserver.errors import AudioError
from tests.audio.bombs import element
from tests.audio.signals import encode, frequency, tone
from tests.audio.streams import AAC, FRAGMENTS, decoded, handed_on, slices, tolerant

FORMATS = {
    "mkv-opus": ("-c:a libopus -f matroska", "matroska"),
    "webm-live": ("-c:a libopus -f webm -live 1", "matroska"),
    "mkv-aac": (f"{AAC} -f matroska", "matroska"),
    "mp4": (f"{AAC} {FRAGMENTS} -frag_duration 500000 -f mp4", "mp4"),
    "mp4-flac": (f"-c:a flac -strict -2 {FRAGMENTS} -frag_duration 300000 -f mp4", "mp4"),
}
INDEXED = {
    "mp4-index-last": (f"{AAC} -f mp4", "mp4"),
    "mp4-index-first": (f"{AAC} -movflags faststart -f mp4", "mp4"),
    "mov-alac": ("-c:a alac -f mov", "mp4"),
    "mpegts": (f"{AAC} -f mpegts", "mpegts"),
}
WEBM = FORMATS["webm-live"]


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def tracks(samples: Sequence[Samples], arguments: str, folder: Path) -> bytes:
    """A file with some tracks, of which the first is the default one."""
    inputs, maps = [], []
    for number, one in enumerate(samples):
        path = folder / f"{number}.wav"
        path.write_bytes(encode(one, "-f wav"))
        inputs += ["-i", str(path)]
        maps += ["-map", f"{number}:a"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *inputs, *maps, *arguments.split()]
    subprocess.run([*command, str(folder / "file")], check=True)
    return (folder / "file").read_bytes()


def named(data: bytes, kind: str, number: int) -> Samples:
    return decoded(StreamDecoder(kind, selection=Selection(number)), [data])


@pytest.mark.parametrize("seconds", [2.0, LOOK_SECONDS + 2])
@pytest.mark.parametrize("name", FORMATS)
def test_a_stream_whose_default_track_is_silent(name: str, seconds: float, tmp_path: Path) -> None:
    arguments, kind = FORMATS[name]
    data = tracks([silence(seconds), silence(seconds), tone(seconds)], arguments, tmp_path)
    wanted = named(data, kind, 2)
    assert frequency(wanted) == pytest.approx(440, abs=2)
    np.testing.assert_array_equal(files.decode(data, kind, 60), wanted)
    assert sum(map(len, files.read_s16(tmp_path / "file", 0.5))) == 2 * len(wanted)
    for cut in (slices(data, 5, 3000), slices(data, 6, 50), [data]):
        found, errors = tolerant(StreamDecoder(kind), cut)
        assert not errors
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", FORMATS)
def test_it_is_continued_anywhere(name: str, tmp_path: Path) -> None:
    """Before the choice from the beginning, after it with the track that was chosen."""
    arguments, kind = FORMATS[name]
    data = tracks([silence(8), tone(8)], arguments, tmp_path)
    wanted = named(data, kind, 1)
    decoder = StreamDecoder(kind)
    points = []
    for piece in slices(data, 7, len(data) // 12):
        decoder.feed(piece)
        points.append(handed_on(decoder.resume_point(decoder.position)))
    assert points[0].offset == 0
    assert points[-1].offset > len(data) // 2
    for point in points:
        rest = decoded(StreamDecoder.resume(point), slices(data[point.offset :], 8, 5000))
        assert len(rest) == pytest.approx(len(wanted) - point.sample, abs=SAMPLE_RATE // 20)
        np.testing.assert_allclose(rest[:-800], wanted[point.sample :][: len(rest)][:-800], atol=0.1)


def test_the_default_track_is_given_time(tmp_path: Path) -> None:
    """It wins if it has sound within the look-ahead, and what came before is kept; a later one has lost."""
    arguments, kind = WEBM
    late, quiet = np.concatenate([silence(3), tone(5)]), np.float32(0.5) * tone(8)
    data = tracks([late, quiet], arguments, tmp_path)
    np.testing.assert_array_equal(decoded(StreamDecoder(kind), slices(data, 1, 2000)), named(data, kind, 0))
    data = tracks([np.concatenate([silence(6.5), tone(2)]), quiet], arguments, tmp_path)
    np.testing.assert_array_equal(decoded(StreamDecoder(kind), slices(data, 1, 2000)), named(data, kind, 1))
    np.testing.assert_array_equal(files.decode(data, kind, 60), named(data, kind, 1))


@pytest.mark.parametrize("name", [*FORMATS, "mp4-index-last", "mp4-index-first"])
def test_the_choice_stays_open_while_all_are_silent(name: str, tmp_path: Path) -> None:
    """Wherever it is continued, too; and silence is returned meanwhile."""
    arguments, kind = (FORMATS | INDEXED)[name]
    late = np.concatenate([silence(9), tone(3)])
    data = tracks([silence(12), silence(12), late], arguments, tmp_path)
    wanted = named(data, kind, 2)
    assert frequency(wanted[9 * SAMPLE_RATE :]) == pytest.approx(440, abs=2)
    np.testing.assert_array_equal(files.decode(data, kind, 60), wanted)
    decoder = StreamDecoder(kind)
    found, points = [], []
    for piece in slices(data, 5, len(data) // 40):
        found.append(decoder.feed(piece))
        points.append(handed_on(decoder.resume_point(decoder.position)))
    np.testing.assert_allclose(np.concatenate([*found, decoder.flush()]), wanted, atol=1e-4)
    open_points = {point.offset: point for point in points if point.others}
    assert bool(open_points) == (name in FORMATS)
    for point in open_points.values():
        rest = decoded(StreamDecoder.resume(point), slices(data[point.offset :], 8, 5000))
        assert len(rest) == pytest.approx(len(wanted) - point.sample, abs=SAMPLE_RATE // 50)
        begun = [int(np.argmax(np.abs(samples) > 0.1)) for samples in (rest, wanted[point.sample :])]
        assert begun[0] == pytest.approx(begun[1], abs=SAMPLE_RATE // 50)
        older = decoded(StreamDecoder.resume(replace(point, others=())), [data[point.offset :]])
        assert len(older) == pytest.approx(len(wanted) - point.sample, abs=SAMPLE_RATE // 50)


@pytest.mark.parametrize("name", ["mp4-index-last", "mp4-index-first", "mov-alac", "mpegts"])
@pytest.mark.parametrize(("seconds", "chosen"), [(3.0, 0), (6.5, 1), (9.0, 1)])
def test_files_follow_the_same_rule(name: str, seconds: float, chosen: int, tmp_path: Path) -> None:
    arguments, kind = INDEXED[name]
    default, other = np.concatenate([silence(seconds), tone(12 - seconds)]), np.float32(0.5) * tone(12)
    data = tracks([default, other], arguments, tmp_path)
    found = files.decode(data, kind, 60)
    wanted = files.decode_file(data, kind, 60, Selection(chosen)).samples
    np.testing.assert_array_equal(found, wanted)
    if kind == "mp4":
        np.testing.assert_array_equal(decoded(StreamDecoder(kind), slices(data, 6, 4000)), found)


def test_sound_is_returned_at_once(tmp_path: Path) -> None:
    arguments, kind = WEBM
    data = tracks([tone(4), tone(4)], arguments, tmp_path)
    assert len(StreamDecoder(kind).feed(data[: len(data) // 4])) > SAMPLE_RATE // 2


def test_silence_is_returned_where_all_tracks_are_silent(tmp_path: Path) -> None:
    arguments, kind = WEBM
    for seconds in (1, 8):
        data = tracks([silence(seconds), silence(seconds)], arguments, tmp_path)
        found = decoded(StreamDecoder(kind), slices(data, 1, 500))
        np.testing.assert_array_equal(found, named(data, kind, 0))


def test_a_default_track_without_packets(tmp_path: Path) -> None:
    """As of a microphone that was never unmuted."""
    arguments, kind = WEBM
    data = tracks([silence(0), tone(8)], arguments, tmp_path)
    assert not len(named(data, kind, 0))
    np.testing.assert_array_equal(decoded(StreamDecoder(kind), slices(data, 1, 500)), named(data, kind, 1))


@pytest.mark.parametrize("name", ["webm-live", "mp4"])
def test_each_recording_of_a_stream_is_looked_at(name: str, tmp_path: Path) -> None:
    arguments, kind = FORMATS[name]
    first = tracks([silence(2), tone(2)], arguments, tmp_path)
    second = tracks([tone(7), silence(7)], arguments, tmp_path)
    third = tracks([silence(7), tone(7)], arguments, tmp_path)
    wanted = [named(first, kind, 1), named(second, kind, 0), named(third, kind, 1)]
    for largest in (400, 4000, 1 << 20):
        found = decoded(StreamDecoder(kind), slices(first + second + third, 2, largest))
        np.testing.assert_array_equal(found, np.concatenate(wanted))


def test_channels_kept_apart(tmp_path: Path) -> None:
    arguments, kind = WEBM
    data = tracks([silence(8), tone(8)], f"-ac 2 {arguments}", tmp_path)
    found = decoded(StreamDecoder(kind, selection=Selection(separate=True)), slices(data, 1, 2000))
    assert found.shape == (len(named(data, kind, 1)), 2)


def test_damage_in_the_look_ahead_is_reported(tmp_path: Path) -> None:
    arguments, kind = FORMATS["mkv-aac"]
    data = bytearray(tracks([silence(8), tone(8)], arguments, tmp_path))
    for at in range(len(data) // 8, len(data) // 8 + 2000):
        data[at] ^= 0x5A
    found, errors = tolerant(StreamDecoder(kind), slices(bytes(data), 3, 2000))
    assert frequency(found) == pytest.approx(440, abs=2)
    assert {error.code for error in errors} == {"undecodable_audio"}


def test_damage_in_silence_is_reported_when_the_silence_is_returned(tmp_path: Path) -> None:
    """And only once: the choice may stay open for hours."""
    arguments, kind = FORMATS["mkv-aac"]
    data = bytearray(tracks([silence(30), silence(30)], arguments, tmp_path))
    for at in range(len(data) // 4, len(data) // 4 + 200):
        data[at] ^= 0x5A
    decoder = StreamDecoder(kind)
    found, errors = tolerant(decoder, slices(bytes(data), 3, 500))
    assert len(found) == pytest.approx(30 * SAMPLE_RATE, rel=0.1)
    assert errors
    assert decoder.tail is None


def test_an_indexed_file_of_silence_ends_in_pieces(tmp_path: Path) -> None:
    arguments, kind = INDEXED["mp4-index-first"]
    data = tracks([silence(35), silence(35)], arguments, tmp_path)
    decoder = StreamDecoder(kind)
    assert not len(decoder.feed(data))
    lengths = [len(piece) for piece in decoder.ending()]
    assert sum(lengths) == decoder.position == pytest.approx(35 * SAMPLE_RATE, rel=0.01)
    assert max(lengths) <= PIECE_SECONDS * SAMPLE_RATE


def test_a_gap_is_not_looked_through(tmp_path: Path) -> None:
    """A time stamp can claim an hour of silence: it comes in pieces, as without another track."""
    arguments, kind = WEBM
    data = tracks([silence(1), silence(1)], arguments, tmp_path)
    block = bytes((0xA3, 0x86, 0x81, 0, 0, 0x80, 0x1B, 0x02))
    data += b"\x1fC\xb6u\xff" + element(0xE7, (1_800_000).to_bytes(6, "big")) + block
    decoder = StreamDecoder(kind)
    pieces = [*decoder.pieces(data), decoder.flush()]
    assert max(len(piece) for piece in pieces) <= 11 * SAMPLE_RATE
    assert sum(len(piece) for piece in pieces) == pytest.approx(1800 * SAMPLE_RATE, abs=SAMPLE_RATE)


def begins(samples: Samples) -> float:
    """The second at which sound begins."""
    return float(np.argmax(np.abs(samples) > 0.1)) / SAMPLE_RATE


def copied(encoded: Sequence[tuple[bytes, float]], arguments: str, folder: Path) -> bytes:
    """A file of tracks, each with the seconds by which it begins later: FFmpeg's encoders wait for each other."""
    inputs, maps = [], []
    for number, (data, offset) in enumerate(encoded):
        path = folder / f"{number}.mka"
        path.write_bytes(data)
        inputs += ["-itsoffset", str(offset), "-i", str(path)]
        maps += ["-map", f"{number}:a"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *inputs, *maps, "-c", "copy", *arguments.split()]
    subprocess.run([*command, str(folder / "copy")], check=True)
    return (folder / "copy").read_bytes()


LIVE = {
    "webm": ("-c:a libopus -f matroska", "-f webm -live 1", "matroska"),
    "mp4": (f"{AAC} -f matroska", f"{FRAGMENTS} -frag_duration 300000 -f mp4", "mp4"),
}


@pytest.mark.parametrize("name", LIVE)
@pytest.mark.parametrize("both", [True, False])
def test_a_gap_while_the_choice_is_open(name: str, both: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is continued, before the gap, in it, or behind it, what follows is heard at its time."""
    monkeypatch.setattr("asrserver.audio.stream._POINT_SPACING", 1)
    codec, arguments, kind = LIVE[name]
    gap = f"-af asetpts=PTS+gte(T\\,8)*4/TB {codec}"
    other = encode(np.concatenate([silence(9), tone(3)]), gap)
    default = encode(silence(12), gap) if both else encode(silence(16), codec)
    data = copied([(default, 0), (other, 0)], arguments, tmp_path)
    decoder, points = StreamDecoder(kind), {}
    found = []
    first, last = 15 * SAMPLE_RATE // 2, 25 * SAMPLE_RATE // 2  # around the gap
    for piece in slices(data, 1, len(data) // 60):
        found.append(decoder.feed(piece))
        for sample in range(first, min(decoder.position, last), SAMPLE_RATE // 100):
            point = handed_on(decoder.resume_point(sample))
            points[point.offset] = point
    assert begins(np.concatenate([*found, decoder.flush()])) == pytest.approx(13, abs=0.1)
    near = [point for point in points.values() if point.others and first < point.sample < last]
    assert len(near) >= 3
    for point in near[:: 1 + len(near) // 80]:
        rest = decoded(StreamDecoder.resume(point), slices(data[point.offset :], 2, 3000))
        assert point.sample / SAMPLE_RATE + begins(rest) == pytest.approx(13, abs=0.1)


def test_a_track_that_joins_late(tmp_path: Path) -> None:
    """As that of a participant who is unmuted after a while."""
    codec, arguments, kind = LIVE["webm"]
    data = copied([(encode(silence(20), codec), 0), (encode(tone(6), codec), 12)], arguments, tmp_path)
    for cut in ([data], slices(data, 1, 1000)):
        found = decoded(StreamDecoder(kind), cut)
        assert begins(found) == pytest.approx(12, abs=0.1)
        assert len(found) / SAMPLE_RATE == pytest.approx(18, abs=0.1)


def test_a_default_track_behind_another_in_the_bytes(tmp_path: Path) -> None:
    """Fragments of six seconds, each with the other track first."""
    arguments = f"-disposition:a:0 0 -disposition:a:1 default {AAC} {FRAGMENTS} -frag_duration 6000000 -f mp4"
    data = tracks([np.float32(0.5) * tone(12), tone(12)], arguments, tmp_path)
    np.testing.assert_array_equal(decoded(StreamDecoder("mp4"), slices(data, 1, 4000)), named(data, "mp4", 1))


def test_a_feed_of_two_silent_tracks_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are dropped: silence takes a few bytes."""
    monkeypatch.setattr("asrserver.audio.stream._MAX_FEED_SECONDS", 60)
    data = tracks([silence(1), silence(1)], WEBM[0], tmp_path)
    blocks = b"".join(element(0xA3, bytes((track, 0, 0, 0x80, 0xFF, 6)) + b"\xff\xfe" * 6) for track in (0x81, 0x82))
    data = data[: data.index(b"\x1fC\xb6u")] + b"\x1fC\xb6u\xff" + blocks * 2000
    decoder = StreamDecoder(WEBM[1])
    with pytest.raises(AudioError) as caught:
        decoder.feed(data)
    assert caught.value.code == "utterance_too_long"
    decoder.flush()
    assert decoder.position < 80 * SAMPLE_RATE


def test_what_was_looked_at_survives_an_error_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tracks([silence(3), tone(3)], WEBM[0], tmp_path)
    decoder = StreamDecoder(WEBM[1])
    assert not len(decoder.feed(data))
    whole = decoder._drain

    def fault() -> Iterator[Samples]:
        monkeypatch.setattr(decoder, "_drain", whole)
        raise AudioError("utterance_too_long", "too long")

    monkeypatch.setattr(decoder, "_drain", fault)
    assert frequency(decoder.flush()) == pytest.approx(440, abs=2)


def test_a_default_track_that_the_library_refuses() -> None:
    """It has no sound: another track is chosen."""

    class Reader:
        def frames(self) -> Iterator[tuple[Samples, int, float]]:
            yield silence(1), SAMPLE_RATE, 0.0
            raise ImplausibleAudio("its rate cannot be true")

    assert finished(files._onset(cast(library.Reader, Reader()), 60)) == float("inf")
