"""How what all clients use is shared out among API keys: the workers' time, and the audio that may wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Share(NamedTuple):
    """What a session belongs to: an API key (empty: none), and the key's part of the service beside that of others."""

    key: str
    weight: float


#: The share of sessions that nobody entered.
COMMON = Share("", 1.0)


def crowded(used: Mapping[Share, float], limit: float) -> set[str]:
    """The keys that must leave what is limited to others, now that the limit is reached.

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
