"""Memory of long-lived processes that make many short-lived objects: garbage collection, and glibc's malloc."""

from __future__ import annotations

import ctypes
import gc

#: New container objects after which Python looks for garbage cycles among them. Its default of 700 is reached by a
#: handful of sessions: a gateway with 500 of them spent a fifth of its time in collections that found nothing.
GC_THRESHOLD = 20_000

#: Parameters of glibc's mallopt, by the environment variables that set the same: number and value in bytes. By default
#: glibc returns large blocks, and free memory at the end of the heap, to the kernel at once, and gets cleared pages for
#: the next array or message. That took a tenth of a worker's time, and of Redis's where it has no allocator of its own.
MMAP_THRESHOLD = 1 << 25
_MALLOPT = {
    "MALLOC_MMAP_THRESHOLD_": (-3, MMAP_THRESHOLD),
    "MALLOC_TOP_PAD_": (-2, 1 << 22),
}
_TRIM_THRESHOLD = ("MALLOC_TRIM_THRESHOLD_", -1)


def tune_collector() -> None:
    """Exempt all present objects from garbage collection, and collect less often from now on.

    To be called when everything is loaded: none of it is ever garbage.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def retain_freed_memory(size: int) -> None:
    """Let this process keep up to `size` bytes of freed memory instead of returning them to the kernel."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other C libraries have none
    if mallopt is not None:
        for parameter, value in [*_MALLOPT.values(), (_TRIM_THRESHOLD[1], size)]:
            mallopt(parameter, value)


def malloc_environment(size: int) -> dict[str, str]:
    """Return environment variables with which another program does what `retain_freed_memory` does here."""
    return {name: str(value) for name, (_, value) in _MALLOPT.items()} | {_TRIM_THRESHOLD[0]: str(size)}
