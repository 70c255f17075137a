"""The plan of a load test: everything that a process of virtual users needs to know."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

#: Length of a session's recording in seconds, pauses included, by mode.
LENGTHS = {"short": 20.0, "medium": 1800.0, "long": 3600.0}

#: Connections that one process of the tester serves easily when each sends ten messages per second.
CONNECTIONS_A_PROCESS = 250

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


@dataclass(frozen=True)
class Plan:
    """The settings of a load test. Times are in seconds."""

    urls: tuple[str, ...]
    key: str = ""
    connections: int = 500
    duration: float = 60.0
    mode: str = "short"
    session_seconds: float = 0.0  # length of a session's recording; 0: that of the mode
    protocol_mode: str = "stream"
    partials: bool = False
    realtime: bool = True
    ramp: float = 5.0
    talk_ratio: float = 0.5
    audio: tuple[tuple[str, str], ...] = ()  # (path, transcript) pairs; empty: the packaged recordings
    compared: bool = True  # whether the texts are compared with the transcripts, which may then be empty
    language: str = ""
    sessions: int = 0  # per connection; 0: as many as fit into the duration
    timeout: float = 60.0
    max_word_errors: float = 0.02  # maximum share of a session's words
    max_finalisation: float = 0.0  # maximum 95th percentile of finalisation; 0: no limit
    seed: int = 1
    processes: int = 0

    @property
    def length(self) -> float:
        """Length of a session's recording in seconds."""
        return self.session_seconds or LENGTHS[self.mode]

    @property
    def clients(self) -> int:
        """Number of processes of virtual users."""
        wanted = self.processes or min(os.cpu_count() or 1, math.ceil(self.connections / CONNECTIONS_A_PROCESS))
        return min(wanted, self.connections)

    def starts(self, number: int) -> float:
        """Seconds after the start at which a connection is opened."""
        return self.ramp * number / self.connections

    def options(self) -> dict[str, Any]:
        """The options of the protocol's `start`."""
        options: dict[str, Any] = {"mode": self.protocol_mode, "user_id": "loadtest"}
        if self.protocol_mode == "stream":
            options["format"] = "pcm_s16le"
        if self.partials:
            options["partials"] = True
        if self.language:
            options["language"] = self.language
        return options


def parse_duration(text: str) -> float:
    """Parse a duration such as 30s, 5m, 1h, 1h30m or 90 into seconds.

    Raises:
        ValueError: It is not a duration.
    """
    found = _DURATION.fullmatch(text.strip())
    if not found or not any(found.groups()):
        raise ValueError(f"{text!r} is not a duration such as 30s, 5m, 1h or 1h30m")
    return sum(float(part) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True) if part)


def duration(least: float = 0.0) -> Callable[[str], float]:
    """A click type for a duration between `least` seconds and a day.

    A function, for click 8.5's class ParamType is generic and 8.2's is not.
    """

    def duration(text: str) -> float:
        try:
            seconds = parse_duration(text)
        except ValueError as exc:
            raise click.BadParameter(str(exc)) from None
        if not least <= seconds <= 86400:
            raise click.BadParameter(f"{text} is not between {least:g} s and a day")
        return seconds

    return duration
