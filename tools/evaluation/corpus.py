"""A corpus: recordings of speech, and of noise in which nobody speaks, with what is said in them.

A corpus is a directory with audio files and a `manifest.json`: a list of objects with

    file         name of the audio file, in any container that the server takes
    transcript   what is said; empty if that is not known, or if nobody speaks
    language     code of the language, such as en; empty or with a question mark if it is not certain: not judged then
    condition    "none" if nobody speaks; any other name groups recordings
    source       optional: "unchecked" in it says that the transcript is another recogniser's, good for comparison only
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from live import UTTERANCES, Recording, Utterance

from asrserver.audio import SAMPLE_RATE, files, sniff
from asrserver.audio.pcm import Samples

#: Longest recording that is read, in seconds.
MAX_SECONDS = 3600.0

#: Loudness, as a share of the recording's peak, from which a sample counts as sound.
LOUD = 0.02


class CorpusError(Exception):
    """A corpus that cannot be used; the message names the file and what is wrong with it."""


@dataclass
class Take(Recording):
    """A recording of a corpus, in one condition.

    Attributes:
        name: Its file, or how it was made.
        language: Code of the language; empty if that is not known.
        speech: Whether anybody speaks in it.
        checked: Whether a human wrote or checked its transcript.
    """

    name: str = ""
    language: str = ""
    speech: bool = True
    checked: bool = True


def load_corpus(directory: Path, pattern: str = "*", limit: int | None = None) -> list[Take]:
    """Read a corpus, in the order of its manifest.

    Args:
        directory: The corpus.
        pattern: Of the recordings of speech, only those whose file names match it.
        limit: And only the first `limit` of those.

    Raises:
        CorpusError: The manifest or a recording cannot be read, or there is no such recording of speech.
    """
    found: list[Take] = []
    spoken = 0
    for entry in _manifest(directory):
        speech = entry.get("condition") != "none"
        if speech and (not fnmatch.fnmatch(entry["file"], pattern) or spoken == limit):
            continue
        spoken += speech
        language = str(entry.get("language") or "")
        try:
            samples = _decode((directory / entry["file"]).read_bytes())
        except Exception as exc:  # files, decoders: each has its own
            raise CorpusError(f"{directory / entry['file']}: {exc}") from exc
        found.append(
            make_take(
                entry["file"],
                samples,
                str(entry.get("transcript") or ""),
                language="" if "?" in language else language,
                speech=speech,
                checked="unchecked" not in str(entry.get("source", "")),
            )
        )
    if not spoken:
        raise CorpusError(f"{directory}: no recording of speech matches {pattern!r}")
    return found


def load_utterances(pattern: str = "*", limit: int | None = None) -> list[Take]:
    """The synthesised test utterances of the packaged model, as a corpus."""
    transcripts = json.loads((UTTERANCES / "transcripts.json").read_text())
    names = fnmatch.filter(transcripts, pattern)[:limit]
    return [
        make_take(name, _decode((UTTERANCES / name).read_bytes()), transcripts[name], language="en") for name in names
    ]


def make_take(
    name: str, samples: Samples, text: str, *, language: str = "", speech: bool = True, checked: bool = True
) -> Take:
    """A take with one utterance from its first loud sample to its last, or with none if no text is known."""
    said = [Utterance(text, *loud_span(samples))] if text else []
    return Take(samples, said, name, language, speech, checked)


def loud_span(samples: Samples) -> tuple[float, float]:
    """Seconds of the first and the last loud sample."""
    loud = np.flatnonzero(np.abs(samples) > LOUD * np.abs(samples).max(initial=0.0))
    return (float(loud[0]) / SAMPLE_RATE, float(loud[-1]) / SAMPLE_RATE) if len(loud) else (0.0, 0.0)


def spoken_language(takes: Sequence[Take]) -> str:
    """The language that most of the takes are in."""
    languages = [take.language for take in takes if take.said]
    return max(set(languages), key=languages.count) if languages else ""


def _manifest(directory: Path) -> list[dict[str, str]]:
    path = directory / "manifest.json"
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise CorpusError(f"{path}: {exc}") from exc
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "file" in entry for entry in entries):
        raise CorpusError(f"{path}: must be a list of objects with a `file` each")
    return entries


def _decode(data: bytes) -> Samples:
    kind = sniff.container(data, first=True)
    if kind is None:
        raise CorpusError("is in no audio container")
    return files.decode(data, kind, MAX_SECONDS)
