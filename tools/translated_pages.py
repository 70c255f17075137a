#!/usr/bin/env python3
"""Say which Chinese pages are behind the English ones, or note that some have caught up.

    python tools/translated_pages.py                       # name those whose original was changed since
    python tools/translated_pages.py docs/zh/start.md      # note that it says what its original says now

The last line of a Chinese page names the original, and its words as they were when it was translated, as a hash:

    <!-- translates: docs/start.md 5f2c9a1be07d -->

How the lines of the original are broken does not count, nor do its blocks of code, which tests compare.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_NOTE = re.compile(r"<!-- translates: (\S+) (\S+) -->\n\Z")
_CODE = re.compile(r"^( *)```.*?^\1```$", re.M | re.S)


def originals() -> dict[Path, Path]:
    """Each Chinese page, and the English one that it translates."""
    pages = [ROOT / "README.zh-CN.md", *sorted((ROOT / "docs" / "zh").glob("*.md"))]
    return {page: ROOT / _note(page)[1] for page in pages}


def behind(page: Path) -> str | None:
    """What is wrong with a translation, if its original was changed since."""
    _, name, words = _note(page)
    if words == fingerprint((ROOT / name).read_text("utf-8")):
        return None
    shown = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
    return f"{shown}: {name} was changed: bring it up to date, then python tools/translated_pages.py {shown}"


def catch_up(page: Path) -> None:
    """Note that a translation says what its original says now."""
    text, name, _ = _note(page)
    words = fingerprint((ROOT / name).read_text("utf-8"))
    page.write_text(_NOTE.sub(f"<!-- translates: {name} {words} -->\n", text), "utf-8")


def fingerprint(text: str) -> str:
    """The words of a page, as a hash."""
    return hashlib.sha256(" ".join(_CODE.sub("", text).split()).encode()).hexdigest()[:12]


def _note(page: Path) -> tuple[str, str, str]:
    """The text of a translation, the name of its original, and the words that this had."""
    text = page.read_text("utf-8")
    found = _NOTE.search(text)
    if found is None:
        raise ValueError(f"{page}: the last line must be <!-- translates: PAGE new -->, with the name of the original")
    return text, found[1], found[2]


def main() -> None:
    parser = argparse.ArgumentParser(description="Say which Chinese pages are behind, or note that some are not.")
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="a Chinese page that is up to date again")
    for page in (noted := parser.parse_args().pages):
        catch_up(page)
    found = [] if noted else [fault for page in originals() if (fault := behind(page))]
    for fault in found:
        print(fault, file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
