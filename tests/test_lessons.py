"""Rows that teach nothing more are left out of the weight product: which ones, what is left of the result, how many."""

from __future__ import annotations

from typing import Any

import emulated
import op_cases as cases
import pytest
import torch
from tolerance import check_parity, to_double

from ffkern import ops, optim
from ffkern import reference as ref

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.usefixtures("however_small")]
every_backend = pytest.mark.usefixtures("backend")
every_isa = pytest.mark.usefixtures("isa")
rules = pytest.mark.parametrize("optimiser", ["sgd", "ema"])
shapes = pytest.mark.parametrize("variants", [0, 2, 3], ids=["plain", "two", "three"])
TOLERANCE = optim.ROW_TOLERANCE


@pytest.fixture
def however_small(monkeypatch):
    """CUDA leaves rows out of the smallest products too, where it would not pay."""
    monkeypatch.setenv(emulated.FORCE_LEAVE_OUT, "always")


def lesson(variants: int, optimiser: str, late: float, peer: bool, **options: Any) -> dict[str, Any]:
    """A step in which all but a share `late` of the images are far on the right side of the threshold."""
    images, inputs, units = 61, 53, 37
    layout = {"variants": variants, "classes": 10} if variants else {}
    a = cases.step_arguments(images, inputs, units, optimiser=optimiser, peer=peer, **layout, **options)
    rows = ref._variants(a["x"], a["labels"], 10, a["overlay"]) if variants else a["x"]
    known = None if variants else a["x_norm"]
    goodness = ref.layer_forward(rows, a["weight"], a["bias"], known, a["norm"], a["eps"], a["goodness"])[1]
    a["threshold"] = float(goodness.median()) + 1e-3 * float(goodness.std())
    a["temperature"] = float((goodness - a["threshold"]).abs().min()) / 60  # softplus' slope there is 1e-26
    right = torch.where(goodness > a["threshold"], 1.0, -1.0)
    wrong = torch.rand(images) < late
    wrong[7] = True
    a["sign"] = torch.where(wrong.repeat(max(variants, 1)), -right, right)
    return a


def kept_rows(a: dict[str, Any], kept: torch.Tensor) -> list[float]:
    """How many positive and negative rows of these images there are."""
    sign = a["sign"].view(-1, len(kept))
    return [float((sign[:, kept] > 0).sum()), float((sign[:, kept] < 0).sum())]


def counted_update(**a: Any) -> dict[str, Any]:
    """The update, with the statistics that it takes rows from."""
    stats = cases.STATS_BEFORE.clone()
    return cases.update(**a, stats=stats) | {"stats": stats - cases.STATS_BEFORE}


@every_backend
@rules
@shapes
@pytest.mark.parametrize("peer", [False, True])
@pytest.mark.parametrize(("norm", "goodness"), [("rms", "sum_sq"), ("l2", "mean_sq"), ("none", "sum_abs")])
def test_step_and_update_obey_their_bounds(variants, optimiser, peer, norm, goodness):
    """At the default tolerance nothing is lost but rounding."""
    a = lesson(variants, optimiser, 0.2, peer, norm=norm, goodness=goodness)
    a["hyper"] = [*a["hyper"][:4], TOLERANCE]
    mass = masses(a)
    assert (mass * len(mass) <= TOLERANCE * mass.sum()).sum() > len(mass) / 2  # else the product runs over all rows
    check_parity(cases.step, cases.step_reference, a)
    check_parity(cases.update, cases.update_reference, cases.update_arguments(a, peer))


@every_backend
@shapes
@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_adam_refuses_to_leave_rows_out(variants, optimiser):
    a = lesson(variants, optimiser, 0.2, False)
    with pytest.raises(RuntimeError, match=r"row_tolerance\) is 0.5; expected 0 with adam"):
        cases.step(**{**a, "hyper": [*a["hyper"][:4], 0.5]})


