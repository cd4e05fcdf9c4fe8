"""The differentiable route: gradients of layer_forward and local_loss, and what refuses one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import op_cases as cases
import pytest
import torch
from op_cases import NORM_GOODNESS
from tolerance import UNIT, assert_not_worse, check_parity
from torch import Tensor

import ffkern
from ffkern import nn as ffnn
from ffkern import ops, optim
from ffkern import reference as ref

OUTPUTS = ("h", "goodness", "h_norm")
COMBINATIONS = [c for n in (1, 2, 3) for c in itertools.combinations(OUTPUTS, n)]


def gradients(forward: Callable[..., Any], wanted: tuple[str, ...], pulls: dict[str, Tensor]) -> Any:
    """Named gradients of sum of <pull, output> over the wanted outputs."""

    def call(**a: Any) -> dict[str, Tensor | None]:
        leaves = {k: None if a[k] is None else a[k].detach().clone().requires_grad_() for k in ("x", "weight", "bias")}
        rest = (a["x_norm"], a["norm"], a["eps"], a["goodness"])
        h, g, _, h_norm = forward(*leaves.values(), *rest)
        outputs = {"h": h, "goodness": g, "h_norm": h_norm}
        total = sum((outputs[k].double() * pulls[k].double()).sum() for k in wanted)
        total.backward()
        return {"d" + k: None if v is None else v.grad for k, v in leaves.items()}

    return call


def pulls(rows: int, units: int) -> dict[str, Tensor]:
    return {
        "h": torch.randn(rows, units),
        "goodness": torch.randn(rows),
        "h_norm": torch.randn(rows),
    }


@pytest.mark.parametrize("wanted", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize(("norm", "goodness"), NORM_GOODNESS)
def test_layer_forward(norm, goodness, wanted):
    """dx (with the norm's own term), dW and db through every combination of outputs."""
    for shape, bias, x_norm in (((1, 7, 3), True, False), ((13, 53, 35), False, True)):
        a = cases.layer_arguments(*shape, norm=norm, goodness=goodness, bias=bias)
        if x_norm:  # the exact norms: the gradient is that of ||x||, as the reference's
            a["x_norm"] = a["x"].norm(dim=1)
        pull = pulls(shape[0], shape[2])
        check_parity(
            gradients(ops.layer_forward, wanted, pull),
            gradients(ref.layer_forward, wanted, pull),
            a,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_layer_forward_in_low_precision(dtype):
    """Gradients come in the dtype of what they belong to, and err by that rounding."""
    a = cases.layer_arguments(13, 53, 35, dtype=dtype)
    pull = pulls(13, 35)
    for wanted in (("goodness",), OUTPUTS):
        got = gradients(ops.layer_forward, wanted, pull)(**a)
        eager = gradients(ref.layer_forward, wanted, pull)(**a)
        exact = gradients(ref.layer_forward, wanted, pull)(
            **{k: v.double() if isinstance(v, Tensor) else v for k, v in a.items()}
        )
        for name, want in exact.items():
            assert got[name].dtype == eager[name].dtype
            unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
            # h of the forward pass was rounded once, the gradient once more
            assert_not_worse(got[name], eager[name], want, 2 * unit * float(want.abs().max()), name)


def test_known_norms_that_differ_from_the_exact_ones():
    """x_norm is used as given: the scale of every gradient is that of the forward pass."""
    a = cases.layer_arguments(13, 53, 35, x_norm=True)
    pull = pulls(13, 35)

    def parameters_only(forward: Any) -> Any:
        def call(**arguments: Any) -> Any:
            result = gradients(forward, OUTPUTS, pull)(**arguments)
            return {k: result[k] for k in ("dweight", "dbias")}

        return call

    check_parity(parameters_only(ops.layer_forward), parameters_only(ref.layer_forward), a)


@pytest.mark.parametrize("norm", ref.NORMS)
def test_zero_row(norm):
    """Exactly 0 for x and nothing for W, never NaN; other rows as if it were not there."""
    a = cases.layer_arguments(9, 14, 11, norm=norm)
    a["bias"] = -a["bias"].abs()  # with a unit on, dx = dh W / eps at a zero row
    a["x"][4] = 0
    pull = pulls(9, 11)
    got = gradients(ops.layer_forward, OUTPUTS, pull)(**a)
    assert all(bool(t.isfinite().all()) for t in got.values())
    assert bool((got["dx"][4] == 0).all())
    keep = torch.arange(9) != 4
    less = gradients(ops.layer_forward, OUTPUTS, {k: v[keep] for k, v in pull.items()})(**(a | {"x": a["x"][keep]}))
    torch.testing.assert_close(got["dx"][keep], less["dx"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got["dweight"], less["dweight"], rtol=1e-5, atol=1e-6)


def test_only_what_is_asked_for(monkeypatch):
    """Goodness alone goes through the fused gradient: dx is neither computed nor allocated."""
    a = cases.layer_arguments(13, 53, 35)
    calls = []
    original = torch.ops.ffkern.layer_grad

    class Spy:
        def __call__(self, *arguments: Any) -> Any:
            calls.append(arguments)
            return original(*arguments)

        default = original.default

    monkeypatch.setattr(torch.ops.ffkern, "layer_grad", Spy())
    for wanted in itertools.product([False, True], repeat=3):
        leaves = [a[k].clone().requires_grad_(on) for k, on in zip(("x", "weight", "bias"), wanted, strict=True)]
        calls.clear()
        g = ops.layer_forward(*leaves, None, "rms", 1e-4, "mean_sq")[1]
        assert g.requires_grad == any(wanted)
        if not any(wanted):
            continue
        g.sum().backward()
        for leaf, on in zip(leaves, wanted, strict=True):
            assert (leaf.grad is not None) == on
        assert len(calls) == (0 if wanted[0] else 1)


def test_scale_has_no_gradient():
    a = cases.layer_arguments(3, 5, 4)
    a["x"].requires_grad_()
    assert not ops.layer_forward(*a.values())[2].requires_grad


def test_finite_differences():
    """Central differences of the operation itself.

    With step d and inputs of size 1 the quotient is off by d^2 times the third derivative (about
    1e-4 here) and by the rounding of the summed result, 30 terms of size 1: 30 * 2^-24 / d = 2e-4.
    """
    step = 2.0**-7
    a = cases.layer_arguments(4, 6, 5, norm="rms", goodness="mean_sq")
    a["x"] = torch.randn(4, 6) + 0.5
    a["bias"] = a["bias"] + 0.5
    pull = pulls(4, 5)

    def value(**arguments: Any) -> Tensor:
        h, g, _, h_norm = ops.layer_forward(*arguments.values())
        parts = (h * pull["h"]).sum(), (g * pull["goodness"]).sum(), (h_norm * pull["h_norm"]).sum()
        return sum(part.double() for part in parts)

    exact = gradients(ref.layer_forward, OUTPUTS, pull)
    got = gradients(ops.layer_forward, OUTPUTS, pull)(**a)
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in a.items()}
    off = []
    for name in ("x", "weight", "bias"):
        flat = a[name].view(-1)
        for i in range(flat.numel()):
            ends = []
            kinks = []
            for sign in (1, -1):
                moved = a[name].clone()
                moved.view(-1)[i] += sign * step
                ends.append(value(**(a | {name: moved})))
                z = ref._pre_activation(
                    *(moved if k == name else a[k] for k in ("x", "weight", "bias")),
                    None,
                    "rms",
                    1e-4,
                )[0]
                kinks.append(z > 0)
            if not torch.equal(*kinks):
                continue  # the ReLU's kink lies between the two ends: no derivative to compare
            quotient = float((ends[0] - ends[1]) / (2 * step))
            off.append(abs(quotient - float(got["d" + name].view(-1)[i])))
    size = max(float(t.abs().max()) for t in got.values())
    assert len(off) > 40
    assert max(off) < 5e-3 * max(size, 1.0)
    want = exact(**wide)
    for name, value_ in got.items():
        assert float((value_ - want[name]).abs().max()) < 100 * UNIT * max(size, 1.0)


# ---------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("weighted", [False, True])
def test_local_loss(weighted):
    def call(loss: Any) -> Any:
        def run(goodness: Tensor, **rest: Any) -> dict[str, Tensor]:
            g = goodness.detach().clone().requires_grad_()
            (3 * loss(g, *rest.values())[0]).backward()
            return {"dgoodness": g.grad}

        return run

    a = {
        "goodness": 4 * torch.randn(113),
        "sign": cases.signs(113),
        "row_weight": torch.rand(113) if weighted else None,
        "threshold": 1.25,
        "temperature": 0.7,
    }
    check_parity(call(ops.local_loss), call(ref.local_loss), a)


@pytest.mark.parametrize(("norm", "goodness"), NORM_GOODNESS)
def test_whole_layer(norm, goodness):
    """Forward, loss, backward: the gradients that a torch optimiser sees."""

    def call(forward: Any, loss: Any) -> Any:
        def run(**a: Any) -> dict[str, Tensor]:
            weight, bias = (a[k].detach().clone().requires_grad_() for k in ("weight", "bias"))
            g = forward(a["x"], weight, bias, None, norm, 1e-4, goodness)[1]
            value = loss(g, a["sign"], a["row_weight"], 1.25, 0.7)[0]
            value.backward()
            return {"loss": value.detach(), "dweight": weight.grad, "dbias": bias.grad}

        return run

    a = cases.step_arguments(37, 53, 35, norm=norm, goodness=goodness)
    a = {k: a[k] for k in ("x", "weight", "bias", "sign", "row_weight")}
    check_parity(call(ops.layer_forward, ops.local_loss), call(ref.layer_forward, ref.local_loss), a)


def test_module_loss_has_the_gradient_of_the_reference():
    layer = ffkern.FFLinear(20, 12, norm="l2", eps=1e-3, goodness="sum_sq", threshold="width")
    x, sign = torch.randn(16, 20), cases.signs(16)
    loss, h = layer.local_loss(x, sign)
    assert not h.requires_grad
    loss.backward()
    w, b = (p.detach().double().requires_grad_() for p in (layer.weight, layer.bias))
    g = ref.layer_forward(x.double(), w, b, None, "l2", 1e-3, "sum_sq")[1]
    exact = ref.local_loss(g, sign, None, 12.0, 1.0)[0]
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    torch.testing.assert_close(layer.weight.grad.double(), w.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer.bias.grad.double(), b.grad, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------ refusals


def test_backward_after_a_step_raises():
    layer = ffkern.FFLinear(9, 6)
    opt = optim.SGD(layer.parameters(), 0.1)
    x, sign = torch.randn(5, 9), torch.ones(5)
    loss, _ = layer.local_loss(x, sign)
    layer.step(x, sign, opt)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", ["layer_step_", "shared_step_", "layer_update_", "shared_update_"])
def test_backward_after_an_in_place_operation_raises(name):
    arguments = list(cases.sample(name))
    schema = getattr(torch.ops.ffkern, name).default._schema.arguments
    at = next(i for i, argument in enumerate(schema) if argument.name == "weight")
    weight = arguments[at].requires_grad_()
    bias = torch.zeros(weight.shape[0], requires_grad=True)
    g = ops.layer_forward(torch.randn(4, 12), weight, bias, None, "l2", 0.1, "sum_sq")[1]
    getattr(ops, name)(*arguments)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        g.sum().backward()


def test_backward_after_kept_activities_were_overwritten_raises():
    x = torch.randn(4, 12, requires_grad=True)
    h = torch.zeros(6, 12)
    weight = torch.randn(5, 12, requires_grad=True)
    g = ops.layer_forward(h, weight, None, None, "l2", 0.1, "sum_sq")[1]
    out = [h, torch.zeros(6), torch.zeros(6), torch.zeros(6)]
    ops.layer_forward_(torch.randn(6, 7), torch.randn(12, 7), None, None, *out, "l2", 0.1, "sum_sq")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        g.sum().backward()
    assert x.grad is None


@pytest.mark.parametrize("wanted", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("leaf", ["x", "weight"])
def test_second_derivatives_are_refused(leaf, wanted):
    """An error, never a gradient with terms missing."""
    a = cases.layer_arguments(5, 7, 4)
    a[leaf].requires_grad_()
    outputs = dict(zip(cases.NAMES, ops.layer_forward(*a.values()), strict=True))
    total = sum((outputs[k] ** 2).sum() for k in wanted)
    with pytest.raises(RuntimeError, match=r"layer_(forward|grad).*(first derivative|once)"):  # noqa: PT012
        (first,) = torch.autograd.grad(total, a[leaf], create_graph=True)
        torch.autograd.grad(first.square().sum(), a[leaf])


def test_second_derivative_of_the_loss_is_refused():
    g = torch.randn(5, requires_grad=True)
    loss = ops.local_loss(g, cases.signs(5), None, 1.0, 1.0)[0]
    with pytest.raises(RuntimeError, match=r"local_loss.*(first derivative|once)"):  # noqa: PT012
        (first,) = torch.autograd.grad(loss**2, g, create_graph=True)
        torch.autograd.grad(first.square().sum(), g)


WITHOUT = (
    "shared_base",
    "shared_variants",
    "layer_grad",
    "shared_grad",
    "predict_goodness",
    "overlay_label",
    "concat_label",
    "head_forward",
)


@pytest.mark.parametrize("name", WITHOUT)
def test_operations_without_derivative_say_so(name):
    arguments = list(cases.sample(name))
    first = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
    first.requires_grad_()
    result = getattr(ops, name)(*arguments)
    first_result = result if isinstance(result, Tensor) else result[0]
    with pytest.raises(RuntimeError, match=rf"ffkern::{name} has no derivative.*layer_forward"):
        first_result.sum().backward()


def test_integer_results_and_updates_need_no_gradient():
    """Steps run on parameters that require a gradient, and leave none behind."""
    net = ffkern.FFNet([12, 9, 8], classes=3)
    opt = optim.Adam(net.parameters())
    x = torch.rand(6, 12, requires_grad=True)
    net.step(x, torch.randint(0, 3, (6,)), opt)
    assert all(p.grad is None for p in net.parameters())
    assert all(p.requires_grad and p.is_leaf for p in net.parameters())
    assert x.grad is None


def test_head_passes_no_gradient_to_layers():
    head = ffnn.FFHead([6], 3)
    h = torch.rand(4, 6, requires_grad=True)
    logits = head([h], [h.detach().norm(dim=1)])
    with pytest.raises(RuntimeError, match="has no derivative"):
        logits.sum().backward()
