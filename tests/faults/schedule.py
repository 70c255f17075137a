"""Which fault comes when: a function of the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.faults.catalogue import FAULTS, Fault

#: Seconds from one fault to the next, on average; at least and at most half of it less and more.
BETWEEN = 6.5

#: Seconds at the beginning without a fault, and at the end.
CALM_BEFORE, CALM_AFTER = 4.0, 10.0


@dataclass(frozen=True)
class Planned:
    """A fault, and when it begins, in seconds from the start of the clients."""

    at: float
    fault: Fault
    seed: str


def scheduled(seed: int, seconds: float, faults: Sequence[Fault] = FAULTS, between: float = BETWEEN) -> list[Planned]:
    """The faults of a run: in another order for each seed, none twice before each came once."""
    dice = random.Random(seed)
    planned: list[Planned] = []
    deck: list[Fault] = []
    at = CALM_BEFORE
    while at < seconds - CALM_AFTER:
        if not deck:
            deck = list(faults)
            dice.shuffle(deck)
        planned.append(Planned(at, deck.pop(), f"{seed} {len(planned)}"))
        at += dice.uniform(0.5 * between, 1.5 * between)
    return planned
