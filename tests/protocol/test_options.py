"""options.py: valid session options, and the errors for others."""

from __future__ import annotations

from typing import Any

import pytest

from asrserver.errors import BadRequest
from asrserver.protocol.options import Normalise, Options, valid_id


def test_options_have_defaults_and_ignore_what_they_do_not_know() -> None:
    assert Options.parse({"action": "start", "future": 1, "language": None}) == Options()
    assert Options.parse({"language": "en", "sample_rate": 8000}) == Options(language="en", sample_rate=8000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "other"),
        ("mode", ["auto"]),
        ("format", "mp3"),
        ("format", "file"),
        ("format", "opus"),
        ("task", 1),
        ("sample_rate", 7999),
        ("sample_rate", 48001),
        ("sample_rate", 16000.0),
        ("sample_rate", True),
        ("channels", 3),
        ("prompt", "x" * 1001),
        ("prompt", "a\x00b"),
        ("hotwords", ["a"]),
        ("language", "klingon"),
        ("language", "x"),
        ("language", 5),
        ("partials", "yes"),
        ("partials", 1),
        ("word_timestamps", "false"),
        ("partial_interval", 0.05),
        ("partial_interval", 11),
        ("partial_interval", True),
        ("partial_interval", "0.5"),
        ("silence", 0.05),
        ("silence", 5.1),
        ("silence", [1]),
    ],
)
def test_a_bad_option_is_named(name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=name) as caught:
        Options.parse({name: value})
    assert (caught.value.code, caught.value.details["option"]) == ("bad_option", name)


#: What could break a line of a log, or show it as another.
INVISIBLE = "\x00\x1f\x7f\x80\x85\x9f\xa0\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\u3000"


@pytest.mark.parametrize(
    "value", ["", "a b", "a{b}", "a\nb", "x" * 129, 5, None, ["a"], *(f"a{sign}b" for sign in INVISIBLE)]
)
def test_a_bad_id_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest, match="session_id"):
        valid_id(value, "session_id")


@pytest.mark.parametrize(
    "value", ["a", "x" * 128, "über/was:auch-immer", "会议-1", "नमस्ते", "4be0643f-1d98-573b-97cd-ca98a65347dd"]
)
def test_a_good_id_is_taken(value: str) -> None:
    assert valid_id(value, "session_id") == value


def test_a_file_is_a_stream() -> None:
    options = Options.parse({"format": "file", "mode": "stream"})
    assert options.joinable
    assert options.bytes_per_second == 32000


def test_the_times_and_sizes_of_headerless_audio() -> None:
    assert Options(sample_rate=8000, channels=2).bytes_per_second == 32000
    assert Options(format="pcm_f32le").bytes_per_second == 64000


@pytest.mark.parametrize("given", [{"script": "hans", "numerals": "digits"}, "script=hans, numerals=digits"])
def test_forms_are_an_object_or_a_text(given: Any) -> None:
    assert Options.parse({"normalise": given, "language": "zh"}).normalise == Normalise("hans", "digits")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"normalise": "script=latin"}, "can have as script only hans, hant, any"),
        ({"normalise": {"numerals": ["digits"]}}, "can have as numerals only digits, words, any"),
        ({"normalise": "digits"}, "has no 'digits', only script and numerals"),
        ({"normalise": ["hans"]}, "must be an object, or a text such as script=hans,numerals=digits"),
        ({"normalise": "script=hans", "language": "ja"}, "cannot write ja with script=hans, only yue, zh"),
        ({"normalise": "numerals=words", "language": "ko"}, "cannot write ko with numerals=words, only da, de, en,"),
        ({"normalise": "script=hans", "language": "zh", "task": "translate"}, "cannot write en with script=hans"),
    ],
)
def test_forms_that_cannot_be_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match="normalise") as caught:
        Options.parse(given)
    assert message in caught.value.message
    assert (caught.value.code, caught.value.details["option"]) == ("bad_option", "normalise")


def test_the_setting_counts_for_forms_that_a_session_does_not_say() -> None:
    setting = Normalise.parse("script=hant,numerals=digits")
    assert Normalise(numerals="any").or_else(setting) == Normalise("hant", "any")
    assert Options.parse({"language": "ja", "normalise": "script=any"}).normalise.or_else(setting).script == "any"
