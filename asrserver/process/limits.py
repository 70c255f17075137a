"""What processes and their children share: no child outlives its parent (prctl(2), Linux), all may open many files."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be imported between fork and exec


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the *thread* that started it ends; raises OSError.

    Call it after any change of credentials, which clears it. `parent` is the pid that the parent had.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number)):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def raise_file_limit() -> float:
    """A connection is a file; the soft limit of 1024 is older than programs with more. Returns the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return math.inf if hard == resource.RLIM_INFINITY else hard
