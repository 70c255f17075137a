"""README.md and docs/ agree with the code: what they name exists, and what must be in them is."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import docs_hooks
import generate_docs
import pytest
import yaml

from asrserver.cli.main import main as program
from asrserver.config import setting_rows
from asrserver.protocol.codes import CODES
from asrserver.telemetry.metrics import REGISTRY

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
PROTOCOL = DOCS / "reference" / "websocket.md"

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in some languages."""
    found = _FENCE.findall(page.read_text())
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for indent, language, code in found if language in languages]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", page.read_text())


# -- the code, as far as the pages tell of it ------------------------------------------------------------------------


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax of every module of the package."""
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted((ROOT / "asrserver").rglob("*.py"))
    }


def nodes() -> Iterator[ast.AST]:
    for tree in trees().values():
        yield from ast.walk(tree)


def documented_codes() -> dict[str, set[int]]:
    """The codes in the tables of the reference, with their HTTP statuses."""
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", (DOCS / "reference" / "errors.md").read_text(), re.M)
    return {code: set(map(int, re.findall(r"\b[45]\d\d\b", where))) for code, where in rows}


def fields_of(name: str) -> list[str]:
    """The annotated fields of a class of the package."""
    (found,) = [node for node in nodes() if isinstance(node, ast.ClassDef) and node.name == name]
    return [
        item.target.id for item in found.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]


# -- error codes -----------------------------------------------------------------------------------------------------


def test_the_reference_has_every_error_code_and_no_other() -> None:
    """Those of protocol/codes.py, which tests/protocol/test_codes.py holds against the code."""
    assert sorted(documented_codes()) == sorted(CODES)


def test_the_reference_has_no_status_with_which_a_code_cannot_come() -> None:
    wrong = {code: where - set(CODES[code].statuses) for code, where in documented_codes().items()}
    assert {code: statuses for code, statuses in wrong.items() if statuses} == {}


# -- settings, commands, metrics, keys -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", generate_docs.PARTS)
def test_generated_parts_are_what_the_code_says(page: str) -> None:
    assert (DOCS / page).read_text() == generate_docs.renewed(page), "run: make docs-update"


def test_every_setting_is_on_its_page() -> None:
    text = (DOCS / "reference" / "settings.md").read_text()
    for row in setting_rows():
        assert len(re.findall(rf'^\| <a id="{row.key}"></a>`{row.flag}` \| `{row.env}` \|', text, re.M)) == 1


def test_every_command_is_on_its_page() -> None:
    text = (DOCS / "reference" / "cli.md").read_text()
    for path, command in generate_docs.walk(program, ("asrserver",)):
        assert f"\n## {' '.join(path)}\n" in text
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden and option.name not in settings():
                assert f"`{option.opts[0]}`" in text


def settings() -> set[str]:
    return {row.key for row in setting_rows()}


@cache
def flags() -> set[str]:
    """Every flag of every command."""
    return {"--help", "--version"} | {
        flag
        for _, command in generate_docs.walk(program, ("asrserver",))
        for option in command.params
        if isinstance(option, click.Option)
        for flag in (*option.opts, *option.secondary_opts)
    }


def test_flags_that_are_named_exist() -> None:
    """Some pages have those of tools/."""
    others = {DOCS / name for name in ("inside/performance.md", "run/accuracy.md", "run/install.md")}
    others |= {DOCS / "zh" / page.name for page in others}
    unknown = {
        (name_of(page), flag)
        for page in [README, *PAGES]
        for flag in re.findall(r"`(--[a-z][a-z-]*)", prose(page))
        if flag not in flags() and page not in others
    }
    assert unknown == set()


def test_settings_files_have_settings_that_there_are() -> None:
    for page in PAGES:
        for code in blocks(page, "toml"):
            if "--8<--" not in code:
                assert tomllib.loads(code).keys() <= settings(), name_of(page)


def test_metrics_that_are_named_exist() -> None:
    """In the pages, the alerts and the dashboard."""
    known = set()
    for family in REGISTRY.collect():
        suffixes = {"counter": ("_total",), "histogram": ("", "_bucket", "_sum", "_count")}.get(family.type, ("",))
        known |= {family.name + suffix for suffix in suffixes}
    named = set()
    for path in [*PAGES, ROOT / "conf" / "prometheus-rules.yml", ROOT / "conf" / "grafana-dashboard.json"]:
        named |= {(path.name, metric) for metric in re.findall(r"\basrserver_[a-z_]+[a-z]", path.read_text())}
    assert len(named) > 30
    assert {(page, metric) for page, metric in named if metric not in known} == set()


def test_every_alert_has_its_cure() -> None:
    text = (DOCS / "run" / "monitoring.md").read_text()
    rules = yaml.safe_load((ROOT / "conf" / "prometheus-rules.yml").read_text())
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert alerts
    for alert in alerts:
        assert re.search(rf"^\| `{alert}` \|.*\(troubleshooting\.md#", text, re.M), alert


def test_every_redis_key_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "redis.md").read_text()
    keys = {
        re.match("[a-z_]+", str(node.value))[0]  # type: ignore[index]
        for node in ast.walk(trees()["asrserver/broker/keys.py"])
        if isinstance(node, ast.Constant) and str(node.value).startswith("asr_")
    }
    assert len(keys) > 10
    assert {key for key in keys if f"`{key}" not in text} == set()


# -- the protocol ----------------------------------------------------------------------------------------------------


def test_json_examples_are_json() -> None:
    """One document, or one in each line."""
    count = 0
    for page in [README, *PAGES]:
        for code in blocks(page, "json"):
            for text in [code] if code.startswith("{\n") else code.splitlines():
                assert isinstance(json.loads(text), dict), f"{name_of(page)}: {text}"
                count += 1
    assert count > 30


def test_every_option_of_a_session_is_in_the_reference() -> None:
    text = PROTOCOL.read_text()
    start = text[text.index("### start") : text.index("### chunk")]
    options = fields_of("Options")
    assert len(options) > 10
    for option in [*options, "session_id", "user_id", "resume", "channel", "ack_interval", "queue_position"]:
        assert re.search(rf"^\| `{option}` \|", start, re.M), option


def section(text: str, title: str) -> str:
    """The text under a heading, up to the next heading."""
    found = re.search(rf"^### {title}\n(.*?)(?=^##)", text, re.M | re.S)
    assert found is not None, title
    return found[1]


def test_the_fields_of_every_message_are_in_its_table() -> None:
    """Of every example of a message, in the section of its kind."""
    text = PROTOCOL.read_text()
    seen = set()
    for code in blocks(PROTOCOL, "json"):
        for message in map(json.loads, code.splitlines()):
            kind = message.get("action") or message["type"]
            seen.add(kind)
            named = set(re.findall(r"`(\w+)`", section(text, kind)))
            assert message.keys() - {"type", "action"} <= named, (kind, message.keys() - named)
    assert seen == {
        *("start", "chunk", "flush", "finish", "resume"),
        *("ack", "chunk_result", "speech_started", "partial_result", "segment_result"),
        *("flushed", "final_result", "error"),
    }


def test_every_route_and_parameter_is_in_the_reference() -> None:
    text = "".join(
        path.read_text() for path in (DOCS / "reference" / "rest.md", PROTOCOL, DOCS / "guides" / "deepgram.md")
    )
    document = json.loads((ROOT / "asrserver" / "data" / "openapi.json").read_text())
    assert len(document["paths"]) > 8
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "post", "put", "patch", "delete"):
                assert f"{method.upper()} {path}`" in text, path
                for parameter in operation.get("parameters", ()):
                    name = parameter.get("name", "")
                    assert parameter.get("in") != "query" or re.search(rf"^\| `{name}` \|", text, re.M), name


# -- troubleshooting -------------------------------------------------------------------------------------------------


@cache
def texts() -> list[tuple[str, re.Pattern[str]]]:
    """(level, pattern) of every logged line, and ("", pattern) of every other text of the package."""
    found = []
    for node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            level = {"exception": "ERROR", "log": "INFO"}.get(node.func.attr, node.func.attr.upper())
            if level in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
                found += [(level, pattern_of(text)) for text in node.args[:2] if is_text(text)]
        if isinstance(node, (ast.Constant, ast.JoinedStr)) and is_text(node):
            found.append(("", pattern_of(node)))
    return found


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def pattern_of(node: ast.expr) -> re.Pattern[str]:
    """A pattern of what a text may become: anything where it is filled in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "%s" for part in parts)
    return re.compile(".+".join(re.escape(piece) for piece in re.split(r"%(?:\.\d+)?[sdfrgx]", text)) + "$")


