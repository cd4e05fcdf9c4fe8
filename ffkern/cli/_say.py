"""How the commands speak: results go to standard output, everything else to standard error."""

from __future__ import annotations

import math
import sys

__all__ = ["ANSWERS", "clock", "complain", "errors"]

ANSWERS = {"error": "goodness of all layers", "error_but_first": "all but the first", "error_softmax": "softmax head"}


def complain(text: str, code: int) -> int:
    """Prints one sentence on standard error and passes the exit code through."""
    print(f"ffkern: {text}", file=sys.stderr)
    return code


def errors(found: dict[str, float]) -> str:
    """The errors of :func:`ffkern.trainer.evaluate` in words."""
    return ", ".join(f"{100 * value:.2f} % by {ANSWERS[name]}" for name, value in found.items())


def clock(seconds: float) -> str:
    """A time in words: 45 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
