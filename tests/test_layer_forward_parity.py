"""One test of layer_forward for every backend: CPU, the CUDA kernels on a software driver, CUDA."""

from __future__ import annotations

from collections.abc import Callable

import emulated
import pytest
import torch
from layer_forward_cases import KINDS, SHAPES, Case, check, random_case
from torch import Tensor

import ffkern  # noqa: F401  (registers the operations)

BACKENDS = ["cpu", pytest.param("emulated-cuda", marks=pytest.mark.emulated)]
if torch.cuda.is_available():  # without a GPU there is nothing to collect, rather than to skip
    BACKENDS.append(pytest.param("cuda", marks=pytest.mark.gpu))

Forward = Callable[[Case], tuple[Tensor, ...]]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Forward:
    """layer_forward on CPU tensors, computed by the backend."""
    if request.param == "emulated-cuda":
        emulated.load()
        return lambda case: torch.ops.ffkern_emulated.layer_forward(*case.arguments())
    if request.param == "cpu":
        return lambda case: torch.ops.ffkern.layer_forward(*case.arguments())

    def on_cuda(case: Case) -> tuple[Tensor, ...]:
        moved = [a.cuda() if isinstance(a, Tensor) else a for a in case.arguments()]
        return tuple(t.cpu() for t in torch.ops.ffkern.layer_forward(*moved))

    return on_cuda


@pytest.mark.parametrize(("norm", "goodness"), KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_matches_the_exact_result(backend: Forward, shape: tuple[int, int, int], norm: str, goodness: str) -> None:
    case = random_case(*shape, norm=norm, goodness=goodness)
    check(backend(case), case)


@pytest.mark.parametrize("norm", ["l2", "rms", "none"])
def test_takes_norms_that_are_known(backend: Forward, norm: str) -> None:
    case = random_case(70, 48, 72, norm=norm)
    case = case.replace(x_norm=case.x.float().norm(dim=1) * 1.5)  # used as given, not recomputed
    check(backend(case), case)


def test_without_bias(backend: Forward) -> None:
    case = random_case(66, 40, 24, bias=False)
    check(backend(case), case)


def test_zero_row_gets_the_bias(backend: Forward) -> None:
    case = random_case(5, 24, 40)
    case.x[2] = 0
    result = backend(case)
    check(result, case)
    assert result[2][2] == pytest.approx(1 / case.eps, rel=1e-6)
    assert torch.equal(result[0][2], case.bias.relu().bfloat16())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("norm", ["l2", "none"])
def test_a_bad_row_spoils_only_itself(backend: Forward, norm: str, value: float) -> None:
    case = random_case(70, 40, 36, norm=norm)
    clean = backend(case)
    case.x[33, 7] = value
    h, goodness, scale, h_norm = backend(case)
    others = torch.arange(70) != 33
    for before, after in zip(clean, (h, goodness, scale, h_norm), strict=True):
        assert torch.equal(before[others], after[others])
    if norm == "none" and value == float("inf"):  # relu of plus or minus infinity, and no NaN
        assert set(h[33].tolist()) == {0.0, float("inf")}
        assert goodness[33] == h_norm[33] == float("inf")
    else:  # NaN, or infinity / infinity
        assert h[33].isnan().all()
        assert goodness[33].isnan()
        assert h_norm[33].isnan()


def test_no_rows(backend: Forward) -> None:
    h, *row_values = backend(random_case(0, 16, 8))
    assert h.shape == (0, 8)
    assert all(t.shape == (0,) for t in row_values)


@pytest.mark.parametrize("shape", [(4, 0, 8), (4, 16, 0)], ids=str)
def test_a_layer_has_inputs_and_units(backend: Forward, shape: tuple[int, int, int]) -> None:
    with pytest.raises(RuntimeError, match="expected at least one unit and one input"):
        backend(random_case(*shape))


def test_views(backend: Forward) -> None:
    """Row pitches, odd offsets, expanded rows and transposed matrices."""
    case = random_case(66, 90, 50)
    for x, weight in [
        (case.x[::2, 3:43], case.weight[:, 3:43]),
        (case.x[1:, :40], case.weight[5:, 50:]),
        (case.x[:1].expand(20, -1), case.weight),
        (case.x[:40].t(), case.weight[:, :40]),
        (case.x[:, :50], case.weight[:, :50].t()),
    ]:
        view = case.replace(x=x, weight=weight, bias=case.bias[: weight.shape[0]])
        check(backend(view), view)
