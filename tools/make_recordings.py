#!/usr/bin/env python3
"""Make the recordings that the tests and `make demo` use: synthesised speech with transcripts, the same every time.

    python tools/make_recordings.py

Needs espeak-ng and flite (Debian packages of these names) and ffmpeg; none of them is needed to run or test asrserver.
Writes tests/data/utterances/*.opus with transcripts.json, and asrserver/data/recordings/*.wav with theirs. The voices
and the sentences' patterns are those that the shipped model was trained for; the sentences are drawn anew, from a seed
of their own.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import tempfile
import wave
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEED = 20261123
RATE = 16000

SLOTS = {
    "digit": "zero one two three four five six seven eight nine",
    "number": "ten eleven twelve thirteen fourteen fifteen twenty thirty forty fifty",
    "color": "red green blue yellow white black",
    "room": "kitchen bedroom office hallway garage garden",
    "thing": "light lamp fan heater door window radio alarm",
    "day": "monday tuesday wednesday thursday friday saturday sunday",
    "city": "london paris berlin tokyo madrid boston",
    "name": "alice bob charlie david emma frank grace henry",
    "state": "on off",
    "half": "am pm",
    "time": "morning evening night",
}

TEMPLATES = (
    "turn {state} the {room} {thing}",
    "set a timer for {number} minutes",
    "call {name} at {digit} {half}",
    "what is the weather in {city} on {day}",
    "make the {room} {thing} {color}",
    "remind {name} on {day} at {digit}",
    "play the {color} song",
    "send a message to {name}",
    "book a train from {city} to {city} on {day}",
    "good {time} {name}",
)

ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan")
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5")
FLITE = ("kal16", "awb", "rms", "slt")


def sentence(rng: random.Random) -> str:
    return re.sub(r"\{(\w+)\}", lambda slot: rng.choice(SLOTS[slot[1]].split()), rng.choice(TEMPLATES))


def speak(text: str, rng: random.Random) -> bytes:
    """The sentence in a voice drawn from the seed, as 16 kHz 16-bit mono PCM."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        if rng.random() < 0.7:
            voice = f"{rng.choice(ACCENTS)}+{rng.choice(VARIANTS)}"
            speed, pitch = str(rng.randint(120, 200)), str(rng.randint(20, 80))
            command = ["espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "-w", file.name, text]
        else:
            stretch = f"duration_stretch={rng.uniform(0.8, 1.25):.2f}"
            command = ["flite", "-voice", rng.choice(FLITE), "--setf", stretch, "-t", text, "-o", file.name]
        subprocess.run(command, check=True)
        convert = ["ffmpeg", "-v", "error", "-i", file.name, "-ar", str(RATE), "-ac", "1", "-f", "s16le", "-"]
        return subprocess.run(convert, check=True, capture_output=True).stdout


def quiet(seconds: float) -> bytes:
    return bytes(int(seconds * RATE) * 2)


def write_wav(path: Path, pcm: bytes) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm)


def main() -> None:
    rng = random.Random(SEED)
    utterances = ROOT / "tests" / "data" / "utterances"
    utterances.mkdir(parents=True, exist_ok=True)
    transcripts = {}
    for number in range(100):
        text = sentence(rng)
        name = f"{number:03}.opus"
        encode = [
            "ffmpeg",
            "-v",
            "error",
            "-y",
            "-f",
            "s16le",
            "-ar",
            str(RATE),
            "-ac",
            "1",
            "-i",
            "-",
            "-c:a",
            "libopus",
            "-b:a",
            "32k",
            str(utterances / name),
        ]
        subprocess.run(encode, input=quiet(0.2) + speak(text, rng) + quiet(0.3), check=True)
        transcripts[name] = text
    (utterances / "transcripts.json").write_text(json.dumps(transcripts, indent=1) + "\n")

    bundled = ROOT / "asrserver" / "data" / "recordings"
    bundled.mkdir(parents=True, exist_ok=True)
    transcripts = {}
    demo = {"english-1.wav": "play the yellow song", "english-2.wav": "what is the weather in tokyo on monday"}
    for name, text in demo.items():
        transcripts[name] = text
        write_wav(bundled / name, quiet(0.3) + speak(text, rng) + quiet(0.4))
    sentences = [
        "book a train from paris to madrid on sunday",
        "turn off the garage window",
        "good night henry",
        "call grace at three am",
        "play the red song",
    ]
    pauses = b"".join(speak(text, rng) + quiet(rng.uniform(0.8, 1.6)) for text in sentences)
    transcripts["pauses.wav"] = " ".join(sentences)
    write_wav(bundled / "pauses.wav", quiet(0.5) + pauses)
    transcripts["silence.wav"] = ""
    write_wav(bundled / "silence.wav", quiet(3))
    transcripts["noise.wav"] = ""
    noise = b"".join(
        int(max(-32767, min(32767, rng.gauss(0, 1000)))).to_bytes(2, "little", signed=True) for _ in range(3 * RATE)
    )
    write_wav(bundled / "noise.wav", noise)
    (bundled / "transcripts.json").write_text(json.dumps(transcripts, indent=1) + "\n")


if __name__ == "__main__":
    main()
