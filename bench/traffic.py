"""What a case cannot do without: floating-point operations, and bytes from and to the GPU's memory.

Operations: two for every multiplication of a matrix product and its addition; nothing else counts. A step makes two
products, rows x inputs x units each; with label variants of the same images, images instead of rows.

Compulsory bytes: every argument is read once, every result written once, what is updated in place both. Workspaces and
activities that nobody asked for do not count, nor does reading the rows again for the second product. A kernel that
reads them again, or that splits its work, moves more; none can move less unless data stays in the cache between calls.
"""

from __future__ import annotations

from .cases import CLASSES, PredictCase, StepCase

SLOTS = 2  # Adam's moments
FLOAT, LABEL = 4, 8  # bytes


def step_flops(case: StepCase) -> int:
    products = case.batch if case.shared else case.rows
    return 4 * products * case.inputs * case.units


def step_bytes(case: StepCase, element: int) -> int:
    """``element``: bytes of an element of the rows; 16-bit rows come with a 16-bit copy of the weights."""
    weights = case.units * case.inputs
    trained = 2 * FLOAT * (1 + SLOTS) * (weights + case.units)
    copy = 2 * element * weights if element == 2 else 0
    rows = element * (case.batch if case.shared else case.rows) * case.inputs + FLOAT * case.rows
    labels = LABEL * case.rows if case.shared else 0
    kept = (element * case.units + FLOAT) * case.rows if case.keep else 0
    return trained + copy + rows + labels + kept


def predict_flops(case: PredictCase) -> int:
    first, *rest = [a * b for a, b in zip(case.sizes, case.sizes[1:], strict=False)]
    return 2 * case.images * (first + CLASSES * sum(rest))


def predict_bytes(case: PredictCase, element: int) -> int:
    weights = sum(a * b for a, b in zip(case.sizes, case.sizes[1:], strict=False))
    return element * (case.images * case.sizes[0] + weights) + FLOAT * sum(case.sizes[1:]) + LABEL * case.images
