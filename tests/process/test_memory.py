"""memory.py: what large inputs have left is returned, although freed memory is kept for the next ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Prints resident MiB: before, with 160 MiB in blocks that glibc keeps, when they are free, and after trimming.
CODE = """
import psutil
from asrserver.process.memory import retain_freed_memory, trim_freed_memory

retain_freed_memory(1 << 28)
process = psutil.Process()
sizes = [process.memory_info().rss]
blocks = [bytearray(b"x") * (8 << 20) for _ in range(20)]
sizes.append(process.memory_info().rss)
last = bytearray(b"x") * 100_000  # behind them, so that they are not at the end of the heap
del blocks
sizes.append(process.memory_info().rss)
trim_freed_memory(1 << 24)
sizes.append(process.memory_info().rss)
print(*(size >> 20 for size in sizes))
"""


@pytest.mark.usefixtures("processes")
def test_what_was_kept_is_returned_on_request() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, held, kept, trimmed = map(int, done.stdout.split())
    assert held - before > 150
    assert kept - before > 150
    assert trimmed - before < 32
