"""No few bytes can take a worker's memory or time: see bombs.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest

from asrserver.audio import SAMPLE_RATE, files, library, turns
from asrserver.audio.bounds import TooMuchWork
from asrserver.audio.pcm import Resampler, Samples, joined
from asrserver.audio.stream import StreamDecoder
from asrserver.errors import AudioError
from tests.audio.bombs import BOMBS, small_frames
from tests.audio.signals import frequency, tone

#: Most seconds of CPU, beside 2 ms for each second of audio, and most MB. They cost up to 1 s, and up to 84 MB, by what
#: the heap has left of those before (joined_tracks: six indexes of half a million samples, while a track is chosen).
CPU, MEMORY = 2.0, 110

#: Those that are valid.
VALID = ("opus_silence", "joined_indexes", "joined_tracks", "empty_frames", "small_adpcm")


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
        assert cost["code"] or cost["name"] in VALID, cost


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


def test_others_have_their_turn_while_nothing_can_be_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN", 0.0)
    found: list[Samples] = []
    with pytest.raises(AudioError, match="cannot be decoded"):
        found.extend(StreamDecoder("aac").pieces(small_frames()))
    assert len(found) > 100
    assert not any(map(len, found))


def test_ffmpeg_allocates_no_more_than_an_index_needs() -> None:
    """A few bytes can claim an index of any length in many of its formats."""
    with pytest.raises(MemoryError):
        av.AudioFrame("flt", "mono", library.MAX_ALLOCATION)


def test_a_long_utterance_is_resampled_in_pieces() -> None:
    samples = tone(60.0, 192_000)
    found = joined([(resampler := Resampler(192_000)).feed(samples), resampler.flush()])
    assert len(found) == pytest.approx(60 * SAMPLE_RATE, abs=32)
    assert frequency(found) == pytest.approx(440, abs=1)


def test_what_was_decoded_before_too_much_work_is_kept() -> None:
    found = files.decode_file(BOMBS["ogg_pages"][0](), "ogg", 60)
    assert len(found.samples) == 8000
    assert found.damage is not None
    assert "too many elements" in found.damage.message
