"""Tables of scores and delays."""

from __future__ import annotations

from collections.abc import Iterable

from evaluation.delays import Delays
from evaluation.scoring import Score

SCORES = (
    f"{'condition':<16}{'mode':<13}{'files':>6}{'audio s':>9}{'words':>7}{'WER %':>8}{'sub':>6}{'ins':>6}{'del':>6}"
    f"{'repeats':>9}{'dropped':>9}{'false ends':>12}{'language':>10}{'noise words':>13}{'CPU/s':>8}"
)


def score_row(condition: str, mode: str, score: Score) -> str:
    """A row of the table of scores."""
    rate = f"{score.rate:.2f}" if score.words else "-"
    return (
        f"{condition:<16}{mode:<13}{score.recordings:>6}{score.seconds:>9.0f}{score.words:>7}{rate:>8}"
        f"{score.substitutions:>6}{score.insertions:>6}{score.deletions:>6}{score.repeats:>9}{score.dropped:>9}"
        f"{f'{score.false_ends} of {score.ends}':>12}{score.wrong_languages:>10}{score.noise_words:>13}"
        f"{score.cost / max(score.seconds, 0.001):>8.3f}"
    )


def delay_rows(condition: str, delays: Delays) -> list[str]:
    """The figures of live streams."""
    figures = delays.asdict()
    rows = [f"{condition}: end of speech to segment p50 {figures['final_p50']:.2f} s, p95 {figures['final_p95']:.2f} s"]
    if delays.first:
        rows += [
            f"{condition}: speech to first partial p50 {figures['first_p50']:.2f} s, p95 {figures['first_p95']:.2f} s",
            f"{condition}: between partials p50 {figures['gaps_p50']:.2f} s, p95 {figures['gaps_p95']:.2f} s",
            f"{condition}: {100 * figures['stable_share']:.0f} % of the words shown were stable, "
            f"{delays.revised} of {delays.settled} stable words revised",
        ]
    return rows


def wasted_row(condition: str, mode: str, seconds: float, wasted: float) -> str:
    """How much of the engine's time went into decodings that were thrown away."""
    return f"{condition}, {mode}: {100 * wasted / max(seconds, 1e-9):.1f} % of {seconds:.0f} s of decoding thrown away"


def total(scores: Iterable[Score]) -> Score:
    """The sum of scores."""
    return sum(scores, Score())