def masses(a: dict[str, Any]) -> torch.Tensor:
    """Norm of each image's part of dW, summed over its variants, in float64: from the definition."""
    a = to_double(a)
    variants = a["labels"].shape[0] if "labels" in a else 1
    images = a["x"].shape[0]
    rows, rest = a["x"], a["x"]
    if variants > 1:
        rows = ref._variants(a["x"], a["labels"], 10, a["overlay"])
        rest = a["x"][:, 10:]
    known = None if variants > 1 else a["x_norm"]
    h, g, scale, _ = ref.layer_forward(rows, a["weight"], a["bias"], known, a["norm"], a["eps"], a["goodness"])
    c = ref.local_loss(g, a["sign"], a["row_weight"], a["threshold"], a["temperature"])[1]
    factor = {"sum_sq": 2, "mean_sq": 2 / h.shape[1], "sum_abs": 1}[a["goodness"]]
    length = torch.full_like(g, h.shape[1] ** 0.5) if a["goodness"] == "sum_abs" else h.norm(dim=1)
    part = (factor * c).abs() * scale * length * rest.norm(dim=1).repeat(variants)
    return part.view(variants, images).sum(0)


def graded_lesson(variants, optimiser, peer):
    """Arguments whose masses spread over a few orders of magnitude, the masses, and the larger half of them, ranked."""
    a = lesson(variants, optimiser, 0.2, peer, x_norm=False, norm="rms", goodness="sum_sq")
    rows = ref._variants(a["x"], a["labels"], 10, a["overlay"]) if variants else a["x"]
    spread = float(ref.layer_forward(rows, a["weight"], a["bias"], None, "rms", a["eps"], "sum_sq")[1].std())
    a["temperature"] = spread / 4
    if variants:
        a["overlay"] = torch.zeros(2)  # the label inputs teach always: their columns take no part in the product
    mass = masses(a)
    ranked = mass.sort(descending=True).values[: len(mass) // 2]
    return a, mass, ranked[ranked < 0.9 * mass.mean()]


@every_backend
@rules
@shapes
@pytest.mark.parametrize("peer", [False, True])
def test_the_rows_left_out_are_those_below_the_tolerance(variants, optimiser, peer):
    """With a tolerance that matters: as if those rows had no weight, but for the bias and the peer term."""
    ranked = torch.zeros(0)
    while len(ranked) < 2:  # inputs of which enough rows teach less than the mean
        a, mass, ranked = graded_lesson(variants, optimiser, peer)
    # Between two masses, so that rounding does not decide: the widest gap that leaves out more than half.
    gap = int((ranked[:-1] / ranked[1:]).argmax())
    cut = float(ranked[gap] * ranked[gap + 1]) ** 0.5 / float(mass.sum()) * len(mass)
    a["hyper"] = [*a["hyper"][:4], cut]
    got = cases.step(**a, counted=True)

    teaches = mass * len(mass) > cut * mass.sum()
    kept = teaches.float()
    assert 0 < kept.sum() < len(mass) / 2
    assert got["stats"][7:].tolist() == kept_rows(a, teaches)
    left_out = counted_update(**cases.update_arguments(a, peer) | {"sign": a["sign"]})["stats"]
    assert left_out.tolist() == [0.0] * 7 + [-n for n in kept_rows(a, ~teaches)]
    weight = a["row_weight"] if a["row_weight"] is not None else torch.full_like(a["sign"], 1 / len(a["sign"]))
    wanted = cases.step_reference(**to_double({**a, "row_weight": weight * kept.repeat(max(variants, 1))}))
    skip = 10 if variants else 0
    whole = cases.step_reference(**to_double(a))
    found, right, other = (r["weight_state"][:, :, skip:].double() for r in (got, wanted, whole))
    assert (found - right).norm() < 1e-5 * right.norm()
    assert (other - right).norm() > 1e-3 * right.norm()
    assert (got["bias_state"].double() - whole["bias_state"]).norm() < 1e-5 * whole["bias_state"].norm()


@every_backend
@rules
def test_no_row_teaches(optimiser):
    """Every coefficient is 0: the weights move by momentum alone, and nothing is NaN."""
    a = cases.step_arguments(12, 30, 20, optimiser=optimiser, peer=False)
    a["row_weight"] = torch.zeros(12)
    check_parity(cases.step, cases.step_reference, a)
    assert cases.step(**a, counted=True)["stats"][7:].tolist() == [0.0, 0.0]
    a["peer_mean"], a["peer_strength"] = torch.rand(20), 0.4
    check_parity(cases.step, cases.step_reference, a)


@every_backend
@rules
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_left_out(optimiser, value):
    a = lesson(0, optimiser, 0.2, False)
    a["x"][3, 4] = value
    got = cases.step(**a)
    assert got["weight"].isnan().any()


# ---------------------------------------------------------------- what is exactly zero


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.view(torch.int32)


def taught(images: int, variants: int, peer: bool) -> tuple[dict[str, Any], torch.Tensor]:
    """An SGD update whose new state is dW itself, and the images that have a coefficient other than 0, one in ten."""
    layout = {"variants": variants, "classes": 10} if variants else {}
    a = cases.step_arguments(images, 53, 37, optimiser="sgd", peer=peer, **layout)
    g = cases.update_arguments(a, peer) | {"sign": a["sign"], "hyper": [0.0, 0.0, 0.0, 0.0, 0.0]}
    teaches = torch.rand(images) < 0.1
    teaches[images // 2] = True
    g["coef"] = torch.where(teaches.repeat(max(variants, 1)), g["coef"] + 0.1, 0.0)
    return g, teaches


def gradient_of(g: dict[str, Any]) -> torch.Tensor:
    """dW by the operation that multiplies every row."""
    names = ("x", "h", "scale", "coef", "labels", "overlay", "classes", "sign", "peer", "goodness")
    return cases.gradient(**{name: g[name] for name in names if name in g})["dweight"]


@every_isa
@shapes
@pytest.mark.parametrize("peer", [False, True])
@pytest.mark.parametrize("images", [9, 203, 2600])  # one block of the product's depth, two, and beyond what is packed
def test_rows_of_zeros_are_left_out_without_a_change_in_any_bit(images, variants, peer, product):
    g, teaches = taught(images, variants, peer)
    got = counted_update(**g)
    assert torch.equal(bits(got["weight_state"][0]), bits(gradient_of(g)))
    if peer:  # positive rows teach their peer term
        teaches = teaches | (g["sign"].view(-1, images) > 0).any(0)
    assert got["stats"].tolist() == [0.0] * 7 + [-n for n in kept_rows(g, ~teaches)]


@every_isa
@shapes
@pytest.mark.parametrize(("where", "value"), [("x", "nan"), ("x", "inf"), ("h", "inf"), ("h", "nan")])
def test_zero_times_what_is_not_finite_is_not_left_out(variants, where, value, product):
    g, teaches = taught(203, variants, False)
    lost = int((~teaches).nonzero()[0])
    g[where][lost, 11] = float(value)
    got = counted_update(**g)
    assert got["weight_state"].isnan().any()
    assert torch.equal(bits(got["weight_state"][0]), bits(gradient_of(g)))
    teaches[lost] = True
    assert got["stats"].tolist() == [0.0] * 7 + [-n for n in kept_rows(g, ~teaches)]


@every_isa
@pytest.mark.parametrize("optimiser", cases.HYPER)
def test_a_step_in_chunks_leaves_zeros_out_too(optimiser, product):
    """More rows than are computed at once; most of them have no weight in the loss."""
    a = cases.step_arguments(1200, 30, 9001, optimiser=optimiser)
    teaches = torch.rand(1200) < 0.2
    a["row_weight"] = torch.where(teaches, a["row_weight"] + 1e-4, 0.0)
    assert cases.step(**a, counted=True)["stats"][7:].tolist() == kept_rows(a, teaches)
    check_parity(cases.step, cases.step_reference, a)


def test_scratch_for_copies_is_that_of_optimisers_that_may_leave_rows_out():
    weight = torch.empty(30, 1000)
    for need in (
        lambda rule: ops.step_workspace(weight, 80, 0, 1, True, rule),
        lambda rule: ops.update_workspace(weight, 80, 0, 1, rule),
    ):
        assert need("sgd") == need("ema") >= need("adam") + 70 * 1000
        assert need("adam") == need("adamw")
        with pytest.raises(RuntimeError, match="optimiser is 'lion'; expected 'sgd', 'ema', 'adam'"):
            need("lion")


def test_statistics_without_signs_are_refused():
    g, _ = taught(9, 0, False)
    with pytest.raises(RuntimeError, match="stats is given but sign is not; expected both"):
        counted_update(**g | {"sign": None})
