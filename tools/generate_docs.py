#!/usr/bin/env python3
"""Generate the parts of the documentation that follow from the code: settings, commands, metrics, database tables.

    python tools/generate_docs.py            # write them
    python tools/generate_docs.py --check    # only report pages that are out of date

Each part lies in its page between the marks `<!-- generated: NAME -->` and `<!-- /generated -->`; the rest of a page is
written by hand. `make docs-update` writes, `make docs` and a test compare.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from asrserver.cli.help import TITLES
from asrserver.cli.main import main as program
from asrserver.config import COMMANDS
from asrserver.config import setting_rows as rows
from asrserver.telemetry import metrics

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

#: The documentation's names of click's types.
_NOUNS = {
    "integer": "integer",
    "int": "integer",
    "float": "number",
    "boolean": "flag",
    "bool": "flag",
    "duration": "duration",
}


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells) + "\n"


# -- settings --------------------------------------------------------------------------------------------------------


def settings() -> str:
    """A table for each group of settings."""
    known = {row.group for row in rows()}
    assert known == TITLES.keys(), f"groups of settings without a title, or the reverse: {known ^ TITLES.keys()}"
    return "\n".join(_group(name, title) for name, title in TITLES.items())


def _group(name: str, title: str) -> str:
    commands = [f"`asrserver {command}`" for command, groups in COMMANDS.items() if name in groups]
    lines = [
        [
            f'<a id="{row.key}"></a>`{row.flag}`',
            f"`{row.env}`",
            f"`{row.default}`" if row.default != "" and row.type is not bool else "",
            values(row.type),
            row.help,
        ]
        for row in rows()
        if row.group == name
    ]
    head = ["Flag", "Environment", "Default", "Values", "Meaning"]
    return f"## {title}\n\nRead by {', '.join(commands)}.\n\n{table(head, lines)}"


def values(kind: Any) -> str:
    """Describe the values that a click type accepts."""
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    if isinstance(kind, click.IntRange | click.FloatRange):
        noun = "integer" if isinstance(kind, click.IntRange) else "number"
        low = "" if kind.min is None else f" {'>' if kind.min_open else '≥'} {kind.min:g}"
        high = "" if kind.max is None else f" {'<' if kind.max_open else '≤'} {kind.max:g}"
        return f"{noun}{low}{',' if low and high else ''}{high}"
    if isinstance(kind, click.Path):
        return "directory" if kind.dir_okay and not kind.file_okay else "file"
    return _NOUNS.get(getattr(kind, "name", getattr(kind, "__name__", "")), "text")


# -- commands --------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its help, arguments and options; the settings have their own page."""
    return "\n".join(_command(command, path) for path, command in walk(program, ("asrserver",)))


def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that is not a group, with its full name."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, (*path, name))
    else:
        yield path, command


def _command(command: click.Command, path: tuple[str, ...]) -> str:
    context = click.Context(command, info_name=" ".join(path))
    usage = " ".join([*path, *command.collect_usage_pieces(context)])
    set_by = {row.key for row in rows() if row.group in COMMANDS.get(path[-1], ())}
    options = [
        option
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden and option.name not in set_by
    ]
    lines = [
        [_flags(option), f"`{option.envvar}`" if option.envvar else "", _default(option), _kind(option), _help(option)]
        for option in options
    ]
    parts = [f"## {' '.join(path)}\n", f"```text\n{usage}\n```\n", _prose(command.help or "")]
    if set_by:
        titles = [title for name, title in TITLES.items() if name in COMMANDS[path[-1]]]
        parts.append(f"Settings: {', '.join(f'[{title}](settings.md#{_anchor(title)})' for title in titles)}.\n")
    if lines:
        parts.append(table(["Option", "Environment", "Default", "Values", "Meaning"], lines))
    return "\n".join(parts)


def _prose(text: str) -> str:
    """Convert click's help text to Markdown; paragraphs that `\\b` keeps unwrapped become code blocks."""
    made = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        kept = paragraph.startswith("\b")
        made.append(f"```text\n{paragraph[1:].strip()}\n```" if kept else " ".join(paragraph.split()))
    return "\n\n".join(made) + "\n"


def _flags(option: click.Option) -> str:
    return ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))


def _default(option: click.Option) -> str:
    default = option.default
    if option.is_flag or option.required or default is None or default == "" or option.multiple:
        return "required" if option.required else ""
    return "" if callable(default) or type(default).__name__ == "Sentinel" else f"`{default}`"


def _kind(option: click.Option) -> str:
    if option.is_flag:
        return "flag"
    return f"`{option.metavar}`" if option.metavar else values(option.type)


def _help(option: click.Option) -> str:
    return (option.help or "") + (" Can be given several times." if option.multiple else "")


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


# -- metrics ---------------------------------------------------------------------------------------------------------

#: How the values of several processes, and of several supervisors, go together.
_COMBINED = {
    "livesum": "sum",
    "livemax": "maximum",
    "livemostrecent": "the same everywhere: take the maximum",
}


