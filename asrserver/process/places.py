"""Default places of a program's files."""

from __future__ import annotations

import os


def default_data_dir() -> str:
    """The default directory of the embedded servers' data: system-wide for root, else in the user's home."""
    if os.geteuid() == 0:
        return "/var/lib/asrserver"
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(base, "asrserver")
