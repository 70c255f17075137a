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
MMAP = "MALLOC_MMAP_THRESHOLD_"
_MALLOPT = {
    MMAP: (-3, MMAP_THRESHOLD),
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


def retain_freed_memory(size: int, largest: int = MMAP_THRESHOLD) -> None:
    """Let this process keep freed memory instead of returning it to the kernel.

    Args:
        size: Bytes that are kept at the end of the heap. There may be more before memory that is still in use.
        largest: Size in bytes from which a block is returned at once, wherever it is; at most 32 MiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other C libraries have none
    if mallopt is not None:
        for parameter, value in [*_MALLOPT.values(), (_TRIM_THRESHOLD[1], size), (_MALLOPT[MMAP][0], largest)]:
            mallopt(parameter, value)


def return_freed_memory() -> None:
    """Return freed memory to the kernel: importing modules leaves a tenth of a small process behind."""
    gc.collect()
    trim_freed_memory(0)


def trim_freed_memory(kept: int) -> None:
    """Return all free pages to the kernel, except for this many bytes at the end of the heap.

    That takes milliseconds for the usual garbage, and a tenth of a second for a gigabyte. It releases the GIL: call it
    in a thread.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other C libraries have none
    if trim is not None:
        trim(kept)


def malloc_environment(size: int) -> dict[str, str]:
    """Return environment variables with which another program does what `retain_freed_memory` does here."""
    return {name: str(value) for name, (_, value) in _MALLOPT.items()} | {_TRIM_THRESHOLD[0]: str(size)}
