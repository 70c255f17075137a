"""Gateways in the test process."""

from __future__ import annotations

import math
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, cast

import pytest

from asrserver.gateway.gateway import Gateway
from asrserver.gateway.session import Session
from asrserver.handlers.app import AsrApplication


def repair_often(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let gateways look for lost events and sessions this often, in seconds."""
    for name in ("gateway.REPAIR_EVERY", "sessions.REPAIR_EVERY", "gateway.SWEEP_EVERY"):
        monkeypatch.setattr(f"asrserver.gateway.{name}", seconds)


def accepting(gateway: Gateway) -> None:
    """Let a gateway have accepted connections for long: sessions of dead gateways are ended as they are found."""
    gateway.accepting_since = -math.inf


@dataclass
class GatewayServer:
    """A gateway and its URL."""

    gateway: Gateway
    application: AsrApplication
    url: str


#: Two of them, on one Redis and one PostgreSQL.
Gateways = tuple[GatewayServer, GatewayServer]


def offer(gateway: Gateway, session: Session, data: bytes, index: int | None = None) -> None:
    """Offer a chunk, as for a client that does not wait for room."""
    wait = gateway.offer(session, data, index).wait
    if wait is not None:
        cast(Coroutine[Any, Any, bool], wait).close()
