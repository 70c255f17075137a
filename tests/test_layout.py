"""Tests of the layout: directions of imports, lengths, names, docstrings. Each rule has a test that breaks it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import layout
from tests.layout import (
    Module,
    forbidden,
    heavy,
    homonyms,
    imports,
    modules,
    parse,
    too_long,
    undocumented,
    untyped_events,
)

#: Imports that break a rule, as (file, imported name), with the reason. An entry that is no longer needed fails.
ALLOWED_IMPORTS: dict[tuple[str, str], str] = {}

#: Files, classes and functions above the limits, with their present size. They may shrink but not grow.
ALLOWED_SIZES: dict[str, int] = {}

#: Names that several public classes may have.
ALLOWED_HOMONYMS: set[str] = set()

#: Public names that may have no docstring.
ALLOWED_UNDOCUMENTED: set[str] = set()


@pytest.fixture(scope="module")
def program() -> list[Module]:
    """The modules of asrserver/."""
    return modules("asrserver")


def test_imports_go_down(program: list[Module]) -> None:
    assert len(program) > 100
    found = {(module.path, name): told for module in program for name, told in forbidden(module)}
    assert {place: told for place, told in found.items() if place not in ALLOWED_IMPORTS} == {}
    assert sorted(ALLOWED_IMPORTS.keys() - found.keys()) == [], "no longer there: take them out"


def test_every_layer_is_there(program: list[Module]) -> None:
    """Every package is in exactly one layer, and the tables name only packages that exist."""
    rooms = [room for layer in layout.LAYERS for room in layer]
    assert len(rooms) == len(set(rooms))
    assert set(rooms) == {module.room for module in program}
    assert {room for rooms in layout.LIBRARIES.values() for room in rooms} - {"*"} <= set(rooms)
    assert {name for only, _ in layout.ONLY.values() for name in only} | layout.ONLY.keys() <= set(rooms)


def test_every_library_is_used(program: list[Module]) -> None:
    """A permission that no package uses is removed from the table."""
    used = {(found.module, module.room) for module in program for found in imports(module)}
    unused = {
        (library, room)
        for library, rooms in layout.LIBRARIES.items()
        if library not in ("tornado.web", "hiredis")
        for room in rooms
        if room != "*" and not any(name.split(".")[0] == library and user == room for name, user in used)
    }
    assert unused == set()


def test_the_supervisor_loads_no_model(program: list[Module]) -> None:
    assert list(heavy(layout.LIGHT, {module.name: module for module in program})) == []


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("name", layout.LIGHT)
def test_what_python_loads_with_the_supervisor(name: str) -> None:
    """The same, asked of a real Python process."""
    code = f"import sys, {name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert name in found
    assert found.isdisjoint(layout.LIGHT[name])


#: (file, source text, part of the message): each text breaks one rule.
BROKEN = [
    ("gateway/a.py", "import asrserver.inference.vad", "inference does not lie below gateway"),
    ("inference/a.py", "from asrserver.gateway import session", "gateway does not lie below inference"),
    ("gateway/a.py", "def f():\n    from asrserver.inference import vad", "inference does not lie below gateway"),
    (
        "gateway/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from asrserver.handlers.app import App",
        "handlers does not lie below gateway",
    ),
    ("gateway/a.py", "from ..inference import vad", "inference does not lie below gateway"),
    ("gateway/a.py", "from ..inference.vad import Event", "inference does not lie below gateway"),
    ("gateway/a.py", "import importlib\nimportlib.import_module('asrserver.inference.vad')", "does not lie below"),
    ("gateway/a.py", "vad = __import__('asrserver.inference.vad')", "does not lie below"),
    ("inference/a.py", "from asrserver.handlers.app import App", "handlers does not lie below inference"),
    ("inference/a.py", "from asrserver.storage.storage import Storage", "inference imports only audio"),
    ("inference/a.py", "import tornado.ioloop", "tornado is imported only by client, handlers, protocol"),
    ("gateway/a.py", "from tornado.web import HTTPError", "tornado.web is imported only by handlers"),
    ("gateway/a.py", "from tornado import web", "tornado.web is imported only by handlers"),
    ("gateway/a.py", "import ctranslate2", "ctranslate2 is imported only by inference"),
    ("client/a.py", "from asrserver.telemetry import logs", "client imports only protocol, errors"),
    ("client/a.py", "from asrserver.gateway.session import Session", "gateway"),
    ("client/a.py", "from asrserver import config", "client imports only protocol, errors"),
    ("protocol/a.py", "import redis.asyncio", "redis is imported only by broker"),
    ("protocol/a.py", "import tornado.web", "tornado.web is imported only by handlers"),
    ("protocol/a.py", "from sqlalchemy import select", "sqlalchemy is imported only by storage"),
    ("protocol/a.py", "from asrserver.broker import keys", "broker does not lie below protocol"),
    ("audio/a.py", "from asrserver.broker import keys", "broker does not lie below audio"),
    ("audio/a.py", "from asrserver.storage import tables", "storage does not lie below audio"),
    ("audio/a.py", "from asrserver.inference import vad", "inference does not lie below audio"),
    ("audio/a.py", "from asrserver.gateway import session", "gateway does not lie below audio"),
    ("audio/a.py", "from asrserver.handlers import rest", "handlers does not lie below audio"),
    ("storage/a.py", "import redis", "redis is imported only by broker"),
    ("broker/a.py", "import sqlalchemy", "sqlalchemy is imported only by storage"),
    ("broker/a.py", "import psycopg2", "psycopg2 is imported only by embedded, storage"),
    ("gateway/a.py", "import ctranslate2", "ctranslate2 is imported only by inference"),
    ("gateway/a.py", "import av", "av is imported only by audio"),
    ("loadtest/a.py", "from asrserver.cli.main import main", "cli does not lie below loadtest"),
    ("loadtest/a.py", "from asrserver.broker import keys", "loadtest imports only client"),
    ("supervisor/a.py", "from asrserver.cli import main", "cli does not lie below supervisor"),
    ("errors.py", "from asrserver.config import Settings", "config does not lie below errors"),
    ("text/a.py", "from asrserver.telemetry import logs", "telemetry does not lie below text"),
    ("gateway/a.py", "import requests", "add it to LIBRARIES"),
    ("cellar/a.py", "import os", "cellar is in no layer"),
    ("gateway/a.py", "from asrserver.cellar import a", "cellar is in no layer"),
]


@pytest.mark.parametrize(("path", "text", "told"), BROKEN)
def test_a_broken_rule_is_reported(path: str, text: str, told: str) -> None:
    [(_, found)] = forbidden(parse(f"asrserver/{path}", text))
    assert told in found
    assert found.startswith(f"asrserver/{path}")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("gateway/a.py", "import os, orjson\nfrom asrserver.broker.keys import OPEN\nfrom . import session"),
        ("gateway/__init__.py", "from .session import Session"),
        ("client/a.py", "from asrserver import __version__\nfrom asrserver.protocol.frames import TEXT"),
        ("handlers/a.py", "from tornado import web\nfrom asrserver.gateway.gateway import Gateway"),
        ("protocol/a.py", "from tornado.websocket import WebSocketProtocol13"),
        ("__main__.py", "from asrserver.cli.main import main"),
        ("supervisor/a.py", "def f():\n    from asrserver.inference.worker import work"),
    ],
)
def test_allowed_imports_are_not_reported(path: str, text: str) -> None:
    assert list(forbidden(parse(f"asrserver/{path}", text))) == []


def test_indirect_imports_are_found() -> None:
    """Through imported modules and through the packages around them, but not inside functions."""
    texts = {
        "asrserver/__init__.py": "",
        "asrserver/a/__init__.py": "",
        "asrserver/a/light.py": "from asrserver.b import middle\ndef f():\n    import torch",
        "asrserver/b/__init__.py": "import numpy.linalg",
        "asrserver/b/middle.py": "from asrserver.c.low import thing",
        "asrserver/c/low.py": "import ctranslate2\nthing = 1",
    }
    all_modules = {module.name: module for module in (parse(path, text) for path, text in texts.items())}
    found = list(heavy({"asrserver.a.light": ("numpy", "ctranslate2", "torch"), "asrserver.x": ()}, all_modules))
    way = "asrserver.a.light → asrserver.b.middle"
    assert found == [
        f"asrserver.a.light loads numpy: {way} → numpy.linalg",
        f"asrserver.a.light loads ctranslate2: {way} → asrserver.c.low.thing → ctranslate2",
        "asrserver.x: there is no such module",
    ]


def test_nothing_is_too_long() -> None:
    found = too_long(modules("asrserver", "tests", "tools"))
    assert {name: size for name, size in found.items() if size > ALLOWED_SIZES.get(name, 0)} == {}
    assert sorted(ALLOWED_SIZES.keys() - found.keys()) == [], "no longer too long: take them out"


def test_what_is_too_long_is_reported() -> None:
    methods = "\n".join(f"    def m{number}(self): ..." for number in range(layout.MAX_METHODS + 1))
    function = "def f():\n" + "    x = 1\n" * layout.MAX_FUNCTION_LINES
    filling = "\n" * layout.MAX_FILE_LINES
    text = f"class A:\n{methods}\n{function}{filling}"
    assert too_long([parse("asrserver/a.py", text)]) == {
        "asrserver/a.py": len(text.splitlines()),
        "asrserver/a.py A": layout.MAX_METHODS + 1,
        "asrserver/a.py f": layout.MAX_FUNCTION_LINES + 1,
    }
    assert too_long([parse("asrserver/a.py", "class A:\n" + methods.rpartition("\n")[0])]) == {}


def test_no_two_public_classes_have_one_name(program: list[Module]) -> None:
    assert {name: paths for name, paths in homonyms(program).items() if name not in ALLOWED_HOMONYMS} == {}
    assert sorted(ALLOWED_HOMONYMS - homonyms(program).keys()) == [], "no longer there: take them out"


def test_two_classes_of_one_name_are_reported() -> None:
    one, two = (parse(f"asrserver/{name}.py", "class A: ...\nclass _B: ...") for name in ("one", "two"))
    own = parse("asrserver/own.py", "class C: ...")
    assert homonyms([one, two, own]) == {"A": ["asrserver/one.py", "asrserver/two.py"]}


def test_events_and_options_are_types(program: list[Module]) -> None:
    assert untyped_events(program) == []


def test_untyped_events_are_reported() -> None:
    text = """
