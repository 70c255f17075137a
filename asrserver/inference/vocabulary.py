"""A Whisper model's vocabulary: the tokens of texts and prompts, and special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from asrserver.errors import ModelError
from asrserver.inference.alignment import STEP_SECONDS
from asrserver.inference.decoding import Request
from asrserver.inference.languages import language_tokens

#: Most tokens of prompt and hot words: half of the decoder's context less the start tokens.
MAX_PROMPT_TOKENS = 223

#: Prompts and lists of hot words whose tokens are cached.
PROMPT_CACHE_SIZE = 1024


class Vocabulary:
    """The tokens of one model.

    Attributes:
        sot: The start token.
        eot: The end token. Those before it are text.
        no_timestamps: The token for "no timestamps". The tokens after it are timestamps, from 0.00 s on.
        languages: Language code → token.
        no_languages: All tokens that stand for no language.
    """

    def __init__(self, tokenizer: Any, config: dict[str, Any], name: str) -> None:
        """Look up the special tokens.

        Args:
            tokenizer: The model's, of the library tokenizers.
            config: Its config.json.
            name: Its name, for errors.

        Raises:
            ModelError: It is no Whisper's.
        """
        self._tokenizer = tokenizer
        self._name = name
        self.sot = self._token("<|startoftranscript|>")
        self.eot = self._token("<|endoftext|>")
        self._previous = self._token("<|startofprev|>")
        self.no_timestamps = self._token("<|notimestamps|>")
        self.languages = language_tokens(tokenizer, config)
        languages = set(self.languages.values())
        self.no_languages = [token for token in range(tokenizer.get_vocab_size()) if token not in languages]
        # A prompt is needed twice per window, the first time to see which rows may share a call, and a session's prompt
        # never changes.
        self._encode_prompt = lru_cache(maxsize=PROMPT_CACHE_SIZE)(self.encode)
        self.start = lru_cache(maxsize=PROMPT_CACHE_SIZE)(self._start)

    def _token(self, text: str) -> int:
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise ModelError(f"model {self._name!r} is not a Whisper model: its tokenizer has no {text}")
        return int(number)

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that begins with a word."""
        return tuple(self._tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids) if text else ()

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return str(self._tokenizer.decode(tokens))

    def _start(self, language: str, task: str) -> list[int]:
        """The start token, then those of language and task if the model has them."""
        number = self.languages.get(language, -1)
        return [self.sot, number, self._token(f"<|{task}|>")] if number >= 0 else [self.sot]

    def prompt(self, request: Request, language: str) -> list[int]:
        """The tokens before the text: previous text or hot words and prompt, then the start tokens.

        Only rows with equally long prompts may share a call.

        Raises:
            ModelError: The model does not know the task.
        """
        before: tuple[int, ...] = ()
        if request.hotwords or request.prompt:
            before = self._encode_prompt(request.hotwords) + self._encode_prompt(request.prompt)
        if request.previous:
            before += self.encode(request.previous)
        tokens = [self._previous, *before[-MAX_PROMPT_TOKENS:]] if before else []
        mode = [] if request.timestamps else [self.no_timestamps]
        return [*tokens, *self.start(language, request.task), *mode, *self.encode(request.prefix)]

    # -- timestamps ----------------------------------------------------------------------------------------------

    def ended(self, generated: Sequence[int]) -> float | None:
        """Seconds of the window at which the text ends, by the decoding's last timestamp; None without one."""
        if not generated or generated[-1] <= self.no_timestamps:
            return None
        return (generated[-1] - self.no_timestamps - 1) * STEP_SECONDS

    def finished(self, generated: Sequence[int]) -> tuple[int, float] | None:
        """The finished part of a decoding whose window ends in the middle of speech.

        A decoder with timestamps writes one at the end of each phrase, and one at the beginning of the next. What it
        has begun when the window ends has no end: Whisper's own loop leaves it to the next window, which begins at the
        last end (Radford et al. 2022, §4.5).

        Returns:
            (tokens of it, seconds of the window that they are the text of); None if the decoder wrote no end.
        """
        first, after = self.no_timestamps + 1, [*generated[1:], self.no_timestamps + 1]
        ends = [
            number
            for number, (said, token, following) in enumerate(zip(generated, generated[1:], after[1:], strict=False), 2)
            if said < first <= min(token, following)
        ]
        if not ends:
            return None
        return ends[-1], (generated[ends[-1] - 1] - first) * STEP_SECONDS
