"""Channels that are recognised each by itself: in every mode, by one owner or by several, with the real model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest

from asrserver.broker.replies import Entry
from asrserver.inference.recogniser import Recogniser
from asrserver.protocol import codec
from asrserver.text.wer import word_errors
from tests.recordings import Utterance
from tests.worker_harness import LIVE, Event, Session, encode, pieces

pytestmark = pytest.mark.gen_test(timeout=120)

QUIET_SECONDS = 0.8


def call(*parties: Sequence[Utterance], overlap: float = 0.0) -> bytes:
    """A stereo recording: the parties speak in turn, each on a channel; with `overlap` seconds they interrupt."""
    turns = [one for turn in zip(*parties, strict=True) for one in enumerate(turn)]
    length, at = 0, 0
    places = []
    for channel, said in turns:
        samples = np.frombuffer(said.pcm, "<i2")
        places.append((channel, at, samples))
        length = max(length, at + len(samples))
        at += len(samples) + int((QUIET_SECONDS - overlap) * 16000)
    mixed = np.zeros((length + 16000, len(parties)), "<i2")
    for channel, begin, samples in places:
        mixed[begin : begin + len(samples), channel] += samples
    return mixed.tobytes()


def said_on(events: Sequence[Event], channel: int) -> str:
    found = [segment for event in events for segment in event["segments"] if segment["channel"] == channel]
    assert [segment["start"] for segment in found] == sorted(segment["start"] for segment in found)
    return " ".join(segment["text"] for segment in found)


def check(events: Sequence[Event], *parties: Sequence[Utterance]) -> None:
    for channel, party in enumerate(parties):
        expected = " ".join(one.text for one in party)
        assert word_errors(expected, said_on(events, channel)) <= max(1, 0.15 * len(expected.split()))


def check_text(events: Sequence[Event]) -> None:
    """The whole text is in the order of time."""
    found = [segment for event in events for segment in event["segments"]]
    found.sort(key=lambda segment: segment["start"])
    assert events[-1]["text"] == " ".join(segment["text"] for segment in found)


@pytest.mark.parametrize("rate", [16000, 8000])
async def test_two_parties_of_headerless_pcm(recogniser: Recogniser, utterances: list[Utterance], rate: int) -> None:
    """They talk at once; each has a text of its own; any owner may be the last, and no segment is lost or doubled."""
    one, two = utterances[:3], utterances[3:6]
    audio = call(one, two, overlap=1.5)
    if rate == 8000:
        audio = np.frombuffer(audio, "<i2").reshape(-1, 2)[::2].tobytes()
    options: dict[str, Any] = {"mode": "stream", "format": "pcm_s16le", "sample_rate": rate, "channels": 2}
    session = Session(recogniser, pieces(audio, 6400), channel_mode="separate", **options)
    events = await (session.takeovers(exactly=False) if rate == 16000 else session.run_owner())
    if rate == 16000:
        check(events, one, two)
    assert {segment["channel"] for event in events for segment in event["segments"]} == {0, 1}
    check_text(events)
    seconds = len(audio) / 4 / rate
    assert events[-1]["total"] == pytest.approx(seconds, abs=0.01)
    assert (events[-1]["channels"], events[-1]["further"]) == (2, pytest.approx(seconds, abs=0.01))


@pytest.mark.parametrize("container", LIVE)
async def test_two_parties_in_a_container(recogniser: Recogniser, utterances: list[Utterance], container: str) -> None:
    one, two = utterances[:2], utterances[2:4]
    data = encode(call(one, two, overlap=1.0), *LIVE[container], channels=2)
    for mode, chunks in (("stream", pieces(data, len(data) // 9)), ("auto", [data]), ("chunk", [data])):
        session = Session(recogniser, chunks, mode=mode, channel_mode="separate")
        events = await session.takeovers(exactly=False)
        check(events, one, two)
        check_text(events)
        assert events[-1]["channels"] == 2


async def test_pieces_and_utterances_in_auto_mode(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """A second or more of PCM is an utterance; shorter pieces are one recording."""
    one, two = utterances[:2], utterances[2:4]
    audio = call(one, two)
    for chunks in ([audio], pieces(audio, 6400)):
        events = await Session(recogniser, chunks, channels=2, channel_mode="separate").run_owner()
        check(events, one, two)
        check_text(events)
        assert [event["type"] for event in events] == ["chunk"] * len(chunks) + ["final"]


async def test_one_channel_is_channel_0(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    said = utterances[:2]
    audio = said[0].pcm + bytes(32000) + said[1].pcm
    for mode in ("stream", "chunk"):
        events = await Session(recogniser, pieces(audio, 64000), mode=mode, channel_mode="separate").run_owner()
        assert {segment["channel"] for event in events for segment in event["segments"]} == {0}
        assert (events[-1]["channels"], events[-1]["further"]) == (1, 0.0)


async def test_partial_results_of_each_channel(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Both grow at once, and what is stable of one has nothing of the other."""
    one, two = utterances[:2], utterances[2:4]
    audio = call(one, two, overlap=2.5)
    options: dict[str, Any] = {
        "mode": "stream",
        "channels": 2,
        "partials": True,
        "partial_interval": 0.1,
        "speech_events": True,
    }
    session = Session(recogniser, pieces(audio, 3200), channel_mode="separate", **options)
    events = await session.run_live()
    grew = [partial for partial in session.partials if partial["type"] == "partial"]
    assert {partial["channel"] for partial in grew} == {0, 1}
    assert {partial["channels"] for partial in grew} == {2}
    starts = [partial for partial in session.partials if partial["type"] == "speech_started"]
    assert {start["channel"] for start in starts} == {0, 1}
    finals = {(s["channel"], s["start"]): s["text"].split() for event in events for s in event["segments"]}
    for partial in grew:  # on a busy machine they are few
        if (partial["channel"], partial["start"]) in finals:
            stable, final = partial["stable"].split(), finals[partial["channel"], partial["start"]]
            assert final[: len(stable)] == stable


