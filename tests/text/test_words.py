"""words.py: how texts of several languages are joined."""

from __future__ import annotations

import pytest

from asrserver.text.words import join


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([("Hello.", "en"), ("", "en"), ("How are you?", "en")], "Hello. How are you?"),
        ([("今天下雨。", "zh"), ("明天呢？", "zh")], "今天下雨。明天呢？"),
        ([("Hello.", "en"), ("今天下雨。", "zh")], "Hello.今天下雨。"),
        ([("今天下雨。", "zh"), ("Hello.", "en")], "今天下雨。 Hello."),
        ([("Open the window.", "en"), ("Then listen.", "zh")], "Open the window. Then listen."),
        ([("我的", "zh"), ("iPhone", "zh"), ("坏了", "zh")], "我的iPhone坏了"),
        ([("一部iPhone", "zh"), ("15", "zh")], "一部iPhone 15"),
    ],
)
def test_texts_are_joined_as_their_languages_are_written(parts: list[tuple[str, str]], text: str) -> None:
    assert join(parts) == text
