"""What of a stream cannot be decoded, in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Damage:
    """A stretch that cannot be decoded.

    Attributes:
        since: Where it begins, in seconds of the stream.
        reason: What was found there.
        offset: Position in the stream, in bytes, at which it was found.
        spoiled: The container is intact, but not its packets.
        until: Where it ends, in seconds; None: not known yet.
    """

    since: float
    reason: str
    offset: int
    spoiled: bool
    until: float | None = None


def described(damages: list[Damage]) -> str:
    """Say which seconds of the audio cannot be decoded, and why."""
    first = damages[0]
    if first.until is None:
        where = f"the audio cannot be decoded from {first.since:.2f} s on"
    elif first.until - first.since < 0.01:
        where = f"audio is missing at {first.since:.2f} s"
    else:
        where = f"the audio from {first.since:.2f} s to {first.until:.2f} s cannot be decoded"
    more = f" (and {len(damages) - 1} more up to {damages[-1].since:.2f} s)" if len(damages) > 1 else ""
    return f"{where}{more}: {first.reason}"
