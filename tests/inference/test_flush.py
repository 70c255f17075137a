"""A flush: what was said so far is recognised now, whatever the pauses; and the beginning of speech is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asrserver.broker.replies import Entry
from asrserver.inference.decoding import Hypothesis
from asrserver.inference.engine import DecodeJob
from asrserver.inference.recogniser import Recogniser
from tests.recordings import Utterance
from tests.worker_harness import Session, pieces

pytestmark = pytest.mark.gen_test(timeout=120)


def flushed(recogniser: Recogniser, said: list[Utterance], **options: bool) -> Session:
    """A session of utterances with 0.2 s between them, each followed by a flush; one more comes before any audio."""
    session = Session(recogniser, [], mode="stream", format="pcm_s16le", **options)
    entries = [Entry("0-2", None, None, flush=1)]
    index = 0
    for number, one in enumerate(said, 2):
        for data in pieces(one.pcm + bytes(6400), 3200):
            index += 1
            entries.append(Entry(f"{index}-0", data, None))
        entries.append(Entry(f"{index}-1", None, None, flush=number))
    session.entries = [*entries, Entry(f"{index}-2", None, "done")]
    return session


async def test_what_was_said_is_answered_at_each_flush(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """The same whichever event is an owner's last."""
    said = utterances[:3]
    session = flushed(recogniser, said)
    events = await session.takeovers()
    assert [(event["type"], event.get("number"), event.get("text")) for event in events] == [
        ("flushed", 1, None),
        *(
            row
            for number, one in enumerate(said, 2)
            for row in (("segment", None, one.text), ("flushed", number, None))
        ),
        ("final", None, " ".join(one.text for one in said)),
    ]
    at = 0.0
    for event, one in zip(events[2:-1:2], said, strict=True):
        at += len(one.pcm) / 32000 + 0.2
        assert event["total"] == pytest.approx(at, abs=0.01)


async def test_a_flush_between_pauses_changes_nothing(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Its answer comes at once, and no text is empty."""
    quiet = [Entry(f"{n}-0", bytes(3200), None) for n in range(1, 21)]
    session = Session(recogniser, [], mode="stream", format="pcm_s16le")
    session.entries = [*quiet, Entry("20-1", None, None, flush=1), Entry("20-2", None, None, flush=2)]
    session.entries.append(Entry("20-3", None, "done"))
    events = await session.run_owner()
    assert [event["type"] for event in events] == ["flushed", "flushed", "final"]
    assert events[-1]["text"] == ""


async def test_the_beginning_of_speech_is_told(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    """Once for each segment and before its text; not to those who did not ask."""
    said = utterances[:2]
    session = flushed(recogniser, said, speech_events=True)
    events = await session.run_live()
    began = [event for event in session.partials if event["type"] == "speech_started"]
    segments = [segment for event in events for segment in event["segments"]]
    assert [event["start"] for event in began] == [segment["start"] for segment in segments]
    order = [event["type"] for event in session.in_order if event["type"] in ("speech_started", "segment")]
    assert order == ["speech_started", "segment"] * 2
    silent = flushed(recogniser, said)
    await silent.run_live()
    assert not silent.partials


@pytest.mark.parametrize("partials", [True, False])
async def test_speech_that_was_none_is_taken_back(
    recogniser: Recogniser, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch, partials: bool
) -> None:
    """By an empty partial result, for those who get partial results."""
    recognise = recogniser.engine.recognise

    async def nothing(job: DecodeJob) -> Hypothesis:
        return replace(await recognise(job), text="", words=[])

    monkeypatch.setattr(recogniser.engine, "recognise", nothing)
    session = flushed(recogniser, utterances[:1], speech_events=True, partials=partials)
    await session.run_live()
    told = [(event["type"], event.get("text")) for event in session.partials if event["type"] != "progress"]
    assert told == [("speech_started", None), *([("partial", "")] if partials else [])]
