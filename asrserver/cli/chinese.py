"""The command line in Chinese: the catalogue for click's words and ours, and lines that are broken as Chinese is.

What is translated is what a person reads of the program itself: help, click's complaints about usage, notices. Log
lines, messages of errors and all that a program may read stay as they are: they are searched for, and parsed.
"""

from __future__ import annotations

import gettext
import inspect
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from asrserver.cli.help import TITLES

#: The name of the catalogue, and where it is: data/locale/zh/LC_MESSAGES/asrserver.mo, made by tools/translations.py.
DOMAIN = "asrserver"
CATALOGUES = Path(__file__).parents[1] / "data" / "locale"

#: A piece that is not broken: a character of Chinese or a word of another script, with the marks that no line may
#: begin or end with; or white space.
_OPENING, _CLOSING = "（「『《〈【“‘(", "，。；：！？、）」』》〉】”’…)"
_WIDE = r"\u1100-\u115f\u2e80-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6"
_PIECE = re.compile(
    rf"\s+|[{_OPENING}]*(?:[^\s{_WIDE}{_OPENING}{_CLOSING}]+|(?![{_OPENING}{_CLOSING}])[{_WIDE}])[{_CLOSING}]*|."
)


def speak_chinese(program: click.Group) -> None:
    """Let click, `gettext.gettext` and the help of all commands of a program speak Chinese in this process."""
    gettext.bindtextdomain(DOMAIN, CATALOGUES)
    gettext.textdomain(DOMAIN)
    click.Context.formatter_class = Formatter
    for command in commands(program):
        if command.help:
            paragraphs = [mark + gettext.gettext(text) for mark, text in paragraphs_of(command.help)]
            command.help = "\n\n".join(paragraphs)
            command.short_help = paragraphs[0].partition("。")[0]
        for option in options(command):
            option.help = gettext.gettext(inspect.cleandoc(option.help or ""))


def messages(program: click.Group) -> Iterator[str]:
    """All that the help of a program has to say, as it stands in the catalogue."""
    yield from TITLES.values()
    for command in commands(program):
        yield from (text for _, text in paragraphs_of(command.help or ""))
        yield from (inspect.cleandoc(option.help or "") for option in options(command))


def commands(command: click.Command) -> Iterator[click.Command]:
    """A command, and all below it."""
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below)


def options(command: click.Command) -> Iterator[click.Option]:
    """The options of a command that have a help."""
    yield from (option for option in command.params if isinstance(option, click.Option) and option.help)


def paragraphs_of(text: str) -> list[tuple[str, str]]:
    """The paragraphs of a help, each with its mark: one with click's mark for it keeps its lines, others have one."""
    found = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return [
        ("\b\n", inspect.cleandoc(paragraph[1:])) if paragraph.startswith("\b") else ("", " ".join(paragraph.split()))
        for paragraph in found
        if paragraph
    ]


class Formatter(click.HelpFormatter):
    """click's, which counts characters and breaks at spaces, but with lines counted in columns of a terminal."""

    def write_text(self, text: str) -> None:
        super().write_text(_kept(text, self.width - self.current_indent))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        rows = list(rows)
        first = min(max(len(term) for term, _ in rows), col_max) + col_spacing
        room = max(self.width - first - 2, 10)  # as click has it
        super().write_dl([(term, _kept(meaning, room)) for term, meaning in rows], col_max, col_spacing)


def _kept(text: str, width: int) -> str:
    """Paragraphs in lines of a width, with click's mark that they be left so."""
    return "\n\n".join("\b\n" + (said if mark else fill(said, width)) for mark, said in paragraphs_of(text))


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def fill(text: str, width: int) -> str:
    """Break a paragraph into lines of at most `width` columns, if no word is longer: between any two characters of
    Chinese, but before no closing and after no opening mark."""
    lines: list[str] = []
    line, used = "", 0
    for piece in _PIECE.findall(text):
        length = columns(piece)
        if line and used + length > width and not piece.isspace():
            lines.append(line.rstrip())
            line, used = "", 0
        if line or not piece.isspace():
            line, used = line + piece, used + length
    return "\n".join([*lines, line.rstrip()])
