#!/usr/bin/env python3
"""Bring the Chinese catalogue of the command line up to date with what there is to translate.

    python tools/translations.py            # write asrserver.po, and compile it
    python tools/translations.py --check    # only report what is not translated, or no longer said

The messages are those of the help of all commands, of calls of `_` in the package, and of the installed click. New ones
come into the file without a translation, or marked `fuzzy` with that of a similar one: translate them there, remove the
mark, and run this again. The compiled file is in the repository, so that neither a build nor a start needs Babel.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_file
from babel.messages.mofile import read_mo, write_mo
from babel.messages.pofile import read_po, write_po

import asrserver
from asrserver.cli.chinese import CATALOGUES, DOMAIN, messages
from asrserver.cli.main import main as program
from asrserver.models import TOY_NOTICE

SOURCE = CATALOGUES / "zh" / "LC_MESSAGES" / f"{DOMAIN}.po"
COMPILED = SOURCE.with_suffix(".mo")

#: How the file begins: without the dates and names that Babel would write there.
HEADER = """\
# The command line of asrserver in Chinese. Its messages are kept up to date by tools/translations.py.
msgid ""
msgstr ""
"Language: zh\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"
"Plural-Forms: nplurals=1; plural=0;\\n"

"""

#: What marks a message in code, and which arguments are one.
KEYWORDS = {"_": None, "ngettext": (1, 2)}

#: What a translation leaves as it is: blanks, flags, variables, addresses, numbers.
_KEPT = re.compile(r"%\(\w+\)s|\{[\w!]+\}|--[\w-]+|\b[A-Z]+_[A-Z_*]+|\b\w+://|\d+(?:\.\d+)?")


def wanted() -> Iterator[str | tuple[str, ...]]:
    """All messages that there are, ours before click's."""
    yield from messages(program)
    yield TOY_NOTICE
    for package in (asrserver, click):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            if "gettext" in path.read_text("utf-8"):
                yield from (found[1] for found in extract_from_file("python", path, keywords=KEYWORDS))


def updated(catalogue: Catalog) -> Catalog:
    """The catalogue with all messages that there are, in their order, and no others."""
    template = Catalog()
    for message in wanted():
        if message:
            template.add(message)
    catalogue.update(template, update_header_comment=False, update_creation_date=False)
    catalogue.obsolete.clear()
    return catalogue


def read() -> Catalog:
    with SOURCE.open("rb") as file:
        found = read_po(file, locale="zh")
    found.creation_date = datetime(2026, 1, 1, tzinfo=UTC)  # so that the same texts are compiled to the same file
    return found


def faults() -> list[str]:
    """What is wrong with the catalogue, a line for each message."""
    catalogue, now = read(), updated(read())
    found = [f"no longer said: {_shown(message)}" for message in catalogue if message.id and message.id not in now]
    found += [fault for message in now if message.id for fault in _faults_of(message)]
    with COMPILED.open("rb") as file:
        compiled = read_mo(file)
    if _texts(compiled) != _texts(catalogue):
        found.append(f"{COMPILED.name} is not what {SOURCE.name} compiles to")
    return found


def _faults_of(message: Message) -> Iterator[str]:
    ids, strings = _all(message.id), _all(message.string)
    if message.fuzzy or not all(strings):
        yield f"not translated: {_shown(message)}"
    elif any(kept(string) != kept(ids[-1]) for string in strings):
        yield f"other blanks, flags or numbers in the translation of: {_shown(message)}"


def kept(text: str) -> list[str]:
    """What of a message stands in its translation too, in whatever order."""
    return sorted(set(_KEPT.findall(text)))


def _texts(catalogue: Catalog) -> dict[tuple[str, ...], tuple[str, ...]]:
    return {_all(one.id): _all(one.string) for one in catalogue if one.id and not one.fuzzy and any(_all(one.string))}


def _all(texts: str | Iterable[str] | None) -> tuple[str, ...]:
    """The forms of a message, of which most have one."""
    return (texts or "",) if texts is None or isinstance(texts, str) else tuple(texts)


def _shown(message: Message) -> str:
    return repr(message.id)[:120]


def write() -> None:
    catalogue = updated(read())
    with SOURCE.open("wb") as file:
        file.write(HEADER.encode())
        write_po(file, catalogue, width=116, no_location=True, omit_header=True, ignore_obsolete=True)
    with COMPILED.open("wb") as file:
        write_mo(file, catalogue)


def main() -> None:
    parser = argparse.ArgumentParser(description="Update the catalogue of the command line in Chinese.")
    parser.add_argument("--check", action="store_true", help="only report what is missing or stale")
    if not parser.parse_args().check:
        write()
    for fault in (found := faults()):
        print(f"{SOURCE.name}: {fault}", file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
