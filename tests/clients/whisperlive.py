"""WhisperLive's own client with a file: prints the text of the subtitles that it writes, as JSON.

python whisperlive.py file PORT KEY RECORDING
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

# It plays what it sends: here is no sound card, and no package of PyAudio without a compiler.
pyaudio: Any = types.ModuleType("pyaudio")
pyaudio.paInt16 = 8
pyaudio.PyAudio = lambda: types.SimpleNamespace(open=lambda **_: None, terminate=lambda: None)
sys.modules["pyaudio"] = pyaudio

from whisper_live.client import TranscriptionClient  # noqa: E402


def main() -> None:
    _, port, key, path = sys.argv[1:5]
    with tempfile.TemporaryDirectory() as folder:
        subtitles = Path(folder, "a.srt")
        address = f"{port}/?key={key}" if key else port
        client = TranscriptionClient(
            "127.0.0.1",
            address,
            lang="en",
            model="small",
            output_transcription_path=str(subtitles),
            mute_audio_playback=True,
            log_transcription=False,
        )
        client(path)
        lines = subtitles.read_text().splitlines() if subtitles.exists() else []
    print(json.dumps({"text": " ".join(line for line in lines if line and "-->" not in line and not line.isdigit())}))


if __name__ == "__main__":
    main()
