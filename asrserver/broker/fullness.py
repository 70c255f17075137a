"""How full a Redis may be before something is held back: used memory over its maxmemory.

What may wait is held back first. Above the last of the three only events and heartbeats are written, without which
nothing could be trimmed.
"""

from __future__ import annotations

#: From here on, API keys with more than their share of the audio that waits are held back.
FULL_FOR_GREEDY = 0.7

#: From here on, new sessions wait; of several Redis servers, another one gets them.
FULL_FOR_SESSIONS = 0.8

#: From here on, audio waits: connections are no longer read.
FULL_FOR_AUDIO = 0.9
