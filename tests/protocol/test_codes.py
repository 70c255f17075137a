"""codes.py: the table of error codes is exactly what the code raises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from asrserver.broker.gateway_side import _NOT_APPENDED
from asrserver.protocol.codes import CODES
from tests.layout import ROOT, Module, modules, parse

#: Errors by their class, and where in their arguments the code is.
RAISED = {"AsrError": 0, "BadRequest": 0, "AudioError": 0, "Unavailable": 0, "Refused": 1}

#: Methods that are given a code, and where; keyword arguments called `code` always are one.
GIVEN = {"fail": 1, "detach": 1}

#: Codes that Tornado's own errors become: the phrases of their statuses.
PHRASES = {"bad_request", "not_found", "method_not_allowed", "internal_server_error"}

#: Codes that stand elsewhere than in such a call.
STANDING = {
    "asrserver/broker/gateway_side.py": {code for code, _ in _NOT_APPENDED.values()},
    "asrserver/errors.py": {"recording_unreadable"},  # in a class of its own
    "asrserver/handlers/connection.py": {"session_detached"},  # for chunks of a session that was lost
}

#: Calls whose code is no literal, by module: it was a code before.
PASSED_ON = {
    "asrserver/broker/gateway_side.py": {"Unavailable(*_NOT_APPENDED[reply])"},
    "asrserver/handlers/base.py": {
        "self.fail(next(iter(CODES[exc.code].statuses), 400), exc.code, exc.message, **exc.details)",
        "self.fail(status_code, phrase.lower().replace(' ', '_'), message)",
    },
    "asrserver/handlers/file_session.py": {
        "AsrError(event.code, event.message)",
        "AudioError(event.code, event.message)",
        "AudioError(self._damage.code, self._damage.message)",
        "Unavailable(event.code, event.message, event.retry_after or 2.0)",
        "Refused(408, event.code, event.message)",
    },
    "asrserver/audio/sandbox.py": {"AudioError(code, message)"},
    "asrserver/handlers/multiplex.py": {"BadRequest(*self._ended[sid], **where)"},
    "asrserver/handlers/connection.py": {"self.sessions.detach(event.session_id, code, message)"},
    "asrserver/inference/event_log.py": {
        "ErrorEvent(**common, code=error.code, message=error.message, chunk_index=index, received=received)",
        "AsrError(error.code, f'chunk {index}: {error.message}')",
    },
    "asrserver/protocol/openai.py": {
        "BadRequest(exc.code, exc.message, parameter=exc.details.get('option'))",
        "BadRequest(exc.code, exc.message, parameter='language')",
    },
    "asrserver/protocol/events.py": {"cls(code=error.code, message=error.message, **details)"},
}


@dataclass(frozen=True)
class Raised:
    """A call with an error code, which is None if it is no literal, and the status of a Refused."""

    call: str
    code: str | None
    status: int | None


def raised(module: Module) -> Iterator[Raised]:
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        place = RAISED.get(name, GIVEN.get(name))
        codes = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        if place is not None and len(node.args) > place:
            codes.append(node.args[place])
        elif name in RAISED:
            codes.append(node)
        for code in codes:
            status = node.args[0].value if name == "Refused" and isinstance(node.args[0], ast.Constant) else None
            yield Raised(
                ast.unparse(node),
                code.value if isinstance(code, ast.Constant) and isinstance(code.value, str) else None,
                status if isinstance(status, int) else None,
            )


def wrong(module: Module) -> list[str]:
    """The calls of a module that contradict the table."""
    return [
        f"{module.path}: {one.call}"
        for one in raised(module)
        if (one.code is None and one.call not in PASSED_ON.get(module.path, ()))
        or (one.code is not None and one.code not in CODES)
        or (one.code in CODES and one.status is not None and one.status not in CODES[one.code].statuses)
    ]


@pytest.fixture(scope="module")
def program() -> list[Module]:
    return modules("asrserver")


def test_every_code_that_is_raised_is_in_the_table(program: list[Module]) -> None:
    """The table has the status, too, if the call has one."""
    assert [told for module in program for told in wrong(module)] == []


def test_every_code_of_the_table_is_raised(program: list[Module]) -> None:
    found = {one.code for module in program for one in raised(module)}
    assert sorted(CODES.keys() - found - PHRASES - set().union(*STANDING.values())) == []


def test_what_stands_elsewhere_or_is_passed_on_is_there(program: list[Module]) -> None:
    texts = {module.path: (ROOT / module.path).read_text() for module in program}
    assert all(f'"{code}"' in texts[path] for path, codes in STANDING.items() for code in codes)
    calls = {(module.path, one.call) for module in program for one in raised(module)}
    assert {(path, call) for path, passed in PASSED_ON.items() for call in passed} <= calls


@pytest.mark.parametrize(
    "call",
    [
        'BadRequest("no_such_code", "m")',
        'errors.BadRequest("no_such_code", "m")',
        "BadRequest(code)",
        "BadRequest(*both)",
        'Refused(403, "unauthorized", "m")',
        'Refused(401, "unauthorised", "m")',
        'Refusal(code="no_such_code", message="m")',
        'self.fail(400, "no_such_code", "m")',
    ],
)
def test_what_is_against_the_table_is_told(call: str) -> None:
    assert wrong(parse("asrserver/a.py", f"raise {call}")) == [f"asrserver/a.py: {call}".replace('"', "'")]


def test_meanings_are_single_lines() -> None:
    assert [code for code, what in CODES.items() if not re.fullmatch(r"[A-Z`][^\n]{10,160}\.", what.meaning)] == []
