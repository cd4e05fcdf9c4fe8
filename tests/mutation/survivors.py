"""Why mutants of the CUDA kernels survive: rules by name, of which the first that matches counts.

Mostly what the mistake removes was redundant, or decides only on speed. What the software driver does not model cannot
be found on it; docs/kernels.md argues about that by hand. What is left are gaps: places that no test reaches, and why.
"""

from __future__ import annotations

import re

__all__ = ["RULES", "reason"]

SAME = "redundant: the threads that the condition keeps out hold the same value and would store it to the same place"
FIRST = "redundant here: nothing has used the scratch memory before this sum"
EMPTY = "redundant: only groups without copies are left to wait for"
NOBODY = "redundant: what is computed or copied for nothing is never used"
EQUAL = "redundant: where both sides are equal, so are both results"
LIBRARY = "CUDA's own exp, log or division, whose instructions have the line that calls them"
BF16_SM75 = "not reached: rounds to bfloat16 without the instruction of sm_80, and sm_75 has no bfloat16 products"
ORDERED = "redundant: another barrier stands between the same reads and writes"
NARROWER = "redundant: narrower stores, or one element at a time, write the same"
UNROLLED = "redundant: decides how much of a loop is unrolled; both ways do the same"
HOPPER_LABELS = "not reached: Hopper's columns begin behind the label inputs, so that no four weights are mixed"
FENCE = "not modelled: argued above"

# (regular expression on a mutant's name, why it survives)
RULES: list[tuple[str, str]] = [
    (r", fence: ", FENCE),
    (r"ptx\.cuh: (?:return value != value \?|packed = round\(low\))", BF16_SM75),
    (r"(?:predicate|bound): .*\b(?:lane|in_quad|threadIdx\.x|blockIdx\.z|lane % kLanesAnImage) == 0\b", SAME),
    (r"barrier: rows\.cu: __syncthreads\(\); BY rows\.cu: .* = block_reduce<", FIRST),
    (r"wait: .* BY pipeline\.cuh: wait_for_copies<0>\(\);", EMPTY),
    (r"barrier: .*BY pipeline\.cuh: __syncwarp\(\);", ORDERED),
    (r"(?:predicate|bound): pipeline\.cuh: if \((?:stage|tile \+ kStages - 1) < depth_tiles\)", NOBODY),
    (r"forward\.cuh: const bool square = squares_wanted|forward\.cuh: if \(squares_wanted\)", NOBODY),
    (r"predicate: math\.h: r\.root = ", NOBODY),
    (r"forward\.cuh: (?:if|\} else if) \((?:kElementBytes == 4 \|\| )?p\.store_bytes == ", NARROWER),
    (
        r"BY .*finish_weights\(t, rule, j, k \+ e, Floats<1>|finish_product\(t, rule, unit0 \+ row, input0",
        HOPPER_LABELS,
    ),
]


def reason(name: str) -> str:
    """Why this mutant survives; "" if nobody has said so."""
    return next((why for pattern, why in RULES if re.search(pattern, name)), "")
