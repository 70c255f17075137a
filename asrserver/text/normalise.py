"""Normalisation of texts: one Chinese script, and one way to write numerals. Models vary in both."""

from __future__ import annotations

from dataclasses import dataclass

from asrserver.text import numerals as numeral_forms
from asrserver.text import script as scripts
from asrserver.text.edits import TextEdits


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Writes texts in chosen forms. A form that a language does not have changes nothing.

    Attributes:
        script: One of script.SCRIPTS, or None: as it is.
        numerals: One of numerals.NUMERALS, or None: as it is.
    """

    script: str | None = None
    numerals: str | None = None

    def load(self) -> None:
        """Load what it needs; else the first text waits for that. May be called in a thread."""
        if self.script:
            scripts.load(self.script)

    def steps(self, language: str) -> list[str]:
        """What is done with a text of this language, one after the other; see `edits`."""
        found = []
        if self.numerals and language in numeral_forms.LANGUAGES:
            found.append("numerals")
        if self.script and language in scripts.LANGUAGES:
            found.append("script")
        return found

    def edits(self, step: str, text: str, language: str) -> TextEdits:
        """The edits of one step."""
        if step == "numerals":
            return numeral_forms.edits(text, self.numerals or "", language)
        return scripts.edits(text, self.script or "")

    def text(self, text: str, language: str) -> str:
        """A text that is complete."""
        for step in self.steps(language):
            text = self.edits(step, text, language).apply(text)
        return text

    def beginning(self, text: str, language: str) -> str:
        """The beginning of what `text` will make of a text that continues, however it continues."""
        for step in self.steps(language):
            text = self.edits(step, text, language).apply_settled(text)
        return text
