"""The recogniser of one stream's segments: what it asks the engine for, and in which order."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest

from asrserver.inference.decoding import Request
from asrserver.inference.engine import DecodeJob, Priority
from asrserver.inference.features import GrowingLogMel, log_mel
from asrserver.inference.partials import FREE_SPECULATION_SECONDS, SpeculationBudget
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.segment_recogniser import SegmentRecogniser
from asrserver.inference.segments import PartialHypothesis, SpeechSegment
from tests.inference.support import MELS, samples
from tests.recordings import Utterance
from tests.waiting import until

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.fixture
def segments(recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch) -> SegmentRecogniser:
    """Those of a stream with partial results, of a model whose drafts have timed words."""
    timed = dataclasses.replace(recogniser.profile, timed_drafts=True)
    monkeypatch.setattr(recogniser.engine.model, "profile", timed)
    return segments_of(recogniser, lambda partial: None)


def segments_of(recogniser: Recogniser, publish: Callable[[PartialHypothesis], None] | None) -> SegmentRecogniser:
    return SegmentRecogniser(
        recogniser,
        recogniser.partials,
        "mine",
        request=lambda start: Request("en"),
        changed=lambda: None,
        publish=publish,
        started=None,
        interval=0.0,
    )


def growing(utterance: Utterance) -> SpeechSegment:
    mel = GrowingLogMel(MELS)
    mel.feed(samples(utterance))
    return SpeechSegment(0, mel.samples, mel)


def other(utterance: Utterance, priority: Priority) -> DecodeJob:
    return DecodeJob(
        log_mel(samples(utterance), 1000, MELS), Request("en"), 1.0, "", session="other", priority=priority
    )


async def queued(recogniser: Recogniser) -> list[tuple[str, Priority]]:
    """What waits, once all that was asked for has come to the queue."""
    for _ in range(3):  # a task begins, takes the isolation lock, queues
        await asyncio.sleep(0)
    return sorted((job.session, job.priority) for job in recogniser.engine._jobs if not job.future.cancelled())


async def test_a_pause_is_decoded_before_drafts(
    recogniser: Recogniser, segments: SegmentRecogniser, utterances: list[Utterance]
) -> None:
    """Its text may be the final one, for which a client waits. The stream's own draft would be the same: it goes."""
    speech = growing(utterances[0])
    with recogniser.engine._lock:  # its thread takes nothing meanwhile
        draft = asyncio.ensure_future(recogniser.engine.recognise(other(utterances[1], Priority.DRAFT)))
        segments.update_growing(speech, False, "mine 1-0")
        assert await queued(recogniser) == [("mine", Priority.FIRST_DRAFT), ("other", Priority.DRAFT)]
        segments.update_growing(speech, True, "mine 2-0")
        assert await queued(recogniser) == [("mine", Priority.FINAL), ("other", Priority.DRAFT)]
    segments.add_ended([speech], "mine 3-0", False, False)
    await segments.wait()
    outcome = segments.take_outcome()
    assert outcome is not None
    assert outcome.recognised is not None
    assert outcome.recognised.text == utterances[0].text
    await draft
    segments.close()


async def test_no_final_waits_for_a_pause(
    recogniser: Recogniser, segments: SegmentRecogniser, utterances: list[Utterance]
) -> None:
    """Speech may go on, and then the decoding was for nothing."""
    speech = growing(utterances[0])
    with recogniser.engine._lock:
        final = asyncio.ensure_future(recogniser.engine.recognise(other(utterances[1], Priority.FINAL)))
        await queued(recogniser)
        segments.update_growing(speech, True, "mine 1-0")
        assert await queued(recogniser) == [("mine", Priority.FIRST_DRAFT), ("other", Priority.FINAL)]
    await final
    segments.close()


async def test_a_pause_that_was_decoded_for_nothing_counts(recogniser: Recogniser, utterances: list[Utterance]) -> None:
    segments = segments_of(recogniser, None)
    speech = growing(utterances[0])
    segments.update_growing(speech, True, "mine 1-0")
    assert segments._speculation is not None
    await segments._speculation[1]
    recogniser.partials.charge_waste(SpeculationBudget(), 0.99 * FREE_SPECULATION_SECONDS)
    assert recogniser.partials.may_speculate(SpeculationBudget())
    segments.update_growing(speech, False, "mine 2-0")  # speech goes on
    recogniser.partials.charge_waste(SpeculationBudget(), 0.01 * FREE_SPECULATION_SECONDS)
    assert recogniser.engine.wasted_seconds > 0
    assert not recogniser.partials.may_speculate(SpeculationBudget())
    segments.close()


@pytest.mark.parametrize(
    ("paused", "goes_on", "counts"),
    [
        (True, True, True),  # a pause that did not last
        (True, False, False),  # a pause in which the session was dropped
        (False, False, False),  # a final of a session that was dropped
    ],
)
async def test_only_pauses_that_did_not_last_count_of_what_is_dropped(
    recogniser: Recogniser,
    utterances: list[Utterance],
    monkeypatch: pytest.MonkeyPatch,
    paused: bool,
    goes_on: bool,
    counts: bool,
) -> None:
    """While the engine decodes it: other sessions' pauses are decoded as before."""
    begun, go = threading.Event(), threading.Event()
    recognise = recogniser.engine.model.recognise

    def held(rows: Any) -> Any:
        begun.set()
        assert go.wait(30)
        return recognise(rows)

    monkeypatch.setattr(recogniser.engine.model, "recognise", held)
    segments, speech = segments_of(recogniser, None), growing(utterances[0])
    if paused:
        segments.update_growing(speech, True, "mine 1-0")
    else:
        segments.add_ended([speech], "mine 1-0", False, False)
    await until(begun.is_set)
    if goes_on:
        segments.update_growing(speech, False, "mine 2-0")
    else:
        segments.close()
    await asyncio.sleep(0)  # the task is cancelled, and its future with it
    go.set()
    await until(lambda: recogniser.engine.wasted_seconds > 0)
    recogniser.partials.charge_waste(SpeculationBudget(), FREE_SPECULATION_SECONDS)
    assert recogniser.partials.may_speculate(SpeculationBudget()) is not counts
    segments.close()
