"""Audio that the tests of the handlers send."""

from __future__ import annotations

AUDIO = bytes(range(256)) * 8
