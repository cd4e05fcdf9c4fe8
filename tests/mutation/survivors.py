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
EQUAL = "redundant: where both sides are equal, or at the bounds of their types, both results are the same"
LIBRARY = "CUDA's own exp, log, ldexp or division, whose instructions have the line that calls them"
BF16_SM75 = "not reached: rounds to bfloat16 without the instruction of sm_80, and sm_75 has no bfloat16 products"
ORDERED = "redundant: another barrier stands between the same reads and writes, or a thread reads what it wrote itself"
NARROWER = "redundant: narrower stores, or one element at a time, write the same"
UNROLLED = "redundant: decides how much of a loop is unrolled, or which of two ways does the same"
HOPPER_LABELS = "not reached: Hopper's columns begin behind the label inputs, so that no four weights are mixed"
FENCE = "not modelled: argued above"
GLOBAL = "not modelled: a race in global memory, within a block; the planes of large images lie there"
MANY = "not reached: more groups of classes, or images of that size, than a grid has blocks for"
SPLIT = "redundant: any split that covers all rows gives the same sum within its bound"
SCALED = "redundant: a factor or a NaN that all rows of the comparison share, or that makes the result NaN anyway"
BEHIND = "redundant: reached only where u times the sum rounds up to the sum, or where nothing else was found"
WIDE = "redundant: in an image wider than the block both ways give the same column"
SKIPPED = "not reached, or redundant: label inputs in an operand that has none"
REGISTER = "redundant: where the whole piece lies inside, both ways copy the same"
MASKED = "not reached: sums of absolute values together with a peer term on Hopper"
LOW_ODD = "not reached: a copy in 16 bits of weights whose rows are not multiples of four, on Hopper"
CANCELS = "redundant: divides one operand and multiplies the other"
MEASURE = "not noticed: rows that tests leave out teach 2^40 times less than the others, by any measure"
VARIANTS_SM75 = "not reached: variants of a base in 16 bits on sm_75"
PADDED = "not reached: label inputs in rows that end within a copy, which takes views with padded rows"
GENERAL = "not reached: the compiler's general form of a loop whose length is known"

