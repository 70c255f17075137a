"""Recognition by faster-whisper's own `transcribe`, with the same model: what a user would have without this server."""

from __future__ import annotations

import asyncio
from typing import Any

from asrserver.models import find_model
from evaluation.corpus import Take
from evaluation.recognition import Recognition


class Offline:
    """faster-whisper with its defaults, but for the beam."""

    def __init__(self, model: str, compute_type: str, threads: int, beam: int, language_given: bool) -> None:
        """Load the model.

        Args:
            model: See `asrserver.models.find_model`.
            compute_type: CTranslate2's.
            threads: CPU threads; 0: CTranslate2 decides.
            beam: Beam size.
            language_given: Whether it is told the language of each recording.
        """
        from faster_whisper import WhisperModel

        self._model: Any = WhisperModel(
            str(find_model(model).path), device="cpu", compute_type=compute_type, cpu_threads=threads
        )
        self._beam = beam
        self._language_given = language_given

    async def plain(self, take: Take) -> Recognition:
        """Recognise all of a recording."""
        return await asyncio.to_thread(self._transcribe, take, False)

    async def with_vad(self, take: Take) -> Recognition:
        """Recognise the speech that faster-whisper's voice activity detection finds."""
        return await asyncio.to_thread(self._transcribe, take, True)

    def _transcribe(self, take: Take, vad: bool) -> Recognition:
        language = take.language or None if self._language_given else None
        found, info = self._model.transcribe(take.samples, language=language, beam_size=self._beam, vad_filter=vad)
        texts = [segment.text.strip() for segment in found]
        return Recognition(" ".join(texts), [info.language] if texts else [])
