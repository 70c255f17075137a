"""What a spawned child process does first and last, and the memory through which its supervisor watches it.

Heavy modules are imported in the functions: the environment (threads, GPU) must be set before, and the supervisor must
never load them. Fork is no option: a forked CTranslate2 hangs for ever, on CPUs too.
"""

from __future__ import annotations

import asyncio
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

import uvloop

from asrserver.config import Settings
from asrserver.errors import ModelError
from asrserver.process.limits import die_with_parent
from asrserver.process.memory import keep, settle
from asrserver.telemetry.logs import configure_logging

log = logging.getLogger("asrserver.child")

#: Exit status of a child that can never start as it is configured: a model that cannot be loaded.
EXIT_BOOT = 3

#: By how much a worker that computes on CPUs gives way to gateways and servers on them: they need little, but at once.
#: On two cores a backlog made acknowledgements 10 times slower without this.
NICE = 10

#: Bytes of what is in hand: of a go of the listener's, 32 sessions with some entries each, and of the engine's batch.
IN_HAND = 1 << 15

#: Bytes that a gateway and a worker keep of what they freed.
GATEWAY_KEEPS = 1 << 25
WORKER_KEEPS = 1 << 28


class Vitals(ctypes.Structure):
    """Shared between a child, which writes, and its supervisor, which outlives it."""

    _fields_ = [
        ("ready", ctypes.c_int),
        ("beat", ctypes.c_double),  # time.monotonic() of the last sign of life; the clock is the machine's
        ("in_hand", ctypes.c_char * IN_HAND),  # "session entry" lines: what native code works on
        ("error", ctypes.c_char * 1024),  # why it could not start
    ]


def _begin(settings: Settings, parent: int) -> None:
    die_with_parent(parent)
    faulthandler.enable()  # a hung child gets SIGABRT first: it leaves its stacks in the log
    for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl+C goes to the whole group; the supervisor decides
        signal.signal(number, signal.SIG_IGN)
    configure_logging(settings.log_level, settings.log_format)


class _Signs:
    """The child's side of its vitals."""

    def __init__(self, vitals: Any) -> None:
        self._vitals = vitals
        self.alive()

    def alive(self) -> None:
        self._vitals.beat = time.monotonic()

    def ready(self) -> None:
        settle()
        self.alive()
        self._vitals.ready = 1

    def in_hand(self, text: bytes) -> None:
        self._vitals.in_hand = text[: IN_HAND - 1]

    def refuse(self, reason: str) -> None:
        self._vitals.error = reason.encode()[:1023]
        sys.exit(EXIT_BOOT)


def gateway(settings: Settings, listener: socket.socket, vitals: Any, parent: int) -> None:
    """The main function of a gateway process."""
    _begin(settings, parent)
    keep(GATEWAY_KEEPS)
    from asrserver.handlers.app import serve

    signs = _Signs(vitals)
    _run(serve(settings, listener, signs.alive, signs.ready))


def worker(settings: Settings, name: str, vitals: Any, parent: int) -> None:
    """The main function of a worker process."""
    _begin(settings, parent)
    if settings.device == "cpu":
        os.nice(NICE)  # before there are threads: they inherit it
    keep(WORKER_KEEPS)
    from asrserver.inference.worker import load, work

    signs = _Signs(vitals)
    try:
        model = load(settings)
    except ModelError as exc:
        signs.refuse(str(exc))
    _run(work(settings, name, model, signs.alive, signs.ready, signs.in_hand))


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
    except Exception:
        log.critical("stopped by an error", exc_info=True)
        sys.exit(1)
