"""A recording that goes on, with what it says: its pieces are taken, its segments get their text as they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asrserver.audio import SAMPLE_RATE
from asrserver.inference.recognise import Recogniser
from asrserver.inference.segments import Captions
from asrserver.inference.stream import Outcome, Piece, Recording


class Ongoing:
    """A recording and its captions. `alone` says whether what is in hand is under suspicion of killing workers."""

    def __init__(
        self, recording: Recording, captions: Captions, recogniser: Recogniser, alone: Callable[[], bool]
    ) -> None:
        self.recording = recording
        self.captions = captions
        self.covered = 0.0  # seconds of it that are covered by what is durable
        self._recogniser = recogniser
        self._alone = alone

    @property
    def seconds(self) -> float:
        return self.recording.heard / SAMPLE_RATE

    @property
    def needed(self) -> float:
        """Seconds up to which no segment is still to come."""
        return self.recording.needed / SAMPLE_RATE

    @property
    def place(self) -> tuple[str, dict[str, Any]]:
        """From where a next owner goes on, once everything final is told."""
        waiting = self.captions.waiting
        return self.recording.place(waiting.start if waiting is not None else self.recording.needed)

    async def take(
        self, pieces: list[Piece], labels: list[str], opening: Piece | None, ends: bool = False, last: bool = False
    ) -> list[Outcome]:
        """Go on with pieces: what came of each. Where it `ends` soon, others wait for it; the `last` are its end.

        `opening` is a file that may be the recording's beginning; raises AudioError if it is none.
        """
        if ends:
            self.captions.hurry()
        async with self._recogniser.turn(self._alone()):
            outcomes, speeches = await self._recogniser.audio_thread.run(
                labels, self.recording.take(pieces, opening, last), urgent=self.captions.finished
            )
            self.captions.ended(speeches, labels[-1], self._alone())
            if self._alone():
                await self.captions.settle()
            else:
                self.captions.grow(self.recording, labels[-1])
        return outcomes

    async def finish(self, label: str) -> None:
        """No more pieces come: recognise what is left; raises AudioError if there never was any audio."""
        self.captions.hurry()
        if self.recording.over:
            return
        async with self._recogniser.turn(self._alone()):
            speeches = await self._recogniser.audio_thread.run([label], self.recording.finish(), urgent=True)
            self.captions.ended(speeches, label, self._alone())
            if self._alone():
                await self.captions.settle()