# (regular expression on a mutant's name, why it survives)
RULES: list[tuple[str, str]] = [
    (r", fence: ", FENCE),
    (r"ptx\.cuh: (?:return value != value \?|packed = round\(low\))", BF16_SM75),
    # pipeline and products
    (r"wait: .* BY pipeline\.cuh: wait_for_copies<0>\(\);", EMPTY),
    (r"barrier: .*BY pipeline\.cuh: __syncwarp\(\);", ORDERED),
    (r"(?:predicate|bound): pipeline\.cuh: if \((?:stage|tile \+ kStages - 1) < depth_tiles\)", NOBODY),
    (r"^forward, .*(?:squares_wanted|(?:predicate|bound): arithmetic\.cuh: (?:: )?warp_[mn]\()", NOBODY),
    (r"^forward, (?:predicate|bound): .*(?:in_quad == 0|in_quad\(lane % 4\)|__shfl_xor_sync\(.*quad_sum)", SAME),
    (r"^forward, barrier: forward\.cuh: __syncthreads\(\); \(2\)", ORDERED),
    (r"^forward, .*forward\.cuh: if \(variant \+ 1 < p\.variants\) __syncthreads", ORDERED),
    (r"tile\.cuh: if \((?:valid % kPieceBytes != 0|kThroughRegisters \|\| column_offset < skip_)\)", REGISTER),
    (r"forward\.cuh: (?:if|\} else if) \((?:kElementBytes == 4 \|\| )?p\.store_bytes == ", NARROWER),
    (r"gradient\.cuh: (?:const int share|split = |begin = min)", SPLIT),
    (r"^forward, .*(?:gather<kPieceBytes, kElementBytes>|BY tile\.cuh: each\(gathered\))", PADDED),
    (r"^gradient, .*(?:BY gradient\.cuh: (?:t\.units, 0\)|h\.load)|tile\.cuh: word\[i\] = )", SKIPPED),
    # Hopper
    (r"^Hopper gradient, .*(?:BY target\.cuh: )?if \(k \+ e >= t\.classes\) finish_weights", HOPPER_LABELS),
    (r"^Hopper gradient, index: target\.cuh: \*low = ", LOW_ODD),
    (r"^Hopper gradient, predicate: hopper\.cuh: const float2 q = factors\.peer", MASKED),
    (r"^Hopper forward, predicate: hopper\.cuh: if \(p\.h == nullptr\) continue", NOBODY),
    (r"^Hopper forward, bound: hopper\.cuh: if \(p\.classes > 0\)", "not reached: a single class"),
    (r"^Hopper forward, predicate: hopper\.cuh: if \(c\.in_quad == 0 && col0 == 0\)", SAME),
    # rows
    (r"^rows, barrier: rows\.cu: __syncthreads\(\); BY rows\.cu: .* = block_reduce<", FIRST),
    (r"^rows, (?:predicate|bound): .*(?:lane == 0|blockIdx\.z == 0|threadIdx\.x == 0)", SAME),
    (r"^rows, predicate: math\.h: r\.root = ", NOBODY),
    (r"^rows, .*(?:__device__ float larger\(|BY rows\.cu: const float slope = goodness_slope)", SCALED),
    (r"^(?:rows|head), .*(?:softplus|sigmoid|exp\(|log\(|ldexpf\()", LIBRARY),
    (r"^rows, .*(?:\+\+debtors|if \(owed == 0\.0f\) continue)", CANCELS),
    (r"^rows, .*const int64_t image = row % p\.images", UNROLLED),
    (r"^rows, .*(?:const int lane = threadIdx\.x % 32|if \(threadIdx\.x % 32 != 0\) return)", SAME),
    (r"^rows, .*(?:if \((?:\*p\.kept|shared_kept) < 0\)|int slot = first_slot)", NOBODY),
    (r"^rows, predicate: rows\.cu: if \(column != 0 \|\| p\.factor", NOBODY),
    (r"^rows, predicate: rows\.cu: if \(p\.peer != nullptr\) p\.owed", NOBODY),
    (r"^rows, bound: rows\.cu: exponent = exponent < -100", "not reached: factors beyond 2^100"),
    (r"^rows, bound: rows\.cu: for \(int64_t first = begin; first < end", NOBODY),
    (r"^rows, .*(?:const float dh = p\.kind|const float value = load_element\(matrix, storage)", MEASURE),
    (r"^rows, bound: rows\.cu: for \(int64_t b = lane; b < p\.blocks", "not reached: more than 4,096 rows"),
    (r"^rows, .*(?:load_element\(p\.base, p\.base_storage|store_element\(p\.h, p\.h_storage)", VARIANTS_SM75),
    (r"^rows, index: rows\.cu: scratch\[threadIdx\.x\] = value; BY rows\.cu: const float most_peer", SCALED),
    # labels
    (r"^labels, .*(?:int64_t last = |const double mass = |if \(mass > 0\)|c < classes; \+\+c\) \{ .* \(3\))", BEHIND),
    (r"^labels, .*labels\.cu: const (?:bool wide|Index first_column|Index step) = ", WIDE),
    (r"^labels, .*labels\.cu: for \(int64_t image = blockIdx\.x;", MANY),
    (r"^labels, barrier: .*hybrid<int64_t>", GLOBAL),
    (r"^labels, barrier: .*hybrid<int>", "redundant: where the planes lie in shared memory a block has one image"),
    (r"^labels, bound: math_functions\.hpp", EQUAL),
    # head
    (r"^head, .*for \(int64_t class0 = |^head, barrier: .*head_forward<.* \(2\)", MANY),
    (r"^head, .*(?:lane % kLanesAnImage == 0|if \(threadIdx\.x == 0\))", SAME),
    (r"^head, .*(?:i < kImageTile \* kPitch|const int row = i / kPitch)", GENERAL),
    (r"^head, (?:bound|index): head\.cu: const int64_t image0 = .*head_forward<1>", EQUAL),
    (r"^head, bound: head\.cu: (?:const float\* |const int here|const int64_t column|const int warp)", UNROLLED),
]


def reason(name: str) -> str:
    """Why this mutant survives; "" if nobody has said so."""
    return next((why for pattern, why in RULES if re.search(pattern, name)), "")
