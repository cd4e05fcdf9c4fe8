"""What the compiled library was built with. Needs neither torch nor NumPy."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).with_name("libffkern.so")


def build_info() -> dict[str, Any]:
    """Version, compiler, instruction sets, CUDA compiler and architectures, and the torch of the build.

    Raises ImportError when the library was never built.
    """
    if not LIBRARY.exists():
        raise ImportError(
            "ffkern's compiled library is missing: run `pip install --no-build-isolation .` in the "
            "source tree (it needs a C++20 compiler)."
        )
    text = ctypes.CDLL(str(LIBRARY)).ffkern_build_info
    text.restype = ctypes.c_char_p
    facts: dict[str, Any] = json.loads(text().decode())
    return facts
