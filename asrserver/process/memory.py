"""Memory of processes that hold much for ever and make many things that are soon gone: Python's search for cycles, and
what the C library keeps of what was freed."""

from __future__ import annotations

import ctypes
import gc

#: New containers, that are not gone yet, at which Python looks for cycles among them. Its own 700 are come by with a
#: few sessions: of a gateway with 500, a fifth of the time went into looking, and nothing was found.
YOUNG = 20_000

#: glibc's mallopt: its parameters, the names that they have in the environment, and their values in bytes. By its own
#: rules glibc gives what is large, or free at the end of its heap, back to the kernel at once, and gets it anew for the
#: next array or message: cleared, which took a tenth of a worker's time, and of Redis' where that has no allocator of
#: its own.
LARGEST = 1 << 25
_MALLOPT = {
    "MALLOC_MMAP_THRESHOLD_": (-3, LARGEST),
    "MALLOC_TOP_PAD_": (-2, 1 << 22),
}


def settle() -> None:
    """Everything is loaded, and nothing of it is garbage, ever; from now on cycles are looked for less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)


def keep(size: int) -> None:
    """Give less than so many bytes of what was freed back to the kernel."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; others manage memory in other ways
    if mallopt is not None:
        for parameter, value in [*_MALLOPT.values(), (-1, size)]:
            mallopt(parameter, value)


def keeping(size: int) -> dict[str, str]:
    """The environment in which another program does as `keep` says."""
    return {name: str(value) for name, (_, value) in _MALLOPT.items()} | {"MALLOC_TRIM_THRESHOLD_": str(size)}
