"""Tables of scores."""

from __future__ import annotations

from collections.abc import Iterable

from evaluation.scoring import Score

COLUMNS = (
    f"{'condition':<14}{'mode':<13}{'recordings':>10}{'audio s':>9}{'words':>7}{'WER %':>8}{'sub':>6}{'ins':>6}"
    f"{'del':>6}{'repeats':>9}{'dropped':>9}{'false ends':>12}{'language':>10}{'noise words':>13}{'CPU/s':>8}"
)


def line(condition: str, mode: str, score: Score) -> str:
    """A row of the table."""
    rate = f"{score.rate:.2f}" if score.words else "-"
    return (
        f"{condition:<14}{mode:<13}{score.recordings:>10}{score.seconds:>9.0f}{score.words:>7}{rate:>8}"
        f"{score.substitutions:>6}{score.insertions:>6}{score.deletions:>6}{score.repeats:>9}{score.dropped:>9}"
        f"{f'{score.false_ends} of {score.ends}':>12}{score.languages:>10}{score.noise_words:>13}"
        f"{score.cost / max(score.seconds, 0.001):>8.3f}"
    )


def total(scores: Iterable[Score]) -> Score:
    """The sum of scores."""
    return sum(scores, Score())
