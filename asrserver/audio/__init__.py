"""Bytes of any kind to 16 kHz samples, whole or as they come. Known to gateway, worker and clients alike.

`sniff`, `wav` and `bounds` are plain Python, for a gateway that decodes nothing; `pcm`, `codec`, `files`, `stream` and
`decoders` need numpy and PyAV.
"""

#: Samples a second of all decoded audio, of one channel: what Whisper and Silero were trained on.
SAMPLE_RATE = 16000
