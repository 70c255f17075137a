"""Gateways in the process of the tests."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from asrserver.gateway.gateway import Gateway
from asrserver.handlers.app import AsrApplication


def _hurry(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for name in ("gateway.REPAIR_EVERY", "sessions.REPAIR_EVERY", "gateway.SWEEP_EVERY"):
        monkeypatch.setattr(f"asrserver.gateway.{name}", seconds)


@dataclass
class Door:
    """A gateway and where it listens."""

    gateway: Gateway
    application: AsrApplication
    url: str
