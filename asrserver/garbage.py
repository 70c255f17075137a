"""Python's search for cycles, for processes that hold much for ever and make many things that are soon gone."""

from __future__ import annotations

import gc

#: New containers, that are not gone yet, at which Python looks for cycles among them. Its own 700 are come by with a
#: few sessions: of a gateway with 500, a fifth of the time went into looking, and nothing was found.
YOUNG = 20_000


def settle() -> None:
    """Everything is loaded, and nothing of it is garbage, ever; from now on cycles are looked for less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)
