"""The models that a worker offers, and an engine for each that is loaded.

The first model is loaded from the beginning to the end. A further one is loaded when a session names it, and unloaded
when no session has used it for a while. All engines share the device: one computes at a time, in turn.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from asrserver.errors import AsrError
from asrserver.inference.checkpoint import BEGINNING
from asrserver.inference.engine import Engine
from asrserver.inference.languages import languages_of
from asrserver.inference.whisper import Whisper
from asrserver.models import Model
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.engines")

#: Seconds that an engine may take to end the call under way before its model is unloaded.
STOP_TIMEOUT = 10.0


@dataclass(slots=True)
class _Offer:
    """A model that the worker offers.

    Attributes:
        model: Where it is.
        size: Bytes of its weights.
        languages: Codes of the languages that it knows.
        engine: Its engine, while it is loaded.
        loading: Loads it.
        waiting: Sessions that wait for that.
        users: Uses of the engine that have not ended.
        idle_since: time.monotonic() of the end of the last one.
    """

    model: Model
    size: int
    languages: list[str]
    engine: Engine | None = None
    loading: asyncio.Task[Engine] | None = None
    waiting: list[str] = field(default_factory=list)
    users: int = 0
    idle_since: float = 0.0


class Engines:
    """The engines of one worker, by the name of their model. Its methods must be called in the event loop.

    Attributes:
        default: The engine of sessions that name no model.
    """

    def __init__(
        self,
        default: Engine,
        models: list[Model],
        *,
        load: Callable[[Model], Whisper],
        start: Callable[[Whisper], Engine],
        hold: Callable[[str, list[str]], None],
        ttl: float,
    ) -> None:
        """Offer models.

        Args:
            default: The engine of the first model.
            models: The models, each with its own name.
            load: Loads a model. Called in a thread.
            start: Starts an engine on the same device.
            hold: Told which sessions wait for a model while it is loaded (see InFlight).
            ttl: Seconds without use after which a model other than the first is unloaded; 0: never.
        """
        self.default = default
        self._load = load
        self._start = start
        self._hold = hold
        self._ttl = ttl
        self._offers = {
            model.name: _Offer(model, model.size, languages_of(model.path) if number else default.model.languages)
            for number, model in enumerate(models)
        }
        self._offers[default.model.name].engine = default
        self._past = {"busy_seconds": 0.0, "speech_seconds": 0.0}  # of engines that are stopped

    def __iter__(self) -> Iterator[Engine]:
        """The engines of the loaded models."""
        return iter([offer.engine for offer in self._offers.values() if offer.engine is not None])

    @property
    def names(self) -> list[str]:
        """The models that are offered, the first one first."""
        return list(self._offers)

    @asynccontextmanager
    async def use(self, name: str | None, session: str) -> AsyncIterator[Engine]:
        """Use the engine of a model, which stays loaded meanwhile.

        Args:
            name: The model; None: the first one.
            session: Who waits for it while it is loaded, for crash attribution.

        Raises:
            AsrError: `unknown_model`, `model_unavailable`: it is not offered, or cannot be loaded.
        """
        engine = await self.get(name, session)
        offer = self._offers[engine.model.name]
        try:
            yield engine
        finally:
            offer.users -= 1
            offer.idle_since = time.monotonic()

    async def get(self, name: str | None, session: str = "") -> Engine:
        """The engine of a model, to be kept loaded for good; see `use`."""
        if name is None:
            name = self.default.model.name
        offer = self._offers.get(name)
        if offer is None:
            raise AsrError("unknown_model", f"no worker offers the model {name!r} any more")
        offer.users += 1  # from now on: it must not be unloaded between its loading and its use
        try:
            return offer.engine or await self._loaded(offer, session)
        except BaseException:
            offer.users -= 1
            raise

    async def unload_idle(self) -> None:
        """Unload the models that were not used for `ttl` seconds."""
        now = time.monotonic()
        for offer in self._offers.values():
            engine = offer.engine
            if engine is None or engine is self.default or offer.users or not self._ttl:
                continue
            if now - offer.idle_since >= self._ttl:
                offer.engine = None
                for name in self._past:
                    self._past[name] += getattr(engine, name)
                await asyncio.get_running_loop().run_in_executor(None, engine.stop, STOP_TIMEOUT)
                engine.recognised.flush()
                _count(engine, 0)
                log.info("model %s unloaded: not used for %g s", offer.model.name, self._ttl)

    def stop(self, timeout: float) -> None:
        """Stop all engines, each within `timeout` seconds."""
        for engine in self:
            engine.stop(timeout)
            engine.recognised.flush()

    def flush_metrics(self) -> None:
        """Flush the engines' counters, and say which models are loaded."""
        for engine in self:
            engine.recognised.flush()
            _count(engine, 1)

    # -- loading -------------------------------------------------------------------------------------------------

    async def _loaded(self, offer: _Offer, session: str) -> Engine:
        """Wait until a model is loaded; all sessions that want it wait for one loading."""
        if offer.loading is None:
            offer.loading = asyncio.get_running_loop().create_task(self._load_offer(offer), name="load-model")
            # It counts as retrieved then, even if no session waits any more.
            offer.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        offer.waiting.append(session)
        self._hold_waiting(offer)
        try:
            return await asyncio.shield(offer.loading)
        finally:
            offer.waiting.remove(session)
            self._hold_waiting(offer)

    async def _load_offer(self, offer: _Offer) -> Engine:
        name = offer.model.name
        began = time.monotonic()
        try:
            model = await asyncio.get_running_loop().run_in_executor(None, self._load, offer.model)
            offer.engine = self._start(model)
        except Exception as exc:  # whatever the library raises: the worker and its other sessions live on
            log.error("model %s cannot be loaded: %s", name, exc)
            message = f"the model {name!r} cannot be loaded; the server's log has the reason"
            raise AsrError("model_unavailable", message) from exc
        finally:
            offer.loading = None
        offer.idle_since = time.monotonic()
        log.info("model %s loaded in %.1f s: compute_type=%s", name, offer.idle_since - began, model.compute_type)
        return offer.engine

    def _hold_waiting(self, offer: _Offer) -> None:
        self._hold(f"load {offer.model.name}", [f"{session} {BEGINNING}" for session in offer.waiting if session])

    # -- for operators -------------------------------------------------------------------------------------------

    def describe(self) -> list[dict[str, Any]]:
        """The models: name, whether it is loaded, its compute type then, bytes of its weights, languages, sessions."""
        return [
            {
                "name": name,
                "loaded": offer.engine is not None,
                "compute_type": offer.engine.model.compute_type if offer.engine is not None else None,
                "size_bytes": offer.size,
                "languages": offer.languages,
                "sessions": offer.users,
            }
            for name, offer in self._offers.items()
        ]

    @property
    def busy_seconds(self) -> float:
        """Time spent in calls of all models."""
        return self._past["busy_seconds"] + sum(engine.busy_seconds for engine in self)

    @property
    def speech_seconds(self) -> float:
        """Speech in finals recognised, of all models."""
        return self._past["speech_seconds"] + sum(engine.speech_seconds for engine in self)

    @property
    def waiting(self) -> int:
        """Jobs in the queues."""
        return sum(engine.waiting for engine in self)

    @property
    def queue_age(self) -> float:
        """Seconds that the oldest waiting job has waited; 0 if none waits."""
        return max(engine.queue_age for engine in self)


def _count(engine: Engine, number: int) -> None:
    model = engine.model
    metrics.model_info.labels(model.name, model.device, model.compute_type).set(number)
