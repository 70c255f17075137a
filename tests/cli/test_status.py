"""asrserver status with the key of a client, which is not shown the server as a whole."""

from __future__ import annotations

from asrserver.cli.status import format_health
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
