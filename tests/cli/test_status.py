"""asrserver status with the key of a client, which is not shown the server as a whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from asrserver.cli.status import elapsed, format_health, pages
from asrserver.gateway.health import without_details
from asrserver.models import TOY_NOTICE

DOCS = Path(__file__).parents[2] / "docs"

#: What a server says that has nothing to complain of.
WELL: dict[str, Any] = {
    "redis": {"ready": True, "shards": [{"ready": True, "memory_ratio": 0.1}]},
    "postgres": {"ready": True},
    "recognition": {"ready": True},
    "queue": {"waiting": 0, "processing": 1, "dead": 0},
    "warnings": [],
}


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
    assert "help      docs/run/troubleshooting.md#postgresql-is-away-or-slow" in lines
    assert lines[-1] == "gateways and workers are shown to an operator's key"


@pytest.mark.parametrize(
    ("wrong", "page"),
    [
        ({"redis": {"ready": False, "error": "refused"}}, "run/troubleshooting.md#redis-is-away"),
        ({"redis": {"ready": True, "shards": [{"ready": False}]}}, "run/troubleshooting.md#redis-is-away"),
        (
            {"redis": {"ready": True, "shards": [{"ready": True, "memory_ratio": 0.81}]}},
            "run/troubleshooting.md#redis-is-full",
        ),
        ({"redis": {"ready": True, "warnings": ["appendonly is off"]}}, "reference/redis.md#requirements"),
        ({"postgres": {"ready": False, "error": "refused"}}, "run/troubleshooting.md#postgresql-is-away-or-slow"),
        ({"recognition": {"ready": False, "error": "no worker is running"}}, "run/troubleshooting.md#no-text-at-all"),
        ({"queue": {"dead": 1}}, "run/troubleshooting.md#a-worker-dies-again-and-again"),
        ({"warnings": [TOY_NOTICE]}, "models.md"),
        ({"warnings": ["gateways and workers are of different versions: 1, 2"]}, "run/upgrade.md"),
    ],
)
def test_the_page_that_helps_is_named_and_exists(wrong: dict[str, Any], page: str) -> None:
    assert pages(WELL) == []
    assert pages({**WELL, **wrong}) == [page]
    path, _, anchor = page.partition("#")
    headings = re.findall(r"^#+ (.*)$", (DOCS / path).read_text(), re.M)
    assert not anchor or anchor in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1.0, "0 s"), (59.9, "59 s"), (60.0, "1 min"), (7260.0, "2 h 1 min"), (273600.0, "3 d 4 h")],
)
def test_a_time_has_its_largest_two_units(seconds: float, text: str) -> None:
    assert elapsed(seconds) == text
