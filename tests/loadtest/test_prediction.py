"""tools/predict_capacity.py and its benchmarks: the sum, the number of streams that it is measured with, the work."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.broker.worker_side import WorkerBroker
from asrserver.config import Settings
from asrserver.inference import vad
from asrserver.inference.features import log_mel
from asrserver.inference.profiles import DEMO
from asrserver.inference.whisper import Whisper
from asrserver.inference.windows import window_for
from asrserver.loadtest.host import Cost
from asrserver.loadtest.plan import Plan
from asrserver.loadtest.runner import Outcome, Sample
from asrserver.loadtest.speech import Scripts, load
from asrserver.protocol import codec
from asrserver.protocol.events import Final, Result, SegmentResult
from asrserver.protocol.options import Options

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tools() -> Iterator[Any]:
    """Import a tool as if it were the program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        yield importlib.import_module


@pytest.fixture(scope="module")
def predict_capacity(tools: Any) -> Any:
    return tools("predict_capacity")


@pytest.fixture(scope="module")
def bench(tools: Any) -> Any:
    return tools("bench_streams")


def of_parts(bench: Any, each: float) -> dict[str, float]:
    return dict.fromkeys([*bench.OF_WORKER, *bench.BESIDE], each)


@pytest.mark.parametrize(
    ("most", "measured"),
    [(1000, [50, 133, 188]), (100, [50, 100]), (40, [40])],
)
def test_parts_are_measured_at_what_they_predict(
    predict_capacity: Any, bench: Any, most: int, measured: list[int]
) -> None:
    """A stream is cheaper in large numbers: the cost of a few predicts nothing."""
    tried = []

    def measure(streams: int) -> dict[str, float]:
        tried.append(streams)
        return of_parts(bench, (0.008 + 0.35 / streams) / 8)

    found = predict_capacity.predict(measure, 50, most, 2)
    assert tried == measured
    assert found.streams == measured[-1]
    assert found.predicted == int(2 / (0.008 + 0.35 / found.streams))


def test_the_prediction_is_the_sum(predict_capacity: Any, bench: Any) -> None:
    found = predict_capacity.Prediction(100, 4, {**of_parts(bench, 0.001), "engine": 0.0029})
    assert found.sum == pytest.approx(0.0099)
    assert found.predicted == 404
    assert not found.near
    assert replace(found, streams=390).near
    assert found.processes["worker"] == pytest.approx(0.0059)
    assert sum(found.processes.values()) == pytest.approx(found.sum)
    assert "9.90" in bench.table(found.parts, 4)[-1]
    rows = predict_capacity.split(found, {**dict.fromkeys(bench.BESIDE, 0.002), "worker": 0.00295})
    assert [row.split()[-1] for row in rows[1:]] == ["0.50", "2.00", "2.00", "2.00", "2.00", "1.11"]


def test_cores_of_a_stream(tools: Any) -> None:
    """CPU seconds of all samples, however long they are, per second of audio."""
    made = Outcome(Plan(("ws://x",)))
    made.stats.audio_sent = 40.0
    for at, gateway, tester in ((1.0, 0.0, [0.5, 0.5]), (5.0, 0.5, [0.25, 0.0])):
        server = {"gateway 1": Cost(gateway, 0), "worker 1": Cost(1.0, 0), "worker 2": Cost(1.0, 0)}
        made.samples.append(Sample(at, 0, 0, 0, 0, 0.0, 0.0, tester, server))
    used = tools("benching").a_stream(made)
    assert used == {"gateway": 0.05, "worker": 0.25, "Redis": 0.0, "PostgreSQL": 0.0, "tester": 0.05}


def test_computing_is_what_a_worker_does(bench: Any, model: Whisper) -> None:
    """Segments, features and texts are the same for any number of recordings that are processed together."""
    some, settings = bench.plan(3), Settings(device="cpu")
    said = [bench.script(Scripts(load(()), some), number)[:2] for number in range(3)]
    audio = [bench._samples(each) for each in said]
    for each, sentences, events in zip(
        audio, said, bench._hear(audio, 4800, (settings.silence or DEMO.silence)), strict=True
    ):
        segments = bench._cut(events)
        assert len(segments) == len(sentences)
        assert segments == vad.segments(each, (settings.silence or DEMO.silence))
        grown = bench._features(each, segments, 4800, settings, model.n_mels)
        for (start, end), (features, seconds) in zip(segments, grown, strict=True):
            frames = window_for(seconds, settings.window)
            whole = log_mel(each[start:end], frames, model.n_mels)
            # The last frames of a segment that grew look at the pause after it, those of a whole one at silence.
            filled = (end - start) // 160 - 2
            np.testing.assert_allclose(features[:, :filled], whole[:, :filled], atol=1e-3)
        bench.check("engine", sentences, bench._recognise(model, grown))


def test_a_wrong_text_ends_the_bench(bench: Any) -> None:
    said = load(())[:2]
    bench.check("engine", said, f"{said[0].text} {said[1].text}")
    with pytest.raises(SystemExit, match="engine"):
        bench.check("engine", said, said[0].text)


async def audio_left(worker: WorkerBroker) -> int:
    """The size in bytes of the first entry of the session's audio."""
    found = await worker.read_audio({"s": "0-1"}, 1)
    return sum(len(entry.data or b"") for entry in found.get("s", []))


@pytest.mark.gen_test
async def test_the_stand_in(bench: Any, redis_url: str) -> None:
    """It emits the sentences as a worker would, and removes the audio."""
    gateway = GatewayBroker(redis_url, "g")
    await gateway.open()
    stand_in = bench.StandIn(redis_url)
    await stand_in._broker.open()
    options = codec.encode_options(Options(mode="stream", format="pcm_s16le"))
    await gateway.open_session("s", "s", {"gateway": "g", "options": options}, time.time() + 60)
    said = load(())[:3]
    frames = [frame for sentence in said for frame in sentence.frames]
    for index, frame in enumerate(frames):
        gateway.append("s", index, index - 1 if index else None, [frame], True, lambda error: None)
    await gateway.end_session("s", "done", time.time() + 60)
    assert await audio_left(stand_in._broker)
    events: list[Result] = []
    while not events or not isinstance(events[-1], Final):
        await stand_in._read()
        events = await gateway.read_events("s")
    *segments, final = events
    assert [event.text for event in segments if isinstance(event, SegmentResult)] == [one.text for one in said]
    assert isinstance(final, Final)
    assert final.text == " ".join(sentence.text for sentence in said)
    assert final.chunk_count == len(frames)
    assert final.total == pytest.approx(len(frames) / 10)
    assert not await audio_left(stand_in._broker)
    assert not stand_in._sessions
    for broker in (gateway, stand_in._broker):
        await broker.close()
