"""What a machine has for workers: GPUs, or CPUs."""

from __future__ import annotations

import glob
import math
import os
from dataclasses import replace

from asrserver.config import Settings
from asrserver.process.limits import available_cpus


def gpu_indexes() -> list[str]:
    """The usable GPUs, as CUDA_VISIBLE_DEVICES names them; found without CUDA, which must not be loaded here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def with_device(settings: Settings) -> Settings:
    """The settings with device `auto` resolved to `cuda` or `cpu`."""
    if settings.device == "auto":
        return replace(settings, device="cuda" if gpu_indexes() else "cpu")
    return settings


def worker_count(settings: Settings) -> int:
    """The number of worker processes.

    As set, else one per GPU. On CPUs one per available CPU; with the demo model less one per gateway: with a heavier
    one, recognition takes nearly all of the CPU: two workers of base carry more streams on two cores than one.
    """
    if settings.workers:
        return settings.workers
    if settings.device == "cuda":
        return max(1, len(gpu_indexes()))
    taken = settings.gateways if settings.models == ["demo"] else 0
    return max(1, math.floor(available_cpus()) - taken)
