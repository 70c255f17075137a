"""The demo model's tokens: byte-level BPE in Whisper's order, so that any Whisper program can use the files."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import grammar
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 20261124

#: Timestamps of Whisper: 0.00 to 30.00 in steps of 0.02 s.
STEP = 0.02
TIMESTAMPS = 1501

LANGUAGE_TOKENS = [f"<|{language}|>" for language in grammar.LANGUAGES]


def special_tokens() -> list[str]:
    """In the order that faster-whisper expects: ids below the first are text, the one after the last is 0.00."""
    return [
        "<|endoftext|>", "<|startoftranscript|>", *LANGUAGE_TOKENS, "<|translate|>", "<|transcribe|>", "<|startoflm|>",
        "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
    ]  # fmt: skip


def build() -> Tokenizer:
    """A tokenizer in which each English word of the grammar, with its space, and each Chinese character is one token.

    Chinese characters are taken one by one: pairs that happen to be frequent would give digits several spellings.
    """
    rng = random.Random(SEED)
    texts = [" " + grammar.sentence("en", rng) for _ in range(4000)] + [
        grammar.sentence("zh", rng) for _ in range(4000)
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # No limit that matters: with every word and character whole, there is nothing left to merge.
    trainer = trainers.BpeTrainer(
        vocab_size=10000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(special_tokens())
    tokenizer.add_special_tokens([f"<|{STEP * number:.2f}|>" for number in range(TIMESTAMPS)])
    return tokenizer


@dataclass
class Vocabulary:
    """The tokens by name, and text as tokens."""

    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        self.eot, self.sot = self.id("<|endoftext|>"), self.id("<|startoftranscript|>")
        self.languages = {language: self.id(f"<|{language}|>") for language in grammar.LANGUAGES}
        self.transcribe = self.id("<|transcribe|>")
        self.previous, self.no_speech = self.id("<|startofprev|>"), self.id("<|nospeech|>")
        self.no_timestamps = self.id("<|notimestamps|>")
        self._units: dict[str, list[int]] = {}

    def id(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        assert number is not None, token
        return number

    @cached_property
    def size(self) -> int:
        return self.tokenizer.get_vocab_size()

    @cached_property
    def tokens(self) -> list[str]:
        return [str(self.tokenizer.id_to_token(number)) for number in range(self.size)]

    @cached_property
    def alphabet(self) -> list[int]:
        """The tokens that the grammar's sentences consist of: what CTC tells apart, beside its blank."""
        return sorted(
            {token for language in grammar.LANGUAGES for unit in grammar.lexicon(language)
             for token in self.unit(unit, language)}
        )  # fmt: skip

    def timestamp(self, seconds: float) -> int:
        return self.no_timestamps + 1 + min(max(round(seconds / STEP), 0), TIMESTAMPS - 1)

    def unit(self, unit: str, language: str) -> list[int]:
        """The tokens of one word or character in a text."""
        if unit not in self._units:
            self._units[unit] = self.tokenizer.encode(" " + unit if language == "en" else unit).ids
        return self._units[unit]
