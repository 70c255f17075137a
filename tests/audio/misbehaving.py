"""Decoders that do what FFmpeg's should not, for a sandbox: the file names what; before it comes a second of audio."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import threading
from collections.abc import Callable

import numpy as np

from asrserver.audio import SAMPLE_RATE, sandbox
from asrserver.audio.files import Pieces
from asrserver.audio.selection import Selection
from asrserver.errors import AudioError

#: What a file may begin with: by this it is taken for a file that only FFmpeg reads.
HEAD = b"#!AMR\n"

#: What may come next: it is decoded to nothing before its decoder misbehaves.
AT_ONCE = b"at once: "


def spin() -> None:
    while True:
        pass


def take_memory() -> None:
    held = []
    while True:
        held.append(bytes(16 << 20))


def take_native_memory() -> None:
    """As FFmpeg takes it, which is told so and reports it."""
    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    while malloc(ctypes.c_size_t(64 << 20)):
        pass
    raise MemoryError


def talk_nonsense() -> None:
    for descriptor in range(3, 100):
        try:
            os.write(descriptor, b"\xff" * 100)
        except OSError:
            continue
    threading.Event().wait()


def break_out() -> None:
    """Say what is possible that should not be."""
    tries: dict[str, Callable[[], object]] = {
        "open": lambda: os.open(__file__, os.O_RDONLY),
        "connect": lambda: socket.socket(socket.AF_INET).connect(("127.0.0.1", 1)),
        "fork": os.fork,
        "run": lambda: os.execv("/bin/true", ["true"]),
        "signal": lambda: os.kill(os.getppid(), 0),
        "look": lambda: look_into(os.getppid()),
        "widen": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
        "environment": lambda: os.environ["REDIS_URL"],
    }
    possible = []
    for name, attempt in tries.items():
        try:
            attempt()
        except (OSError, KeyError, ValueError):
            continue
        possible.append(name)
    raise AudioError("undecodable_audio", f"possible: {possible}")


def look_into(pid: int) -> None:
    """process_vm_readv(2) of this process's code in another one, which was forked from the same."""
    here = ctypes.create_string_buffer(8)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(here), 8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.process_vm_readv(pid, vector, ctypes.c_ulong(1), vector, ctypes.c_ulong(1), ctypes.c_ulong(0)) < 0:
        raise OSError(ctypes.get_errno(), "process_vm_readv")


def fail() -> None:
    raise KeyError("what is in the file")


#: What a file may contain, and what is done then.
WAYS: dict[bytes, Callable[[], object]] = {
    b"crash": lambda: ctypes.string_at(0),
    b"abort": os.abort,
    b"spin": spin,
    b"wait": threading.Event().wait,
    b"memory": take_memory,
    b"native memory": take_native_memory,
    b"nonsense": talk_nonsense,
    b"exit": lambda: os._exit(7),
    b"break out": break_out,
    b"fail": fail,
}


def decode(data: bytes, kind: str, selection: Selection, max_seconds: float) -> Pieces:
    """See files.by_library. What no way names is decoded to as many seconds as it has bytes."""
    data = data.removeprefix(HEAD)
    way = WAYS.get(data.removeprefix(AT_ONCE))
    sandbox.CPU_SECONDS = 0.3  # from the first piece on, in this child
    for _ in range(1 if way else len(data)):
        if not data.startswith(AT_ONCE):
            yield np.full(SAMPLE_RATE, 0.5, np.float32)
    if way is not None:
        way()
    return None
