"""text/normalise.py: script and numerals, the words that they replace, and what no continuation changes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from num2words2 import num2words
from opencc import OpenCC

from asrserver.text import numerals, script
from asrserver.text.edits import TextEdit, TextEdits, align
from asrserver.text.normalise import Normaliser
from asrserver.text.words import glue, words

DIGITS, WORDS = Normaliser(numerals="digits"), Normaliser(numerals="words")


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("one of the twenty-five people", "one of the 25 people"),
        ("it is one hundred and twenty three point five, two hundred", "it is 123.5, 200"),
        ("a hundred people and a hundred and five", "a hundred people and 105"),
        ("in nineteen ninety-nine and in twenty twenty six", "in 1999 and in 2026"),
        ("2.5 million and 25 thousand", "2.5 million and 25 thousand"),
        ("the twenty first century, the second, a point", "the 21st century, the second, a point"),
        ("one two three", "1 2 3"),
        ("", ""),
    ],
)
def test_english_digits(said: str, written: str) -> None:
    assert DIGITS.text(said, "en") == written


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("我在三明治店等了二十五分钟", "我在三明治店等了25分钟"),
        ("十分感谢，万一，千万不要，三三两两，一些，十五六个", "十分感谢，万一，千万不要，三三两两，一些，十五六个"),
        ("二零二四年，三点一四，百分之五，第二十五", "2024年，3.14，5%，第25"),
        ("三分之二，二十分之三，三五个", "三分之二，二十分之三，三五个"),
        ("十二点三十分，三点一刻", "12点30分，三点一刻"),
        ("一万五，二百五，二百零五，一亿两千万", "15000，250，205，120000000"),
        ("兩萬億，幺三八零零", "2000000000000，13800"),
    ],
)
def test_mandarin_digits(said: str, written: str) -> None:
    assert DIGITS.text(said, "zh") == written


def test_mandarin_digits_are_the_reverse_of_the_words() -> None:
    random.seed(1)
    sample = [*range(11, 3000), *(random.randrange(101, 10 ** random.randrange(4, 13)) for _ in range(3000))]
    for number in sample:
        assert DIGITS.text(f"共{num2words(number, lang='zh')}人", "zh") == f"共{number}人"


@pytest.mark.parametrize(
    ("said", "written"),
    [
        (
            "I have 25 (or 1,250.5) at 10:30",
            "I have twenty-five (or one thousand two hundred and fifty point five) at 10:30",
        ),
        ("$5, 12%, the 1st, B2B, 007.", "$5, twelve percent, the first, B2B, zero zero seven."),
        ("1234567890123456789", "1234567890123456789"),
        ("10,50", "10,50"),
    ],
)
def test_english_words(said: str, written: str) -> None:
    assert WORDS.text(said, "en") == written


def test_mandarin_words() -> None:
    said = "25个苹果，2024年，12%，3.14。iPhone 15和MP3，10:30，007"
    assert WORDS.text(said, "zh") == "二十五个苹果，二零二四年，百分之十二，三点一四。iPhone 十五和MP3，10:30，零零七"


@pytest.mark.parametrize("language", [code for code in numerals.LANGUAGES if code not in ("yue", "zh")])
def test_other_languages_have_both_directions(language: str) -> None:
    said = WORDS.text("25 126", language)
    assert not any(sign.isdigit() for sign in said)
    assert DIGITS.text(said, language) == "25 126"


def test_what_a_language_has_not_stays() -> None:
    assert Normaliser("hans", "digits").text("twenty 國", "ko") == "twenty 國"
    assert Normaliser("hans").text("國", "en") == "國"


# -- script ----------------------------------------------------------------------------------------------------------

PHRASES = {name: sorted(script.load(name).replacements) for name in script.SCRIPTS}


@pytest.mark.parametrize(("name", "config"), [("hant", "s2t"), ("hans", "t2s")])
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_scripts_are_as_opencc_writes_them(name: str, config: str, data: st.DataObject) -> None:
    parts = data.draw(
        st.lists(st.sampled_from(PHRASES[name]) | st.sampled_from(["，", "a ", "25", "😀", "国"]), max_size=6)
    )
    text = "".join(parts)
    assert Normaliser(name).text(text, "zh") == _opencc(config).convert(text)


_converters: dict[str, OpenCC] = {}


def _opencc(config: str) -> OpenCC:
    return _converters.setdefault(config, OpenCC(config))


def test_a_phrase_decides() -> None:
    assert Normaliser("hant").text("皇后后来说头发发了", "zh") == "皇后後來說頭髮發了"
    assert Normaliser("hant").beginning("皇后后来说头", "zh") == "皇后後來說"


# -- stable ----------------------------------------------------------------------------------------------------------

ENGLISH = [
    *[
        "a",
        "and",
        "point",
        "one",
        "two",
        "three",
        "five",
        "nineteen",
        "twenty",
        "twenty-five",
        "ninety",
        "first",
        "hundred",
    ],
    *[
        "thousand",
        "million",
        "five,",
        "hundred.",
        "the",
        "apples",
        "25",
        "2.5",
        "30%",
        "oh",
        "A",
        "Twenty",
        "well-",
        "1st",
    ],
]
SIGNS = [
    *"零一二三五十百千万亿点两幺第年刻个后發发头皇里面国國，。%分之",
    *["25", "2024", "3", ".", "iPhone", "百分之"],
]


def check_prefixes(normaliser: Normaliser, items: list[str], language: str) -> None:
    whole = normaliser.text(glue(items, language), language)
    before = ""
    for length in range(len(items) + 1):
        for marks in ("", ".?!,;:。？！，；：、"):
            stable = glue(items[:length], language).rstrip(marks) if marks else glue(items[:length], language)
            shown = normaliser.beginning(stable, language)
            assert whole.startswith(shown), (stable, shown, whole)
        assert normaliser.beginning(glue(items[:length], language), language).startswith(before)
        before = shown


@pytest.mark.parametrize("form", ["digits", "words"])
@given(items=st.lists(st.sampled_from(ENGLISH), max_size=12))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_stable_english_text_stays_a_prefix(form: str, items: list[str]) -> None:
    check_prefixes(Normaliser(numerals=form), items, "en")


@pytest.mark.parametrize("form", ["digits", "words", None])
@pytest.mark.parametrize("to", ["hans", "hant", None])
@given(items=st.lists(st.sampled_from(SIGNS), max_size=14))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_a_stable_mandarin_text_stays_a_prefix(form: str | None, to: str | None, items: list[str]) -> None:
    check_prefixes(Normaliser(to, form), words("".join(items), "zh"), "zh")


@given(items=st.lists(st.sampled_from(PHRASES["hant"]), max_size=4))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_stable_phrases_stay_a_prefix(items: list[str]) -> None:
    check_prefixes(Normaliser("hant"), list("".join(items)), "zh")


@pytest.mark.parametrize("language", ["de", "fr", "es"])
@given(data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_other_stable_texts_stay_a_prefix(language: str, data: st.DataObject) -> None:
    numbers = [WORDS.text(str(number), language) for number in (1, 2, 5, 21, 80, 99, 100, 1000, 10**6)]
    pieces = [*" ".join(numbers).replace("-", " ").split(), *numerals._SPACED[language].inside, "x", "y,"]
    check_prefixes(DIGITS, data.draw(st.lists(st.sampled_from(pieces), max_size=10)), language)


# -- words -----------------------------------------------------------------------------------------------------------


def test_words_that_become_one_and_one_that_becomes_several() -> None:
    items = ["I", "have", "twenty", "five,", "or", "a", "hundred", "and", "five."]
    found = align(items, "en", numerals.edits(" ".join(items), "digits", "en").edits)
    assert [(one.first, one.last, one.texts) for one in found] == [
        (0, 1, ["I"]), (1, 2, ["have"]), (2, 4, ["25,"]), (4, 5, ["or"]), (5, 9, ["105."]),
    ]  # fmt: skip
    found = align(["It's", "125."], "en", numerals.edits("It's 125.", "words", "en").edits)
    assert found[1:] == [(1, 2, ["one", "hundred", "and", "twenty-five."])]
    items = ["共", "二", "十", "五", "人。"]
    assert align(items, "zh", numerals.edits("共二十五人。", "digits", "zh").edits)[1] == (1, 4, ["25"])


@given(items=st.lists(st.sampled_from(ENGLISH), max_size=12), form=st.sampled_from(numerals.NUMERALS))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_words_make_the_same_text(items: list[str], form: str) -> None:
    text = " ".join(items)
    found = align(items, "en", numerals.edits(text, form, "en").edits)
    assert " ".join(new for one in found for new in one.texts) == Normaliser(numerals=form).text(" ".join(items), "en")
    assert [one.first for one in found] == [0, *(one.last for one in found[:-1])][: len(found)]


def test_an_edit_inside_a_word_leaves_its_mark() -> None:
    assert align(["后，", "来"], "zh", [TextEdit(0, 1, "後"), TextEdit(2, 3, "來")]) == [
        (0, 1, ["後，"]),
        (1, 2, ["來"]),
    ]
    assert TextEdits([TextEdit(0, 1, "後")], 0).apply_settled("后来") == ""
