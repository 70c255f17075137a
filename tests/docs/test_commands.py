"""Nothing in the pages is left out: each block is run, or read by a parser, or stands in the plan with a reason.

Commands of the program are read by the program's own command line in every page and language, also those that are not
run. test_pages.py runs the rest.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import importlib
import re
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from asrserver.cli.main import main as program
from tests.docs import plan
from tests.docs.pages import PAGES, ROOT, TRANSLATIONS, Block, blocks, every_block, program_lines, words_of
from tests.docs.steps import all_steps, left_out, steps

#: Languages whose blocks are data; JSON and log lines are read in tests/test_docs.py.
PARSERS: dict[str, Callable[[str], object]] = {
    "json": str,
    "log": str,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "xml": ElementTree.fromstring,
    "ini": lambda code: configparser.ConfigParser(strict=False, allow_no_value=True).read_string(code),
}

#: Languages of blocks that are run.
RUN = ("sh", "python", "javascript")

#: What nobody types: drawings, addresses, lines of a file or a log.
PROSE = ("text", "output", "")


_COMMANDS = "|".join(program.list_commands(click.Context(program)))
_TYPED = re.compile(rf"^(\S*/)?(asrserver ({_COMMANDS})|curl|python|docker|redis-cli)\b", re.M)


def wrong(block: Block) -> str:
    """What is wrong with a block; "" if it is run, read, or in the plan."""
    if block.language in RUN or left_out(block.page, block.code) is not None:
        return ""
    if block.language in PROSE:
        typed = _TYPED.search(block.code) and block.page != "docs/reference/cli.md"  # which has synopses
        return "a command in a block that nobody is to type: it is sh, or output" if typed else ""
    if block.language not in PARSERS:
        return f"the language {block.language} is neither run nor read: name the block in tests/docs/plan.py"
    if "--8<--" not in block.code:  # a file, which other tests read
        try:
            PARSERS[block.language](block.code)
        except Exception as exc:
            return f"no {block.language}: {exc}"
    return ""


def test_every_block_is_run_or_read_or_in_the_plan() -> None:
    found = {str(block): wrong(block) for block in every_block() if block.page not in TRANSLATIONS}
    assert len(found) > 200
    assert {place: problem for place, problem in found.items() if problem} == {}


@pytest.mark.parametrize(
    ("language", "code", "problem"),
    [
        ("ruby", "puts 1\n", "neither run nor read"),
        ("text", "asrserver run\n", "a command in a block"),
        ("yaml", "a: [\n", "no yaml"),
        ("xml", "<a>\n", "no xml"),
        ("text", "a drawing\n", ""),
    ],
)
def test_a_block_that_nothing_checks_is_noticed(language: str, code: str, problem: str) -> None:
    found = wrong(Block("README.md", 1, language, code))
    assert problem in found if problem else not found


def test_an_output_follows_what_prints_it() -> None:
    """A block of the language `output` belongs to the command before it, which is run."""
    for page in PAGES:
        outputs = [block.code for block in blocks(page) if block.language == "output"]
        if page not in TRANSLATIONS:
            assert [step.output for step in steps(page, slow=True) if step.output] == outputs, page


# -- the plan says nothing that is not so ----------------------------------------------------------------------------


def texts(page: str) -> list[str]:
    """The statements of a page, and its blocks that are not for a shell."""
    return [f"\n{step.text}\n" for step in all_steps(page)] + [
        block.code for block in blocks(page) if block.language != "sh"
    ]


@pytest.mark.parametrize("table", ["EXCUSED", "ELSEWHERE", "SLOW"])
def test_the_plan_names_what_there_is(table: str) -> None:
    """An excuse whose command is gone goes too."""
    entries = [(page, text) for page, found in getattr(plan, table).items() for text in found]
    assert entries
    assert [(page, text) for page, text in entries if not any(text in found for found in texts(page))] == []


def test_nothing_is_excused_and_run_elsewhere() -> None:
    for page in PAGES:
        for text in texts(page):
            tables = (plan.EXCUSED, plan.ELSEWHERE)
            assert sum(any(key in text for key in table.get(page, ())) for table in tables) <= 1, f"{page}: {text}"


def test_the_tests_that_run_something_elsewhere_exist() -> None:
    for page, found in plan.ELSEWHERE.items():
        for name in found.values():
            path, _, test = name.partition("::")
            tree = ast.parse((ROOT / path).read_text())
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert test in names, f"{page}: {name}"


def test_what_is_prepared_or_expected_belongs_to_a_step() -> None:
    for page, wanted in plan.PAGES.items():
        run = [step.text for step in steps(page, slow=True)]
        assert run, page
        for text in (*wanted.before, *wanted.prints):
            assert any(text in found for found in run), f"{page}: {text}"


# -- commands --------------------------------------------------------------------------------------------------------


#: All that pages have of them: read here, because `no_files` lets no file be read.
LINES = list(program_lines())


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that examples name need not exist, and what an option does beside its value is not done."""

    def as_it_is(_self: object, value: Any, *_: object) -> Any:
        return value

    monkeypatch.setattr(click.Path, "convert", as_it_is)
    monkeypatch.setattr("asrserver.cli.options.Path.read_text", lambda *_, **__: "")
    monkeypatch.setenv("SSL_CERT_FILE", "")
    monkeypatch.setenv("ASRSERVER_KEYS_FILE", "keys.json")


