"""The addresses in REDIS_URL: that of one Redis, or those of several (see shards.py), separated by commas."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

#: What ends the scheme of an address whose hosts are sentinels; see sentinel.py.
SENTINEL = "+sentinel"

#: The schemes of an address.
SCHEMES = ("redis", "rediss", "unix", f"redis{SENTINEL}", f"rediss{SENTINEL}")

_SEPARATOR = re.compile(rf",(?=\s*(?:{'|'.join(map(re.escape, SCHEMES))})://)")


def addresses(url: str) -> list[str]:
    """Return the addresses that a REDIS_URL lists. A comma within one, as in a password, separates none."""
    return [each.strip() for each in _SEPARATOR.split(url)]


def label(url: str) -> str:
    """Return the name of a Redis: its address without user, password and options."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{place}{parts.path}".removesuffix("/0").removesuffix("/")
