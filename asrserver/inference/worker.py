"""The life of one worker process: load the model, feed, beat, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

from asrserver.broker.broker import HEARTBEAT_EVERY, Broker
from asrserver.config import Settings
from asrserver.errors import Unavailable
from asrserver.gateway.session import PARTIAL_INTERVAL
from asrserver.inference.consumer import Feed
from asrserver.inference.engine import Engine
from asrserver.inference.recognise import Recogniser
from asrserver.inference.whisper import Whisper
from asrserver.process.aio import cancelled
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.worker")


class Hands:
    """What is in hand of native code, told to the supervisor before each call: it tells the guilty from the innocent.

    `write` puts the text into memory that outlives this process.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._held: dict[str, list[str]] = {}
        self._since: dict[str, float] = {}

    @property
    def longest(self) -> float:
        """Seconds that the longest of the native calls under way has taken."""
        with self._lock:
            return max((time.monotonic() - since for since in self._since.values()), default=0.0)

    def hold(self, place: str, labels: list[str]) -> None:
        """`labels` ("session entry" each) are now what `place` works on."""
        with self._lock:
            self._held[place] = labels
            if labels:
                self._since[place] = time.monotonic()
            else:
                self._since.pop(place, None)
            held = [label for labels in self._held.values() for label in labels]
            self._write("\n".join(held).encode())


def load(settings: Settings) -> Whisper:
    """Load the model as the settings say; raises ModelError."""
    return Whisper(settings.model, settings.device, settings.compute_type, settings.threads, settings.beam_size)


async def work(
    settings: Settings,
    name: str,
    model: Whisper,
    alive: Callable[[], None],
    ready: Callable[[], None],
    in_hand: Callable[[bytes], None],
) -> None:
    """Run a worker until SIGTERM. `alive` is called as long as it lives and no native call hangs."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    hands = Hands(in_hand)
    engine = Engine(model, settings.batch_size, hands.hold)
    recogniser = Recogniser(
        engine,
        window=settings.window,
        silence=settings.silence,
        max_seconds=settings.max_utterance,
        threads=1 if model.device == "cpu" else 4,
        hold=hands.hold,
        context=settings.context == "on",
    )
    broker = Broker(settings.redis, name)
    await broker.open()
    feed = Feed(broker, recogniser, url=settings.redis, lease=settings.lease, max_backlog=settings.max_backlog)
    tasks = [
        loop.create_task(feed.run()),
        loop.create_task(broker.listen_for_ends(feed.on_end)),
        loop.create_task(_beat(broker, engine, feed)),
        loop.create_task(_live(settings, hands, alive)),
    ]
    ready()
    log.info("worker %s ready: model=%s device=%s", name, model.name, model.device)
    stopped = loop.create_task(stop.wait())
    await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    failed = [task for task in tasks if task.done()]
    await feed.stop(settings.drain_timeout)
    await cancelled(tasks)
    await broker.deregister("worker")
    engine.stop(1.0)
    engine.recognised.flush()
    recogniser.close()
    await broker.close()
    for task in failed:
        task.result()
    log.info("worker %s stopped: %d sessions finished", name, feed.finished)


async def _live(settings: Settings, hands: Hands, alive: Callable[[], None]) -> None:
    """Signs of life, apart from the heartbeat in Redis, which waits while Redis is away."""
    while True:
        if hands.longest < settings.call_timeout:
            alive()
        await asyncio.sleep(min(HEARTBEAT_EVERY, settings.hang_timeout / 4))


async def _beat(broker: Broker, engine: Engine, feed: Feed) -> None:
    before = (0.0, 0.0)
    while True:
        before = _flush_metrics(engine, feed, before)
        broker.heartbeat(
            "worker",
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "model": engine.model.name,
                "device": engine.model.device,
                "languages": engine.model.languages,
                "sessions": len(feed.sessions),
                "streams": sum(session.live for session in feed.sessions.values()),
                "finished": feed.finished,
                "backlog": round(feed.backlog, 1),
                "queue": engine.waiting,
                "queue_age": round(engine.queue_age, 3),
                "batch_size": engine.last_batch,
                "speech_seconds": round(engine.speech_seconds, 1),
                "partials": engine.pace.drafts,
                "partial_interval": round(engine.pace.interval(PARTIAL_INTERVAL), 2),
                "stable_words": feed.recogniser.stable_words,
                "revised_words": feed.recogniser.revised_words,
                "real_time_factor": round(engine.busy_seconds / max(engine.speech_seconds, 0.001), 4),
            },
        )
        try:
            await feed.hand_back()
        except Unavailable as exc:
            log.warning("nothing handed back: %s", exc)
        await asyncio.sleep(HEARTBEAT_EVERY)


def _flush_metrics(engine: Engine, feed: Feed, before: tuple[float, float]) -> tuple[float, float]:
    """Set the gauges; `before` are the engine's busy and speech seconds at the last time."""
    engine.recognised.flush()
    now = (engine.busy_seconds, engine.speech_seconds)
    metrics.worker_sessions.set(len(feed.sessions))
    metrics.worker_backlog.set(feed.backlog)
    if now[1] > before[1]:
        metrics.real_time_factor.set((now[0] - before[0]) / (now[1] - before[1]))
    return now
