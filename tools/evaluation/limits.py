"""How far the server may stand behind faster-whisper offline, with the same model and in the same run."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.scoring import Score

#: Points of word errors in per cent, in each condition.
POINTS = 0.5

#: Times as many false sentence ends, in all conditions together.
FALSE_ENDS = 1.3

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
