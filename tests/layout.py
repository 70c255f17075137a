"""The rules of the layout: who may import whom, and how long things may be. test_layout.py enforces them.

The packages of asrserver/ lie on each other in layers, and imports go down: a package imports those of lower layers
alone, none of its own layer and none above. All imports count, those in functions and those for type checkers too: a
lazy import is an arrow like any other.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
    ("auth",),
    ("models", "process", "telemetry", "text"),
    ("errors",),
    (TOP,),
)

#: Those that may not import all that lies below them: (what they may import, why).
ONLY: dict[str, tuple[tuple[str, ...], str]] = {
    "client": (("protocol", "errors", TOP), "an SDK: whoever uses it installs no server"),
    "protocol": (("errors", "text", TOP), "what is said, and no I/O"),
    "loadtest": (
        ("client", "audio", "protocol", "process", "telemetry", "text", "errors", TOP),
        "a client of any server: it knows what a client knows",
    ),
    "audio": (("process", "errors", TOP), "bytes to samples; gateway and worker alike use it"),
    "storage": (("telemetry", "process", "text", "errors", TOP), "SQL, and nothing of the wire"),
    "broker": (("protocol", "telemetry", "process", "errors", TOP), "Redis commands, with events in them"),
    "embedded": (("process", "errors", TOP), "two servers, whoever uses them"),
    "inference": (
        ("audio", "broker", "protocol", "config", "models", "process", "telemetry", "text", "errors", TOP),
        "a worker keeps nothing and serves nobody",
    ),
}

#: Libraries, or modules of them, and who may import them; the longest name that fits counts. ANYONE: all.
ANYONE = ("*",)
LIBRARIES: dict[str, tuple[str, ...]] = {
    "aiopg": ("storage",),
    "av": ("audio",),
    "click": ("cli", "config", "loadtest"),
    "ctranslate2": ("inference",),
    "faster_whisper": (),  # tests and tools compare with it; its VAD and its hub table are ours
    "hiredis": ("broker",),
    "huggingface_hub": ("models",),
    "matplotlib": ("loadtest",),
    "msgspec": ("inference", "protocol"),
    "numpy": ("audio", "inference", "loadtest"),
    "orjson": ANYONE,
    "prometheus_client": ("telemetry",),
    "psutil": ("loadtest",),
    "psycopg2": ("embedded", "storage"),
    "redis": ("broker",),
    "rich": ("loadtest",),
    "sounddevice": ("cli",),
    "sqlalchemy": ("storage",),
    "tokenizers": ("inference",),
    "tornado": ("client", "handlers", "protocol"),
    "tornado.web": ("handlers",),
    "uvloop": ("loadtest", "supervisor"),
}

#: Modules that must not load these libraries when they are imported, however indirectly: they start every process.
LIGHT: dict[str, tuple[str, ...]] = {
    "asrserver.supervisor.supervisor": ("numpy", "ctranslate2", "av", "tornado", "sqlalchemy", "faster_whisper"),
    "asrserver.supervisor.children": ("numpy", "ctranslate2", "av", "tornado", "sqlalchemy", "faster_whisper"),
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
    """A source file. `name` is as Python imports it, `package` the name of a package's __init__ or None."""

    path: str
    name: str
    tree: ast.Module
    lines: int

    @property
    def room(self) -> str:
        """The part of asrserver/ that it belongs to: a folder, or a module at the top."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else TOP


def parse(path: str, source: str) -> Module:
    """A module of its text; `path` is from the root of the repository."""
    name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    return Module(path, name, ast.parse(source), len(source.splitlines()))


def modules(*folders: str) -> list[Module]:
    """All modules in folders of the repository."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [parse(str(path.relative_to(ROOT)), path.read_text("utf-8")) for path in paths]