def read_line(arguments: list[str], whole: bool) -> None:
    """Read a command line as the program does, without doing it.

    Raises:
        click.ClickException: There is no such command or option, a value is refused, or, of a whole one, something is
            missing.
    """
    command: click.Command = program
    context = click.Context(program, info_name="asrserver")
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        _, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command, context = found, click.Context(found, parent=context, info_name=found.name)
    try:
        command.make_context(command.name, list(arguments), parent=context.parent)
    except (click.MissingParameter, click.BadOptionUsage, click.exceptions.NoArgsIsHelpError):
        if whole:
            raise


@pytest.mark.usefixtures("no_files")
def test_every_command_line_is_one_that_the_program_takes() -> None:
    """In all pages, also in Chinese, and in sentences too."""
    assert len(LINES) > 300
    refused = {}
    for where, arguments, whole in LINES:
        if any(word.isupper() for word in arguments[:1]):
            continue  # `asrserver COMMAND`
        try:
            read_line(arguments, whole)
        except click.ClickException as exc:
            refused[where] = exc.format_message()
        except click.exceptions.Exit:
            pass  # --help
    assert refused == {}


@pytest.mark.usefixtures("no_files")
@pytest.mark.parametrize(
    "line",
    ["run --model-name base", "run --port many", "keys creat x", "transcribe --format doc a.wav", "restore", "nothing"],
)
def test_a_command_line_that_the_program_refuses_is_noticed(line: str) -> None:
    with pytest.raises(click.ClickException):
        read_line(line.split(), whole=True)


class Read(Exception):
    """The command line of a tool is right."""


def test_every_command_line_of_a_tool_is_one_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in tools/, which use argparse."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *_: object) -> None:
        parse(self)
        raise Read

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    count = 0
    for block in every_block():
        for words in map(words_of, block.statements):
            if len(words) > 1 and words[1].startswith("tools/"):
                monkeypatch.setattr(sys, "argv", words[1:])
                with pytest.raises(Read):
                    importlib.import_module(Path(words[1]).stem).main()
                count += 1
    assert count > 5


def test_every_target_of_make_exists() -> None:
    targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M)
    found = [
        (str(block), word)
        for block in every_block()
        for statement in block.statements
        if (words := words_of(statement)) and words[0] == "make"
        for word in words[1:]
        if "=" not in word
    ]
    assert len(found) > 10
    assert [(place, target) for place, target in found if target not in targets] == []
