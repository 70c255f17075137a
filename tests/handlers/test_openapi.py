"""The OpenAPI document: it says what the code does, no more and no less, and a fuzzer finds no lie in it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from asrserver.handlers import base, openapi, rest
from asrserver.handlers.app import ROUTES
from asrserver.handlers.websocket import WebSocket
from tests.program import System

DOCUMENT = openapi.document()


def test_every_route_is_in_it_and_every_path_is_a_route() -> None:
    assert DOCUMENT["paths"].keys() == ROUTES.keys()


@pytest.mark.parametrize("path", ROUTES)
def test_its_methods_are_the_handlers(path: str) -> None:
    found = {method.lower() for method in base.methods(ROUTES[path])} - {"head", "options"}
    assert DOCUMENT["paths"][path].keys() == found


@pytest.mark.parametrize("path", ROUTES)
def test_its_parameters_are_those_that_the_code_reads(path: str) -> None:
    handler = ROUTES[path]
    if handler is WebSocket:
        return
    named = {p["name"] for operation in DOCUMENT["paths"][path].values() for p in operation.get("parameters", ())}
    read = set(re.findall(r'self\.(?:whole|text|choice|when|given)\("(\w+)"', inspect.getsource(handler)))
    assert named == read | set(re.findall(r"\{(\w+)\}", path))


def test_its_limits_are_the_codes() -> None:
    parameters = {p["name"]: p["schema"] for p in DOCUMENT["paths"]["/api/v1/history"]["get"]["parameters"]}
    assert parameters["limit"]["maximum"] == rest.MAX_LIMIT
    assert parameters["q"]["maxLength"] == rest.MAX_SEARCH
    assert tuple(parameters["status"]["enum"]) == rest.STATUSES


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    found = set(references(DOCUMENT))
    named = {kind: parts for kind, parts in DOCUMENT["components"].items() if kind != "securitySchemes"}
    wanted = {f"#/components/{kind}/{name}" for kind, parts in named.items() for name in parts}
    assert found == wanted


FILL = """
    INSERT INTO asr_sessions (id, user_id, status, mode, language, model, final_text, chunk_count, total_duration,
                              created_at, completed_at)
    SELECT 's' || n, 'user' || n % 3, 'done', 'auto', 'en', 'demo', 'the kitchen light', 1, 1.5,
           now() - n * interval '1 hour', now() FROM generate_series(0, 99) AS n;
    INSERT INTO asr_chunks SELECT 's' || n, 0, 'the kitchen light', 1.5, 'en', NULL, NULL, now(), now()
    FROM generate_series(0, 99) AS n;
    INSERT INTO asr_segments SELECT 's' || n, 0, 0, 0.1, 1.4, 'the kitchen light', 'en', 0.9,
           '[{"word": "the", "start": 0.1, "end": 0.2}]', 'w' FROM generate_series(0, 99) AS n
"""


@pytest.mark.timeout(300)
def test_a_fuzzer_finds_no_lie_in_it(start: Callable[..., System], database_url: str) -> None:
    """schemathesis, against the program as it runs: no 500, and nothing that the document does not say."""
    system = start("run", "--workers", "1").wait_ready()
    connection = psycopg2.connect(database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute(FILL)
    connection.close()
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{system.port}/api/v1/openapi.json"),
        *("--exclude-path", "/ws/asr"),  # which speaks HTTP only to refuse
        *("--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", "40", "--seed", "1"),
        *("--generation-database", "none", "--no-color", "--request-timeout", "20"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "ERROR" not in system.output()
