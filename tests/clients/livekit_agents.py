"""LiveKit agents' plugins for OpenAI and Deepgram: one task, named on the command line; prints its result as JSON.

    python livekit_agents.py TASK PORT KEY RECORDING WORD

RECORDING is 16-bit mono WAV at 16 kHz, and ends with WORD.
"""

from __future__ import annotations

import asyncio
import json
import sys
import wave

from livekit import rtc
from livekit.agents import APIConnectOptions, stt
from livekit.agents.utils import http_context
from livekit.plugins import deepgram, openai

#: An error at once, and no second try.
ONCE = APIConnectOptions(max_retry=0, timeout=30)


async def live(service: stt.STT, frame: rtc.AudioFrame, end: str) -> str:
    """Push a recording as a room does, faster than real time, with silence after it; return the final texts."""
    stream = service.stream(conn_options=ONCE)
    pcm = bytes(frame.data) + bytes(frame.sample_rate * 3)
    step = frame.sample_rate // 10 * 2
    for at in range(0, len(pcm) - step + 1, step):
        stream.push_frame(rtc.AudioFrame(pcm[at : at + step], frame.sample_rate, 1, step // 2))
    if isinstance(service, deepgram.STT):
        stream.end_input()  # its socket is closed by the server
    texts = []
    async with asyncio.timeout(60):
        async for event in stream:
            if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                texts.append(event.alternatives[0].text)
                if not isinstance(service, deepgram.STT) and texts[-1].lower().rstrip(" .").endswith(end):
                    break  # rooms go on
    await stream.aclose()
    return " ".join(texts)


async def run(task: str, port: str, key: str, path: str, end: str) -> dict[str, object]:
    with wave.open(path) as file:
        frame = rtc.AudioFrame(file.readframes(file.getnframes()), file.getframerate(), 1, file.getnframes())
    async with http_context.open() as session:
        address = f"http://127.0.0.1:{port}/v1"
        model = {"model": "grass"} if "unknown" in task else {}
        service: stt.STT
        if task.startswith("deepgram"):
            service = deepgram.STT(base_url=f"{address}/listen", api_key=key, http_session=session, **model)
        else:
            service = openai.STT(base_url=address, api_key=key, use_realtime="live" in task, **model)
        if "live" in task:
            return {"text": await live(service, frame, end)}
        return {"text": (await service.recognize(frame, conn_options=ONCE)).alternatives[0].text}


if __name__ == "__main__":
    try:
        print(json.dumps(asyncio.run(run(*sys.argv[1:6]))))
    except Exception as exc:
        print(
            json.dumps({"error": type(exc).__name__, "status": getattr(exc, "status_code", None), "message": str(exc)})
        )
