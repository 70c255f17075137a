"""The addresses in REDIS_URL: that of one Redis, or those of several (see shards.py), separated by commas."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def addresses(url: str) -> list[str]:
    """Return the addresses that a REDIS_URL lists. A comma within one, as a password may have it, separates nothing."""
    return [each.strip() for each in re.split(r",(?=\s*(?:rediss?|unix)://)", url)]


def label(url: str) -> str:
    """Return the name of a Redis: its address without user, password and options."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{place}{parts.path}".removesuffix("/0").removesuffix("/")
