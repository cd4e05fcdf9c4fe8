"""What is installed and which path runs."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

import torch

from . import ops
from ._build import build_info
from ._version import __version__

__all__ = ["info", "machine"]

STORAGE = (
    "bfloat16 and float16 are operands of the tensor cores on CUDA; on the CPU bfloat16 is multiplied as shown, and "
    "float16 is storage, computed in float32"
)


def info() -> dict[str, Any]:
    """Versions, build, and what runs on this machine; every value is plain data.

    ``cuda.device_usable`` is torch's answer; ``cuda.driver`` is the library file that was found, or
    None.
    """
    isa, available, gemm, bfloat16, units = ops.cpu_path().split(";")
    build = build_info()
    return {
        "version": __version__,
        "torch": torch.__version__,
        "build": build,
        "cpu": {
            "isa": isa,
            "isa_available": [name.strip() for name in available.split(",")],
            "gemm": gemm,
            "bfloat16": bfloat16,
            "bfloat16_available": units.split(", "),
            "threads": torch.get_num_threads(),
        },
        "cuda": {
            "images": list(build.get("cuda_archs", [])),
            "driver": _driver(),
            "device_usable": torch.cuda.is_available(),
        },
        "storage": STORAGE,
    }


def _driver() -> str | None:
    """The CUDA driver that a launch would load: $FFKERN_CUDA_DRIVER, else libcuda.so.1."""
    path = os.environ.get("FFKERN_CUDA_DRIVER") or "libcuda.so.1"
    try:
        ctypes.CDLL(path)
    except OSError:
        return None
    return path


def machine() -> str:
    """The name of the processor, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
