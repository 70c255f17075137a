"""Decodes the files that strangers send and only FFmpeg's demuxers read, each in a process of its own.

At the first such file a warm process is started, which has imported the decoders. It forks for each file, and ends when
none has come for some minutes, or when the process that started it has ended. Bytes go in; samples come out, piece by
piece.

What it protects against: a crash, a hang and memory without end cost the file alone, not the worker and its sessions.
The kernel holds the child to its memory and its CPU, and on Linux to the few system calls that computing takes: code of
a stranger's in it could open no file and no socket, start no process, and neither signal nor look into another. It has
never had the memory, the connections or the environment (keys, URLs) of the worker, and what it says is numbers and
text, which are checked.

What it does not: streams are decoded in the worker (docs/decisions/untrusted-decoding.md). And where the kernel filters
no calls, only limits of resources are left: the child still cannot open anything, but it could signal the processes of
its user, and look into them where the kernel allows that.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import pickle
import pkgutil
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from pathlib import Path

import av
import numpy as np

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.files import ByLibrary, Pieces
from asrserver.audio.pcm import Samples
from asrserver.audio.selection import MAX_SEPARATE, NOT_THERE, Selection
from asrserver.errors import AudioError, Unavailable
from asrserver.process.limits import die_with_parent
from asrserver.process.seccomp import can_forbid_system_calls, forbid_system_calls

log = logging.getLogger("asrserver.sandbox")

#: Seconds of CPU that a child may use until it has the next piece. Bytes can be made to cost one or two.
CPU_SECONDS = 5.0

#: Seconds after which a child that says nothing is given up, however little CPU it had: it may be stopped. Others have
#: their turn each TICK.
SILENT_SECONDS, TICK = 60, 0.05

#: Bytes that a child may allocate beside what it begins with and some copies of the file: an index has 256 MiB at most
#: (library.MAX_ALLOCATION), and grows by being copied.
MEMORY = 512 << 20
_COPIES = 3

#: Seconds without a file after which the warm process ends: it has 30 MB.
IDLE_SECONDS = 300.0

#: Bytes of address space that a warm process is taken to have where there is no /proc.
_USUAL_SIZE = 1 << 30

#: Most bytes of a message: ten seconds of silence of eight channels have five million.
_MAX_MESSAGE = 64 << 20

#: Seconds until the warm process has said how a child ended.
_STATUS_SECONDS = 5.0

#: To the child: bytes of the pickled arguments, and of the file. From it: what a message is, how many channels are kept
#: apart, or 0, and bytes. From the warm process: how the child ended, as waitpid says it.
_REQUEST, _MESSAGE, _STATUS = struct.Struct("<QQ"), struct.Struct("<BBI"), struct.Struct("<i")
_SAMPLES, _END, _DAMAGE, _REFUSAL, _DEFECT = range(5)

#: Codes of what a child may refuse.
_CODES = ("undecodable_audio", "not_audio", *NOT_THERE)

_NOTHING: Samples = np.zeros(0, np.float32)


class Sandbox:
    """Decodes files in processes of their own. Thread-safe; it starts none before the first file."""

    def __init__(self, target: ByLibrary, idle: float = IDLE_SECONDS) -> None:
        """Prepare.

        Args:
            target: What decodes a file there: a function of a module.
            idle: Seconds without a file after which the warm process ends.
        """
        self._code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from {target.__module__} import {target.__name__} as target; "
            f"from asrserver.audio import sandbox; sandbox.serve(int(sys.argv[1]), target, {idle})"
        )
        self._lock = threading.Lock()
        self._control: socket.socket | None = None  # the warm process
        self._reaper: threading.Thread | None = None
        self._closed = False

    def decode(self, data: bytes, kind: str, selection: Selection, max_seconds: float) -> Pieces:
        """Decode a file as the target does; an empty piece comes each TICK without another one.

        Raises:
            AudioError: Likewise; and it crashed, hung, or took too much memory.
            Unavailable: No process can be started.
        """
        request = pickle.dumps((kind, selection, max_seconds))
        for _ in range(2):  # the warm process may have ended a moment ago: nothing had come for long
            try:
                control, link, leash = self._begin()
            except OSError as exc:
                raise Unavailable("overloaded", f"no process can be started to decode a file: {exc}") from None
            child = _Child(link, leash)
            with link, leash:
                try:
                    return (yield from child.pieces(request, data))
                except (EOFError, OSError, ValueError) as exc:
                    how = child.end(exc)
            if how is not None or child.position:
                how = how or "was ended"
                at = child.position / SAMPLE_RATE
                log.warning("%d bytes of %s: the decoder %s after %.1f s of audio", len(data), kind, how, at)
                raise AudioError("undecodable_audio", f"the {kind} data cannot be decoded: the decoder {how}")
            self._forget(control)
        raise Unavailable("overloaded", "the process that decodes files ends at once")

    def close(self, timeout: float | None = None) -> None:
        """Take no more files, and wait at most `timeout` seconds until those in hand are done."""
        with self._lock:
            self._closed = True
            control, reaper = self._control, self._reaper
        if control is not None and reaper is not None:
            self._forget(control)
            reaper.join(timeout)

    def _begin(self) -> tuple[socket.socket, socket.socket, socket.socket]:
        """Have a child forked: its warm process, the socket to it, and its leash: it lives while that is open."""
        link, its_link = socket.socketpair()
        leash, its_leash = socket.socketpair()
        with its_link, its_leash:
            try:
                return self._hand_over(its_link, its_leash), link, leash
            except BaseException:
                link.close()
                leash.close()
                raise

    def _hand_over(self, link: socket.socket, leash: socket.socket) -> socket.socket:
        with self._lock:
            if self._closed:
                raise OSError("it is closed")
            for control in (self._control, None):
                control = self._control = control or self._start()
                try:
                    socket.send_fds(control, [b"\0"], [link.fileno(), leash.fileno()])
                    return control
                except OSError:  # it has ended
                    control.close()
                    self._control = None
            raise OSError("it ends at once")

    def _start(self) -> socket.socket:
        """Start the warm process; not by a fork, which copies no threads and hangs where they held a lock."""
        if not can_forbid_system_calls():
            log.warning(
                "the kernel filters no system calls (seccomp): limits alone hold the processes that decode files"
            )
        control, its_control = socket.socketpair()
        needed = {name: value for name, value in os.environ.items() if name.startswith(("LD_", "DYLD_", "PYTHON"))}
        with its_control:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-c", self._code, str(its_control.fileno())],
                    pass_fds=[its_control.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=needed | {"OPENBLAS_NUM_THREADS": "1"},  # a process with threads cannot fork
                    start_new_session=True,  # Ctrl+C is for the supervisor
                )
            except BaseException:
                control.close()
                raise
        self._reaper = threading.Thread(target=process.wait, name="sandbox", daemon=True)
        self._reaper.start()
        return control

    def _forget(self, control: socket.socket) -> None:
        """Send a warm process no more files; it ends when it has none."""
        with self._lock:
            if self._control is control:
                self._control = None
                control.close()


class _Child:
    """The process that decodes a file, as the one sees it that waits for it.

    Attributes:
        position: Samples that it has decoded.
    """

    def __init__(self, link: socket.socket, leash: socket.socket) -> None:
        self.position = 0
        self._link = link
        self._leash = leash
        self._link.settimeout(TICK)

    def pieces(self, request: bytes, data: bytes) -> Pieces:
        """What it decodes.

        Raises:
            AudioError: It says so.
            EOFError: It has ended.
            OSError: It has ended, or says nothing.
            ValueError: It says what no decoder says.
        """
        yield from self._send(_REQUEST.pack(len(request), len(data)) + request)
        yield from self._send(data)
        while True:
            what, channels, size = _MESSAGE.unpack((yield from self._receive(_MESSAGE.size)))
            if size > _MAX_MESSAGE or channels > MAX_SEPARATE:
                raise ValueError(f"{size} bytes, {channels} channels")
            body = yield from self._receive(size)
            if what != _SAMPLES:
                return _told(what, body)
            samples: Samples = np.frombuffer(body, np.float32)
            samples = samples.reshape(-1, channels) if channels else samples
            self.position += len(samples)
            yield samples

    def end(self, exc: Exception) -> str | None:
        """End it, and say how it ended, as it follows "the decoder"; None if the warm process has ended too."""
        if isinstance(exc, ValueError):
            return "says what no decoder says"
        if isinstance(exc, TimeoutError):
            return f"said nothing for {SILENT_SECONDS} s"
        status = b""
        with suppress(OSError):
            self._leash.settimeout(_STATUS_SECONDS)
            status = self._leash.recv(_STATUS.size)
        if len(status) < _STATUS.size:
            return None
        code = os.waitstatus_to_exitcode(*_STATUS.unpack(status))
        if code == -signal.SIGPROF:
            return f"took {CPU_SECONDS:.0f} s of CPU without audio"
        names = {int(number): number.name for number in signal.Signals}
        return f"was ended by {names.get(-code, 'a signal')}" if code < 0 else f"ended with status {code}"

    def _send(self, data: bytes) -> Generator[Samples, None, None]:
        view = memoryview(data)
        while view:
            view = view[(yield from _patiently(partial(self._link.send, view))) :]

    def _receive(self, size: int) -> Generator[Samples, None, bytearray]:
        body = bytearray(size)
        view = memoryview(body)
        while view:
            count = yield from _patiently(partial(self._link.recv_into, view))
            if not count:
                raise EOFError
            view = view[count:]
        return body


def _patiently(step: Callable[[], int]) -> Generator[Samples, None, int]:
    """Try something that takes a TICK at most until it succeeds.

    Tries are counted, and no time is measured: a machine that was suspended is not the child's fault.
    """
    for _ in range(round(SILENT_SECONDS / TICK)):
        try:
            return step()
        except TimeoutError:
            yield _NOTHING
    raise TimeoutError


def _told(what: int, body: bytearray) -> AudioError | None:
    """What the last message of a child says: what is damaged, or by an exception that nothing can be decoded."""
    told = body.decode()
    if what == _END:
        return None
    if what == _DAMAGE:
        return AudioError("undecodable_audio", told)
    if what == _DEFECT:
        raise RuntimeError(f"the decoder failed: {told[:200]!r}")
    code, _, message = told.partition("\n")
    if what != _REFUSAL or code not in _CODES:
        raise ValueError(f"a message {what} with the code {code!r}")
    raise AudioError(code, message)


# -- in the warm process -----------------------------------------------------------------------------------------------


def serve(descriptor: int, target: ByLibrary, idle: float) -> None:
    """Be the warm process: fork for each file, kill whom nobody waits for, and say how each child ended.

    It reads no byte of a file.

    Args:
        descriptor: The socket on which two others come for each file: one for the child, and its leash.
        target: Decodes a file.
        idle: Seconds without a file after which it ends.
    """
    control = socket.socket(fileno=descriptor)
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for module in pkgutil.walk_packages(av.__path__, "av."):  # PyAV imports the rest when it comes upon such a track
        with suppress(ImportError):  # what needs a library that is not there
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    size = _address_space()
    gc.collect()
    gc.freeze()  # the collector of a child would write to each page that it shares
    leashes: dict[int, socket.socket] = {}  # by the pid of the child
    selector = selectors.PollSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    takes = True
    while takes or leashes:
        ready = [key.fileobj for key, _ in selector.select(None if leashes else idle)]
        if not ready and not leashes:
            return
        if wake in ready:
            wake.recv(4096)
        for pid, leash in list(leashes.items()):
            if leash in ready:
                os.kill(pid, signal.SIGKILL)
                selector.unregister(leash)
        _reap(leashes, selector)
        if control in ready:
            descriptors = socket.recv_fds(control, 1, 2)[1]
            takes = bool(descriptors)
            if not takes:
                selector.unregister(control)
                continue
            link, leash = (socket.socket(fileno=one) for one in descriptors)
            with link:
                try:
                    pid = _fork(link, [*leashes.values(), leash, control, wake, woken], target, size)
                except OSError:  # no process can be started: who waits finds the leash closed
                    leash.close()
                else:
                    leashes[pid] = leash
                    selector.register(leash, selectors.EVENT_READ)


def _reap(leashes: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while leashes:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with leashes.pop(pid) as leash:
            with suppress(KeyError):  # let go already
                selector.unregister(leash)
            with suppress(OSError):
                leash.send(_STATUS.pack(status))


def _address_space() -> int:
    """Bytes of address space of this process."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return _USUAL_SIZE