def said_by(level: str, line: str) -> bool:
    """Whether the package has a text that matches the line, with some words of its own."""
    return any(
        of == level and len(re.findall("[a-z]", pattern.pattern)) > 5 and pattern.match(line) for of, pattern in texts()
    )


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "log")], ids=name_of)
def test_log_lines_are_such_as_the_code_writes(page: Path) -> None:
    """`…` stands for what is filled in."""
    wrong = []
    for line in "".join(blocks(page, "log")).splitlines():
        level, _, message = line.partition(" ")
        if level not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
            level, message = "", line.removeprefix("Error: ")
        if not said_by(level, message) and not (level == "CRITICAL" and said_by("", message)):
            wrong.append(line)
    assert not wrong, "\n".join(wrong)


# -- the pages themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Files here; their headings and addresses elsewhere are looked at by MkDocs, or by nobody."""
    for target in _LINK.findall(prose(page)):
        if not re.match(r"\w+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert str(page.relative_to(DOCS)) in text


def test_included_files_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"^<!-- include: (\S+) -->$", page.read_text(), re.M):
            assert (ROOT / name).is_file(), f"{name_of(page)}: {name}"
        for name in re.findall(r'--8<-- "(\S+)"', page.read_text()):
            assert (ROOT / name).is_file(), f"{name_of(page)}: {name}"


