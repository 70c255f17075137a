"""The life of one worker process: load the model, consume sessions, send heartbeats, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from asrserver.broker.addresses import addresses
from asrserver.broker.connection import HEARTBEAT_EVERY
from asrserver.broker.shards import open_any
from asrserver.broker.worker_side import WorkerBroker
from asrserver.config import Settings
from asrserver.errors import Unavailable
from asrserver.inference.consumer import SessionConsumer
from asrserver.inference.engine import Engine
from asrserver.inference.engines import Engines
from asrserver.inference.fair import Shares
from asrserver.inference.fifo_lock import FifoLock
from asrserver.inference.languages import languages_of
from asrserver.inference.partials import PartialScheduler
from asrserver.inference.poison import InFlight
from asrserver.inference.recogniser import Recogniser
from asrserver.inference.whisper import Whisper
from asrserver.models import find_model
from asrserver.process.aio import cancel_and_wait
from asrserver.process.memory import trim_freed_memory
from asrserver.process.scheduling import RunTime
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.worker")

#: Seconds between the times at which freed memory is returned, and bytes of it that are kept then.
TRIM_EVERY = 30.0
KEPT_BETWEEN = 1 << 25


def load_model(settings: Settings) -> Whisper:
    """Load the first model that the settings name, and look at the others.

    Raises:
        ModelError: One cannot be found, or the first cannot be loaded.
    """
    first, *others = settings.models
    for name in others:
        languages_of(find_model(name).path)
    return _load(settings, first)


def _load(settings: Settings, name: str) -> Whisper:
    return Whisper(name, settings.device, settings.compute_type, settings.threads, settings.beam_size)


def make_recogniser(
    settings: Settings, model: Whisper, hold: Callable[[str, list[str]], None], device_lock: FifoLock | None = None
) -> Recogniser:
    """What the sessions of a worker share, as the settings ask for it. Must be called in the event loop.

    Args:
        settings: The server's settings.
        model: The loaded model.
        hold: Told the labels in hand before each native call, and none after it (see InFlight).
        device_lock: That of the engines that share the device; None: no other does.
    """
    partials, shares = PartialScheduler(model.profile.draft_share), Shares()
    return Recogniser(
        Engine(model, settings.batch_size, hold, partials, device_lock, shares),
        partials,
        window=settings.window,
        silence=settings.silence,
        max_seconds=settings.max_utterance,
        threads=1 if model.device == "cpu" else 4,
        hold=hold,
        context=settings.context == "on",
        shares=shares,
    )


def make_engines(
    settings: Settings, recogniser: Recogniser, hold: Callable[[str, list[str]], None], device_lock: FifoLock
) -> Engines:
    """The engines of a worker: the recogniser's own, and those of its further models when they are loaded.

    Args:
        settings: The server's settings.
        recogniser: That of the first model.
        hold: Told the labels in hand before each native call, and none after it (see InFlight).
        device_lock: That of the recogniser's engine.

    Raises:
        ModelError: A model cannot be found.
    """
    return Engines(
        recogniser.engine,
        [find_model(name) for name in settings.models],
        load=lambda model: _load(settings, model.name),
        start=lambda model: Engine(
            model, settings.batch_size, hold, recogniser.partials, device_lock, recogniser.shares
        ),
        hold=hold,
        ttl=settings.model_ttl,
    )


async def run_worker(
    settings: Settings,
    name: str,
    model: Whisper,
    alive: Callable[[], None],
    ready: Callable[[], None],
    in_hand: Callable[[bytes], None],
) -> None:
    """Run a worker until SIGTERM.

    Args:
        settings: The server's settings.
        name: The worker's name in Redis.
        model: The loaded model.
        alive: Called regularly as long as the event loop runs and every thread makes progress.
        ready: Called once, when the worker accepts sessions.
        in_hand: Stores what native code works on; see InFlight.
    """
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    in_flight = InFlight(in_hand)
    device_lock = FifoLock()
    recogniser = make_recogniser(settings, model, in_flight.hold, device_lock)
    engines = make_engines(settings, recogniser, in_flight.hold, device_lock)
    brokers = [WorkerBroker(url, name, engines.names) for url in addresses(settings.redis)]
    await open_any(brokers)
    consumers = _consumers(settings, brokers, recogniser, engines)
    tasks = [
        asyncio.create_task(_send_heartbeats(brokers, recogniser, engines, consumers), name="heartbeats"),
        asyncio.create_task(_report_alive(settings, in_flight, alive), name="alive"),
        asyncio.create_task(_trim_memory(), name="memory"),
    ]
    for broker, consumer in zip(brokers, consumers, strict=True):  # so that a Redis which is away holds up no other
        hear = broker.listen_for_ends(consumer.on_end, consumer.on_flush, consumer.on_release)
        tasks += [
            asyncio.create_task(consumer.run(), name="consumer"),
            asyncio.create_task(hear, name="session-ends"),
            asyncio.create_task(_hand_back(broker, consumer), name="hand-back"),
        ]
    ready()
    log.info("worker %s ready: model=%s device=%s", name, ",".join(engines.names), model.device)
    stopped = asyncio.create_task(stop.wait(), name="stop-signal")
    await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    failed = [task for task in tasks if task.done()]
    if not failed:
        await _leave(brokers, recogniser, engines, consumers, settings.drain_timeout)
    # A Redis that is away must not keep the sessions in others from being released.
    stops = [consumer.stop(settings.drain_timeout) for consumer in consumers]
    ends = await asyncio.gather(*stops, return_exceptions=True)
    await cancel_and_wait(tasks)
    ends += await asyncio.gather(*(broker.deregister() for broker in brokers), return_exceptions=True)
    engines.stop(1.0)
    recogniser.close(1.0)
    await asyncio.gather(*(broker.close() for broker in brokers))
    for task in failed:
        task.result()
    for error in filter(None, ends):
        raise error
    in_flight.close()
    log.info("worker %s stopped: %d sessions finished", name, sum(consumer.finished for consumer in consumers))


def _consumers(
    settings: Settings, brokers: Sequence[WorkerBroker], recogniser: Recogniser, engines: Engines
) -> list[SessionConsumer]:
    """One for each Redis; they share the recogniser and its engines."""
    made = [
        SessionConsumer(
            broker,
            recogniser,
            engines,
            url=broker.url,
            lease=settings.lease,
            max_backlog=settings.max_backlog,
            patience=settings.drain_timeout,
        )
        for broker in brokers
    ]
    for consumer in made:
        consumer.siblings = made
    return made


async def _trim_memory() -> None:
    """Return what large inputs have left: what is freed stays with the process, for the next ones (children.py)."""
    while True:
        await asyncio.sleep(TRIM_EVERY)
        await asyncio.to_thread(trim_freed_memory, KEPT_BETWEEN)


async def _report_alive(settings: Settings, in_flight: InFlight, alive: Callable[[], None]) -> None:
    """Report to the supervisor as long as all threads make progress.

    The heartbeat in Redis is no substitute, because it waits while Redis is away.
    """
    reported: list[str] = []
    could_run = RunTime(os.getpid(), time.monotonic())
    while True:
        stuck = in_flight.find_stuck(settings.call_timeout, could_run.update(time.monotonic()))
        if not stuck:
            alive()
        elif stuck != reported:
            log.error("no progress in %s: the worker will be replaced", ", ".join(stuck))
        reported = list(stuck)
        await asyncio.sleep(min(HEARTBEAT_EVERY, settings.hang_timeout / 4))


async def _send_heartbeats(
    brokers: Sequence[WorkerBroker], recogniser: Recogniser, engines: Engines, consumers: Sequence[SessionConsumer]
) -> None:
    """Publish the worker's state in each Redis, set its metrics, unload idle models."""
    before = (0.0, 0.0)
    while True:
        before = _flush_metrics(engines, consumers, before)
        state = _state(recogniser, engines, consumers)
        for broker in brokers:
            broker.heartbeat(state)
        await engines.unload_idle()
        await asyncio.sleep(HEARTBEAT_EVERY)