async def test_a_flush_ends_the_segments_of_all(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    one, two = utterances[:1], utterances[1:2]
    audio = call(one, two, overlap=2.0)
    session = Session(recogniser, pieces(audio, 6400), mode="stream", channels=2, channel_mode="separate")
    session.entries.insert(-1, Entry(f"{len(session.entries) - 1}-1", None, None, flush=1))
    session.entries[-1] = Entry(f"{len(session.entries) - 2}-2", None, "done")
    events = await session.run_owner()
    assert [event["type"] for event in events] == ["segment", "segment", "flushed", "final"]


async def test_an_older_owner_may_have_mixed_them(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """A worker of a release without channels had the session: its state has no floors."""
    one, two = utterances[:3], utterances[3:6]
    session = Session(recogniser, pieces(call(one, two), 6400), mode="stream", channels=2, channel_mode="separate")
    whole = await session.run_owner()
    cut = 3
    state = orjson.loads(session.states[whole[cut - 1]["id"]])
    del state["recording"]["floors"], state["further"], state["languages"]
    session.states[whole[cut - 1]["id"]] = orjson.dumps(state).decode()
    rest = await session.run_owner(whole[:cut], epoch=2)
    known = {(s["channel"], round(s["start"], 1)) for event in whole for s in event["segments"]}
    assert known == {(s["channel"], round(s["start"], 1)) for event in whole[:cut] + rest for s in event["segments"]}


async def test_what_an_older_release_reads_is_written(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Its events, state and resume point have the fields that it knows; the resume point has no others."""
    session = Session(
        recogniser,
        pieces(call(utterances[:1], utterances[1:2]), 6400),
        mode="stream",
        channels=2,
        channel_mode="separate",
    )
    events = await session.run_owner()
    state = orjson.loads(session.states[events[0]["id"]])
    assert set(state["recording"]["border"]) == {
        *(
            "offset",
            "sample",
            "kind",
            "sample_rate",
            "channels",
            "track",
            "start",
            "packets",
            "position",
            "rate",
        )
    }
    assert state["recording"]["sample"] == min(state["recording"]["floors"])
    assert codec.decode(orjson.dumps(events[0])).segments[0].channel == 0
