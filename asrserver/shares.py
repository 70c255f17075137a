"""How what all clients use is shared out among API keys: the workers' time, the audio that may wait, connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Share(NamedTuple):
    """What a session belongs to: an API key (empty: none), and the key's part of the service beside that of others."""

    key: str
    weight: float


#: How many times what is left free one key may hold of what is not taken back from it.
HELD_TO_FREE = 8.0

#: The share of sessions that nobody entered.
COMMON = Share("", 1.0)


def keys_at_share(used: Mapping[Share, float], limit: float) -> set[str]:
    """The keys that use their share or more of a resource whose limit is reached: they must leave the rest to others.

    The limit is shared out among the keys that use it, by their weights: one that is alone may use all of it, and one
    that comes gets its share at once.

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
    """Whether a key that holds this much may take one more of what is free, and something is left for others.

    For what is not taken back from who holds it, as connections: a key that comes late finds no share in it. So what
    each may hold follows what is free (dynamic thresholds: Choudhury and Hahne, 1998). A key that is alone gets eight
    ninths of all, and the next that comes as much of the rest.

    Args:
        held: What the key holds.
        free: What nobody holds.
        weight: The key's weight: one of weight 2 may hold 16 times what is free.
    """
    return held < HELD_TO_FREE * weight * free