from typing import Any
class Session:
    def __init__(self, options: dict[str, Any], event: dict[str, Any], name: str) -> None:
        self.events: list[dict[str, Any]] = []
    def last_event(self) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        return settings
"""
    found = untyped_events([parse("asrserver/gateway/a.py", text), parse("asrserver/protocol/codec.py", text)])
    assert sorted(found) == [
        "asrserver/gateway/a.py:4 event: dict[str, Any]",
        "asrserver/gateway/a.py:4 options: dict[str, Any]",
        "asrserver/gateway/a.py:5 events: list[dict[str, Any]]",
        "asrserver/gateway/a.py:6 last_event: dict[str, Any]",
    ]


def test_every_module_class_and_function_is_documented(program: list[Module]) -> None:
    """In asrserver/ everything public at the top level of a module; in tests and tools the modules."""
    found = set(undocumented(program))
    found |= {name for name in undocumented(modules("tests", "tools")) if " " not in name}
    assert sorted(found - ALLOWED_UNDOCUMENTED) == []
    assert sorted(ALLOWED_UNDOCUMENTED - found) == [], "documented: take them out"


def test_a_missing_docstring_is_reported() -> None:
    text = 'class A:\n    """Doc."""\nclass B: ...\ndef f(): ...\nasync def g(): ...\ndef _h(): ...'
    assert undocumented([parse("asrserver/a.py", text), parse("asrserver/b.py", "")]) == [
        "asrserver/a.py", "asrserver/a.py B", "asrserver/a.py f", "asrserver/a.py g"
    ]  # fmt: skip
