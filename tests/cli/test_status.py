"""asrserver status with the key of a client, which is not shown the server as a whole."""

from __future__ import annotations

import pytest

from asrserver.cli.status import elapsed, format_health
from asrserver.gateway.health import without_details


def test_what_a_client_s_key_is_not_shown_is_said() -> None:
    state = {
        "status": "degraded",
        "redis": {"ready": True, "latency_ms": 1.0, "keys": 3},
        "postgres": {"ready": False, "error": "connection to server at 10.0.0.7 failed"},
        "recognition": {"ready": True, "latency_ms": 2.0},
        "queue": {"waiting": 0, "processing": 1, "dead": 0},
        "models": [],
        "gateways": [{"name": "asr1-7", "pid": 7}],
        "workers": [],
    }
    lines = format_health(without_details(state))
    assert lines[:3] == ["status    degraded", "redis     ready", "postgres  not ready"]
    assert lines[-1] == "gateways and workers are shown to an operator's key"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1.0, "0 s"), (59.9, "59 s"), (60.0, "1 min"), (7260.0, "2 h 1 min"), (273600.0, "3 d 4 h")],
)
def test_a_time_has_its_largest_two_units(seconds: float, text: str) -> None:
    assert elapsed(seconds) == text
