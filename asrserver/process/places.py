"""Default places of a program's files, and where processes share memory."""

from __future__ import annotations

import os

#: Where POSIX shared memory is. Some containers and chroots have none.
SHARED_MEMORY = "/dev/shm"


def default_data_dir() -> str:
    """The default directory of the embedded servers' data: system-wide for root, else in the user's home."""
    if os.geteuid() == 0:
        return "/var/lib/asrserver"
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(base, "asrserver")


def has_shared_memory() -> bool:
    """Whether this user can make files in shared memory."""
    return os.access(SHARED_MEMORY, os.W_OK)
