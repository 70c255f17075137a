"""Audio in any encoding to 16 kHz samples: whole files, and streams while they arrive.

Gateway, worker and clients use it. `sniff`, `wav`, `bounds` and `chunking` are plain Python, for a gateway that decodes
nothing; `pcm`, `codec`, `files`, `stream` and `decoders` need numpy and PyAV.
"""

#: Samples per second of all decoded audio, which has one channel: what Whisper and Silero were trained on.
SAMPLE_RATE = 16000
