"""What of a session's audio is under suspicion of having killed workers, and is best had in hand with nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from asrserver.broker.broker import STRIKES


class Suspicion:
    """The strikes of a session's entries, as the `fields` of its hash have them; `heard` is kept by who hears them."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._strikes = {key[7:]: int(number) for key, number in fields.items() if key.startswith("strike:")}
        self.heard = 0  # samples of the recording up to which it is under suspicion

    def __contains__(self, entry: str) -> bool:
        """Whether the entry with this id has a strike."""
        return entry in self._strikes

    def convicts(self, entry: str) -> bool:
        """Whether the entry is not to be tried again."""
        return self._strikes.get(entry, 0) >= STRIKES

    def ahead(self, before: str) -> bool:
        """Whether an entry after that one has a strike."""
        return any(_place(entry) > _place(before) for entry in self._strikes)


def _place(entry: str) -> tuple[int, int]:
    ms, _, n = entry.partition("-")
    return int(ms), int(n)
