"""The ranges of scripts: one definition in Python, and a copy in schema.sql."""

from __future__ import annotations

import re
from pathlib import Path

from asrserver.storage.search import _PUNCTUATION
from asrserver.text.unicode_ranges import HANGUL, SEARCHED_BY_SIGN, UNSPACED
from asrserver.text.wer import spoken
from asrserver.text.words import words

SCHEMA = Path(__file__).parents[2] / "schema.sql"


def characters(ranges: str) -> set[str]:
    found = re.compile(f"[{ranges}]")
    return {character for character in map(chr, range(0x110000)) if found.match(character)}


def inside(quoted: str) -> str:
    """The content of a character class in SQL, which is written as one literal or several."""
    ranges = "".join(re.findall(r"'([^']*)'", quoted))
    assert ranges[0] == "["
    assert ranges[-1] == "]"
    return ranges[1:-1].encode().decode("unicode_escape")


def test_postgresql_searches_by_the_same_signs() -> None:
    """The query and asr_words() treat the same characters as signs."""
    (function,) = re.findall(r"FUNCTION asr_words\(text\).*?\$\$(.*?)\$\$;", SCHEMA.read_text(), re.DOTALL)
    (quoted,) = re.findall(r"SELECT t, ('\[.*?\]') AS sign", function, re.DOTALL)
    assert characters(inside(quoted)) == characters(SEARCHED_BY_SIGN)


def test_postgresql_leaves_out_the_same_punctuation() -> None:
    (quoted,) = re.findall(r"regexp_replace\(left\(\$1, \d+\), ('\[.*?\]')", SCHEMA.read_text())
    assert characters(inside(quoted)) == characters(_PUNCTUATION.pattern[1:-1])


def test_the_ranges_share_nothing() -> None:
    assert not characters(UNSPACED) & characters(HANGUL)


def test_word_errors_and_words_agree_on_what_is_a_sign() -> None:
    text = "เนื้อ 天気 한국어 ｶﾅ Привет"
    assert spoken(text)[-6:] == ["天", "気", "한국어", "ｶ", "ﾅ", "привет"]
    assert words(text, "ja")[-6:] == ["天", "気", "한국어", "ｶ", "ﾅ", "Привет"]