# -- in the child ------------------------------------------------------------------------------------------------------


def _fork(link: socket.socket, others: list[socket.socket], target: ByLibrary, size: int) -> int:
    """Fork a child that decodes a file; return its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        die_with_parent(parent)
        for other in others:  # a leash that a child had too would not be seen to be let go
            other.close()
        _decode(link, target, size)
        os._exit(0)
    finally:
        os._exit(1)


def _decode(link: socket.socket, target: ByLibrary, size: int) -> None:
    """Decode the file that comes, and send what is in it."""

    def tell(what: int, body: bytes, channels: int = 0) -> None:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
        link.sendall(_MESSAGE.pack(what, channels, len(body)))
        link.sendall(body)

    for name in ("RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CORE"):
        _limit(name, 0)  # all is imported
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    with link.makefile("rb") as file:
        lengths = _REQUEST.unpack(file.read(_REQUEST.size))
        kind, selection, max_seconds = pickle.loads(file.read(lengths[0]))
        _limit("RLIMIT_AS", size + _COPIES * lengths[1] + MEMORY)
        data = file.read(lengths[1])
    forbid_system_calls()
    told = ""
    try:
        found = target(data, kind, selection, max_seconds)
        while True:
            piece = next(found)
            tell(_SAMPLES, piece.astype(np.float32, copy=False).tobytes(), piece.shape[1] if piece.ndim == 2 else 0)
    except StopIteration as end:
        what = _END if end.value is None else _DAMAGE
        told = end.value.message if end.value is not None else ""
    except AudioError as exc:
        what, told = _REFUSAL, f"{exc.code}\n{exc.message}"
    except MemoryError:
        what, told = _REFUSAL, f"undecodable_audio\nthe {kind} data takes too much memory"
    except Exception as exc:
        code = traceback.extract_tb(exc.__traceback__, -1)[0]
        what, told = _DEFECT, f"{type(exc).__name__} in {Path(code.filename).name}, line {code.lineno}"
    tell(what, told.encode())


def _limit(name: str, value: int) -> None:
    """Lower a limit for good; other systems than Linux lack some, or refuse."""
    number = getattr(resource, name, None)
    if number is not None:
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(number, (value, value))
