"""A filter of system calls (seccomp(2)) for a process that computes, and talks over what it has open already."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

#: The machines that are known, as uname(2) names them, and their numbers in audit(7).
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

#: The calls that are left, with their number on each machine.
_ALLOWED = {
    # on what is open
    "read": (0, 63),
    "write": (1, 64),
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "close": (3, 57),
    # memory
    "brk": (12, 214),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "madvise": (28, 233),
    # signals and clocks
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "restart_syscall": (219, 128),
    "setitimer": (38, 103),
    "clock_gettime": (228, 113),
    # oneself
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "exit": (60, 93),
    "exit_group": (231, 94),
}

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000

#: Instructions of the filter's machine, and where it finds the number of a call and the machine.
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _MACHINE = 0, 4


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


_libc = ctypes.CDLL(None, use_errno=True)


def forbid_system_calls() -> bool:
    """Have the kernel refuse this process all calls but those above, with EPERM, until it ends.

    Returns:
        Whether it does: other systems than Linux, and some containers, do not.
    """
    if not _is_known():
        return False
    machine = os.uname().machine
    at = list(MACHINES).index(machine)
    program = _filter(MACHINES[machine], [call[at] for call in _ALLOWED.values()])
    zero = ctypes.c_ulong(0)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero):
        return False
    argument = _Program(len(program) // 8, program)
    return not _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(argument))


def can_forbid_system_calls() -> bool:
    """Whether the kernel would do so. Nothing is changed: where it takes filters, it says that there is none here."""
    nowhere = ctypes.c_void_p(None)
    if not _is_known() or not _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), nowhere):
        return False
    return ctypes.get_errno() == errno.EFAULT


def _is_known() -> bool:
    return os.uname().machine in MACHINES and sys.maxsize >= 1 << 32 and hasattr(_libc, "prctl")


def _filter(machine: int, calls: list[int]) -> bytes:
    """The program: of another machine's calls it allows none."""
    refuse = (_RETURN, 0, 0, _RET_ERRNO | errno.EPERM)
    program = [(_LOAD, 0, 0, _MACHINE), (_JUMP_IF_EQUAL, 1, 0, machine), refuse, (_LOAD, 0, 0, _NUMBER)]
    program += [(_JUMP_IF_EQUAL, len(calls) - at, 0, call) for at, call in enumerate(calls)]
    program += [refuse, (_RETURN, 0, 0, _RET_ALLOW)]
    return b"".join(struct.pack("=HBBI", *one) for one in program)
