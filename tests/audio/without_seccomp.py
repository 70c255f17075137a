"""Decodes a file where the kernel refuses filters of system calls, as in some containers; see test_sandbox.py."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from asrserver.audio import files
from asrserver.audio.sandbox import Sandbox
from asrserver.audio.selection import MIXED
from asrserver.cli.doctor import check_sandbox
from asrserver.process import seccomp
from tests.audio import misbehaving

#: prctl's number on each machine, and where a filter finds the first argument of a call.
PRCTL = {"x86_64": 157, "aarch64": 167}
FIRST_ARGUMENT = 16


def refuse_filters() -> None:
    """Have the kernel refuse further filters, in this process and its children, with EINVAL: as one without them."""
    program = [
        (seccomp._LOAD, 0, 0, seccomp._NUMBER),
        (seccomp._JUMP_IF_EQUAL, 0, 3, PRCTL[os.uname().machine]),
        (seccomp._LOAD, 0, 0, FIRST_ARGUMENT),
        (seccomp._JUMP_IF_EQUAL, 0, 1, seccomp._PR_SET_SECCOMP),
        (seccomp._RETURN, 0, 0, seccomp._RET_ERRNO | errno.EINVAL),
        (seccomp._RETURN, 0, 0, seccomp._RET_ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    zero = ctypes.c_ulong(0)
    assert not seccomp._libc.prctl(seccomp._PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero)
    argument = ctypes.byref(seccomp._Program(len(program), code))
    mode = ctypes.c_ulong(seccomp._SECCOMP_MODE_FILTER)
    assert not seccomp._libc.prctl(seccomp._PR_SET_SECCOMP, mode, argument)


if __name__ == "__main__":
    refuse_filters()
    [finding] = check_sandbox()
    print(finding.level, finding.subject)
    decoders = Sandbox(misbehaving.decode)
    found = files.decode_file(bytes(1), "amr", 60, MIXED, decoders.decode)
    print(len(found.samples), "samples")
    decoders.close(20)
