"""The OpenAPI document agrees with the code, and a fuzzer finds no contradiction."""

from __future__ import annotations

import ast
import http
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from asrserver import __version__, handlers
from asrserver.auth import access
from asrserver.broker import connection, pipeline, quota
from asrserver.gateway import archive, health
from asrserver.gateway.admission import Admission
from asrserver.gateway.archive_files import MEDIA
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.rate_limits import Limits
from asrserver.handlers import audio, base, openapi, proxy, rest
from asrserver.handlers.app import ROUTES
from asrserver.handlers.transcribe import PARAMETERS
from asrserver.protocol import deepgram_recorded, native, options
from asrserver.protocol.codes import CODES
from asrserver.storage.queries import CURSOR
from tests.program import System

DOCUMENT = openapi.document()


#: The parameters of a POST.
POSTED = {"/api/v1/transcribe": PARAMETERS, "/v1/listen": deepgram_recorded.PARAMETERS}


def test_every_route_is_in_it_and_every_path_is_a_route() -> None:
    assert DOCUMENT["paths"].keys() == ROUTES.keys()


@pytest.mark.parametrize("path", ROUTES)
def test_its_methods_are_the_handlers(path: str) -> None:
    found = {method.lower() for method in base.methods(ROUTES[path])} - {"head", "options"}
    assert DOCUMENT["paths"][path].keys() == found


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    """The target of a reference, or the value itself."""
    found = DOCUMENT
    for name in value["$ref"].split("/")[1:] if "$ref" in value else ():
        found = found[name]
    return found if "$ref" in value else value


def parameters(path: str, method: str, place: str) -> set[str]:
    found = [resolved(item) for item in DOCUMENT["paths"][path][method].get("parameters", ())]
    return {item["name"] for item in found if item["in"] == place}


@pytest.mark.parametrize("path", ROUTES)
def test_its_parameters_are_those_that_the_code_reads(path: str) -> None:
    handler = ROUTES[path]
    for method in DOCUMENT["paths"][path]:
        assert parameters(path, method, "path") == set(re.findall(r"\{(\w+)\}", path))
    if not issubclass(handler, base.RestHandler):
        return
    read = set(re.findall(r'self\.(?:whole|text|choice|when|raw)\("(\w+)"', inspect.getsource(handler)))
    assert read == (handler.query_parameters or set())
    for method in DOCUMENT["paths"][path]:
        assert parameters(path, method, "query") == (read if method == "get" else set(POSTED.get(path, ())))


def test_the_query_of_the_websocket_has_the_options_of_a_session() -> None:
    assert parameters("/ws/asr", "get", "query") == native.QUERY_FIELDS
    schemas = {p["name"]: p["schema"] for p in DOCUMENT["paths"]["/ws/asr"]["get"]["parameters"]}
    assert set(schemas["mode"]["enum"]) == set(options.MODES)
    assert set(schemas["format"]["enum"]) == set(options.FORMATS)


def test_its_limits_are_the_code_s() -> None:
    schemas = {p["name"]: p["schema"] for p in DOCUMENT["paths"]["/api/v1/history"]["get"]["parameters"]}
    assert schemas["limit"]["maximum"] == rest.MAX_LIMIT
    assert schemas["q"]["maxLength"] == rest.MAX_SEARCH
    assert schemas["user_id"]["maxLength"] == rest.MAX_USER_ID
    assert tuple(schemas["status"]["enum"]) == rest.STATUSES
    assert schemas["cursor"]["pattern"] == f"^{CURSOR.pattern}$"


def test_its_media_types_are_the_code_s() -> None:
    session = DOCUMENT["paths"]["/api/v1/session/{session_id}"]["get"]
    assert session["responses"]["200"]["content"].keys() == {"application/json", *(m for m, _ in rest.FORMATS.values())}
    [formats] = [p["schema"]["enum"] for p in map(resolved, session["parameters"]) if p["name"] == "format"]
    assert set(formats) == {"json", *rest.FORMATS}
    recording = DOCUMENT["paths"]["/api/v1/session/{session_id}/audio"]["get"]["responses"]
    for status in ("200", "206"):
        assert recording[status]["content"].keys() == set(MEDIA.values())


def test_its_version_is_the_program_s() -> None:
    assert DOCUMENT["info"]["version"] == __version__


#: What may answer a request of HTTP; of the gateway, what a handler calls.
ANSWERING = (access, *(handlers.auth, base, rest, audio, proxy), health, archive, connection, quota, pipeline)
CONNECTING = (Admission.connect, Admission._refuse_spent, Limits.connect, Gateway.delete, Gateway._refuse_when_closing)


def test_its_error_codes_are_the_code_s() -> None:
    """It has exactly the codes that a request can be answered with."""
    sources = [inspect.getsource(module) for module in ANSWERING]
    sources += [textwrap.dedent(inspect.getsource(function)) for function in CONNECTING]
    found = {"internal_server_error"}
    for call in (node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        if name == "unknown_option":
            found.add(name)
        elif name in ("fail", "Refused", "Unavailable") and given:
            found.add(next(value for value in given if isinstance(value, str)))
        elif name == "HTTPError" and given:
            [status] = [value for value in given if isinstance(value, int)]
            found.add(http.HTTPStatus(status).phrase.lower().replace(" ", "_"))
    told = set(DOCUMENT["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"])
    assert told == found
    assert all(CODES[code].statuses for code in told)


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


#: Options for the routes without a body; and for those that take a recording, which valid bytes seldom are, or a
#: session, whose options are not all described. The first route speaks HTTP only to refuse.
FUZZED = (
    ("--exclude-path-regex", "^/ws/|trans|listen|secrets"),
    ("--include-path-regex", "trans|listen|secrets", "--exclude-checks", "positive_data_acceptance"),
)


@pytest.mark.timeout(300)
def test_a_fuzzer_finds_no_lie_in_it(start: Callable[..., System], database_url: str) -> None:
    """schemathesis against the running program: no status 500, and nothing undocumented."""
    system = start("run", "--workers", "1").wait_ready()
    connection = psycopg2.connect(database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute(FILL)
    connection.close()
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{system.port}/api/v1/openapi.json"),
        *("--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", "40", "--seed", "1"),
        *("--generation-database", "none", "--no-color", "--request-timeout", "20"),
    ]
    for given in FUZZED:
        done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=140)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "ERROR" not in system.output()
