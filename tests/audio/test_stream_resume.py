"""Decoders that continue in the middle of a stream."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.pcm import Samples
from asrserver.audio.recording import ResumePoint
from asrserver.audio.stream import StreamDecoder
from tests.audio.signals import encode, tone
from tests.audio.streams import STREAMS, correlation, decoded, handed_on, kind, sized, slices, stream, whole


@pytest.mark.parametrize("name", STREAMS)
def test_another_process_goes_on(name: str) -> None:
    """Killed at any moment, resumed from JSON: no sample is lost or doubled, and the joint is inaudible."""
    data, wanted = stream(name), whole(name)
    random = np.random.default_rng(len(data))
    decoder = StreamDecoder(kind(name))
    seen = set()
    at = 0
    for piece in slices(data, 5, len(data) // 20):
        decoder.feed(piece)
        at += len(piece)
        sample = max(0, decoder.position - int(random.integers(0, SAMPLE_RATE)))
        point = handed_on(decoder.resume_point(sample))
        if point.offset in seen:
            continue
        seen.add(point.offset)
        assert point.sample <= sample
        assert point.offset <= at
        successor = StreamDecoder.resume(point)
        assert successor.position == point.sample
        found = decoded(successor, slices(data[point.offset :], at, 3000))
        assert successor.position == point.sample + len(found)
        surplus = len(found) - (len(wanted) - point.sample)
        assert 0 <= surplus <= (0.02 * SAMPLE_RATE if kind(name) == "ogg" else 0)
        old, new = wanted[point.sample :], found[: len(wanted) - point.sample]
        first = slice(0, SAMPLE_RATE // 10)
        if len(old) > SAMPLE_RATE // 10 and np.abs(old[first]).max() > 0.02:
            assert correlation(old[first], new[first]) >= STREAMS[name][2]
        if len(old):
            assert np.abs(old - new).max() < 0.1
    assert len(seen) >= (3 if kind(name) == "ogg" and name != "ogg-opus-pages" else 4)


@pytest.mark.parametrize("name", ["webm", "mp4", "ogg-opus-pages", "mp3", "aac", "flac", "wav"])
def test_going_on_more_than_once(name: str) -> None:
    """Several owners die in turn: the points of a resumed decoder are as good as those of the first."""
    data, wanted = stream(name), whole(name)
    pieces: list[Samples] = []
    point = StreamDecoder(kind(name)).resume_point(0)
    for death in range(1, 6):
        decoder = StreamDecoder.resume(point)
        samples = decoder.feed(data[point.offset : len(data) * death // 6])
        following = decoder.resume_point(decoder.position)
        pieces.append(samples[: following.sample - point.sample])
        point = following
    found = np.concatenate([*pieces, decoded(StreamDecoder.resume(point), [data[point.offset :]])])
    assert len(found) == len(wanted)
    assert correlation(found, wanted) > 0.9995


def test_resume_points_are_near_and_few() -> None:
    """Each sample has a point within half a second before it; an hour without a request keeps a bounded number."""
    decoder = StreamDecoder("matroska")
    decoder.feed(stream("webm"))
    assert decoder.position > 3 * SAMPLE_RATE
    for sample in range(0, decoder.position, SAMPLE_RATE // 3):
        point = decoder.resume_point(sample)
        assert sample - SAMPLE_RATE // 2 < point.sample <= sample
    assert len(msgspec.json.encode(point)) < 400
    pcm = StreamDecoder("pcm_s16le")
    for _ in range(3600):
        pcm.feed(bytes(2 * SAMPLE_RATE))
    assert len(pcm._points) <= 1024
    assert pcm.resume_point(1000 * SAMPLE_RATE).sample > 990 * SAMPLE_RATE
    pcm.feed(bytes(2 * SAMPLE_RATE))
    assert pcm.resume_point(3600 * SAMPLE_RATE + SAMPLE_RATE // 2).sample > 3599 * SAMPLE_RATE


def test_the_recorder_is_started_again() -> None:
    """A second header with another kind of track: the audio continues, also in another process."""
    for name in ("webm", "ogg-opus", "mp4", "wav", "flac"):
        first, second = stream(name), encode(tone(2.0), STREAMS[name][0].replace("-f ", "-ac 2 -f "))
        both = (sized(first) if name == "wav" else first) + second
        wanted = np.concatenate([whole(name), decoded(StreamDecoder(kind(name)), [second])])
        decoder = StreamDecoder(kind(name))
        found = [decoder.feed(piece) for piece in slices(both, 1, 1500)]
        point = decoder.resume_point(decoder.position)
        found.append(decoder.flush())
        assert np.array_equal(np.concatenate(found), wanted)
        assert point.offset > len(first)
        assert point.sample > len(whole(name))
        for place in (point, _point_at(kind(name), both, len(whole(name)))):
            resumed = decoded(StreamDecoder.resume(place), [both[place.offset :]])
            assert abs(len(resumed) - (len(wanted) - place.sample)) <= (0.02 * SAMPLE_RATE if name == "ogg-opus" else 0)
            assert correlation(resumed[: len(wanted) - place.sample], wanted[place.sample :]) > 0.995


def _point_at(kind: str, data: bytes, sample: int) -> ResumePoint:
    decoder = StreamDecoder(kind)
    decoder.feed(data)
    return decoder.resume_point(sample)
