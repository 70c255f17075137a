"""How far the server may stand behind faster-whisper offline, with the same model and in the same run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from evaluation.scoring import Score

#: Points of word errors in per cent, in each condition.
POINTS = 0.5

#: Times as many false sentence ends, in all conditions together.
FALSE_ENDS = 1.3

#: Share of the engine's time for decodings that are thrown away.
WASTED = 0.05

#: The mode that the others are compared with.
OFFLINE = "offline"

#: Modes of the server.
SERVED = ("auto", "stream")


def broken_limits(scores: Mapping[tuple[str, str], Score]) -> list[str]:
    """The limits that were not kept, as sentences.

    Repeats and words where nobody speaks may not be there at all. Word errors, what was dropped and false sentence ends
    are compared, if there is something to compare them with.

    Args:
        scores: By condition and mode.
    """
    found = []
    for (condition, mode), score in scores.items():
        if mode not in SERVED:
            continue
        if score.repeats:
            found.append(f"{condition}, {mode}: {score.repeats} repeated clauses")
        if score.noise_words:
            found.append(f"{condition}, {mode}: {score.noise_words} words where nobody speaks")
        offline = scores.get((condition, OFFLINE))
        if offline is not None and score.words and score.rate > offline.rate + POINTS:
            found.append(f"{condition}, {mode}: {score.rate:.2f} % word errors, offline {offline.rate:.2f} %")
    for mode in SERVED:
        both = [(score, scores[condition, OFFLINE]) for (condition, of), score in scores.items() if of == mode
                and (condition, OFFLINE) in scores]  # fmt: skip
        own, offline = sum((one for one, _ in both), Score()), sum((one for _, one in both), Score())
        if own.dropped > offline.dropped:
            found.append(f"{mode}: {own.dropped} stretches dropped, offline {offline.dropped}")
        if own.false_ends > FALSE_ENDS * offline.false_ends:
            found.append(f"{mode}: {own.false_ends} false sentence ends, offline {offline.false_ends}")
    return found


def broken_waste(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The same for the engine's time that is thrown away, over all conditions of a mode.

    Args:
        rows: Those of `accuracy.measure`; those without `wasted` are ignored.
    """
    spent: dict[str, tuple[float, float]] = {}
    for row in rows:
        if "wasted" in row:
            seconds, wasted = spent.get(row["mode"], (0.0, 0.0))
            spent[row["mode"]] = seconds + row["decoding"], wasted + row["wasted"]
    return [
        f"{mode}: {100 * wasted / seconds:.1f} % of the decoding thrown away"
        for mode, (seconds, wasted) in spent.items()
        if wasted > WASTED * seconds
    ]
