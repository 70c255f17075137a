"""The languages that a Whisper model knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import tokenizers

from asrserver.errors import ModelError

#: Id of the start token of OpenAI's English-only models; in the multilingual ones it is one higher.
ENGLISH_ONLY_START = 50257


def languages_of(path: Path) -> list[str]:
    """Codes of the languages that the model in a directory knows, sorted, without loading it.

    Raises:
        ModelError: Its files cannot be read.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        return sorted(language_tokens(tokenizer, orjson.loads((path / "config.json").read_bytes())))
    except Exception as exc:  # tokenizers raises bare Exception
        raise ModelError(f"{path} is not a Whisper model: {str(exc).strip().splitlines()[0]}") from exc


def language_tokens(tokenizer: Any, config: dict[str, Any]) -> dict[str, int]:
    """Language code → token. OpenAI's English-only models have these tokens too, but were not trained with them."""
    numbers = config.get("lang_ids") or []
    if tokenizer.token_to_id("<|startoftranscript|>") == ENGLISH_ONLY_START:
        return {"en": -1}
    return {str(tokenizer.id_to_token(number)).strip("<|>"): number for number in numbers} or {"en": -1}
