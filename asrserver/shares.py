"""How shared resources are divided among API keys: the workers' time, the audio that may wait, connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Share(NamedTuple):
    """An API key (empty: none), and its weight: its part of the service, relative to others."""

    key: str
    weight: float


#: How many times what is left free one key may hold of what is not taken back from it.
HELD_TO_FREE = 8.0

#: The share of sessions without an entry.
COMMON = Share("", 1.0)


def keys_at_share(used: Mapping[Share, float], limit: float) -> set[str]:
    """The keys that use their share or more of a resource whose limit is reached: they must leave the rest to others.

    The limit is divided among the keys that use the resource, by their weights. A key that is alone may use all of it,
    and a key that comes gets its share at once.

    Args:
        used: How much each key uses.
        limit: How much all may use together.

    Returns:
        Those that use their share or more; none while the limit is not reached.
    """
    if sum(used.values()) < limit:
        return set()
    weights = sum(share.weight for share, amount in used.items() if amount > 0)
    return {share.key for share, amount in used.items() if amount > 0 and amount >= limit * share.weight / weights}


def leaves_room(held: float, free: float, weight: float) -> bool:
    """Whether a key that holds this much may take one more of what is free, so that something is left for others.

    This is for what is not taken back from its holder, such as connections: a key that comes late would find nothing
    left. So the more is free, the more each may hold (dynamic thresholds: Choudhury and Hahne, 1998). A key that is
    alone gets eight ninths of all, and the next one that comes eight ninths of the rest.

    Args:
        held: What the key holds.
        free: What nobody holds.
        weight: The key's weight: one of weight 2 may hold 16 times what is free.
    """
    return held < HELD_TO_FREE * weight * free
