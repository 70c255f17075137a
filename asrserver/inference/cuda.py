"""Whether CTranslate2 can use the GPUs of this machine."""

from __future__ import annotations

import ctypes

#: Libraries that CTranslate2 4 loads at its first call on a GPU, and not before.
LIBRARIES = ("libcublas.so.12", "libcudnn.so.9")


def problem() -> str:
    """Why GPUs cannot be used, and what to do; '' if they can."""
    import ctranslate2

    try:
        count = ctranslate2.get_cuda_device_count()
    except RuntimeError as exc:
        return f"CUDA does not start: {exc}: install or update NVIDIA's driver"
    if not count:
        return "CUDA sees none: install NVIDIA's driver, and look at CUDA_VISIBLE_DEVICES"
    for library in LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError:
            return f"{library} is not found: install asrserver[cuda], and name its directories in LD_LIBRARY_PATH"
    return ""
