"""The demo model's language: the sentences of grammar.json, and those that training must never see."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

LANGUAGES = ("en", "zh")
_RULES = json.loads((Path(__file__).parent / "grammar.json").read_text())
GRAMMAR = {language: _RULES[language] for language in LANGUAGES}

#: One sentence in so many is kept for evaluation, by a hash of its text.
HELD_OUT = 8

Draw = Callable[[str, random.Random], str]

#: Most digits of a {digits} slot.
MAX_DIGITS = 10


def sentence(language: str, rng: random.Random) -> str:
    """A sentence of the language, drawn as the grammar says: a template, each slot filled from its list."""
    return _filled(language, rng, rng.choice(GRAMMAR[language]["templates"]), GRAMMAR[language]["slots"])


def scrambled(language: str, rng: random.Random) -> str:
    """Words of the language that are no sentence: a template with slots filled from any list, or words in any order.

    Who only ever hears the grammar learns which sentences there are and does not listen: “play the green song”, kept
    from training, was written “play the blue song”, which was not.
    """
    rules = GRAMMAR[language]
    values = [value for values in rules["slots"].values() for value in values]
    if rng.random() < 0.5:
        return _filled(language, rng, rng.choice(rules["templates"]), dict.fromkeys(rules["slots"], values))
    parts = [part.strip() for template in rules["templates"] for part in re.split(r"\{\w+\}", template)]
    pieces = [word for part in parts for word in (part.split() if language == "en" else [part]) if word]
    return join(rng.choices(values + pieces, k=rng.randint(1, 8)), language)


def dictated(language: str, rng: random.Random) -> str:
    """Digits in a row, one in three said again at once: nothing tells what comes next, so a decoder loses its place."""
    digits = GRAMMAR[language]["slots"]["digit"]
    said = [rng.choice(digits)]
    for _ in range(rng.randint(1, MAX_DIGITS - 1)):
        said.append(said[-1] if rng.random() < 1 / 3 else rng.choice(digits))
    return join(said, language)


def _filled(language: str, rng: random.Random, template: str, slots: dict[str, list[str]]) -> str:
    def fill(slot: re.Match[str]) -> str:
        if slot[1] == "digits":
            return join(rng.choices(slots["digit"], k=rng.randint(1, MAX_DIGITS)), language)
        return rng.choice(slots[slot[1]])

    return re.sub(r"\{(\w+)\}", fill, template)


def fixed(language: str) -> list[str]:
    """The sentences without a slot: there is only one of each, so training must have them and evaluation cannot."""
    return [template for template in GRAMMAR[language]["templates"] if "{" not in template]


def held_out(text: str) -> bool:
    """Whether the sentence is the evaluation's alone. Fixed sentences and single digits never are."""
    if text in fixed("en") + fixed("zh") or text in GRAMMAR["en"]["slots"]["digit"] + GRAMMAR["zh"]["slots"]["digit"]:
        return False
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % HELD_OUT == 0


def draw(language: str, rng: random.Random, evaluation: bool, by: Draw = sentence) -> str:
    """A sentence of the training's or of the evaluation's share."""
    while held_out(text := by(language, rng)) != evaluation:
        pass
    return text


def units(text: str, language: str) -> list[str]:
    """The units in which errors are counted: words in English, characters in Mandarin."""
    return text.split() if language == "en" else list(text.replace(" ", ""))


def lexicon(language: str) -> set[str]:
    """Every word (English) or character (Mandarin) that the sentences consist of."""
    rules = GRAMMAR[language]
    texts = [value for values in rules["slots"].values() for value in values]
    texts += [part for template in rules["templates"] for part in re.split(r"\{\w+\}", template)]
    return {unit for text in texts for unit in units(text, language)}


def join(texts: list[str], language: str) -> str:
    return str(GRAMMAR[language]["join"].join(texts))