def imports(module: Module) -> Iterator[Import]:
    """All imports of a module, as full names; of `from a import b` the name a.b, which may be a module or not."""
    package = module.name.split(".") if module.path.endswith("__init__.py") else module.name.split(".")[:-1]
    lazy = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _for_type_checkers(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(module.tree):
        now = id(node) not in lazy
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, now)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) + 1 - node.level], node.module or ""] if node.level else [node.module or ""]
            for alias in node.names:
                yield Import(".".join(filter(None, [*base, alias.name])), node.lineno, now)
        elif isinstance(node, ast.Call) and (name := _imported_by_call(node)):
            yield Import(name, node.lineno, now)


def _imported_by_call(call: ast.Call) -> str | None:
    """The module of importlib.import_module("…") and __import__("…")."""
    if ast.unparse(call.func).rpartition(".")[2] not in ("import_module", "__import__") or not call.args:
        return None
    name = call.args[0]
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"


def _room(name: str) -> str:
    """The room that an import of asrserver leads to."""
    parts = name.split(".")
    rooms = {room for layer in LAYERS for room in layer}
    return parts[1] if len(parts) > 1 and (parts[1] in rooms or len(parts) > 2) else TOP


def _library(name: str) -> str | None:
    """The longest name in LIBRARIES that an import is of or in."""
    parts = name.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in LIBRARIES), None)


def forbidden(module: Module) -> Iterator[tuple[str, str]]:
    """(what a module of asrserver/ imports and may not, with its line and the rule) for each such import."""
    depth = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    room = module.room
    if room not in depth:
        yield module.name, f"{module.path}: no layer has a {room}: give it one"
        return
    for found in imports(module):
        where = f"{module.path}:{found.line} imports {found.module}"
        if found.module.split(".")[0] == TOP:
            target = _room(found.module)
            if target == room:
                continue
            if target not in depth:
                yield found.module, f"{where}: no layer has a {target}: give it one"
            elif depth[target] <= depth[room]:
                yield found.module, f"{where}: {target} does not lie below {room}"
            elif room in ONLY and target not in ONLY[room][0]:
                only, why = ONLY[room]
                yield found.module, f"{where}: {room} imports {', '.join(only)} alone ({why})"
        elif found.module.split(".")[0] not in sys.stdlib_module_names:
            library = _library(found.module)
            if library is None:
                yield found.module, f"{where}: say in LIBRARIES who may"
            elif LIBRARIES[library] != ANYONE and room not in LIBRARIES[library]:
                yield found.module, f"{where}: {library} is imported by {', '.join(LIBRARIES[library])} alone"


def loaded(name: str, all_modules: Mapping[str, Module]) -> dict[str, tuple[str, ...]]:
    """What is loaded where a module is imported: each name with the way to it from that module."""
    ways: dict[str, tuple[str, ...]] = {}
    todo: list[tuple[str, tuple[str, ...]]] = [(name, (name,))]
    while todo:
        current, way = todo.pop()
        parts = current.split(".")
        for length in range(1, len(parts) + 1):  # the packages around it are imported first
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
    """What LIGHT forbids: each with the way that leads there."""
    for name, libraries in light.items():
        if name not in all_modules:
            yield f"{name}: there is no such module"
            continue
        ways = loaded(name, all_modules)
        for library in libraries:
            if library in ways:
                yield f"{name} loads {library}: {' → '.join(ways[library])}"


def too_long(all_modules: Iterable[Module]) -> dict[str, int]:
    """Files, classes and functions beyond the limits, with their size: lines, methods, lines."""
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
    """The public classes and functions at a module's level."""
    for node in module.tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield node


def homonyms(all_modules: Iterable[Module]) -> dict[str, list[str]]:
    """Names that more than one public class has, and where."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for module in all_modules:
        for node in public(module):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(module.path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def undocumented(all_modules: Iterable[Module]) -> list[str]:
    """Modules, and public classes and functions at their level, without a docstring; empty files need none."""
    found = []
    for module in all_modules:
        if module.lines and not ast.get_docstring(module.tree):
            found.append(module.path)
        found += [f"{module.path} {node.name}" for node in public(module) if not ast.get_docstring(node)]
    return found
