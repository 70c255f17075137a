"""The texts of one session in the forms that its client asks for: results, and partial texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from asrserver.inference.segments import PartialHypothesis, RecognisedSegment
from asrserver.protocol.events import Word
from asrserver.protocol.options import ANY, Options
from asrserver.protocol.word_times import spread
from asrserver.text.edits import Aligned, align, place
from asrserver.text.normalise import Normaliser


class Normalising:
    """Normalises a session's segments, their words, and its partial texts."""

    def __init__(self, options: Options) -> None:
        forms = (options.normalise.script, options.normalise.numerals)
        self._normaliser = Normaliser(*(None if form == ANY else form for form in forms))
        self._language = options.text_language

    @property
    def needs_loading(self) -> bool:
        """Whether it needs dictionaries; most sessions need none."""
        return self._normaliser.script is not None

    def load(self) -> None:
        """Load the dictionaries, which takes a tenth of a second: call it in a thread."""
        self._normaliser.load()

    def segment(self, segment: RecognisedSegment) -> RecognisedSegment:
        """A segment with its text and its words normalised."""
        language = self._language or segment.language
        if not self._normaliser.steps(language):
            return segment
        text = self._normaliser.text(segment.text, language)
        return replace(segment, text=text, words=self._words(segment.words, language))

    def partial(self, partial: PartialHypothesis) -> PartialHypothesis:
        """A growing text normalised. What stays stable is what no continuation of it can change."""
        language = self._language or partial.language
        if not self._normaliser.steps(language):
            return partial
        text = self._normaliser.text(partial.text, language)
        stable = self._normaliser.beginning(partial.stable, language)
        return replace(partial, text=text, stable=stable.rstrip())

    def _words(self, words: list[Word], language: str) -> list[Word]:
        for step in self._normaliser.steps(language):
            items = [word.word for word in words]
            edits = self._normaliser.edits(step, place(items, language)[0], language).edits
            words = [word for group in align(items, language, edits) for word in _timed(group, words)]
        return words


def _timed(group: Aligned, words: Sequence[Word]) -> list[Word]:
    """The words that took the place of others: their time is shared, and their confidence is the mean."""
    old = words[group.first : group.last]
    if group.texts == [word.word for word in old]:
        return list(old)
    confidence = round(sum(word.confidence for word in old) / len(old), 3)
    return spread(group.texts, old[0].start, old[-1].end, [confidence] * len(group.texts))
