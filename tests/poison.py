"""The program, with an audio decoder that dies of one recording and hangs in another: `python tests/poison.py run …`.

Its sandbox has decoders that misbehave (tests/audio/misbehaving.py).

Its spawned children import this file too, so they have the same decoder.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from asrserver.audio import codec, files
from asrserver.inference import poison

#: What the deadly recording contains.
MARK = b"this recording kills"

#: What the recording contains in which the decoder hangs, as native code would, without the interpreter's lock.
ENDLESS = b"\0this never ends\xff "

_decoding = files.decoding
_decode = codec.Codec.decode


def decoding(data: bytes, kind: str, *arguments: Any) -> files.Work[files.Decoded]:
    if MARK in data:
        os.abort()
    return (yield from _decoding(data, kind, *arguments))


def decode(self: codec.Codec, data: bytes | None) -> Any:
    if data is not None and ENDLESS in data:
        threading.Event().wait()
    return _decode(self, data)


if __name__ in ("__main__", "__mp_main__"):  # in the program and its children, not in a test that knows the marks
    files.decoding = decoding  # type: ignore[assignment]
    codec.Codec.decode = decode  # type: ignore[method-assign]
    poison.AUDIO_STEP_TIMEOUT = 1.0
    sys.path.append(str(Path(__file__).parents[1]))
    from tests.audio import misbehaving

    files.by_library = misbehaving.decode

if __name__ == "__main__":
    from asrserver.cli.main import main

    main()
