"""The main functions of gateway and worker processes, and the shared memory through which the supervisor watches them.

Heavy modules are imported inside the functions: the environment (threads, GPU) must be set first, and the supervisor
must never load them. Children are spawned, not forked: a forked CTranslate2 hangs for ever, on CPUs too.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from typing import Any

from asrserver.config import Settings
from asrserver.errors import ModelError, SettingError, Unavailable
from asrserver.process.limits import die_with_parent, set_niceness
from asrserver.process.memory import retain_freed_memory, tune_collector
from asrserver.telemetry import traces
from asrserver.telemetry.logs import configure_logging

log = logging.getLogger("asrserver.child")

#: Exit status of a child that cannot start with this configuration: its model cannot be loaded, for example, or the
#: database has a newer version.
EXIT_BOOT = 3

#: Niceness of workers that compute on CPUs, so that gateways and servers run first: they need little CPU, but at once.
#: Without it, a backlog on two cores made acknowledgements 10 times slower. It is set when a worker is ready: on a busy
#: machine a worker that started with it took ten seconds to replace a dead one, for half a second of CPU time.
WORKER_NICENESS = 10

#: Size in bytes of the record of audio in hand: a batch of the audio thread (16 streams with some entries each) and
#: a batch of the engine.
IN_HAND_SIZE = 1 << 15

#: Freed memory in bytes that a gateway and a worker keep for reuse. A gateway returns blocks of GATEWAY_LARGE_BLOCK and
#: more at once: otherwise some hundred large messages and uploads left it 200 MB larger for good.
GATEWAY_KEPT_MEMORY = 1 << 25
GATEWAY_LARGE_BLOCK = 1 << 17
WORKER_KEPT_MEMORY = 1 << 28


class Vitals(ctypes.Structure):
    """Memory shared between a child, which writes, and its supervisor, which reads and outlives it."""

    _fields_ = [
        ("ready", ctypes.c_int),
        ("beat", ctypes.c_double),  # time.monotonic() of the last heartbeat; all processes share this clock
        ("in_hand", ctypes.c_char * IN_HAND_SIZE),  # "session entry" lines: the audio that native code is processing
        ("error", ctypes.c_char * 1024),  # why the child could not start
    ]


def _begin(settings: Settings, parent: int) -> None:
    die_with_parent(parent)
    faulthandler.enable()  # a hung child is sent SIGABRT first and dumps its stacks to the log
    for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl+C reaches the whole process group; the supervisor handles it
        signal.signal(number, signal.SIG_IGN)
    configure_logging(settings.log_level, settings.log_format)


class _VitalsWriter:
    """The child's side of its vitals."""

    def __init__(self, vitals: Any) -> None:
        self._vitals = vitals
        self.alive()

    def alive(self) -> None:
        self._vitals.beat = time.monotonic()

    def ready(self) -> None:
        tune_collector()
        self.alive()
        self._vitals.ready = 1

    def in_hand(self, text: bytes) -> None:
        self._vitals.in_hand = text[: IN_HAND_SIZE - 1]

    def refuse(self, reason: str) -> None:
        self._vitals.error = reason.encode()[:1023]
        sys.exit(EXIT_BOOT)


def gateway(settings: Settings, listeners: dict[str, socket.socket], vitals: Any, parent: int, strict: bool) -> None:
    """The main function of a gateway process; with `strict` it ends if it cannot use the database."""
    _begin(settings, parent)
    retain_freed_memory(GATEWAY_KEPT_MEMORY, GATEWAY_LARGE_BLOCK)
    from asrserver.handlers.app import serve
    from asrserver.storage.errors import StorageError

    async def run() -> None:
        try:
            await serve(settings, listeners, writer.alive, writer.ready, strict)
        except (SettingError, StorageError) as exc:
            writer.refuse(str(exc))

    writer = _VitalsWriter(vitals)
    _run(run())


def worker(settings: Settings, name: str, vitals: Any, parent: int) -> None:
    """The main function of a worker process."""
    _begin(settings, parent)
    retain_freed_memory(WORKER_KEPT_MEMORY)
    from asrserver.inference.worker import load_model, run_worker

    def ready() -> None:
        if settings.device == "cpu":
            set_niceness(WORKER_NICENESS)
        writer.ready()

    async def run() -> None:
        try:
            await run_worker(settings, name, model, writer.alive, ready, writer.in_hand)
        except SettingError as exc:  # REDIS_URL, of which redis-py knows what is wrong
            writer.refuse(str(exc))

    writer = _VitalsWriter(vitals)
    try:
        if settings.traces == "on":
            traces.configure("asrserver-worker", name)
        model = load_model(settings)
    except (ModelError, SettingError) as exc:
        writer.refuse(str(exc))
    _run(run())
    traces.close()
    # Not by returning: a call of the model that goes on in its thread would end the interpreter by SIGSEGV.
    logging.shutdown()
    os._exit(0)


def _run(main: Coroutine[Any, Any, None]) -> None:
    import asyncio

    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
    except Unavailable as exc:  # Redis, whose absence was logged: it needs no traceback
        log.critical("stopped: %s", exc)
        sys.exit(1)
    except Exception:
        log.critical("stopped by an error", exc_info=True)
        sys.exit(1)
