"""Tokens to words: where a word begins, and to which word a mark belongs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from asrserver.inference.alignment import split_words
from asrserver.text.words import bare, glue

#: Pieces as Whisper's tokens have them → the words.
SPLIT = {
    "spanish questions": (
        "es",
        ["¿", "Cuál", " es", " la", " luna", "?", " ¿", "Cuál", " es", "?"],
        ["¿Cuál", "es", "la", "luna?", "¿Cuál", "es?"],
    ),
    "spanish exclamation": ("es", [" Hola", ".", " ¡", "V", "amos", "!"], ["Hola.", "¡Vamos!"]),
    "a quotation": (
        "en",
        [" He", " said", ",", ' "', "Hello", " there", '."', " Then"],
        ["He", "said,", '"Hello', 'there."', "Then"],
    ),
    "brackets": ("en", [" one", " (", "two", ")", " three"], ["one", "(two)", "three"]),
    "a dash that stands alone": ("en", [" well", " –", " no"], ["well –", "no"]),
    "and at the beginning": ("en", [" -", " Well", ",", " no"], ["- Well,", "no"]),
    "an ampersand": ("en", [" R", " &", " D"], ["R &", "D"]),
    "an apostrophe": ("en", [" I", "'", "m", " here"], ["I'm", "here"]),
    "a space that is a token": ("en", [" the", " ", "10", " of"], ["the", "10", "of"]),
    "only a mark": ("en", ["..."], ["..."]),
    "mandarin": ("zh", ["你", "好", "，", "世", "界", "。"], ["你", "好，", "世", "界。"]),
    "a quotation in mandarin": ("zh", ["他", "说", "「", "你", "好", "」", "了"], ["他", "说", "「你", "好」", "了"]),
}


def joined(pieces: Sequence[str]) -> str:
    return "".join(pieces)


@pytest.mark.parametrize("name", SPLIT)
def test_words_make_the_text_again_and_marks_stay_where_they_are_written(name: str) -> None:
    language, pieces, expected = SPLIT[name]

    found = split_words(range(len(pieces)), lambda tokens: joined([pieces[token] for token in tokens]), language)

    assert [word for word, _ in found] == expected
    assert sum(count for _, count in found) == len(pieces)
    assert " ".join(glue(expected, language).split()) == " ".join(joined(pieces).split())


def test_a_word_with_a_lone_mark_is_compared_as_the_word() -> None:
    assert bare("well –") == "well"
    assert bare("- Well,") == "Well"
    assert bare("–") == "–"
