"""pipecat's services for OpenAI and Deepgram in a pipeline: one task; prints its result as JSON.

    python pipecat_ai.py TASK PORT KEY RECORDING WORD

RECORDING is 16-bit mono WAV at 16 kHz, and ends with WORD.
"""

from __future__ import annotations

import asyncio
import json
import sys
import wave
from typing import Any

from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.deepgram.stt import DeepgramSTTService
from pipecat.services.openai.stt import OpenAIRealtimeSTTService, OpenAISTTService
from pipecat.workers.runner import WorkerRunner

RATE = 16000


class Sink(FrameProcessor):
    """Keeps what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TranscriptionFrame):
            self.texts.append(frame.text)
        await self.push_frame(frame, direction)


def service_of(task: str, port: str, key: str) -> Any:
    if task.startswith("deepgram"):
        return DeepgramSTTService(api_key=key, base_url=f"ws://127.0.0.1:{port}")
    if "live" in task:
        return OpenAIRealtimeSTTService(api_key=key, base_url=f"ws://127.0.0.1:{port}/v1/realtime")
    return OpenAISTTService(api_key=key, base_url=f"http://127.0.0.1:{port}/v1")


async def run(task: str, port: str, key: str, path: str, end: str) -> dict[str, object]:
    with wave.open(path) as file:
        pcm = file.readframes(file.getnframes())
    service, sink = service_of(task, port, key), Sink()
    worker = PipelineWorker(Pipeline([service, sink]), params=PipelineParams(audio_in_sample_rate=RATE))
    errors: list[str] = []

    @worker.event_handler("on_pipeline_error")
    async def failed(_worker: PipelineWorker, frame: ErrorFrame) -> None:
        errors.append(frame.error)

    async def speak() -> None:
        await worker.queue_frame(VADUserStartedSpeakingFrame())
        step = RATE // 50 * 2
        for at in range(0, len(pcm), step):
            await worker.queue_frame(InputAudioRawFrame(pcm[at : at + step], RATE, 1))
            await asyncio.sleep(0.01)
        await worker.queue_frame(VADUserStoppedSpeakingFrame())
        for _ in range(600):
            if errors or " ".join(sink.texts).lower().rstrip(" .").endswith(end):
                break
            await worker.queue_frame(InputAudioRawFrame(bytes(step), RATE, 1))
            await asyncio.sleep(0.02)
        await worker.queue_frame(EndFrame())

    speaking = asyncio.create_task(speak())
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.wait_for(runner.run(), 60)
    speaking.cancel()
    if errors:
        return {"error": errors[0], "message": "; ".join(errors)}
    return {"text": " ".join(sink.texts)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(*sys.argv[1:6]))))
