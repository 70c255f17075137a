"""No child outlives its parent, however that ends (prctl(2), Linux)."""

from __future__ import annotations

import ctypes
import os
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