async def _hand_back(broker: WorkerBroker, consumer: SessionConsumer) -> None:
    """Look whether an operator wants the worker drained, and hand a session back if it is behind."""
    while True:
        try:
            drained = await broker.is_drained()
            consumer.drain.ask(drained or consumer.leaving)
            await consumer.hand_back()
        except Unavailable as exc:
            log.warning("no session handed back: %s", exc)
        await asyncio.sleep(HEARTBEAT_EVERY)


async def _leave(
    brokers: Sequence[WorkerBroker],
    recogniser: Recogniser,
    engines: Engines,
    consumers: Sequence[SessionConsumer],
    timeout: float,
) -> None:
    """Hand all sessions over to other workers; first tell everybody not to count on this one."""
    for consumer in consumers:
        consumer.drain.ask(True)
    state = _state(recogniser, engines, consumers)
    for broker in brokers:
        broker.heartbeat(state)
    await asyncio.gather(*(consumer.leave(timeout) for consumer in consumers))


def _state(recogniser: Recogniser, engines: Engines, consumers: Sequence[SessionConsumer]) -> dict[str, Any]:
    """What a heartbeat says of the worker."""
    model, partials = recogniser.engine.model, recogniser.partials
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "model": model.name,
        "device": model.device,
        "languages": model.languages,
        "models": engines.describe(),
        "drained": any(consumer.drain.asked for consumer in consumers),
        "sessions": sum(len(consumer.sessions) for consumer in consumers),
        "streams": consumers[0].streams,
        "finished": sum(consumer.finished for consumer in consumers),
        "backlog": round(consumers[0].backlog, 1),
        "queue": engines.waiting,
        "queue_age": round(engines.queue_age, 3),
        "batch_size": recogniser.engine.last_batch,
        "speech_seconds": round(engines.speech_seconds, 1),
        "partials": partials.drafts,
        "partial_interval": round(consumers[0].partial_interval, 2),
        "stable_words": recogniser.words.stable,
        "revised_words": recogniser.words.revised,
        "real_time_factor": round(engines.busy_seconds / max(engines.speech_seconds, 0.001), 4),
    }


def _flush_metrics(
    engines: Engines, consumers: Sequence[SessionConsumer], before: tuple[float, float]
) -> tuple[float, float]:
    """Flush the counters and set the gauges.

    Args:
        engines: Their counters are flushed.
        consumers: Their sessions are counted.
        before: What the last call returned.

    Returns:
        The engines' (busy seconds, speech seconds).
    """
    engines.flush_metrics()
    now = (engines.busy_seconds, engines.speech_seconds)
    metrics.worker_sessions.set(sum(len(consumer.sessions) for consumer in consumers))
    metrics.worker_backlog.set(consumers[0].backlog)
    metrics.drained_workers.set(any(consumer.drain.asked for consumer in consumers))
    metrics.partial_interval.set(consumers[0].partial_interval)
    if now[1] > before[1]:
        metrics.real_time_factor.set((now[0] - before[0]) / (now[1] - before[1]))
    return now