def metric_table() -> str:
    """Every metric: name as it is scraped, type, labels, meaning."""
    found = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    lines = []
    for metric in found:
        (family,) = metric.describe()
        name = family.name + ("_total" if isinstance(metric, Counter) else "")
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        sum_ = _COMBINED[getattr(metric, "_multiprocess_mode", "livesum")]
        lines.append([f"`{name}`", family.type, labels, sum_, family.documentation])
    assert len(lines) > 20, "the metrics are not found where they were"
    buckets = ", ".join(f"{bound:g}" for bound in _bounds(found))
    return (
        table(["Metric", "Type", "Labels", "Across machines", "Meaning"], lines)
        + f"\nHistograms of seconds have the buckets {buckets}; each histogram has `_bucket`, `_sum` and `_count`.\n"
    )


def _bounds(found: list[MetricWrapperBase]) -> list[float]:
    first = next(metric for metric in found if isinstance(metric, Histogram))
    return [bound for bound in first._upper_bounds if bound != float("inf")]


# -- tables ----------------------------------------------------------------------------------------------------------

_TABLE = re.compile(r"((?:^--[^\n]*\n)*)^CREATE TABLE IF NOT EXISTS (\w+) \(\n(.*?)^\);", re.M | re.S)
_LATER = re.compile(r"^ALTER TABLE (\w+) ADD COLUMN IF NOT EXISTS (\w+) ([^;]+);\s*--\s*(.*)$", re.M)
_INDEX = re.compile(r"^CREATE INDEX IF NOT EXISTS (\w+) ON (\w+) (?:USING \w+ )?(.*);", re.M)
_COLUMN = re.compile(r"    (\w+) +([^-]*?),? *(?:--\s*(.*))?$")


@dataclass
class _Table:
    name: str
    comment: str
    columns: list[list[str]] = field(default_factory=list)  # name, type, meaning


def schema_tables() -> str:
    """Every table of schema.sql with its columns, from the comments there."""
    text = (ROOT / "schema.sql").read_text(encoding="utf-8")
    tables = {found[2]: _read_table(found) for found in _TABLE.finditer(text)}
    for name, column, kind, meaning in _LATER.findall(text):
        tables[name].columns.append([f"`{column}`", kind.strip(), meaning])
    parts = []
    for one in tables.values():
        indexes = [f"`{name}` on `{on}`" for name, of, on in _INDEX.findall(text) if of == one.name]
        parts.append(f"## {one.name}\n\n{one.comment}\n\n{table(['Column', 'Type', 'Meaning'], one.columns)}")
        parts += [f"Indexes: {', '.join(indexes)}.\n"] if indexes else []
    return "\n".join(parts)


def _read_table(found: re.Match[str]) -> _Table:
    comment = " ".join(line.removeprefix("--").strip() for line in found[1].splitlines())
    one = _Table(found[2], comment)
    for line in found[3].splitlines():
        _read_line(one, line)
    for column in one.columns:
        column[2] = column[2].rstrip(";")
    return one


def _read_line(one: _Table, line: str) -> None:
    column = _COLUMN.fullmatch(line)
    if column is not None and column[1] not in ("PRIMARY", "UNIQUE", "CHECK"):
        one.columns.append([f"`{column[1]}`", column[2].strip(), (column[3] or "").strip()])
    elif "--" in line:  # of the column before, a value with its meaning
        value, _, meaning = line.partition("--")
        named = re.findall(r"'(\w+)'", value)
        one.columns[-1][2] += f" {' '.join(f'`{name}`' for name in named)}: {meaning.strip()};"
    elif "PRIMARY KEY" in line:
        one.comment += f" Primary key: `{line[line.index('(') + 1 : line.index(')')]}`."


# -- ratios of the benchmarks --------------------------------------------------------------------------------------

#: Records of which the table has a column.
COLUMNS = 6


def ratio_table() -> str:
    """The medians that tools/bench.py recorded, a column for each of the last records."""
    records = json.loads((DOCS / "inside" / "ratios.json").read_text(encoding="utf-8"))[-COLUMNS:]
    head = ["Ratio", *(f"{each['commit']}, {each['at'][:10]}, {each['cpu']}" for each in records)]
    names = {name: None for each in reversed(records) for name in each["ratios"]}
    return table(
        head,
        [
            [name, *(f"{each['ratios'][name][0]:.2f}" if name in each["ratios"] else "" for each in records)]
            for name in names
        ],
    )


# -- pages -----------------------------------------------------------------------------------------------------------

#: The functions that generate parts, by page and name.
PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "reference/settings.md": {"settings": settings},
    "reference/cli.md": {"commands": commands},
    "reference/metrics.md": {"metrics": metric_table},
    "reference/database.md": {"tables": schema_tables},
    "inside/performance.md": {"ratios": ratio_table},
}


def renewed(page: str) -> str:
    """A page with its generated parts brought up to date; raises ValueError if their marks are missing."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, make in PARTS[page].items():
        before, mark, rest = text.partition(f"<!-- generated: {name} -->\n")
        _, end, after = rest.partition("<!-- /generated -->")
        if not mark or not end:
            raise ValueError(f"docs/{page} has no place for {name}")
        text = f"{before}{mark}\n{make()}\n{end}{after}"
    return text


def stale() -> list[str]:
    """The pages whose generated parts are out of date."""
    return [page for page in PARTS if (DOCS / page).read_text(encoding="utf-8") != renewed(page)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is out of date")
    check = parser.parse_args().check
    pages = stale()
    for page in pages:
        print(f"docs/{page} {'is out of date: run make docs-update' if check else 'is written'}")
        if not check:
            (DOCS / page).write_text(renewed(page), encoding="utf-8")
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
