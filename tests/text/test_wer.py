"""wer.py: word errors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from asrserver.text.wer import spoken, word_errors


def test_word_errors() -> None:
    """With and without a limit; case and punctuation do not count."""

    def pairs() -> Iterator[tuple[str, str]]:
        texts = ["", "a", "a b", "b a", "a b c d e", "a x c d", "x y z", "b c d e f g h", "a b c d e f g h"]
        yield from itertools.product(texts, texts)

    for one, other in pairs():
        distance = word_errors(one, other)
        assert word_errors(other, one) == distance
        assert abs(len(one.split()) - len(other.split())) <= distance <= max(len(one.split()), len(other.split()))
        for limit in range(9):
            assert word_errors(one, other, limit) == min(distance, limit + 1)
    assert word_errors("turn on the light", "turn off the kitchen light") == 2
    assert spoken("It's 5 o'clock, “Alice” — 今天。") == ["it's", "5", "o'clock", "alice", "今", "天"]
