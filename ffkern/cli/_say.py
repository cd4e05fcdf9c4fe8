"""How the commands speak: results go to standard output, everything else to standard error."""

from __future__ import annotations

import sys

__all__ = ["complain"]


def complain(text: str, code: int) -> int:
    """Prints one sentence on standard error and passes the exit code through."""
    print(f"ffkern: {text}", file=sys.stderr)
    return code
