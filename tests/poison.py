"""The program, with an audio decoder that dies of one recording: `python tests/poison.py run …`.

Its spawned children import this file too, so they have the same decoder.
"""

from __future__ import annotations

import os

from asrserver.audio import files

#: What the deadly recording contains.
MARK = b"this recording kills"

_decode = files.decode_file


def decode(data: bytes, kind: str, max_seconds: float) -> files.Decoded:
    if MARK in data:
        os.abort()
    return _decode(data, kind, max_seconds)


files.decode_file = decode

if __name__ == "__main__":
    from asrserver.cli.main import main

    main()
