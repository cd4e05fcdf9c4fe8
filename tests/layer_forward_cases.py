"""Inputs for the layer's forward pass, and how far from the exact result a kernel may be."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from ffkern import reference

UNIT_F32 = 2.0**-24  # largest relative error of one rounding to float32
UNIT_BF16 = 2.0**-8
EPS = 1e-4

# rows, inputs, units: single elements, less than a tile, ragged everywhere, odd, many tiles.
SHAPES = [
    (1, 1, 1),
    (1, 8, 16),
    (3, 17, 5),
    (65, 64, 40),
    (100, 72, 104),
    (130, 136, 200),
    (37, 500, 131),
    (129, 33, 257),
]

# Every norm and every goodness, not every pair of them.
KINDS = [
    ("l2", "mean_sq"),
    ("rms", "sum_sq"),
    ("none", "neg_sum_sq"),
    ("l2", "neg_mean_sq"),
    ("rms", "sum_abs"),
]


class Result(NamedTuple):
    h: Tensor
    goodness: Tensor
    scale: Tensor
    h_norm: Tensor


@dataclasses.dataclass
class Case:
    """Arguments of layer_forward, in the order of its schema."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    x_norm: Tensor | None = None
    norm: str = "l2"
    eps: float = EPS
    goodness: str = "mean_sq"

    def arguments(self) -> tuple:
        return (self.x, self.weight, self.bias, self.x_norm, self.norm, self.eps, self.goodness)

    def replace(self, **changes) -> Case:
        return dataclasses.replace(self, **changes)


def random_case(rows: int, inputs: int, units: int, *, bias: bool = True, **options) -> Case:
    """Fresh inputs from torch's global generator."""
    weight = torch.randn(units, inputs) / max(inputs, 1) ** 0.5
    return Case(
        torch.randn(rows, inputs).bfloat16(),
        weight.bfloat16(),
        torch.randn(units) if bias else None,
        **options,
    )


def exact(case: Case) -> Result:
    """The specification, in float64, of the same rounded inputs."""
    wide = [None if t is None else t.double() for t in case.arguments()[:4]]
    return Result(*reference.layer_forward(*wide, case.norm, case.eps, case.goodness))


def eager(case: Case) -> Tensor:
    """h as PyTorch computes it in bfloat16."""
    x = case.x
    if case.norm != "none":
        length = x.norm(dim=1, keepdim=True) if case.x_norm is None else case.x_norm[:, None]
        length = length / (x.shape[1] ** 0.5 if case.norm == "rms" else 1)
        x = (x / (length + case.eps)).bfloat16()
    bias = None if case.bias is None else case.bias.bfloat16()
    return torch.nn.functional.linear(x, case.weight, bias).relu()


def check(result: tuple[Tensor, ...], case: Case) -> None:
    """Compares with the exact result.

    First by bounds that the algorithm keeps for any input, element by element. With u = 2^-24 and
    gamma(n) = n u / (1 - n u), a sum of n float32 terms is off by at most gamma(n) times the sum of
    their magnitudes, in any order; a tensor core truncates instead of rounding, so 2 gamma(n).
    h = relu(r s + b) is off by what the product s and the scale r are off, plus its own rounding to
    bfloat16. Goodness and norm are those of h before that rounding, which they do not see.
    Then by the rule for every operation: at most twice the error of PyTorch in bfloat16.
    """
    got, want = Result(*(t.double() for t in result)), exact(case)
    rows, inputs = case.x.shape
    units = case.weight.shape[0]

    def gamma(n: int) -> float:
        return n * UNIT_F32 / (1 - n * UNIT_F32)

    terms = 0 if case.norm == "none" else 8 if case.x_norm is not None else inputs + 8
    scale_error = gamma(terms) * want.scale
    magnitude = case.x.double().abs() @ case.weight.double().abs().T * want.scale[:, None]
    z_error = (2 * gamma(inputs + 2) + gamma(terms)) * magnitude
    z_error = z_error + 2 * UNIT_F32 * (magnitude + (0 if case.bias is None else case.bias.abs()))
    h_error = z_error + UNIT_BF16 * (want.h + z_error)

    adding = gamma(units + 8)
    reach = want.h + z_error
    if case.goodness == "sum_abs":
        goodness_error = (z_error + adding * reach).sum(1)
    else:
        goodness_error = (z_error * (want.h + reach) + adding * reach**2).sum(1)
        if "mean" in case.goodness:
            goodness_error = goodness_error / units
    square_error = (z_error * (want.h + reach) + adding * reach**2).sum(1)
    # |sqrt a - sqrt b| is at most |a - b| / sqrt b, and at most sqrt |a - b|.
    near = square_error / want.h_norm.clamp_min(1e-300)
    norm_error = torch.minimum(near, square_error.sqrt()) + 2 * UNIT_F32 * want.h_norm

    tiny = 2.0**-126
    bounds = Result(h_error, goodness_error, scale_error, norm_error)
    for name, a, b, bound in zip(Result._fields, got, want, bounds, strict=True):
        assert a.shape == b.shape, name
        excess = (a - b).abs() - bound - tiny
        assert bool((excess <= 0).all()), f"{name} is {float(excess.max()):.3g} beyond its bound"

    if rows and units:
        floor = UNIT_BF16 * float(want.h.max())
        error, limit = (float((h.double() - want.h).abs().max()) for h in (result[0], eager(case)))
        assert error <= 2 * limit + floor
