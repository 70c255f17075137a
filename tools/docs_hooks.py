"""MkDocs hooks: pages that are files of the top level (CHANGELOG.md and others), with links that are right there; and
lines of Chinese joined without the space that browsers show for the end of one.

A page names its file in a line of its own:

    <!-- include: CHANGELOG.md -->
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

_INCLUDE = re.compile(r"^<!-- include: (\S+) -->$", re.M)

#: A link: its text, and a target that is neither an address nor a place on the same page.
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)\s]+)\)")


#: A block of code; or the end of a line between two characters of Chinese, marks included.
_CHINESE = "[\u2014-\u2026\u3001-\u9fff\uff01-\uff60]"
_JOINED = re.compile(rf"^( *)```.*?^\1```$|(?<={_CHINESE})\n *(?={_CHINESE})", re.M | re.S)


def on_page_markdown(markdown: str, **_kwargs: Any) -> str:
    """MkDocs calls this with the source of every page, and renders what it returns."""
    return joined(_INCLUDE.sub(lambda found: included(found[1]), markdown))


def joined(markdown: str) -> str:
    """A page with lines joined that end and go on in Chinese, but for code."""
    return _JOINED.sub(lambda found: "" if found[0].startswith("\n") else found[0], markdown)


def included(name: str) -> str:
    """A file of the top level as it is read below docs/."""
    return _LINK.sub(_mended, (ROOT / name).read_text(encoding="utf-8"))


def _mended(link: re.Match[str]) -> str:
    """A link into docs/ as one from a page there; of any other file of the repository, its text and its name."""
    text, target = link.groups()
    if target.startswith("docs/"):
        return f"[{text}]({target.removeprefix('docs/')})"
    pages = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
    name, hash_, anchor = target.partition("#")
    if name in pages:
        return f"[{text}]({pages[name]}{hash_}{anchor})"
    return text if text.strip("`") == target else f"{text} (`{target}`)"
