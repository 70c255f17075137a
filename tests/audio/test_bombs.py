"""No few bytes can take a worker's memory or time: see bombs.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest

from asrserver.audio import SAMPLE_RATE, effort, files, library
from asrserver.audio.bounds import TooMuchWork
from asrserver.audio.codec import Codec
from asrserver.audio.demux.base import Track
from asrserver.audio.pcm import Resampler, Samples, joined
from asrserver.audio.stream import StreamDecoder
from tests.audio.bombs import BOMBS, adts_frame, memory, small_frames
from tests.audio.signals import encode, frequency, tone

#: Most seconds of CPU, beside 2 ms for each second of audio, and most MB. They cost up to 1.6 s and 40 MB.
CPU, MEMORY = 2.0, 50

#: Those that have audio, and cost little more than it.
HONEST = ("opus_silence", "joined_indexes", "joined_tracks")


@pytest.mark.usefixtures("processes")
def test_bombs_cost_next_to_nothing() -> None:
    """In a process of their own, whose peak of memory counts."""
    command = [sys.executable, "-m", "tests.audio.bombs"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=300)
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(costs) == 2 * len(BOMBS)
    for cost in costs:
        assert cost["cpu"] < CPU + 0.002 * cost["seconds"], cost
        assert cost["memory"] < MEMORY, cost
        assert cost["code"] or cost["name"] in HONEST, cost


def test_an_index_of_too_many_boxes_is_not_read_again() -> None:
    """FFmpeg, which would read it otherwise, takes most of a second for it."""
    with pytest.raises(TooMuchWork, match="too many boxes"):
        files.decode_file(BOMBS["many_boxes"][0](), "mp4", 60)


@pytest.mark.usefixtures("processes")
def test_damaged_recordings_of_all_formats(tmp_path: Path) -> None:
    """Some of the mutants of `make fuzz`, always the same: a crash, a hang, or a cost beyond bounds fails."""
    tool = Path(__file__).parents[2] / "tools" / "fuzz_audio.py"
    command = [sys.executable, str(tool), "--mutants", "500", "--jobs", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_decoder_of_aac_keeps_nothing_of_what_damaged_packets_claim() -> None:
    """Each claims 15 channels of half a megabyte: ten streams would take 160 MB."""
    track = Track("aac", b"\x14\x08V\xe5\x00", 16000, 1)
    claims = [_program_config(is_pair) + b"\xff" * 20 for is_pair in (0, 1)]
    codecs = [Codec(track) for _ in range(10)]
    before = memory("VmRSS")
    for codec in codecs:
        assert [codec.decode(packet) for packet in claims] == [None, None]
    assert memory("VmRSS") - before < 40
    assert codecs[0].decode(adts_frame())


def _program_config(is_pair: int) -> bytes:
    """An element of AAC (ISO 14496-3, 4.4.1.1) that claims 15 channels, or pairs of them, in front."""
    fields = [(5, 3), (0, 4), (1, 2), (8, 4), (15, 4), (0, 22)]
    fields += [field for number in range(15) for field in ((is_pair, 1), (number, 4))]
    bits = "".join(f"{value:0{width}b}" for value, width in fields)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big") + b"\0"


def test_what_costs_more_than_its_audio_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream gets the error for every chunk from then on, and keeps what was decoded; a file is refused."""
    data = encode(tone(4.0), "-c:a libopus -f webm")
    monkeypatch.setattr(effort, "MOST", 0.0)
    monkeypatch.setattr(effort, "MOST_PER_SECOND", 0.0)
    monkeypatch.setattr(effort, "STEPS", 8)
    for file, kind in ((data, "matroska"), (encode(tone(4.0), "-c:a adpcm_ima_wav -f avi"), "avi")):
        with pytest.raises(TooMuchWork, match="takes too long"):
            files.decode_file(file, kind, 60)
    decoder = StreamDecoder("matroska")
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    monkeypatch.setattr(effort, "MOST", 2.0)
    samples = [decoder.feed(piece) for piece in pieces[: len(pieces) // 2]]
    monkeypatch.setattr(effort, "MOST", 0.0)
    errors = []
    for piece in pieces[len(pieces) // 2 :]:
        try:
            samples.append(decoder.feed(piece))
        except TooMuchWork as exc:
            errors.append(exc)
    assert len(errors) > 2
    samples.append(decoder.flush())
    assert 1.5 < sum(map(len, samples)) / SAMPLE_RATE == decoder.position / SAMPLE_RATE < 4.0


def test_others_have_their_turn_while_nothing_can_be_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "TURN", 0.0)
    turns: list[Samples] = []
    with pytest.raises(TooMuchWork):
        turns.extend(StreamDecoder("aac").pieces(small_frames()))
    assert len(turns) > 10
    assert not any(map(len, turns))


def test_ffmpeg_allocates_no_more_than_an_index_needs() -> None:
    """A few bytes can claim an index of any length in many of its formats."""
    av.AudioFrame("flt", "mono", library.MAX_ALLOCATION // 8)
    with pytest.raises(MemoryError):
        av.AudioFrame("flt", "mono", library.MAX_ALLOCATION)


def test_an_utterance_is_longer_than_what_ffmpeg_allocates() -> None:
    samples = tone(60.0, 192_000)
    assert samples.nbytes > library.MAX_ALLOCATION
    found = joined([(resampler := Resampler(192_000)).feed(samples), resampler.flush()])
    assert len(found) == pytest.approx(60 * SAMPLE_RATE, abs=32)
    assert frequency(found) == pytest.approx(440, abs=1)
