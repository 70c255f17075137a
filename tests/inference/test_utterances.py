"""utterances.py: what of a recording goes into which window."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.chunking import Chunking
from asrserver.audio.pcm import PcmDecoder, Samples
from asrserver.audio.selection import MIXED
from asrserver.inference.decoding import Hypothesis, Request
from asrserver.inference.engine import DecodeJob, Engine
from asrserver.inference.partials import PartialScheduler
from asrserver.inference.profiles import TRAINED_ON_30_S
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.utterances import SLICE_SECONDS, UtteranceRecogniser
from asrserver.inference.whisper import Whisper
from asrserver.inference.windows import FULL_WINDOW
from tests.audio.bombs import small_frames
from tests.inference.support import AS_SAMPLES, samples
from tests.recordings import Utterance
from tests.waiting import until
from tests.worker_harness import recogniser_of

pytestmark = pytest.mark.gen_test(timeout=60)


def speech(utterances: list[Utterance], seconds: float) -> Samples:
    """Speech without pauses: only what is loud of each utterance."""
    loud = [audio[np.abs(audio) > 0.02] for audio in map(samples, utterances)]
    return np.resize(np.concatenate(loud), round(seconds * SAMPLE_RATE)).astype(np.float32)


@pytest.mark.parametrize(
    ("read", "begins", "language"),
    [
        ([24.0, 18.0, None], [0.0, 24.0, 42.0], "en"),  # each window begins where the text of the one before ends
        ([None, None, None], [0.0, 30.0, 60.0], "en"),  # or where its window ends, if no phrase of it is unfinished
        ([24.0, 18.0, None], [0.0, 24.0, 42.0], None),  # a language that is not certain is detected anew
        ([29.9, 29.9, 9.9], [0.0, 29.9, 59.8], "en"),
    ],
)
async def test_long_speech_is_read_on_from_where_the_text_ends(
    utterances: list[Utterance],
    monkeypatch: pytest.MonkeyPatch,
    read: list[float | None],
    begins: list[float],
    language: str | None,
) -> None:
    model = Whisper("demo", "cpu", "default", 1, 1)
    model.profile = replace(TRAINED_ON_30_S, look_back=0.0)
    engine = Engine(model, 1, lambda thread, labels: None, PartialScheduler())
    recogniser = recogniser_of(engine, PartialScheduler())
    jobs: list[DecodeJob] = []

    async def recognise(job: DecodeJob) -> Hypothesis:
        jobs.append(job)
        return Hypothesis(f"Part {len(jobs)}.", "en", 0.99 if language else 0.5, 0.9, read=read[len(jobs) - 1])

    monkeypatch.setattr(engine, "recognise", recognise)
    audio = speech(utterances, 69.0)
    try:
        found = await UtteranceRecogniser(recogniser, 0.8, MIXED).recognise_pcm(
            audio.tobytes(), AS_SAMPLES, lambda channel: Request(), "s 1-0", False
        )
    finally:
        recogniser.close()
        engine.stop(10.0)
    ends = [*begins[1:], 69.0]
    assert [(one.text, one.start) for one in found.segments] == [(f"Part {n}.", at) for n, at in enumerate(begins, 1)]
    assert [one.end for one in found.segments] == pytest.approx(ends, abs=0.1)
    windows: list[Any] = [(job.features.shape[1], job.request.goes_on, job.request.language) for job in jobs]
    assert windows[0] == (FULL_WINDOW, True, None)
    assert windows[1] == (FULL_WINDOW, True, language)
    assert windows[2][1:] == (False, language)
    for job, begin in zip(jobs, begins, strict=True):
        assert job.seconds == pytest.approx(min(30.0, 69.0 - begin), abs=0.1)


async def test_a_window_that_fails_ends_the_others(
    recogniser: Recogniser, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets its error as it is, once nothing is decoded any more for a result that nobody takes."""
    jobs: list[DecodeJob] = []

    async def recognise(job: DecodeJob) -> Hypothesis:
        jobs.append(job)
        if len(jobs) == 2:
            raise RuntimeError("out of memory")
        return await job.future

    monkeypatch.setattr(recogniser.engine, "recognise", recognise)
    silence = np.zeros(4 * SAMPLE_RATE, np.float32)
    audio = np.concatenate([part for one in utterances[:3] for part in (samples(one), silence)])
    with pytest.raises(RuntimeError, match="out of memory"):
        await UtteranceRecogniser(recogniser, 0.4, MIXED).recognise_pcm(
            audio.tobytes(), AS_SAMPLES, lambda channel: Request(), "s 1-0", False
        )
    assert [job.future.cancelled() for job in jobs] == [True, False, True]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_long_pcm_is_decoded_in_the_pool_a_slice_at_a_time(
    recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the event loop, a chunk of 30 MB would hold all sessions of the worker up for half a second."""
    seconds = 2.5 * SLICE_SECONDS
    slices: list[tuple[bool, float]] = []
    feed = PcmDecoder.feed

    def watched(self: PcmDecoder, data: bytes) -> Samples:
        slices.append((threading.current_thread() is threading.main_thread(), len(data) / self.bytes_per_second))
        return feed(self, data)

    monkeypatch.setattr(PcmDecoder, "feed", watched)
    found = await UtteranceRecogniser(recogniser, 0.4, MIXED).recognise_pcm(
        bytes(int(seconds * 48000 * 4)),
        Chunking("chunk", "pcm_s16le", 48000, 2),
        lambda channel: Request(),
        "s 1-0",
        False,
    )
    assert slices == [(False, SLICE_SECONDS), (False, SLICE_SECONDS), (False, SLICE_SECONDS / 2)]
    assert found.seconds == pytest.approx(seconds, abs=0.01)


async def test_a_file_is_decoded_in_turn_with_others(recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of CPU for packets without audio in 160 kB, and minutes for the largest chunk: others need not wait."""
    held: list[str] = []
    monkeypatch.setattr(recogniser, "_hold", lambda thread, labels: held.extend(labels))
    utterances = UtteranceRecogniser(recogniser, 0.4, MIXED)
    bomb = asyncio.ensure_future(
        utterances.recognise_file(small_frames(), "aac", lambda channel: Request(), "bomb 1-0", False)
    )
    await until(lambda: "bomb 1-0" in held)
    await recogniser.run_blocking("other 1-0", 2.0, lambda: None)
    assert (await bomb).damage is not None
    assert held[held.index("other 1-0") :].count("bomb 1-0") > 10
