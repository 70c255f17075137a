"""The program, as the harness starts it: `python tests/faults/program.py run …`. Its spawned children import it too.

Some recordings end with a mark, behind which decoders look at nothing: such a recording kills its decoder, or hangs it
once. And the clock of the process (`time.time`) can be stepped by a file: CLOCK_REALTIME belongs to the whole machine,
and libfaketime is not everywhere. The clocks of Redis and PostgreSQL stay as they are.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

from asrserver.audio import files

#: Kills the decoder, each time.
KILLS = b"this recording kills"

#: Followed by a name: hangs the decoder the first time, in native code that has released the GIL, or holds it.
HANGS = b"this recording hangs"
HOLDS = b"this recording holds"

#: Where a recording leaves a file when it has hung a decoder.
HUNG = "FAULTS_HUNG"

#: The file with the offset of the clock in seconds, one double.
CLOCK = "FAULTS_CLOCK"

_decoding = files.decoding
_time = time.time


def decoding(data: bytes, kind: str, *arguments: Any) -> files.Work[files.Decoded]:
    """Decode as the program does, unless the recording is marked."""
    if KILLS in data:
        os.abort()
    for mark, library in ((HANGS, ctypes.CDLL), (HOLDS, ctypes.PyDLL)):
        at = data.rfind(mark)
        if at >= 0:
            try:
                Path(os.environ[HUNG], data[at + len(mark) :].decode()).touch(exist_ok=False)
            except FileExistsError:
                continue
            while True:
                library(None).pause()
    return (yield from _decoding(data, kind, *arguments))


files.decoding = decoding  # type: ignore[assignment]

if CLOCK in os.environ:
    with open(os.environ[CLOCK], "rb") as _file:
        _offset = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)
    time.time = lambda: _time() + float(struct.unpack("d", _offset)[0])

if __name__ == "__main__":
    from asrserver.cli.main import main

    main()
