"""How close a kernel has to be to the exact result, and how that is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

UNIT = 2.0**-24  # largest relative error of one rounding to float32
STORAGE_UNIT = {torch.float32: UNIT, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

Results = dict[str, Tensor | None]


def assert_not_worse(result: Tensor, eager: Tensor, exact64: Tensor, floor: float = 0.0, what: str = "result") -> None:
    """The largest error of ``result`` is at most twice that of eager PyTorch, plus a floor.

    Both errors are taken against ``exact64``, the specification in float64 on the same (already
    rounded) inputs.  Twice, because another order of summation errs otherwise, by the same size.

    ``floor`` is what eager's own error cannot tell: on a few elements it may be zero by luck.  On
    top of the caller's floor there is always 2^-22 of the largest exact value (four roundings of
    the result itself), so every bound scales with the result.  For sums that cancel that is too
    little; there the caller passes :func:`conditioning`: by how much the exact result itself moves
    when its inputs move by one rounding.  Neither depends on the result under test.

    A value that is exactly NaN or infinite has to be the same NaN or infinity.
    """
    assert result.shape == exact64.shape, f"{what}: {result.shape}, expected {exact64.shape}"
    if exact64.numel() == 0:
        return
    got, want, base = result.double(), exact64.double(), eager.double()
    odd = ~want.isfinite()
    assert bool((got.isnan() == want.isnan()).all()), f"{what}: NaN in other places"
    assert bool((got[odd & ~want.isnan()] == want[odd & ~want.isnan()]).all()), f"{what}: infinity"
    if odd.all():
        return
    error = float((got - want)[~odd].abs().max())
    finite = ~odd & base.isfinite()
    allowed = float((base - want)[finite].abs().max()) if finite.any() else 0.0
    bound = 2 * allowed + floor + 4 * UNIT * float(want[~odd].abs().max())
    assert error <= bound, f"{what}: error {error:.3g}, allowed {bound:.3g} (eager {allowed:.3g})"


def to_double(value: Any) -> Any:
    """Floating tensors in float64, everything else as it is; lists and mappings inside too."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in FLOATS else value
    if isinstance(value, dict):
        return {k: to_double(v) for k, v in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
        return [to_double(v) for v in value]
    return value


def nudged(value: Any, skip: Sequence[str] = (), unit: float = UNIT) -> Any:
    """The arguments in float64, each moved up or down by one rounding, at random."""
    if isinstance(value, Tensor):
        wide = to_double(value)
        return wide * (1 + unit * torch.randn_like(wide).sign()) if value.dtype in FLOATS else wide
    if isinstance(value, dict):
        return {k: to_double(v) if k in skip else nudged(v, unit=unit) for k, v in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
        return [nudged(v, unit=unit) for v in value]
    return value


def draws_for(arguments: dict[str, Any]) -> int:
    """Few inputs are tried often: there a single draw may move the result by nothing, by luck."""
    tensors = [t for v in arguments.values() for t in (v if isinstance(v, list) else [v]) if isinstance(t, Tensor)]
    return 8 if sum(t.numel() for t in tensors) < 25000 else 2


def conditioning(
    reference: Callable[..., Mapping[str, Tensor | None]],
    arguments: dict[str, Any],
    exact: Mapping[str, Tensor | None],
    skip: Sequence[str] = (),
    draws: int = 0,
    unit: float = UNIT,
) -> dict[str, float]:
    """Eight times the largest move of each exact result under inputs moved by one rounding.

    Eight: a chain of norm, scale, bias, goodness, logistic and update rounds about that often.
    """
    moves = dict.fromkeys(exact, 0.0)
    for _ in range(draws or draws_for(arguments)):
        moved = reference(**nudged(arguments, skip, unit))
        for name, value in exact.items():
            other = moved[name]
            if value is None or other is None or not value.is_floating_point() or not value.numel():
                continue
            change = (other - value).abs()
            change = change[change.isfinite()]
            if change.numel():
                moves[name] = max(moves[name], 8 * float(change.max()))
    return moves


# Not moved: labels of rows, and what is exact by definition.
FIXED = ("sign", "u", "lr")


def check_parity(
    operation: Callable[..., Mapping[str, Tensor | None]],
    reference: Callable[..., Mapping[str, Tensor | None]],
    arguments: dict[str, Any],
    draws: int = 0,
    unit: float = UNIT,
    floor: float = 0.0,
) -> Results:
    """operation(**arguments) against the reference, result by result; returns what it gave.

    ``unit`` is the rounding of the operands of a product, where that is coarser than float32's: tensor cores multiply
    weights, activities and rounded gradients in the 16-bit dtype of x, or in tf32. ``floor`` is added to every
    bound: what numbers lose that are too small for float32.

    Integers have to be equal, floats obey assert_not_worse with eager = the reference on the same
    arguments in their own dtype.
    """
    exact = reference(**to_double(arguments))
    eager = reference(**arguments)
    floors = conditioning(reference, arguments, exact, FIXED, draws, unit)
    got = dict(operation(**arguments))
    assert got.keys() == exact.keys()
    for name, want in exact.items():
        value, plain = got[name], eager[name]
        if want is None:
            assert value is None, name
            continue
        assert value is not None, name
        assert plain is not None, name
        if not want.is_floating_point():
            assert value.dtype == want.dtype, name
            assert torch.equal(value, want), name
            continue
        assert value.dtype == plain.dtype, f"{name} is {value.dtype}, expected {plain.dtype}"
        assert_not_worse(value, plain, want, floors[name] + floor, name)
    return got