def test_links_of_included_files_are_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_hooks, "ROOT", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(
        "[docs](docs/start.md#install), [other](SECURITY.md), [code](asrserver/config.py), [`LICENSE`](LICENSE), "
        "[web](https://example.org), [here](#a), ![picture](docs/a.png)"
    )
    assert docs_hooks.on_page_markdown("<!-- include: CHANGELOG.md -->") == (
        "[docs](start.md#install), [other](security.md), code (`asrserver/config.py`), `LICENSE`, "
        "[web](https://example.org), [here](#a), ![picture](docs/a.png)"
    )


def test_python_examples_compile() -> None:
    count = 0
    for page in [README, *PAGES]:
        for number, code in enumerate(blocks(page, "python")):
            compile(code, f"{name_of(page)}, example {number}", "exec")
            count += 1
    assert count > 5


def test_files_that_commands_name_exist() -> None:
    """Recordings and configuration of the checkout."""
    count = 0
    for page in [README, *PAGES]:
        for name in re.findall(r"\b(?:asrserver/data|conf|tools)/[\w./@-]+\w", page.read_text()):
            assert list(ROOT.glob(name.replace("@", "@"))), f"{name_of(page)}: {name}"
            count += 1
    assert count > 20


def test_modules_that_are_named_exist() -> None:
    """By their path from the package or from the top."""
    named = {(name_of(page), path) for page in PAGES for path in re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", prose(page))}
    assert len(named) > 40
    missing = {
        (page, path) for page, path in named if not any((top / path).exists() for top in (ROOT, ROOT / "asrserver"))
    }
    # What a running server makes is not in the checkout.
    assert {
        (page, path) for page, path in missing if not path.startswith(("redis/", "postgres/", "log/", "build/", "DIR/"))
    } == set()


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150
