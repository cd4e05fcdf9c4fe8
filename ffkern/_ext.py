"""Loads torch's operations from the compiled library."""

from __future__ import annotations

from pathlib import Path

import torch

from ._build import build_info

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
    facts = build_info()
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        raise ImportError(
            f"ffkern's compiled library does not load in torch {torch.__version__} (it was built "
            f"against torch {facts.get('torch', 'unknown')}): reinstall it with "
            f"`pip install --no-build-isolation --force-reinstall --no-deps .`. Cause: {error}"
        ) from error
