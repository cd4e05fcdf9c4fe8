"""Loads the compiled library and says which path runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).with_name("_C.so")
MINIMUM_TORCH = (2, 13)


def load() -> None:
    """Load ``_C.so``, whose kernels register themselves with torch's dispatcher.

    Raises ImportError with what to do when the library is missing or does not fit this torch.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MINIMUM_TORCH:
        raise ImportError(
            f"ffkern needs torch >= 2.13, but torch {torch.__version__} is installed: run `pip install 'torch>=2.13'`."
        )
    if not LIBRARY.exists():
        raise ImportError(
            "ffkern's compiled library is missing: run `pip install --no-build-isolation .` in the "
            "source tree (it needs a C++20 compiler)."
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        facts = build_info()
        raise ImportError(
            f"ffkern's compiled library does not load in torch {torch.__version__} (it was built "
            f"against torch {facts.get('torch', 'unknown')}): reinstall it with "
            f"`pip install --no-build-isolation --force-reinstall --no-deps .`. Cause: {error}"
        ) from error


def build_info() -> dict[str, Any]:
    """What the compiled library was built with: compiler, torch, nvcc, architectures."""
    path = Path(__file__).with_name("_build_info.json")
    if not path.exists():
        return {}
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts
