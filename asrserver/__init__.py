"""asrserver: streaming speech recognition for hundreds of live audio streams on one machine."""

__version__ = "0.1.0"
