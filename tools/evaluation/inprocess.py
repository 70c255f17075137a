"""Recognition by the server's own code in this process, without Redis and without waiting: to try a policy in seconds.

Audio is fed as fast as the engine takes it, and never while anything waits for its text: to the recogniser the engine
is infinitely fast. So the texts are those of an idle server in real time; delays have no meaning here.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import math
import wave

import numpy as np
from live import CHUNK_SECONDS

from asrserver.audio import SAMPLE_RATE
from asrserver.audio.pcm import Samples
from asrserver.broker.keys import TASKS
from asrserver.broker.replies import Claim, Entry, Task
from asrserver.config import Settings
from asrserver.inference.partials import PartialScheduler
from asrserver.inference.transcriber import Transcriber
from asrserver.inference.whisper import Whisper
from asrserver.inference.worker import make_recogniser
from asrserver.protocol import codec
from asrserver.protocol.events import Final, Partial, Progress, Result, SpeechStarted
from asrserver.protocol.options import Options
from evaluation.corpus import Take
from evaluation.recognition import Recognition

#: Seconds of audio that are fed at a time: no pause is missed that is decoded before its end is certain. With partial
#: results there is one for each step.
STEP_SECONDS = 0.3
PARTIAL_STEP_SECONDS = 0.6

#: Seconds between two looks at whether a step is done.
POLL_SECONDS = 0.001


class EventCollector:
    """An event sink that keeps the durable events of one session."""

    name = "in-process"

    def __init__(self) -> None:
        self.events: list[Result] = []

    async def append_event(self, claim: Claim, event: Result, after: str, fields: dict[str, str] | None = None) -> bool:
        self.events.append(event)
        return True

    async def checkpoint(self, claim: Claim, after: str, total: float, fields: dict[str, str]) -> bool:
        return True

    def publish(self, claim: Claim, event: Partial | SpeechStarted | Progress) -> None:
        return

    async def dead_letter(self, sid: str, entry: str, reason: str) -> None:
        raise AssertionError("no worker can have died")


class InProcess:
    """The recogniser of one worker, and sessions of it, one after another. Make it in the event loop."""

    def __init__(self, model: Whisper, settings: Settings, language_given: bool, partials: bool) -> None:
        """Start the worker's threads.

        Args:
            model: The loaded model.
            settings: Those of the worker.
            language_given: Whether sessions name the language of their recording.
            partials: Whether live streams ask for partial results: the decoder continues their stable words.
        """
        self._recogniser = make_recogniser(settings, model, lambda thread, labels: None)
        # Drafts never wait for the engine's time here.
        self._recogniser.partials = PartialScheduler(math.inf)
        self._language_given = language_given
        self._partials = partials
        self._sessions = itertools.count()

    def close(self) -> None:
        """Stop the threads. One that computes, or has the last reference to the model, when Python ends aborts it."""
        self._recogniser.engine.stop(None)
        self._recogniser.close()

    def decoding(self) -> tuple[float, float]:
        """Seconds that the engine has decoded, and those of them for what was thrown away."""
        return self._recogniser.engine.busy_seconds, self._recogniser.engine.wasted_seconds

    async def auto(self, take: Take) -> Recognition:
        """Recognise a recording as one file."""
        return await self._run(take, "auto", [wav(take.samples)])

    async def stream(self, take: Take) -> Recognition:
        """Recognise a recording as a live stream."""
        pcm, step = pcm_of(take.samples), int(CHUNK_SECONDS * SAMPLE_RATE) * 2
        return await self._run(take, "stream", [pcm[at : at + step] for at in range(0, len(pcm), step)])

    async def _run(self, take: Take, mode: str, chunks: list[bytes]) -> Recognition:
        language = take.language or None if self._language_given else None
        kind = "auto" if mode == "auto" else "pcm_s16le"
        # The interval is the shortest of all, because no step waits for real time.
        options = Options(mode=mode, format=kind, language=language, partials=self._partials, partial_interval=0.1)
        claim = Claim(f"s{next(self._sessions)}", Task(TASKS, "0-1"), 1, {"options": codec.encode_options(options)}, [])
        sink = EventCollector()
        transcriber = Transcriber(claim, self._recogniser, sink)
        running = asyncio.get_running_loop().create_task(transcriber.run())
        entries = [Entry(f"{number}-0", chunk, None) for number, chunk in enumerate(chunks, 1)]
        step = round((PARTIAL_STEP_SECONDS if self._partials else STEP_SECONDS) / CHUNK_SECONDS)
        for at in range(0, len(entries), step):
            transcriber.inbox.put(entries[at : at + step])
            while (transcriber.is_busy or _is_decoding(claim.sid)) and not running.done():
                await asyncio.sleep(POLL_SECONDS)
        if not running.done():
            transcriber.inbox.put([Entry(f"{len(entries) + 1}-0", None, "done")])
        await running
        final = sink.events[-1]
        assert isinstance(final, Final)
        languages = [segment.language for event in sink.events for segment in event.segments]
        return Recognition(final.text, languages)


def _is_decoding(session: str) -> bool:
    """Whether a partial result of the session is being made, or a segment that has paused."""
    return any(task.get_name() in (f"draft-{session}", f"segment-{session}") for task in asyncio.all_tasks())


def pcm_of(samples: Samples) -> bytes:
    """Samples as 16-bit PCM."""
    return bytes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def wav(samples: Samples) -> bytes:
    """Samples as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(pcm_of(samples))
    return buffer.getvalue()
