"""Runs the program where nothing can be made in /dev/shm; for root, in a namespace of its own."""

from __future__ import annotations

import ctypes
import os

from asrserver.__main__ import start

_CLONE_NEWNS, _MS_RDONLY, _MS_REC, _MS_PRIVATE = 0x20000, 1, 0x4000, 1 << 18

#: The exit status where that is not possible.
IMPOSSIBLE = 77


def isolate() -> bool:
    """Mount an empty file system over /dev/shm, for this process and its children; return whether it was possible."""
    libc = ctypes.CDLL(None, use_errno=True)
    return not (
        libc.unshare(_CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
        or libc.mount(b"none", b"/dev/shm", b"tmpfs", ctypes.c_ulong(_MS_RDONLY), None)
    )


if __name__ == "__main__":
    if not isolate():
        os._exit(IMPOSSIBLE)
    start()
