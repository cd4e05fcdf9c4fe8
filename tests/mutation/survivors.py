"""Why mutants of the CUDA kernels survive: rules by name, the first that matches counts.

A mistake that nothing can notice is no gap in the tests: what it removes was redundant, or decides only on speed. What
the software driver does not model cannot be found on it; docs/kernels.md argues about that by hand.
"""

from __future__ import annotations

import re

__all__ = ["RULES", "reason"]

# (regular expression on a mutant's name, why it survives)
RULES: list[tuple[str, str]] = []


def reason(name: str) -> str:
    """Why this mutant survives; "" if nobody has said so."""
    return next((why for pattern, why in RULES if re.search(pattern, name)), "")
