"""The Chinese pages say what the English ones say: the same sections, commands, code, tables, links and figures.

Whoever changes a command, an option or a section in one language is told to change it in the other. The words between
them are for a reader of both, whom a change in the English ones calls (tools/translated_pages.py). The help of the
command line is translated whole (tools/translations.py).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import docs_hooks
import pytest
import translated_pages
import translations

from asrserver.cli.chinese import commands, options
from asrserver.cli.main import main as program

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

#: Each Chinese page and the English one that it translates.
PAGES = translated_pages.originals()

_FENCE = re.compile(r"^( *)(```\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def headings(text: str) -> list[str]:
    """The level of each heading, with its anchor if it is given."""
    return [len(found) * "#" for found in re.findall(r"^(#+) .*$", _FENCE.sub("", text), re.M)]


def code(text: str) -> list[str]:
    """Code blocks without comments and docstrings, which are translated; indented ones, but in lists, line by line."""
    blocks = [language + "\n" + body for _, language, body in _FENCE.findall(text)]
    prose = re.sub(r"^(?:!!!|-|\d+\.) .*\n(?:(?: {2,}.*)?\n)*", "", _FENCE.sub("", text), flags=re.M)
    blocks += re.findall(r"^    (\S.*)$", prose, re.M)
    return [
        re.sub(r'[ \t]*(?<!\S)#.*$|""".*?"""', "", block, flags=re.M | re.S if "```" in block else 0)
        for block in blocks
    ]


def tables(text: str) -> list[tuple[int, list[str]]]:
    """Each row of a table: its number of cells, and what stands in them as code."""
    rows = [line for line in _FENCE.sub("", text).splitlines() if line.startswith("|")]
    return [(len(re.split(r"(?<!\\)\|", row)), sorted(re.findall(r"`([^`]+)`", row))) for row in rows]


def links(page: Path) -> list[str]:
    """Where the links of a page lead, a translation taken for its original; without those to the other language."""
    text = _FENCE.sub("", page.read_text())
    found = []
    for target in _LINK.findall(text):
        path, _, anchor = target.partition("#")
        if path and "://" not in path:
            resolved = Path(os.path.normpath(page.parent / path))
            path = str(PAGES.get(resolved, resolved).relative_to(ROOT))
        if path not in ("README.md", "README.zh-CN.md"):
            found.append(f"{path}#{anchor}")
    return sorted(found)


def figures(text: str) -> set[str]:
    """The numbers in the words of a page, without code and the numbers of a list. A million is a hundred times 万."""
    words = re.sub(r"\]\([^)]*\)|`[^`]*`| \{#.*\}$|^ *\d+\. |<!--.*-->", "", _FENCE.sub("", text), flags=re.M)
    words = re.sub(r"([\d.]+) million", lambda found: f"{100 * float(found[1]):g}", words)
    return {number.replace(",", "") for number in re.findall(r"\d+(?:[.,]\d+)*", words)}


def test_every_original_has_one_translation() -> None:
    assert all(original.exists() for original in PAGES.values())
    assert len(set(PAGES.values())) == len(PAGES)


@pytest.mark.parametrize("part", ["guides", "run"])
def test_every_guide_and_every_page_for_operators_is_translated(part: str) -> None:
    assert {*(DOCS / part).glob("*.md")} - {*PAGES.values()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_originals_are_those_that_were_translated(page: Path) -> None:
    assert translated_pages.behind(page) is None


@pytest.mark.parametrize(
    ("changed", "noticed"),
    [("A worker\ndies.", False), ("A worker dies.\n\n```sh\nps\n```", False), ("A gateway dies.", True)],
    ids=["wrapped", "code", "words"],
)
def test_a_changed_original_is_noticed_until_the_translation_has_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, noticed: bool
) -> None:
    monkeypatch.setattr(translated_pages, "ROOT", tmp_path)
    original, page = tmp_path / "page.md", tmp_path / "page.zh.md"
    original.write_text("A worker dies.")
    page.write_text("一个工作进程崩溃。\n\n<!-- translates: page.md new -->\n")
    assert translated_pages.behind(page) is not None
    translated_pages.catch_up(page)
    assert translated_pages.behind(page) is None
    original.write_text(changed)
    assert (translated_pages.behind(page) is not None) is noticed


def test_a_page_must_name_its_original(tmp_path: Path) -> None:
    (page := tmp_path / "page.md").write_text("一个工作进程崩溃。\n")
    with pytest.raises(ValueError, match=r"page\.md: the last line must be <!-- translates: PAGE new -->"):
        translated_pages.behind(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sections_code_tables_links_and_figures_are_the_same(page: Path) -> None:
    text, original = page.read_text(), PAGES[page].read_text()
    assert headings(text) == headings(original)
    assert code(text) == code(original)
    assert tables(text) == tables(original)
    assert links(page) == links(PAGES[page])
    assert figures(original) - figures(text) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_chinese_is_punctuated_as_chinese(page: Path) -> None:
    """Full-width marks after Chinese characters, and no space between two of them, but for a line's end."""
    for number, line in enumerate(_FENCE.sub("", page.read_text()).splitlines(), 1):
        if not line.startswith("    "):
            assert not re.search(r"[\u4e00-\u9fff][,;:?!(]|[\u4e00-\u9fff] [\u4e00-\u9fff]", line), (
                f"{page.name}:{number}: {line}"
            )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("asyncio.sleep(0.1)", "asyncio.sleep(0.2)"), code),
        (("## A live stream", "### A live stream"), headings),
        (("| `window` | 32 |", "| `window` | `64` |"), tables),
        (("also 32 MiB", "also 64 MiB"), figures),
    ],
)
def test_a_difference_is_noticed(change: tuple[str, str], what: object) -> None:
    text = (DOCS / "guides" / "python.md").read_text()
    assert change[0] in text
    assert callable(what)
    assert what(text) != what(text.replace(*change))


def test_the_command_line_is_translated() -> None:
    """If this fails: `make docs-update`, and translate what has no translation in the file that is named there."""
    assert translations.faults() == []


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("Port of PostgreSQL.", "not translated: 'Port of PostgreSQL.'"),
        ("Prices of tea in China, in shillings.", "not translated: 'Prices of tea in China, in shillings.'"),
    ],
    ids=["changed", "new"],
)
def test_a_changed_help_is_noticed(monkeypatch: pytest.MonkeyPatch, said: str, fault: str) -> None:
    for command in commands(program):
        for option in options(command):
            if option.help == "PostgreSQL port.":
                monkeypatch.setattr(option, "help", said)
    assert fault in translations.faults()
    assert "no longer said: 'PostgreSQL port.'" in translations.faults()


def test_translations_keep_blanks_flags_and_numbers() -> None:
    said = "Seconds of --lease (8 at {time}, %(prog)s, DB_HOST, ws://)"
    assert translations.kept("%(prog)s, DB_HOST：ws://，{time} --lease 8 秒") == translations.kept(said)
    for lost in ("--lease", "8", "{time}", "%(prog)s", "DB_HOST", "ws://"):
        assert translations.kept(said.replace(lost, "")) != translations.kept(said)


def test_lines_of_chinese_are_joined_when_the_site_is_built() -> None:
    page = "识别，\n（分段）\n  会话 API\n密钥\n\n- 网关\n- 进程\n\n```sh\n# 网\n# 关\n网\n关\n```\n| 一 |\n| 二 |\n"
    assert docs_hooks.joined(page) == page.replace("，\n（", "，（").replace("）\n  会", "）会")
