"""Fixtures of the tests of the Python client."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter pauses than in production."""
    monkeypatch.setattr("asrserver.client.client.FIRST_BACKOFF", 0.02)
    monkeypatch.setattr("asrserver.client.session.RETRY_JITTER", 0.02)
    monkeypatch.setattr("asrserver.client.client.MAX_BACKOFF", 0.1)
