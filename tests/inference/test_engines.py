"""engines.py: models are loaded on demand, once, beside the work on others, and unloaded when they are idle."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asrserver.errors import AsrError, ModelError
from asrserver.inference.decoding import Request
from asrserver.inference.engine import DecodeJob, Engine
from asrserver.inference.engines import Engines
from asrserver.inference.features import log_mel
from asrserver.inference.fifo_lock import FifoLock
from asrserver.inference.languages import languages_of
from asrserver.inference.partials import PartialScheduler
from asrserver.inference.whisper import Whisper
from asrserver.inference.windows import window_for
from asrserver.models import Model, find_model
from tests.inference.support import MELS, samples
from tests.recordings import Utterance
from tests.waiting import until

pytestmark = pytest.mark.gen_test


@pytest.fixture
def twin(tmp_path: Path) -> Model:
    """The packaged model under another name."""
    path = tmp_path / "twin"
    shutil.copytree(find_model("demo").path, path)
    return Model(str(path), path, "directory")


class Loader:
    """Loads models when it is allowed to, and counts."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.allowed = threading.Event()
        self.allowed.set()
        self.error: Exception | None = None

    def __call__(self, model: Model) -> Whisper:
        assert self.allowed.wait(30)
        self.loaded.append(model.name)
        if self.error is not None:
            raise self.error
        return Whisper(model.name, "cpu", "default", 1, 1)


@pytest.fixture
def loader() -> Loader:
    return Loader()


Make = Callable[..., Engines]


@pytest.fixture
def make(model: Whisper, twin: Model, loader: Loader) -> Iterator[Make]:
    """Return a function that makes the engines of a worker with two models. Call it in the event loop."""
    made: list[Engines] = []

    def maker(ttl: float = 0.0, hold: Callable[[str, list[str]], None] = lambda thread, labels: None) -> Engines:
        device_lock, partials = FifoLock(), PartialScheduler()

        def start(loaded: Whisper) -> Engine:
            return Engine(loaded, 0, lambda thread, labels: None, partials, device_lock)

        made.append(
            Engines(start(model), [find_model("demo"), twin], load=loader, start=start, hold=hold, ttl=ttl),
        )
        return made[-1]

    yield maker
    loader.allowed.set()
    for engines in made:
        engines.stop(10)


def job(utterance: Utterance) -> DecodeJob:
    seconds = len(utterance.pcm) / 32000
    return DecodeJob(log_mel(samples(utterance), window_for(seconds, "fit"), MELS), Request("en"), seconds, "s 1-0")


async def test_the_languages_of_a_model_are_known_before_it_is_loaded(model: Whisper, twin: Model) -> None:
    assert languages_of(twin.path) == model.languages == ["en", "zh"]
    (twin.path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="twin is not a Whisper model"):
        languages_of(twin.path)


async def test_a_model_is_loaded_once_for_all_and_the_others_go_on(
    make: Make, loader: Loader, twin: Model, utterances: list[Utterance]
) -> None:
    """While it is loaded, the first model recognises; then both do, each with its own name."""
    engines = make()
    assert [one["loaded"] for one in engines.describe()] == [True, False]
    loader.allowed.clear()
    waiting = [asyncio.ensure_future(engines.get(twin.name, f"s{number}")) for number in range(3)]
    async with engines.use(None, "other") as first:
        assert (await first.recognise(job(utterances[0]))).text == utterances[0].text
    assert not any(one.done() for one in waiting)
    loader.allowed.set()
    second, *same = await asyncio.gather(*waiting)
    assert same == [second, second]
    assert loader.loaded == [twin.name]
    assert (first.model.name, second.model.name) == ("demo", twin.name)
    assert (await second.recognise(job(utterances[0]))).text
    one, other = engines.describe()
    assert (one["name"], one["loaded"], one["languages"]) == ("demo", True, ["en", "zh"])
    assert (other["name"], other["loaded"], other["sessions"]) == (twin.name, True, 3)
    assert (other["size_bytes"], other["compute_type"]) == (twin.size, second.model.compute_type)
    assert engines.busy_seconds == first.busy_seconds + second.busy_seconds > 0


