"""MkDocs hooks: pages that are files of the top level (CHANGELOG.md and others), with links that are right there.

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


def on_page_markdown(markdown: str, **_kwargs: Any) -> str:
    """MkDocs calls this with the source of every page, and renders what it returns."""
    return _INCLUDE.sub(lambda found: included(found[1]), markdown)


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
