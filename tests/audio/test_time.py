"""The time of a container: edit lists, padding, gaps, and the choice of a track."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE, files
from asrserver.audio.selection import Selection
from asrserver.audio.stream import StreamDecoder
from asrserver.audio.timeline import MAX_GAP, MAX_GAPS, Timeline
from tests.audio.signals import encode, encode_file, frequency, s16, tone
from tests.audio.streams import AAC, FRAGMENTS, decoded, handed_on, slices


def everywhere(data: bytes, kind: str) -> np.ndarray:
    """The samples of a file, which must be the same in a stream."""
    found = files.decode(data, kind, 3600)
    for seed, largest in ((1, 700), (2, 20000)):
        assert np.array_equal(decoded(StreamDecoder(kind), slices(data, seed, largest)), found)
    return found


def edited(data: bytes, edits: list[tuple[int, int]]) -> bytes:
    """An MP4 file with its edit list replaced: (milliseconds of the movie, first tick) of each edit."""
    at = data.index(b"elst") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    clock = int.from_bytes(data[data.index(b"mvhd") + 16 :][:4], "big")
    body = b"".join(struct.pack(">IiI", length * clock // 1000, begin, 0x10000) for length, begin in edits)
    elst = struct.pack(">I4sII", 16 + len(body), b"elst", 0, len(edits)) + body
    changed = bytearray(data[:at] + elst + data[at + size :])
    for name in (b"edts", b"trak", b"moov"):  # the index is at the end: no offset moves
        box = changed.index(name) - 4
        length = int.from_bytes(changed[box : box + 4], "big") + len(elst) - size
        changed[box : box + 4] = length.to_bytes(4, "big")
    return bytes(changed)


def steps() -> np.ndarray:
    """A second each of 300, 600, 900 … Hz, ten in all."""
    return np.concatenate(
        [0.5 * np.sin(2 * np.pi * 300 * (n + 1) * np.arange(SAMPLE_RATE) / SAMPLE_RATE) for n in range(10)]
    ).astype(np.float32)


def test_an_edit_list_is_obeyed(tmp_path: Path) -> None:
    """What the owner of a memo cut off is not heard."""
    memo = encode_file(steps(), f"{AAC} -f mp4", tmp_path)
    for first, last in ((0, 10), (4, 10), (2, 5), (9, 10), (0, 1)):
        edits = [(1000 * (last - first), 1024 + first * SAMPLE_RATE)]
        found = everywhere(edited(memo, edits), "mp4")
        assert len(found) == pytest.approx((last - first) * SAMPLE_RATE, abs=20)
        for number in range(first, last):
            begin = (number - first) * SAMPLE_RATE
            part = found[begin + 2000 : begin + SAMPLE_RATE - 2000]
            assert frequency(np.tile(part, 4)[:SAMPLE_RATE]) == pytest.approx(300 * (number + 1), rel=0.02)


def test_edits_that_leave_the_middle_out(tmp_path: Path) -> None:
    memo = encode_file(steps(), f"{AAC} -f mp4", tmp_path)
    found = everywhere(edited(memo, [(2000, 1024 + SAMPLE_RATE), (3000, 1024 + 6 * SAMPLE_RATE)]), "mp4")
    assert len(found) == pytest.approx(5 * SAMPLE_RATE, abs=20)
    heard = [frequency(found[n * SAMPLE_RATE : (n + 1) * SAMPLE_RATE]) for n in range(5)]
    assert heard == pytest.approx([600, 900, 2100, 2400, 2700], rel=0.02)


def test_an_edit_list_that_repeats_is_left_to_the_library(tmp_path: Path) -> None:
    memo = encode_file(steps(), f"{AAC} -f mp4", tmp_path)
    found = files.decode(edited(memo, [(2000, 1024 + 5 * SAMPLE_RATE), (2000, 1024)]), "mp4", 60)
    assert len(found) == pytest.approx(4 * SAMPLE_RATE, abs=3000)


@pytest.mark.parametrize("arguments", [f"{AAC} -f mp4", "-c:a libopus -f mp4", "-c:a libmp3lame -f mp4"])
def test_padding_is_not_heard(arguments: str, tmp_path: Path) -> None:
    """Every encoder adds samples before and after; the container says how many."""
    found = everywhere(encode_file(tone(3.217), arguments, tmp_path), "mp4")
    assert len(found) == pytest.approx(3.217 * SAMPLE_RATE, abs=80)


def gapped(arguments: str, seconds: float, folder: Path) -> bytes:
    """Two seconds of sound, a gap in the time stamps, and three seconds."""
    shift = f"-af asetpts=PTS+gte(T\\,2)*{seconds}/TB"
    return encode_file(tone(5.0), f"{shift} {arguments}", folder)


@pytest.mark.parametrize("arguments", ["-c:a libopus -f webm", f"{AAC} -f mp4", f"{AAC} {FRAGMENTS} -f mp4"])
def test_a_gap_is_silence(arguments: str, tmp_path: Path) -> None:
    kind = "matroska" if "webm" in arguments else "mp4"
    found = everywhere(gapped(arguments, 20, tmp_path), kind)
    assert len(found) / SAMPLE_RATE == pytest.approx(25, abs=0.15)
    assert np.abs(found[3 * SAMPLE_RATE : 21 * SAMPLE_RATE]).max() < 0.01
    assert frequency(found[-2 * SAMPLE_RATE :]) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(
    "arguments",
    [
        "-c:a libopus -f webm",
        "-c:a libopus -f webm -cluster_time_limit 400",
        f"{AAC} -f matroska -cluster_time_limit 30000",
        f"{AAC} {FRAGMENTS} -frag_duration 300000 -f mp4",
        f"-c:a libopus {FRAGMENTS}+default_base_moof -frag_duration 500000 -f mp4",
        f"{AAC} -ar 44100 {FRAGMENTS} -frag_duration 300000 -video_track_timescale 90000 -f mp4",
    ],
)
def test_a_gap_after_a_takeover(arguments: str, tmp_path: Path) -> None:
    """Another worker that goes on before the gap, or right at it, puts the sound behind it at the same time."""
    kind = "mp4" if arguments.endswith("mp4") else "matroska"
    data = gapped(arguments, 20, tmp_path)
    wanted = decoded(StreamDecoder(kind), [data])
    decoder, points = StreamDecoder(kind), {}
    for piece in slices(data, 1, 2000):
        decoder.feed(piece)
        for sample in range(0, min(decoder.position, 21 * SAMPLE_RATE), SAMPLE_RATE // 5):
            point = handed_on(decoder.resume_point(sample))
            points[point.offset] = point
    assert len(points) >= 4
    for point in points.values():
        found = decoded(StreamDecoder.resume(point), slices(data[point.offset :], 2, 3000))
        assert point.sample + len(found) == pytest.approx(len(wanted), abs=0.02 * SAMPLE_RATE)
        loud, other = (np.flatnonzero(np.abs(samples[-6 * SAMPLE_RATE :]) > 0.1) for samples in (wanted, found))
        assert loud[0] == pytest.approx(other[0], abs=0.02 * SAMPLE_RATE)


def test_silence_before_a_recording(tmp_path: Path) -> None:
    """An empty edit: the sound begins later than the file, as a track that was moved in an editor does."""
    for arguments in (f"{AAC} -f mp4", f"{AAC} {FRAGMENTS}+delay_moov+default_base_moof -f mp4", "-c:a alac -f mp4"):
        file = encode_file(tone(3.0), arguments, tmp_path)
        if "frag" in arguments:
            at = file.index(b"moof") - 4
            file = edited(file[:at], [(7000, -1), (0, 1024)]) + file[at:]
        else:
            clock = 0 if "alac" in arguments else 1024
            file = edited(file, [(7000, -1), (3000, clock)])
        found = everywhere(file, "mp4")
        assert len(found) / SAMPLE_RATE == pytest.approx(10.0, abs=0.1)
        assert np.abs(found[: int(6.9 * SAMPLE_RATE)]).max() < 0.01
        assert frequency(found[-2 * SAMPLE_RATE :]) == pytest.approx(440, abs=2)
    hours = edited(encode_file(tone(3.0), f"{AAC} -f mp4", tmp_path), [(4_000_000, -1), (3000, 1024)])
    assert len(everywhere(hours, "mp4")) / SAMPLE_RATE == pytest.approx(3.0, abs=0.1)  # a clock that was set


def test_a_gap_in_a_file_that_the_library_decodes(tmp_path: Path) -> None:
    found = files.decode(gapped("-c:a aac -f mpegts", 5, tmp_path), "mpegts", 60)
    assert len(found) / SAMPLE_RATE == pytest.approx(10, abs=0.2)


def test_gaps_are_bounded() -> None:
    """Time stamps cannot claim more silence than an hour at once, nor in sum much more than there is audio."""
    timeline = Timeline()
    assert timeline.gap(100.0) == 0.0  # where the clock begins means nothing
    timeline.advance(1.0)
    assert timeline.gap(101.05) == 0.0  # jitter
    assert timeline.gap(103.0) == pytest.approx(2.0)
    assert timeline.gap(50.0) == 0.0  # set back
    assert timeline.gap(51.0) == pytest.approx(1.0)
    assert timeline.gap(51.0 + MAX_GAP + 1) == 0.0  # set forward
    assert timeline.gap(None) == 0.0
    claimed = sum(timeline.gap(1e5 + 3000.0 * n) for n in range(1000))
    assert claimed <= MAX_GAPS


def test_small_differences_add_up_to_a_gap() -> None:
    """Ten packets of which each is 20 ms late are 200 ms late."""
    timeline, missing = Timeline(), 0.0
    for number in range(10):
        missing += timeline.gap(0.04 * number)
        timeline.advance(0.02)
    assert missing == pytest.approx(0.18, abs=0.1)
    assert missing > 0.1


def two_tracks(arguments: str, folder: Path, silent: int = 0) -> bytes:
    """A file with two tracks, of which one is silent."""
    inputs = []
    for number in range(2):
        path = folder / f"{number}.wav"
        samples = tone(4.0) if number != silent else np.zeros(4 * SAMPLE_RATE, np.float32)
        path.write_bytes(encode(samples, "-f wav"))
        inputs += ["-i", str(path)]
    target = folder / "two"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *inputs, "-map", "0:a", "-map", "1:a"]
    subprocess.run([*command, *arguments.split(), str(target)], check=True)
    return target.read_bytes()


@pytest.mark.parametrize("silent", [0, 1])
def test_the_track_with_sound_is_heard(silent: int, tmp_path: Path) -> None:
    found = everywhere(two_tracks(f"{AAC} -f mp4", tmp_path, silent), "mp4")
    assert frequency(found) == pytest.approx(440, abs=2)
    for arguments, kind in (
        ("-c:a libopus -f matroska", "matroska"),
        ("-c:a aac -f mpegts", "mpegts"),
        ("-c:a alac -f mp4", "mp4"),
    ):
        assert frequency(files.decode(two_tracks(arguments, tmp_path, silent), kind, 60)) == pytest.approx(440, abs=2)


def test_the_default_track_is_heard(tmp_path: Path) -> None:
    """Both have sound; the second is marked as the default."""
    one, two = tmp_path / "0.wav", tmp_path / "1.wav"
    one.write_bytes(encode(tone(4.0), "-f wav"))
    other = (0.5 * np.sin(2 * np.pi * 880 * np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32)
    two.write_bytes(encode(other, "-f wav"))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(one), "-i", str(two)]
    command += ["-map", "0:a", "-map", "1:a", "-disposition:a:0", "0", "-disposition:a:1", "default"]
    for arguments, kind in (("-c:a libopus -f matroska", "matroska"), (f"{AAC} -f mp4", "mp4")):
        target = tmp_path / "both"
        subprocess.run([*command, *arguments.split(), str(target)], check=True)
        found = everywhere(target.read_bytes(), kind)
        assert frequency(found) == pytest.approx(880, abs=2)


def test_a_track_can_be_named(tmp_path: Path) -> None:
    data = two_tracks("-c:a libopus -f matroska", tmp_path, silent=1)
    first, second = (decoded(StreamDecoder("matroska", selection=Selection(number)), [data]) for number in (0, 1))
    assert frequency(first) == pytest.approx(440, abs=2)
    assert np.abs(second).max() < 0.01
    assert s16(first) != s16(second)
