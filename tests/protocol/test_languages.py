"""languages.py: one language in all its names, and what is none."""

from __future__ import annotations

import pytest
from faster_whisper.tokenizer import _LANGUAGE_CODES

from asrserver.errors import BadRequest
from asrserver.protocol import languages
from asrserver.protocol.options import Options


@pytest.mark.parametrize(
    ("given", "code"),
    [
        *((name, "en") for name in ("en", "EN", " en ", "en-US", "en_GB", "English", "ENGLISH", "eng")),
        *((name, "zh") for name in ("zh", "zh-CN", "zh-Hant-TW", "cmn-Hans-CN", "Chinese", "mandarin")),
        *((name, None) for name in (None, "", " ", "auto", "AUTO", "multi", "und")),
        ("haitian creole", "ht"),
        ("jv", "jw"),
        ("yue", "yue"),
        ("pt-BR", "pt"),
    ],
)
def test_a_language_has_many_names(given: str | None, code: str | None) -> None:
    assert languages.parse(given) == code
    assert Options.parse({"language": given}).language == code


@pytest.mark.parametrize("given", ["klingon", "tlh", "e", "en,de", "123", "-US", "xx-EN", "\x00", "x" * 10_000])
def test_what_is_none_is_named_in_the_error(given: str) -> None:
    with pytest.raises(BadRequest, match="language") as caught:
        languages.parse(given)
    assert caught.value.details == {"option": "language"}
    assert len(caught.value.message) < 200


def test_all_languages_of_whisper_are_known() -> None:
    """And each by its English name too."""
    assert languages.NAMES.keys() == set(_LANGUAGE_CODES)
    for code, name in languages.NAMES.items():
        assert languages.parse(code) == languages.parse(name) == languages.parse(name.title()) == code
        assert languages.name_of(code) == name
    assert languages.name_of(None) == ""
