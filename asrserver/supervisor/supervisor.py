"""The supervisor: starts gateways and workers, watches, restarts and drains them. None of them outlives it.

    SIGTERM, SIGINT   drain: gateways first, then workers, then the embedded servers; a second one stops at once
    SIGHUP            rolling restart: each gateway and worker is replaced, one at a time, by one that is ready
    SIGTTIN, SIGTTOU  one worker more, one fewer

Exit status: 0 stopped as asked, 1 stopped by force, 3 could not start.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.heap
import os
import random
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from asrserver.config import Settings
from asrserver.errors import SettingError, Unavailable
from asrserver.process.memory import return_freed_memory
from asrserver.process.notify import notify
from asrserver.process.places import has_shared_memory
from asrserver.process.scheduling import StallMeter
from asrserver.supervisor import children
from asrserver.supervisor.children import EXIT_BOOT, Vitals
from asrserver.supervisor.devices import gpu_indexes, worker_count
from asrserver.telemetry import multiprocess

log = logging.getLogger("asrserver.supervisor")

#: Seconds between health checks of the children, whose deaths the supervisor notices at once. Until all of them are
#: ready, it checks more often.
CHECK_INTERVAL = 1.0
STARTUP_CHECK_INTERVAL = 0.05

#: Exponential backoff of restarts, in seconds: the first delay and the longest. A child that was healthy for
#: HEALTHY_AFTER seconds is restarted at once.
FIRST_BACKOFF = 0.5
MAX_BACKOFF = 30.0
HEALTHY_AFTER = 5.0

#: Seconds between attempts to restart an embedded server.
SERVER_RESTART_INTERVAL = 2.0

#: Seconds between SIGABRT, on which a hung child dumps its stacks to the log, and SIGKILL.
ABORT_GRACE = 3.0

#: Seconds that a child may take to end after SIGKILL.
KILL_GRACE = 5.0

_spawn = multiprocessing.get_context("spawn")


@dataclass
class Slot:
    """One child process that should run, and the history of its restarts."""

    kind: str  # gateway or worker
    name: str
    start: Callable[[Slot], multiprocessing.process.BaseProcess]
    process: multiprocessing.process.BaseProcess | None = None
    vitals: Any = None
    started: float = 0.0
    ready: bool = False
    failures: int = 0
    due: float = 0.0  # time.monotonic() of the next start
    aborted: float = 0.0  # time.monotonic() of its SIGABRT; 0 if it was sent none
    retired: bool = False  # it was asked to stop and is not restarted
    blameless: bool = False  # it was killed for a slow drain, or got no CPU: no audio is to blame
    meter: StallMeter | None = None
    gpu: str | None = None  # as CUDA_VISIBLE_DEVICES names it

    @property
    def running(self) -> bool:
        return self.process is not None


class Supervisor:
    """Keeps gateway and worker processes, and the embedded servers, running until it is told to stop.

    Args:
        settings: The settings of all children.
        listeners: The sockets that the gateways share, by name: http, and perhaps others. Empty: there are none.
        workers: Whether to run workers.
        servers: Embedded servers, already started, to restart when they die.
        on_ready: Called once, when everything is ready.
    """

    def __init__(
        self,
        settings: Settings,
        listeners: dict[str, socket.socket],
        workers: bool,
        servers: list[Any],
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        if not has_shared_memory():  # Python takes files there on Linux, and looks for no other place
            multiprocessing.heap.Arena._dir_candidates = []  # type: ignore[attr-defined]
        self._counts = multiprocess.ChildCounts()
        self._settings = settings
        self._listeners = listeners
        self._on_ready = on_ready
        self._servers = servers
        self._server_due: dict[str, float] = {}
        self._slots: list[Slot] = []
        # Read now: starting a worker sets CUDA_VISIBLE_DEVICES.
        self._gpus = gpu_indexes() if settings.device == "cuda" else []
        self._base = f"{socket.gethostname()}-{os.getpid()}"
        self._stage = "running"  # → gateways → workers → stopped
        self._deadline = 0.0
        self._status = 0
        self._announced = False
        self._were_ready: set[str] = set()  # kinds of children of which one was ready once
        self._serial = {"gateway": 0, "worker": 0}
        self._to_replace: deque[Slot] = deque()
        self._replacing: tuple[Slot, Slot] | None = None  # (old, new)
        if listeners:
            for _ in range(settings.gateways):
                self._add("gateway")
        if workers:
            for _ in range(worker_count(settings)):
                self._add("worker")

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Supervise until stopped.

        Must run in the main thread: the kernel ends the children with the thread that started them.

        Returns:
            The exit status of the program (see the module).
        """
        with _signals() as wake:
            while self._stage != "stopped":
                for number in self._wait(wake):
                    self._on_signal(number)
                self._reap()
                self._check_health()
                self._advance()
                self._roll()
                self._start_due()
        return self._status

    def _wait(self, wake: socket.socket) -> bytes:
        """Wait for a signal, the death of a child, or the next check; return the numbers of the signals."""
        sentinels = [slot.process.sentinel for slot in self._slots if slot.process is not None]
        due = [slot.due - time.monotonic() for slot in self._slots if not slot.running]
        timeout = max(0.0, min([CHECK_INTERVAL if self._announced else STARTUP_CHECK_INTERVAL, *due]))
        if wake in multiprocessing.connection.wait([wake, *sentinels], timeout):
            return wake.recv(64)
        return b""

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if number in (signal.SIGTERM, signal.SIGINT):
            if self._stage == "running":
                log.info("%s: draining", name)
                notify("draining", "STOPPING=1")
                self._enter("gateways")
            else:
                log.warning("%s again: stopping at once", name)
                self._kill_all()
        elif number == signal.SIGHUP and self._stage == "running":
            if self._replacing is None and not self._to_replace:
                # Workers first: a worker of this release may not know what a gateway of the next one writes.
                slots = [slot for slot in self._slots if not slot.retired]
                self._to_replace.extend(sorted(slots, key=lambda slot: slot.kind, reverse=True))
                log.info("%s: replacing %d processes, one at a time", name, len(self._to_replace))
                notify("rolling restart")
            else:
                log.warning("%s ignored: a rolling restart is in progress", name)
        elif number == signal.SIGTTIN and self._workers():
            self._add("worker")
            log.info("%s: %d workers", name, len(self._workers()))
        elif number == signal.SIGTTOU and len(self._workers()) > 1:
            others = [slot for slot in self._workers() if self._replacing is None or slot not in self._replacing]
            self._retire(others[-1])  # of a pair that a rolling restart replaces, one is going anyway
            log.info("%s: %d workers", name, len(self._workers()))

    def _enter(self, stage: str) -> None:
        """Ask the children of a stage to stop; `_advance` kills those that do not in time."""
        self._stage = stage
        self._deadline = self._drain_deadline()
        for slot in list(self._slots):
            if slot.kind == stage[:-1]:
                self._retire(slot)

    def _drain_deadline(self) -> float:
        # A gateway waits for its sessions, then interrupts them, then stores them: the timeout bounds each step.
        return time.monotonic() + 3 * self._settings.drain_timeout + 5

    def _advance(self) -> None:
        """Enter the next stage of a drain when the children of the present one have ended."""
        if self._stage == "running":
            return
        slots = [slot for slot in self._slots if slot.kind == self._stage[:-1]]
        if slots and time.monotonic() > self._deadline:
            log.error("%d %s did not stop in time: killed", len(slots), self._stage)
            for slot in slots:
                self._kill_overrun(slot)
            self._status = 1
            self._deadline = float("inf")
        if not slots:
            if self._stage == "gateways":
                self._enter("workers")
            else:
                self._stage = "stopped"

    def _roll(self) -> None:
        """Advance a rolling restart: once the new process is ready, the old one drains; then the next pair follows."""
        if self._stage != "running":
            return
        if self._replacing is not None:
            old, new = self._replacing
            if new.running and not new.ready:
                return
            if old in self._slots:
                if not old.retired:
                    log.info("%s %s is ready and replaces %s", new.kind, new.name, old.name)
                    self._retire(old)
                    self._deadline = self._drain_deadline()
                elif time.monotonic() > self._deadline:
                    log.error("%s %s did not stop in time: killed", old.kind, old.name)
                    self._kill_overrun(old)
                return
            self._replacing = None
            if not self._to_replace:
                log.info("rolling restart finished")
                notify("rolling restart finished")
        while self._to_replace:
            old = self._to_replace.popleft()
            if old in self._slots and not old.retired:
                self._replacing = old, self._add(old.kind, old.gpu)
                return

    def _abort_rolling(self, slot: Slot, why: str) -> bool:
        """Abort the rolling restart if a process that does not run is its new one, and was never ready."""
        if self._replacing is None or slot is not self._replacing[1] or slot.ready:
            return False
        self._slots.remove(slot)
        self._replacing = None
        self._to_replace.clear()
        what = f"the old processes keep running: the new {slot.kind} could not start: {why}"
        log.error("rolling restart aborted, %s", what)
        notify(f"rolling restart aborted, {what}")
        return True

    # -- children ------------------------------------------------------------------------------------------------

    def _workers(self) -> list[Slot]:
        """The workers that are to stay: of a pair that a rolling restart replaces, the new one."""
        going = None if self._replacing is None else self._replacing[0]
        return [slot for slot in self._slots if slot.kind == "worker" and not slot.retired and slot is not going]

    def _add(self, kind: str, gpu: str | None = None) -> Slot:
        number = self._serial[kind]
        self._serial[kind] += 1
        if kind == "gateway":
            slot = Slot(kind, f"gateway-{number}", self._start_gateway)
        else:
            gpu = gpu or (self._gpus[number % len(self._gpus)] if self._gpus else None)
            slot = Slot(kind, f"{self._base}-{number}", self._start_worker, gpu=gpu)
        self._slots.append(slot)
        return slot

    def _start_gateway(self, slot: Slot) -> multiprocessing.process.BaseProcess:
        is_new = slot.kind not in self._were_ready or (self._replacing is not None and slot is self._replacing[1])
        arguments = (self._settings, self._listeners, slot.vitals, os.getpid(), is_new)
        return _spawn.Process(target=children.gateway, args=arguments, name=slot.name)

    def _start_worker(self, slot: Slot) -> multiprocessing.process.BaseProcess:
        # Set before numpy and ctranslate2 are imported: OpenBLAS and OpenMP would start one thread per core in every
        # process, which makes each of two workers on two cores three times slower.
        os.environ["OMP_NUM_THREADS"] = str(self._settings.threads)
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        if slot.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = slot.gpu
        arguments = (self._settings, slot.name, slot.vitals, os.getpid())
        return _spawn.Process(target=children.worker, args=arguments, name=f"worker-{slot.name}")

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in list(self._slots):
            if not slot.running and not slot.retired and now >= slot.due and self._stage in ("running", "gateways"):
                slot.started, slot.ready, slot.aborted, slot.blameless, slot.meter = now, False, 0.0, False, None
                try:
                    self._start(slot)
                except OSError as exc:  # no memory, process, file descriptor or disk is left: the others must go on
                    if not self._abort_rolling(slot, str(exc)):
                        self._restart_later(slot, f"could not start: {exc}")

    def _start(self, slot: Slot) -> None:
        slot.vitals = _spawn.RawValue(Vitals)
        os.environ[multiprocess.SLOT] = slot.name
        process = slot.start(slot)
        process.start()
        slot.process = process
        log.info("%s %s started: pid %d", slot.kind, slot.name, process.pid)

    def _reap(self) -> None:
        for slot in list(self._slots):
            if self._stage != "stopped" and slot.process is not None and slot.process.exitcode is not None:
                self._on_death(slot, slot.process)

    def _on_death(self, slot: Slot, process: multiprocessing.process.BaseProcess) -> None:
        code = process.exitcode
        slot.process = None
        process.join()
        multiprocess.forget_gauges(slot.name)
        if slot.kind == "worker":
            self._release_sessions(slot, crashed=code != 0 and not slot.blameless)
        if slot.retired:
            self._slots.remove(slot)
            log.info("%s %s ended: %s", slot.kind, slot.name, _explain(code))
            return
        error = slot.vitals.error.decode(errors="replace")
        if self._abort_rolling(slot, error or _explain(code)):
            return
        if code == EXIT_BOOT and slot.kind not in self._were_ready:
            log.critical("%s", error)
            self._status = EXIT_BOOT
            self._kill_all()
            return
        self._restart_later(slot, f"died: {_explain(code)}" + (f" ({error})" if error else ""))

    def _restart_later(self, slot: Slot, reason: str) -> None:
        self._counts.restarted(slot.kind)
        now = time.monotonic()
        healthy = slot.ready and now - slot.started > HEALTHY_AFTER
        slot.failures = 0 if healthy else slot.failures + 1
        backoff = 0.0 if healthy else min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** (slot.failures - 1))
        delay = backoff * random.uniform(0.5, 1.0)
        slot.due = now + delay
        log.error("%s %s %s; restart in %.1f s", slot.kind, slot.name, reason, delay)

    def _release_sessions(self, slot: Slot, crashed: bool) -> None:
        """Release the dead worker's sessions for others; after a crash, the audio in hand gets a strike."""
        from asrserver.broker.lease import WorkerJanitor  # 7 MB, which are not needed while nothing dies

        try:
            janitor = WorkerJanitor(self._settings.redis)
            try:
                for line in _lines(slot.vitals.in_hand) if crashed else ():
                    sid, _, entry = line.rpartition(" ")
                    log.warning("session=%s entry=%s was in hand: strike %d", sid, entry, janitor.strike(sid, entry))
                released = janitor.release(slot.name)
                if released:
                    log.info("worker %s: %d sessions released", slot.name, released)
                if slot.retired:
                    janitor.retire(slot.name)
            finally:
                janitor.close()
        except (SettingError, Unavailable) as exc:
            log.warning("worker %s: its sessions stay leased until their leases expire: %s", slot.name, exc)

    def _check_health(self) -> None:
        """Check the readiness and heartbeat of every child, and that the embedded servers live."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is None:
                continue
            if not slot.ready and slot.vitals.ready:
                slot.ready = True
                self._were_ready.add(slot.kind)
            if slot.aborted and now - slot.aborted > ABORT_GRACE:
                self._kill(slot)
            elif slot.ready and not slot.aborted:
                self._check_beat(slot, slot.process.pid or 0, now)
        if self._stage == "running" and not self._announced and all(slot.ready for slot in self._slots):
            self._announced = True
            self._announce()
        self._count_children()
        for server in self._servers:
            self._check_server(server, now)

    def _check_beat(self, slot: Slot, pid: int, now: float) -> None:
        """Abort a child that hangs, or starves for too long; audio is not to blame for starving or a stop."""
        limit = self._settings.hang_timeout
        meter = slot.meter = slot.meter or StallMeter(pid)
        stalled, silent = meter.update(slot.vitals.beat, now), now - meter.since
        if stalled > limit:
            slot.aborted, slot.blameless = now, meter.is_innocent
            log.error("%s %s has not responded for %.0f s (hang_timeout): killed", slot.kind, slot.name, silent)
            if slot.blameless:
                log.warning("%s was stopped, or waited %.0f s for a CPU: no audio is to blame", slot.name, meter.waited)
            os.kill(pid, signal.SIGABRT)
        elif limit < silent < limit + CHECK_INTERVAL and stalled < limit / 2:
            log.warning("%s: no response for %.0f s, for %.0f s no CPU was free", slot.name, silent, meter.waited)

    def _check_server(self, server: Any, now: float) -> None:
        """Restart an embedded server that died; gateways and workers wait for it as for any other server."""
        code = server.poll()
        if code is None or now < self._server_due.get(server.name, 0.0):
            return
        log.error("the embedded %s died: %s", server.name, f"{_explain(code)}{server.lack_of_room()}")
        self._server_due[server.name] = now + SERVER_RESTART_INTERVAL
        try:
            server.start()
        except Exception as exc:
            log.error("the embedded %s cannot be started: %s", server.name, exc)

    def _count_children(self) -> None:
        ready = [slot.kind for slot in self._slots if slot.ready and slot.running]
        self._counts.ready({kind: ready.count(kind) for kind in ("gateway", "worker")})

    def _announce(self) -> None:
        workers = len(self._workers())
        if self._listeners:
            places = {name: _place(listener) for name, listener in self._listeners.items()}
            http = places.pop("http")
            s = "s" if self._settings.tls_cert else ""
            others = "".join(f", {name} on {place}" for name, place in places.items())
            print(
                f"asrserver listening on http{s}://{http} (ws{s}://{http}/ws/asr){others}, {workers} workers",
                flush=True,
            )
            # Browsers give the microphone to pages of localhost, and of https.
            host, _, port = http.rpartition(":")
            page = "localhost" if host in ("0.0.0.0", "[::]") else host
            print(f"open http{s}://{page}:{port}/ in a browser to speak, or to drop a recording", flush=True)
        else:
            print(f"asrserver: {workers} workers ready", flush=True)
        self._on_ready()
        return_freed_memory()
        notify("serving", "READY=1")

    # -- endings -------------------------------------------------------------------------------------------------

    def _retire(self, slot: Slot) -> None:
        slot.retired = True
        if slot.process is None:
            self._slots.remove(slot)
        else:
            slot.process.terminate()

    def _kill_overrun(self, slot: Slot) -> None:
        slot.blameless = True
        self._kill(slot)

    def _kill(self, slot: Slot) -> None:
        if slot.process is not None:
            slot.process.kill()

    def _kill_all(self) -> None:
        for slot in self._slots:
            self._kill(slot)
        for slot in self._slots:
            if slot.process is not None:
                slot.process.join(KILL_GRACE)
        self._status = self._status or 1
        self._stage = "stopped"


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that yields the numbers of received signals; the handlers do nothing, not even log."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
    descriptor = signal.set_wakeup_fd(writer.fileno())  # first: a signal between the two would be lost
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _place(listener: socket.socket) -> str:
    """HOST:PORT of a listening socket, as in a URL."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _lines(text: bytes) -> set[str]:
    """The lines of a buffer that a dying child may have left cut; not by splitlines(): ids may hold its separators."""
    return set(text.decode(errors="replace").split("\n")) - {""}


def _explain(code: int | None) -> str:
    if code is None:
        return "running"
    if code < 0:
        name = signal.Signals(-code).name
        return f"{name}, perhaps out of memory" if code == -signal.SIGKILL else name
    return f"exit status {code}"
