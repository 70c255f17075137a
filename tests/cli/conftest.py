"""Recordings as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recordings import Utterance


@pytest.fixture
def files(tmp_path: Path, utterances: list[Utterance]) -> list[Path]:
    """Three recordings as WAV files."""
    paths = []
    for utterance in utterances[:3]:
        paths.append(tmp_path / f"{Path(utterance.name).stem}.wav")
        paths[-1].write_bytes(utterance.wav)
    return paths
