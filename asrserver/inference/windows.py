"""Windows: how much audio the model is given with a stretch of speech, and how much text it may make of it."""

from __future__ import annotations

from asrserver.inference.features import FRAMES_PER_SECOND
from asrserver.inference.profiles import DEMO

#: Whisper's own window in frames: 30 s.
FULL_WINDOW = 30 * FRAMES_PER_SECOND

#: Window lengths in frames. The rows of one call need one length, so there are few. None may be 2 × n_mels (160 or
#: 256): the encoder's output is then n_mels steps long, and CTranslate2 4.x takes it for features and encodes it twice.
WINDOWS = tuple(seconds * FRAMES_PER_SECOND for seconds in (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30))

#: The decoder's cap: new tokens per second of speech, plus a few for its ends.
TOKENS_PER_SECOND = 16
TOKENS_EXTRA = 16


def window_for(seconds: float, policy: str, margin: float = DEMO.margin) -> int:
    """Choose the window for a stretch of speech.

    Args:
        seconds: Length of the speech.
        policy: "fit": the shortest window that holds it with the margin; "full": always 30 s.
        margin: Seconds of quiet behind the speech, see Profile.

    Returns:
        Length of the window in frames.
    """
    wanted = (seconds + margin) * FRAMES_PER_SECOND
    if policy == "full":
        return FULL_WINDOW
    return next((frames for frames in WINDOWS if frames >= wanted), FULL_WINDOW)


def length_limit(prompt: int, seconds: float) -> int:
    """CTranslate2's max_length for a window.

    CTranslate2 (4.8.5) gives at most half of max_length to new text.

    Args:
        prompt: Tokens of the prompt.
        seconds: Length of the speech.
    """
    tokens = int(seconds * TOKENS_PER_SECOND) + TOKENS_EXTRA
    return min(448, max(2 * tokens, prompt + tokens))
