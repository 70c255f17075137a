"""vad.py and silero.py: segments found as the audio arrives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import extract_silero
import numpy as np
import pytest
from faster_whisper.vad import VadOptions, get_speech_timestamps, get_vad_model

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.pcm import Samples
from asrserver.errors import ModelError
from asrserver.inference import silero, vad
from asrserver.inference.silero import FRAME, FrameRun
from asrserver.inference.vad import (
    CONTEXT_SAMPLES,
    MAX_SEGMENT_SECONDS,
    Endpointer,
    Event,
    SegmentEnded,
    SegmentStarted,
    segments,
)
from asrserver.loadtest.speech import QUIET_LEVEL
from tests.audio.signals import tone
from tests.recordings import Utterance

SILENCE = 0.4


def samples(utterance: Utterance) -> Samples:
    return np.frombuffer(utterance.pcm, "<i2").astype(np.float32) / np.float32(32768)


@pytest.fixture(scope="module")
def said(all_utterances: list[Utterance]) -> list[Samples]:
    return [samples(one) for one in all_utterances[:25]]


def noise(level: float, count: int) -> Samples:
    """White noise; the same each time."""
    return np.random.default_rng(1).normal(0, level, count).astype(np.float32)


def talk(said: list[Samples], seed: int, noise: float = 0.0, pauses: tuple[float, float] = (0.6, 3.0)) -> Samples:
    """Utterances with pauses between them, and noise over all of it."""
    random = np.random.default_rng(seed)
    parts = []
    for one in said:
        parts += [one, np.zeros(int(random.uniform(*pauses) * SAMPLE_RATE), np.float32)]
    whole = np.concatenate(parts)
    return whole + random.normal(0, noise, len(whole)).astype(np.float32) if noise else whole


def sliced(endpointer: Endpointer, recording: Samples, seed: int, largest: int = 8000) -> list[Event]:
    """The events of a recording that arrives in random slices."""
    random = np.random.default_rng(seed)
    events: list[Event] = []
    at = 0
    while at < len(recording):
        size = int(random.integers(0, largest))
        events += endpointer.feed(recording[at : at + size])
        at += size
    return events + endpointer.flush()


def spans(events: list[Event]) -> list[tuple[int, int]]:
    return [(event.start, event.end) for event in events if isinstance(event, SegmentEnded)]


def overlap(one: tuple[int, int], other: tuple[int, int]) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))


def speech(recording: Samples) -> list[tuple[int, int]]:
    """The speech that faster-whisper finds with Silero in the whole recording."""
    options = VadOptions(min_speech_duration_ms=100, min_silence_duration_ms=int(SILENCE * 1000), speech_pad_ms=0)
    return [(found["start"], found["end"]) for found in get_speech_timestamps(recording, options)]


@pytest.mark.parametrize("noise", [0.0, 0.0003, 0.003, 0.01])
def test_segments_are_where_silero_finds_speech(said: list[Samples], noise: float) -> None:
    """Each stretch of speech lies in exactly one segment, except for its blurred edges."""
    recording = talk(said, 1, noise)
    found = segments(recording, SILENCE)
    assert len(speech(recording)) >= len(said)
    for stretch in speech(recording):
        inside = [part for span in found if (part := overlap(span, stretch))]
        assert len(inside) == 1
        assert inside[0] >= stretch[1] - stretch[0] - 4 * FRAME
    assert len(found) == pytest.approx(len(speech(recording)), abs=1)


@pytest.mark.parametrize("look_back", [0.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_slicing_changes_nothing(said: list[Samples], seed: int, look_back: float) -> None:
    recording = talk(said[:12], seed, noise=(0.0, 0.003)[seed % 2])
    whole = Endpointer(SILENCE, look_back=look_back)
    wanted = whole.feed(recording) + whole.flush()
    assert len(spans(wanted)) >= 12
    assert sliced(Endpointer(SILENCE, look_back=look_back), recording, seed) == wanted
    assert sliced(Endpointer(SILENCE), recording[: 8 * SAMPLE_RATE], seed, largest=20) == [
        *(Endpointer(SILENCE)).feed(recording[: 8 * SAMPLE_RATE]),
        *_flushed(recording[: 8 * SAMPLE_RATE]),
    ]


def _flushed(recording: Samples) -> list[Event]:
    endpointer = Endpointer(SILENCE)
    endpointer.feed(recording)
    return endpointer.flush()


def test_every_segment_starts_before_it_ends_and_in_order(said: list[Samples]) -> None:
    recording = talk(said, 3)
    events = sliced(Endpointer(SILENCE), recording, 3)
    borders = []
    for started, ended in zip(events[::2], events[1::2], strict=True):
        assert isinstance(started, SegmentStarted)
        assert isinstance(ended, SegmentEnded)
        assert started.at == ended.start
        borders += [ended.start, ended.end]
    assert borders == sorted(borders)
    assert borders[0] >= 0
    assert borders[-1] <= len(recording)
    assert len(borders) == 2 * len(said)


def test_the_open_segment(said: list[Samples]) -> None:
    """It begins where SegmentStarted said, reports its pauses, and is equal to the segment that ends."""
    recording = talk(said[:8], 4)
    endpointer = Endpointer(SILENCE)
    start = None
    paused = False
    for at in range(0, len(recording), 1600):
        before = endpointer.open
        for event in endpointer.feed(recording[at : at + 1600]):
            if isinstance(event, SegmentStarted):
                start = event.at
            else:
                assert before is not None
                assert (event.start, event.end) == (before.start, before.end)  # it ended during its pause
                assert before.paused > 0
                start = None
        if (found := endpointer.open) is not None:
            assert found.start == start
            assert start < found.end <= endpointer.position
            paused |= found.paused > 0
        assert endpointer.needed <= endpointer.position
    assert paused


@pytest.mark.parametrize("silence", [0.4, 0.8, 1.5])
def test_the_silence_that_ends_a_segment(said: list[Samples], silence: float) -> None:
    """A shorter pause does not end a segment; a longer one does, and not before its time has passed."""
    loud = np.flatnonzero(np.abs(said[0]) > 0.05)
    one = said[0][loud[0] : loud[-1]]
    for pause, count in ((silence - 0.2, 1), (silence + 0.2, 2)):
        recording = np.concatenate([one, np.zeros(int(pause * SAMPLE_RATE), np.float32), one])
        assert len(segments(recording, silence)) == count
    endpointer = Endpointer(silence)
    endpointer.feed(one)
    frames = 0
    while not endpointer.feed(np.zeros(FRAME, np.float32)):
        frames += 1
    assert abs(frames * FRAME - silence * SAMPLE_RATE) < 0.2 * SAMPLE_RATE


def test_little_speech_waits_longer_for_its_end(said: list[Samples]) -> None:
    """So a word before a pause that would end other segments stays with what follows it."""
    word, rest = (one[segments(one, SILENCE)[0][0] + int(0.2 * SAMPLE_RATE) :] for one in said[:2])  # no padding
    pause = np.zeros(int(1.2 * SILENCE * SAMPLE_RATE), np.float32)
    recording = np.concatenate([said[2], np.zeros(SAMPLE_RATE, np.float32), word[: SAMPLE_RATE // 2], pause, rest])

    def found(hold: float) -> int:
        endpointer = Endpointer(SILENCE, hold=hold)
        return sum(isinstance(event, SegmentEnded) for event in endpointer.feed(recording) + endpointer.flush())

    assert found(0.0) == 3
    assert found(1.0) == 2


def test_a_sentence_that_goes_on_waits_longer_for_its_end(said: list[Samples]) -> None:
    """For the pause of which it is said, and for no later one."""
    pad, half = int(0.2 * SAMPLE_RATE), np.zeros(int(0.6 * SILENCE * SAMPLE_RATE), np.float32)
    spoken = [one[begin + pad : end - pad] for one in said[:3] for begin, end in segments(one, SILENCE)[:1]]

    def found(*expected: bool) -> int:
        endpointer, events = Endpointer(SILENCE), list[Event]()
        for one, expects in zip(spoken, expected, strict=True):
            events += endpointer.feed(np.concatenate([one, half]))
            endpointer.expect_more(expects)
            events += endpointer.feed(half)
        return sum(isinstance(event, SegmentEnded) for event in events)

    assert found(False, False, False) == 3
    assert found(True, False, False) == 2
    assert found(True, True, False) == 1


@pytest.mark.parametrize("longest", [10.0, 20.0, 28.0])
def test_a_long_segment_is_cut_at_a_pause(said: list[Samples], longest: float) -> None:
    """Each cut is far quieter than speech; nothing spoken is lost or doubled."""
    recording = talk(said, 5, noise=0.0005, pauses=(0.02, 0.12))
    endpointer = Endpointer(3.0, max_seconds=longest)
    events = [event for event in endpointer.feed(recording) + endpointer.flush() if isinstance(event, SegmentEnded)]
    assert len(events) > len(recording) / SAMPLE_RATE / longest
    loud = float(np.sqrt(np.mean(recording**2)))
    for event, following in itertools.pairwise(events):
        assert event.end <= following.start
        if not event.cut:
            continue
        assert event.end - event.start <= longest * SAMPLE_RATE
        assert event.end - event.start >= longest * SAMPLE_RATE * 0.7
        around = recording[event.end - 400 : event.end + 400]
        assert np.sqrt(np.mean(around**2)) < 0.3 * loud
        between = recording[event.end : following.start]
        assert not len(between) or np.sqrt(np.mean(between**2)) < 0.1 * loud
    assert any(event.cut for event in events)


def test_what_never_pauses_is_cut_all_the_same(said: list[Samples]) -> None:
    """A minute of one voice, played back to back without a gap."""
    part = said[0][4000:20000]
    recording = np.tile(part, 60)
    events = [event for event in Endpointer(0.4).feed(recording) if isinstance(event, SegmentEnded)]
    assert [event.cut for event in events] == [True, True]  # the third goes on
    assert events[0].end == events[1].start
    for event in events:
        assert 0.7 * MAX_SEGMENT_SECONDS * SAMPLE_RATE <= event.end - event.start <= MAX_SEGMENT_SECONDS * SAMPLE_RATE


@pytest.mark.parametrize("look_back", [0.0, 3.0])
def test_an_endpointer_can_be_continued(said: list[Samples], look_back: float) -> None:
    """At any moment: the later segments are the same, and earlier ones do not come again."""
    random = np.random.default_rng(8)
    for noise, slack in ((0.0, 0), (0.003, 4 * FRAME)):
        recording = talk(said[:10], 8, noise)
        wanted = spans(Endpointer(SILENCE, look_back=look_back).feed(recording))
        assert len(wanted) >= 10
        endpointer = Endpointer(SILENCE, look_back=look_back)
        done = 0
        at = 0
        while at < len(recording):
            size = int(random.integers(1, 4 * SAMPLE_RATE))
            done += len(spans(endpointer.feed(recording[at : at + size])))
            at += size
            start = max(0, endpointer.needed - CONTEXT_SAMPLES - int(random.integers(0, 3 * FRAME)))
            successor = Endpointer(SILENCE, start=start, floor=endpointer.needed, look_back=look_back)
            found = spans(sliced(successor, recording[start:], 8, largest=10 * SAMPLE_RATE))
            assert len(found) == len(wanted[done:])
            for one, other in zip(found, wanted[done:], strict=True):
                assert abs(one[0] - other[0]) <= slack
                assert abs(one[1] - other[1]) <= slack
            assert all(start >= endpointer.needed for start, _ in found)


def test_an_endpointer_can_be_continued_after_a_cut(said: list[Samples]) -> None:
    """With speech on both sides of the cut."""
    recording = talk(said[:15], 9, pauses=(0.0, 0.1))
    endpointer = Endpointer(3.0, max_seconds=8.0)
    wanted = spans(endpointer.feed(recording) + endpointer.flush())
    assert len(wanted) > 3
    for done in range(1, len(wanted)):
        floor = wanted[done - 1][1]
        start = max(0, floor - CONTEXT_SAMPLES)
        successor = Endpointer(3.0, max_seconds=8.0, start=start, floor=floor)
        first = spans(successor.feed(recording[start:]) + successor.flush())[0]
        assert first[0] >= floor
        assert abs(first[0] - wanted[done][0]) <= 8 * FRAME


@pytest.mark.parametrize(
    ("before", "gap", "hiss", "belongs"),
    [
        (tone(0.5), 0.6, 0.0, True),
        (tone(0.5), 4.0, 0.0, False),
        (0.002 * tone(0.5), 0.6, 0.0, False),
        (tone(0.5), 0.6, 0.05, False),
    ],
    ids=["missed", "long before", "quiet", "in noise"],
)
def test_sound_as_loud_as_the_speech_after_it_belongs_to_its_segment(
    said: list[Samples], before: Samples, gap: float, hiss: float, belongs: bool
) -> None:
    """Silero misses words, over telephones above all; tones are no speech to it."""
    silence = np.zeros(SAMPLE_RATE, np.float32)
    recording = np.concatenate([silence, before, np.resize(silence, int(gap * SAMPLE_RATE)), said[0], silence])
    recording += noise(hiss, len(recording))
    ((start, end),) = spans(Endpointer(SILENCE).feed(recording))
    assert start > SAMPLE_RATE + len(before) + (gap - 0.4) * SAMPLE_RATE
    ((with_it, same_end),) = spans(Endpointer(SILENCE, look_back=3.0).feed(recording))
    assert same_end == end
    if belongs:
        assert abs(with_it - (1.0 - vad.PAD_SECONDS) * SAMPLE_RATE) <= FRAME
    else:
        assert with_it == start


@pytest.mark.parametrize(
    "quiet",
    [
        lambda count: np.zeros(count, np.float32),
        lambda count: noise(0.0003, count),
        lambda count: noise(0.01, count),
        lambda count: noise(0.2, count),
        lambda count: tone(count / SAMPLE_RATE),
        lambda count: np.full(count, 0.5, np.float32),
    ],
    ids=["zero", "hiss", "noise", "loud noise", "tone", "offset"],
)
def test_sound_without_speech_gives_no_segment(quiet: Callable[[int], Samples]) -> None:
    """For a minute of it, and none of its audio is kept."""
    endpointer = Endpointer(SILENCE)
    for _ in range(6):
        assert not spans(endpointer.feed(quiet(10 * SAMPLE_RATE)))
        assert endpointer.needed > endpointer.position - SAMPLE_RATE
    assert not spans(endpointer.flush())


def test_quiet_costs_the_network_nothing(said: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    """Silero gets the frames with sound, a few frames around them, and each frame once."""
    seen = 0
    score = silero.score

    def counting(runs: Sequence[FrameRun]) -> None:
        nonlocal seen
        seen += sum(len(run.frames) for run in runs)
        score(runs)

    monkeypatch.setattr(silero, "score", counting)
    sliced(Endpointer(SILENCE), np.zeros(60 * SAMPLE_RATE, np.float32), 1)
    # The load tester's quiet: -66 dBFS.
    noise = np.random.default_rng(1).normal(0, QUIET_LEVEL / 32768, 60 * SAMPLE_RATE)
    sliced(Endpointer(SILENCE), noise.astype(np.float32), 1)
    assert seen == 0
    recording = np.pad(said[0], 10 * SAMPLE_RATE)
    sliced(Endpointer(SILENCE), recording, 1)
    assert len(said[0]) / FRAME * 0.5 < seen <= len(said[0]) / FRAME + 30
    seen = 0
    sliced(Endpointer(SILENCE), talk(said[:3], 1, noise=0.01), 1, largest=700)
    assert seen == -(-len(talk(said[:3], 1)) // FRAME) + 3  # all frames, and the warm-up


@pytest.mark.parametrize("level", [-25, -45])
def test_the_energy_gate_loses_no_speech(said: list[Samples], monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    """Speech whose loudest frame has this many dBFS, 20 below a bad microphone: the segments are those that the network
    finds without the gate, up to four frames at an edge, which lie in the padding."""
    for one in said:
        frames = one[: len(one) // FRAME * FRAME].reshape(-1, FRAME)
        loudest = np.sqrt(np.mean(frames**2, axis=1)).max()
        recording = np.pad(one * np.float32(10 ** (level / 20) / loudest), SAMPLE_RATE)
        gated = segments(recording, SILENCE)
        with monkeypatch.context() as patch:
            patch.setattr(vad, "QUIET_RMS", 0.0)
            wanted = segments(recording, SILENCE)
        assert len(gated) == len(wanted) > 0
        for span, (start, end) in zip(gated, wanted, strict=True):
            assert span[0] <= start + 4 * FRAME < start + vad.PAD_SECONDS * SAMPLE_RATE
            assert span[1] >= end - 4 * FRAME


# -- the network


def test_the_network_is_silero() -> None:
    """What onnxruntime said of a recording, from rest and from where that ended."""
    reference = np.load(extract_silero.REFERENCE)
    frames, state = extract_silero.frames_of(reference["samples"]), None
    for probabilities, after in zip(reference["probabilities"], reference["states"], strict=True):
        assert min(probabilities) < 0.1 < 0.9 < max(probabilities)
        run = FrameRun(frames, state)
        silero.score([run])
        np.testing.assert_allclose(run.probabilities, probabilities, atol=1e-4)
        np.testing.assert_allclose(run.state, after, atol=1e-3)
        state = run.state


#: The reference above holds the implementation whatever is installed; these hold where its origin is.
with_known_asset = pytest.mark.skipif(
    not extract_silero.known(), reason="faster-whisper ships another Silero than the one that asrserver has"
)


@with_known_asset
def test_the_weights_are_those_of_the_onnx_file() -> None:
    made = extract_silero.weights(extract_silero.ASSET.read_bytes())
    with np.load(extract_silero.WEIGHTS) as packaged:
        assert set(packaged) == set(made)
        for name, array in made.items():
            np.testing.assert_array_equal(packaged[name], array, strict=True)


@with_known_asset
def test_runs_scored_together_equal_what_onnxruntime_computes_for_each(said: list[Samples]) -> None:
    """Of all lengths, from whatever states."""
    random = np.random.default_rng(11)
    session = get_vad_model().session
    runs, wanted = [], []
    for count in (1, 2, 3, 7, 3, 1, 150, 64, 65):
        recording = np.concatenate([said[count % len(said)], said[0], said[1]])
        first = int(random.integers(0, len(recording) - count * FRAME - 64))
        frames = np.stack([recording[at : at + 64 + FRAME] for at in range(first, first + count * FRAME, FRAME)])
        state = random.normal(0, 0.3, 2 * silero.UNITS).astype(np.float32)
        h, c = state.reshape(2, 1, 1, -1)
        probabilities, h, c = session.run(None, {"input": frames, "h": h, "c": c})
        wanted.append((probabilities, np.concatenate([h.ravel(), c.ravel()])))
        runs.append(FrameRun(frames, state.copy()))
    silero.score([*runs, FrameRun(frames[:0], None)])
    for run, (probabilities, state) in zip(runs, wanted, strict=True):
        np.testing.assert_allclose(run.probabilities, probabilities, atol=1e-4)
        np.testing.assert_allclose(run.state, state, atol=1e-3)


def test_recordings_scored_together_are_scored_as_alone(said: list[Samples]) -> None:
    random = np.random.default_rng(12)
    recordings = [talk(said[n : n + 4], n, noise=(0.0, 0.003)[n % 2]) for n in range(9)]
    endpointers = [Endpointer(SILENCE) for _ in recordings]
    found: list[list[Event]] = [[] for _ in recordings]
    at = [0] * len(recordings)
    while any(start < len(one) for start, one in zip(at, recordings, strict=True)):
        runs = []
        for number, (endpointer, recording) in enumerate(zip(endpointers, recordings, strict=True)):
            size = int(random.integers(0, 9000))
            runs += endpointer.push(recording[at[number] : at[number] + size])
            at[number] += size
        silero.score(runs)
        for events, endpointer in zip(found, endpointers, strict=True):
            events += endpointer.pull()
    for events, endpointer, recording in zip(found, endpointers, recordings, strict=True):
        alone = Endpointer(SILENCE)
        assert events + endpointer.flush() == alone.feed(recording) + alone.flush()
        assert len(spans(events)) >= 4


@pytest.mark.parametrize("damage", [None, b"", b"PK\x03\x04", "another"])
def test_weights_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: bytes | str | None
) -> None:
    """A damaged installation: an error that says so."""
    folder = tmp_path / "data" / "silero"
    folder.mkdir(parents=True)
    if damage == "another":
        np.savez(folder / "silero-vad-v6.npz", window=np.zeros(256, np.float32))
    elif isinstance(damage, bytes):
        (folder / "silero-vad-v6.npz").write_bytes(damage)
    monkeypatch.setattr(silero, "files", lambda package: tmp_path)
    silero._network.cache_clear()
    with pytest.raises(ModelError, match="Silero"):
        silero.score([FrameRun(np.zeros((1, 64 + FRAME), np.float32), None)])
    monkeypatch.undo()
    silero._network.cache_clear()


def test_recordings_of_a_frame_or_less() -> None:
    for count in (0, 1, 5, FRAME - 1, FRAME):
        assert segments(np.zeros(count, np.float32), SILENCE) == []
    endpointer = Endpointer(SILENCE)
    assert endpointer.flush() == []
    assert endpointer.needed == 0
    assert endpointer.open is None
