"""What all sessions of a worker share for recognition: engine, audio thread, thread pool, isolation, settings."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from asrserver.audio import files
from asrserver.audio.sandbox import Sandbox
from asrserver.audio.turns import take_turn
from asrserver.inference.audio_thread import AudioThread
from asrserver.inference.engine import Engine
from asrserver.inference.fair import FairPool, Shares
from asrserver.inference.partials import PartialScheduler
from asrserver.inference.poison import IsolationLock
from asrserver.inference.profiles import Profile
from asrserver.inference.windows import window_for

T = TypeVar("T")


@dataclass(slots=True)
class WordCounts:
    """What became of words in partial results.

    Attributes:
        stable: Words that were declared stable so far.
        revised: Those of them that the final text took back.
    """

    stable: int = 0
    revised: int = 0


class Recogniser:
    """The shared parts of recognition, with one of the worker's models.

    Attributes:
        engine: Runs the model.
        partials: Schedules partial results.
        audio_thread: Decodes live streams and finds speech in them.
        sandbox: Decodes files that cannot be decoded as streams, in processes of their own.
        isolation: Held during all work on audio, so that suspected audio is processed alone.
        silence: Seconds of silence that end a segment, for sessions that do not set it.
        max_seconds: Longest utterance, in seconds of audio.
        context: Whether segments are recognised with the text before them.
        words: Of all sessions and models.
        shares: The keys of the sessions.
    """

    def __init__(
        self,
        engine: Engine,
        partials: PartialScheduler,
        *,
        window: str,
        silence: float,
        max_seconds: float,
        threads: int,
        hold: Callable[[str, list[str]], None],
        context: bool = False,
        shares: Shares | None = None,
    ) -> None:
        """Start the threads. Must be called in the event loop.

        Args:
            engine: Runs the model.
            partials: Schedules partial results.
            window: Policy of `windows.window_for`.
            silence: Seconds of silence that end a segment; 0: what suits the model.
            max_seconds: See the attributes.
            threads: Threads of the pool that decodes utterances.
            hold: Told the labels in hand before each native call, and none after it (see InFlight).
            context: See the attributes.
            shares: The keys of the sessions; those that the engine has.
        """
        self.engine = engine
        self.partials = partials
        self._silence = silence
        self.silence = silence or engine.model.profile.silence
        self.max_seconds = max_seconds
        self.context = context
        self.words = WordCounts()
        self.shares = shares or Shares()
        self.isolation = IsolationLock()
        self._window = window
        self._hold = hold
        self._pool = FairPool(threads, "prepare", self.shares)
        # A thread apart from the pool: live streams must not wait until an hour of MP3 is decoded.
        self.audio_thread = AudioThread(hold, partials, self.shares)
        self.sandbox = Sandbox(files.by_library)

    def using(self, engine: Engine) -> Recogniser:
        """The same with another model's engine; everything else is shared."""
        if engine is self.engine:
            return self
        other = copy.copy(self)
        other.engine = engine
        other.silence = self._silence or engine.model.profile.silence
        return other

    @property
    def model_name(self) -> str:
        """The model, as the settings name it."""
        return self.engine.model.name

    @property
    def profile(self) -> Profile:
        """The policy that suits the model."""
        return self.engine.model.profile

    def window(self, seconds: float) -> int:
        """The window, in frames, for this many seconds of speech."""
        return window_for(seconds, self._window, self.profile.margin)

    def expedite(self, session: str) -> None:
        """Move the session's waiting audio and segments forward: it is finished and its client waits."""
        self.audio_thread.expedite(session)
        self.engine.expedite(session)

    async def run_blocking(self, label: str, seconds: float, work: Callable[..., Any], *args: Any) -> Any:
        """Run blocking work on an utterance in the thread pool, when it is the session's turn.

        Args:
            label: "session entry" that is in hand during the work.
            seconds: Audio that the work processes: its cost in fair queueing.
            work: Called with `args`.

        Returns:
            What the work returns.
        """

        def run() -> Any:
            thread = threading.current_thread().name
            self._hold(thread, [label])
            try:
                return work(*args)
            finally:
                self._hold(thread, [])

        return await self._pool.run(run, label.partition(" ")[0], seconds)

    async def run_in_turns(self, label: str, seconds: float, work: Generator[None, None, T]) -> T:
        """Do long work as `run_blocking` does, a turn at a time: others' comes between.

        Args:
            label: As `run_blocking` takes it.
            seconds: The cost of a turn.
            work: Yields where it may be interrupted; its result is returned.
        """
        while not (found := await self.run_blocking(label, seconds, take_turn, work)):
            pass
        result: T = found[0]
        return result

    def close(self, timeout: float | None = None) -> None:
        """Start no more work in threads and processes, and wait for those, each as `AudioThread.close` does."""
        self._pool.close()
        self.audio_thread.close(timeout)
        self.sandbox.close(timeout)