async def test_who_waits_for_a_model_is_blamed_if_loading_it_kills_the_worker(
    make: Make, loader: Loader, twin: Model
) -> None:
    held: dict[str, list[str]] = {}
    engines = make(hold=held.__setitem__)
    loader.allowed.clear()
    waiting = [asyncio.ensure_future(engines.get(twin.name, f"s{number}")) for number in range(2)]
    await until(lambda: held == {f"load {twin.name}": ["s0 0-1", "s1 0-1"]})
    waiting[0].cancel()
    await until(lambda: held == {f"load {twin.name}": ["s1 0-1"]})
    loader.allowed.set()
    await waiting[1]
    assert held == {f"load {twin.name}": []}


async def test_a_model_that_cannot_be_loaded_is_an_error_of_its_sessions_alone(
    make: Make, loader: Loader, twin: Model, utterances: list[Utterance]
) -> None:
    """The next session tries again."""
    engines = make()
    loader.error = RuntimeError("CUDA out of memory")
    failed = await asyncio.gather(*(engines.get(twin.name, sid) for sid in "ab"), return_exceptions=True)
    assert [error.code for error in failed if isinstance(error, AsrError)] == ["model_unavailable"] * 2
    assert engines.describe()[1]["sessions"] == 0
    with pytest.raises(AsrError, match="no worker offers the model 'large'"):
        await engines.get("large")
    async with engines.use("demo", "other") as first:
        assert (await first.recognise(job(utterances[0]))).text == utterances[0].text
    loader.error = None
    assert (await engines.get(twin.name)).model.name == twin.name


async def test_an_idle_model_is_unloaded(make: Make, loader: Loader, twin: Model, utterances: list[Utterance]) -> None:
    """Not while a session uses it, nor the first one; what it did still counts, and it is loaded again."""
    engines = make(ttl=1e-9)
    async with engines.use(twin.name, "s") as second:
        await second.recognise(job(utterances[0]))
        await engines.unload_idle()
        assert list(engines) == [engines.default, second]
    busy = engines.busy_seconds
    await engines.unload_idle()
    assert list(engines) == [engines.default]
    assert not second._thread.is_alive()
    assert engines.busy_seconds == busy > 0
    await engines.get(twin.name)
    assert loader.loaded == [twin.name] * 2


async def test_without_a_limit_a_model_stays(make: Make, twin: Model) -> None:
    engines = make(ttl=0)
    async with engines.use(twin.name, "s") as second:
        pass
    await engines.unload_idle()
    assert list(engines) == [engines.default, second]


async def test_engines_compute_in_turn(model: Whisper, utterances: list[Utterance]) -> None:
    """Two engines with full queues never compute together, and each gets every other turn."""
    device_lock, order, computing = FifoLock(), list[str](), threading.Lock()
    both = threading.Event()

    class Watched:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def recognise(self, rows: list[Any]) -> list[Any]:
            assert both.wait(30)
            assert computing.acquire(blocking=False)
            order.append(self.name)
            try:
                return model.recognise(rows)
            finally:
                computing.release()

    engines = [
        Engine(Watched(name), 1, lambda thread, labels: None, PartialScheduler(), device_lock)  # type: ignore[arg-type]
        for name in "ab"
    ]
    work = [asyncio.ensure_future(engine.recognise(job(utterances[0]))) for engine in engines for _ in range(5)]
    await until(lambda: len(device_lock._waiting) == 1)
    both.set()
    assert {found.text for found in await asyncio.gather(*work)} == {utterances[0].text}
    assert "".join(order) in ("ababababab", "bababababa")
    for engine in engines:
        engine.stop(10)
