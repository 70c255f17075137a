"""The REST interface of kikipounamu's Python server (ASR_server): files that are handed in, and asked for later.

C POST /api/v1/asr/submit           a form: the file as `audio`, perhaps with a name
                                    S {"task_id","status":"queued","position","estimated_wait"}
C GET /api/v1/asr/result/{task_id}  S {"task_id","status":"queued|processing|done|failed","text","duration",
                                       "created_at","audio_url","error","retry_url","progress"}; null is unknown
C GET /api/v1/asr/audio/{task_id}   S the recording
errors, by their HTTP status        S {"detail":"…"}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from asrserver.protocol.options import Options, Start

#: Where a recording is.
AUDIO_PATH = "/api/v1/asr/audio/"


def start(parameters: Mapping[str, str]) -> Start:
    """Read the parameters of a file; others than these are ignored.

    Raises:
        BadRequest: The language is not known.
    """
    options = Options.parse({"language": parameters.get("language"), "mode": "stream", "format": "file"})
    return Start("", "", options, False)


def submitted(task_id: str, position: int, wait: float) -> dict[str, Any]:
    """Answer to a file.

    Args:
        task_id: Its name from now on.
        position: Files that wait before it.
        wait: Seconds until its turn, likely.
    """
    return {"task_id": task_id, "status": "queued", "position": position, "estimated_wait": math.ceil(wait)}


def result(
    task_id: str,
    status: str,
    text: str,
    duration: float,
    created_at: str | None,
    error: str | None,
    has_audio: bool,
) -> dict[str, Any]:
    """Say what became of a file; `status` is queued, processing, done or failed."""
    done = status == "done"
    return {
        "task_id": task_id,
        "status": status,
        "text": text if done else None,
        "duration": duration if done else None,
        "created_at": created_at,
        "audio_url": AUDIO_PATH + task_id if done and has_audio else None,
        "error": error,
        "retry_url": None,
        "progress": None,
    }
