"""The blocks of the pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]

#: Every page with something to type. The generated reference of the command line has synopses, and no commands.
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path.name != "CHANGELOG.md"
)

#: Translations: test_translations.py says that their blocks are those of the pages that they translate.
TRANSLATIONS = [page for page in PAGES if ".zh-" in page or page.startswith("docs/zh/")]

_FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```$", re.M | re.S)

#: Paragraphs of four spaces, which are code outside of lists and admonitions.
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}\S[^\n]*\n)+")

#: A loop, or a line with those that continue it.
_STATEMENT = re.compile(r"^for [^\n]*\n.*?^done$|^(?:[^\n]*\\\n)*[^\n]+$", re.M | re.S)

#: `asrserver …` between backquotes, but not what a listing leaves out.
_INLINE = re.compile(r"`(asrserver \w[^`…]*)`")


@dataclass(frozen=True)
class Block:
    """A code block: `line` is that of its first line, `language` what stands behind the fence."""

    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def statements(self) -> list[str]:
        """What a shell is to run, one by one, without comments that stand alone."""
        if self.language not in ("sh", "bash"):
            return []
        return [text for text in _STATEMENT.findall(self.code) if text.strip() and not text.startswith("#")]


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """The blocks of a page in their order. Outside of docs/, code that is indented is commands."""
    text = (ROOT / page).read_text()
    found = []
    for match in _FENCE.finditer(text):
        indent, language, code = match.groups()
        found.append((match.start(3), language, re.sub(rf"^{indent}", "", code, flags=re.M)))
    if not page.startswith("docs/"):
        found += [
            (match.start(), "sh", re.sub("^    ", "", match[0], flags=re.M)) for match in _INDENTED.finditer(text)
        ]
    return tuple(Block(page, text.count("\n", 0, start) + 1, language, code) for start, language, code in sorted(found))


def every_block() -> Iterator[Block]:
    """Of every page, translations included."""
    for page in PAGES:
        yield from blocks(page)


def words_of(statement: str) -> list[str]:
    """The words of a command without `sudo` and what is set for it; [] if the shell's grammar is needed to read it."""
    if statement.startswith("for "):
        return []
    words = shlex.split(re.sub(r"\$\([^)]*\)", "X", statement.replace("\\\n", " ")), comments=True)
    while words and (words[0] == "sudo" or re.match(r"[A-Z_]+=", words[0])):
        words.pop(0)
    return words


def arguments_of(statement: str) -> list[str] | None:
    """What a statement gives the program, also one in a container; None if it does not call it."""
    words = words_of(statement)
    if words[:2] == ["docker", "compose"] and "asrserver" in words and "run" in words:
        return words[words.index("asrserver") + 1 :]
    if not words or PurePosixPath(words[0]).name != "asrserver":
        return None
    return words[1:]


def program_lines() -> Iterator[tuple[str, list[str], bool]]:
    """(where, arguments, whole) of each line that calls the program; not whole: a mention in a sentence."""
    for block in every_block():
        for statement in block.statements:
            arguments = arguments_of(statement)
            if arguments is not None:
                yield f"{block}: {statement}", arguments, True
    for page in PAGES:
        for line in _INLINE.findall(_FENCE.sub("", (ROOT / page).read_text())):
            yield f"{page}: {line}", shlex.split(line)[1:], False
