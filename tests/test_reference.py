"""The specification checked: derivatives, formulas, other libraries, and Hinton's own recipe."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ffkern import reference as ref

_spec = importlib.util.spec_from_file_location("hinton_numpy", Path(__file__).with_name("hinton_numpy.py"))
assert _spec is not None
assert _spec.loader is not None
hinton_numpy = importlib.util.module_from_spec(_spec)
sys.modules["hinton_numpy"] = hinton_numpy  # dataclasses look their module up
_spec.loader.exec_module(hinton_numpy)

F64 = torch.float64
LARGEST_U = 1 - 2**-24  # the largest float32 below 1
LAYER = {"norm": "rms", "eps": 0.1, "goodness": "sum_sq"}
LOSS = {"threshold": 1.5, "temperature": 0.7}

every_norm = pytest.mark.parametrize("norm", ref.NORMS)
every_goodness = pytest.mark.parametrize("goodness", ref.GOODNESS)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Thousands of tiny operations: a second thread only slows them down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-12, atol: float = 1e-14) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def layer_inputs(rows: int = 6, inputs: int = 7, units: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, bias, away from the kink of the ReLU under every norm used here."""
    for seed in range(100):
        x = randn(rows, inputs, seed=3 * seed)
        weight = randn(units, inputs, seed=3 * seed + 1)
        bias = randn(units, seed=3 * seed + 2)
        products = x @ weight.T
        scales = [1 / (x.norm(dim=1) + e) for e in (0.1, 0.5)]
        scales += [1 / (x.norm(dim=1) / inputs**0.5 + e) for e in (0.1, 0.5)]
        scales += [torch.ones(rows, dtype=F64)]
        z = torch.stack([s[:, None] * products + b for s in scales for b in (bias, 0 * bias)])
        if z.abs().min() > 1e-3 and bias.abs().min() > 1e-3:
            return x, weight, bias
    raise AssertionError("no inputs away from the kink")


def states(kind: str, weight: Tensor, fill: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """weight_state, bias_state, step as they are before the first update."""
    slots = ref.STATE_SLOTS[kind]
    return (
        weight.new_full((slots, *weight.shape), fill),
        weight.new_full((slots, weight.shape[0]), fill),
        torch.tensor(0),
    )


def finite_differences(function, at: Tensor, step: float = 1e-6) -> Tensor:
    result = torch.zeros_like(at)
    for i in range(at.numel()):
        change = torch.zeros_like(at)
        change.view(-1)[i] = step
        result.view(-1)[i] = (function(at + change) - function(at - change)) / (2 * step)
    return result


# ------------------------------------------------------------------------------ layer_forward


@every_norm
@every_goodness
def test_forward_is_the_formula(norm, goodness):
    x, weight, bias = layer_inputs(3, 4, 5)
    x[1] = 0
    eps = 0.3
    h, g, scale, h_norm = ref.layer_forward(x, weight, bias, None, norm, eps, goodness)
    for i in range(3):
        square = sum(float(v) ** 2 for v in x[i])
        length = {"l2": math.sqrt(square), "rms": math.sqrt(square / 4), "none": None}[norm]
        r = 1.0 if length is None else 1 / (length + eps)
        row = []
        for j in range(5):
            z = r * sum(float(a) * float(b) for a, b in zip(x[i], weight[j], strict=True))
            row.append(max(0.0, z + float(bias[j])))
        squares = sum(v * v for v in row)
        expected = {
            "sum_sq": squares,
            "mean_sq": squares / 5,
            "neg_sum_sq": -squares,
            "neg_mean_sq": -squares / 5,
            "sum_abs": sum(row),
        }[goodness]
        assert scale[i].item() == pytest.approx(r, rel=1e-14)
        assert h[i].tolist() == pytest.approx(row, rel=1e-12)
        assert g[i].item() == pytest.approx(expected, rel=1e-12)
        assert h_norm[i].item() == pytest.approx(math.sqrt(squares), rel=1e-12)


@every_norm
@every_goodness
def test_forward_gradcheck(norm, goodness):
    x, weight, bias = layer_inputs()
    x[2] = 0  # h = relu(bias) here
    x[4] = 0
    h, _, _, h_norm = ref.layer_forward(x, weight, bias - 10, None, norm, 0.5, goodness)
    assert (h == 0).all()
    assert (h_norm == 0).all()

    def outputs(x, weight, bias):
        h, g, _, h_norm = ref.layer_forward(x, weight, bias, None, norm, 0.5, goodness)
        return h, g, h_norm

    for shift in (0, -10):  # and with every unit off: h_norm stands at its own kink
        arguments = [t.clone().requires_grad_() for t in (x, weight, bias + shift)]
        assert torch.autograd.gradcheck(outputs, arguments, eps=1e-6, atol=1e-5, rtol=1e-6)
    arguments = [t.requires_grad_() for t in layer_inputs()[:2]]
    assert torch.autograd.gradcheck(lambda x, w: outputs(x, w, None), arguments, rtol=1e-6)


@every_norm
@every_goodness
def test_zero_row_has_zero_gradient(norm, goodness):
    x, weight, bias = layer_inputs()
    x[1] = 0
    x.requires_grad_()
    for b in (None, -bias.abs()):
        h, g, _, h_norm = ref.layer_forward(x, weight, b, None, norm, 1e-4, goodness)
        (dx,) = torch.autograd.grad(h.sum() + 2 * g.sum() + 3 * h_norm.sum(), x)
        assert (dx[1] == 0).all()
        assert dx.isfinite().all()
        assert (dx[[0, 2, 3, 4, 5]].abs().sum(1) > 0).any()


@pytest.mark.parametrize(("norm", "factor"), [("l2", 1e4), ("rms", 1e4), ("none", 1.0)])
def test_zero_row_with_units_on_has_only_the_products_gradient(norm, factor):
    x, weight, bias = layer_inputs()
    x[1] = 0
    x.requires_grad_()
    _, g, _, _ = ref.layer_forward(x, weight, bias.abs(), None, norm, 1e-4, "sum_sq")
    (dx,) = torch.autograd.grad(g.sum(), x)
    close(dx[1], factor * (2 * bias.abs()) @ weight, rtol=1e-10)


@pytest.mark.parametrize("norm", ["l2", "rms"])
def test_given_norm_is_used_and_keeps_the_gradient(norm):
    x, weight, bias = layer_inputs()
    x.requires_grad_()
    weight.requires_grad_()
    given = x.detach().norm(dim=1)
    plain = ref.layer_forward(x, weight, bias, None, norm, 0.1, "sum_sq")
    known = ref.layer_forward(x, weight, bias, given, norm, 0.1, "sum_sq")
    for a, b in zip(plain, known, strict=True):
        close(a, b)
    a = torch.autograd.grad(plain[0].sin().sum(), (x, weight))
    b = torch.autograd.grad(known[0].sin().sum(), (x, weight))
    close(a[0], b[0])
    close(a[1], b[1])
    _, _, scale, _ = ref.layer_forward(x, weight, bias, 2 * given, norm, 0.1, "sum_sq")
    close(scale, 1 / (2 * given / (1 if norm == "l2" else 7**0.5) + 0.1))
    assert not scale.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_computed_in_float32(dtype):
    x, weight, bias = randn(9, 40, dtype=dtype), randn(33, 40, seed=1), randn(33, seed=2)
    weight, bias = weight.float(), bias.float()
    exact = ref.layer_forward(x.double(), weight.double(), bias.double(), None, "rms", 1e-4, "sum_sq")
    h, g, scale, h_norm = ref.layer_forward(x, weight, bias, None, "rms", 1e-4, "sum_sq")
    assert h.dtype == dtype
    assert {t.dtype for t in (g, scale, h_norm)} == {torch.float32}
    assert {t.dtype for t in exact} == {F64}
    for low, high in zip((g, scale, h_norm), exact[1:], strict=True):
        close(low.double(), high, rtol=2e-6)
    close(h.double(), exact[0], rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_mean_of_abs_is_not_a_goodness_and_other_wrong_names():
    x, weight, bias = layer_inputs()
    with pytest.raises(ValueError, match=r"norm is 'l3'.*l2, rms, none"):
        ref.layer_forward(x, weight, bias, None, "l3", 0.1, "sum_sq")
    with pytest.raises(ValueError, match=r"goodness is 'mean_abs'.*sum_abs"):
        ref.layer_forward(x, weight, bias, None, "l2", 0.1, "mean_abs")
    with pytest.raises(ValueError, match=r"optimiser is 'lion'.*sgd, ema, adam, adamw"):
        ref.optimiser_update("lion", bias, bias, bias[None], 1, 0.1, [0, 0, 0, 0], True)
    with pytest.raises(ValueError, match=r"state has shape \(1, 5\).*\(2, 5\)"):
        ref.optimiser_update("adam", bias, bias, bias[None], 1, 0.1, [0, 0, 0, 0], True)
    with pytest.raises(ValueError, match=r"labels are in 0..5; they must be in -1..4"):
        ref.overlay_label(x, torch.tensor([0, 1, 2, 3, 4, 5]), 5, torch.ones(2))
    with pytest.raises(ValueError, match=r"labels are in -1..-1; they must be in 0..4"):
        ref.wrong_labels(torch.tensor([-1]), 5, torch.zeros(1))
    with pytest.raises(ValueError, match=r"classes is 8; .* at most 7"):
        ref.overlay_label(x, torch.zeros(6, dtype=torch.int64), 8, torch.ones(2))
    with pytest.raises(ValueError, match=r"sign is None"):
        ref.layer_grad(x, x[:, :5], x[:, 0], x[:, 0], None, bias, "sum_sq")


def test_imports_torch_alone():
    allowed = {"__future__", "collections.abc", "typing", "torch", "torch.nn"}
    for node in ast.walk(ast.parse(Path(ref.__file__).read_text())):
        if isinstance(node, ast.Import):
            assert {a.name for a in node.names} <= allowed
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module in allowed


# --------------------------------------------------------------------------------- local_loss

SIGN = torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0, -1.0])


def test_loss_is_weighted_cross_entropy():
    g = randn(6, seed=5) * 3
    weight = rand(6, seed=6)
    for w in (None, weight):
        loss, coef, stats = ref.local_loss(g, SIGN, w, **LOSS)
        rows = SIGN != 0
        expected = functional.binary_cross_entropy_with_logits(
            (g[rows] - 1.5) / 0.7,
            (SIGN[rows] > 0).double(),
            weight=(torch.full((6,), 1 / 6, dtype=F64) if w is None else w)[rows],
            reduction="sum",
        )
        close(loss, expected)
        assert stats.dtype == F64
        close(stats[0], expected)
        assert coef[2] == 0
        for i in (0, 1, 3, 4, 5):
            s = float(SIGN[i])
            w_i = 1 / 6 if w is None else float(w[i])
            logit = s * (float(g[i]) - 1.5) / 0.7
            assert coef[i].item() == pytest.approx(-w_i * s / 0.7 / (1 + math.exp(logit)), rel=1e-12)


def test_loss_statistics():
    g = torch.tensor([2.0, 1.0, 100.0, 1.5, 1.5, 7.0])
    _, _, stats = ref.local_loss(g, SIGN, None, **LOSS)
    # a goodness equal to the threshold is right for neither side
    assert stats[1:].tolist() == [3.5, 9.5, 1.0, 1.0, 2.0, 3.0, 2.0, 3.0]


def test_loss_gradcheck():
    g = (randn(6, seed=5) * 2).requires_grad_()
    for w in (None, rand(6, seed=6), torch.tensor([1.0, 0.0, 3.0, 0.25, 0.0, 2.0])):
        assert torch.autograd.gradcheck(lambda g, w=w: ref.local_loss(g, SIGN, w, **LOSS)[0], g)
        loss, coef, _ = ref.local_loss(g, SIGN, w, **LOSS)
        assert not coef.requires_grad
        close(torch.autograd.grad(loss, g)[0], coef, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_loss_at_extreme_logits(dtype):
    g = torch.tensor([1e4, -1e4, 1e4, -1e4, 88.7, 11.1], dtype=dtype)
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, -1.0])
    loss, coef, stats = ref.local_loss(g, sign, torch.ones(6), 0.0, 1.0)
    wide = g.double()
    expected = -wide[1] + wide[2] + functional.softplus(wide[4]) + functional.softplus(wide[5])
    assert loss.dtype == (F64 if dtype == F64 else torch.float32)
    close(loss.double(), expected, rtol=1e-6)
    assert coef.tolist()[:4] == [0.0, -1.0, 1.0, 0.0]
    close(coef[4:].double(), wide[4:].sigmoid(), rtol=1e-6)
    assert stats[3:5].tolist() == [1.0, 1.0]


def test_loss_far_beyond_the_threshold_keeps_its_digits():
    g = torch.tensor([30.0, 50.0, 80.0, 300.0], dtype=F64)
    _, coef, _ = ref.local_loss(g, torch.ones(4), torch.ones(4), 0.0, 1.0)
    assert coef.tolist() == pytest.approx([-math.exp(-v) / (1 + math.exp(-v)) for v in g.tolist()])
    loss, _, _ = ref.local_loss(g[:1], torch.ones(1), torch.ones(1), 0.0, 1.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-30.0)), rel=1e-12)


def test_loss_ignores_nan_in_rows_without_sign():
    g = torch.tensor([1.0, 2.0, math.nan, 0.5, 0.1, 3.0], dtype=F64, requires_grad=True)
    weight = torch.tensor([1.0, 1.0, math.nan, 1.0, 1.0, 1.0])
    for w in (None, weight):
        loss, coef, stats = ref.local_loss(g, SIGN, w, **LOSS)
        assert loss.isfinite()
        assert coef.isfinite().all()
        assert stats.isfinite().all()
        assert coef[2] == 0
        assert torch.autograd.grad(loss, g)[0].tolist() == coef.tolist()


# ------------------------------------------------------------------------- peers and gradient


def test_peer_update_formula():
    h, mean = randn(6, 5, seed=1).relu(), rand(5, seed=2)
    p, new = ref.peer_update(h, SIGN, mean, 0.03, 0.8)
    expected = 0.8 * mean + 0.2 * (h[0] + h[3]) / 2
    close(new, expected)
    close(p, 0.03 / 2 * (expected - expected.sum() / 5))
    assert abs(p.sum().item()) < 1e-15
    p, new = ref.peer_update(h, -SIGN.abs(), mean, 0.03, 0.8)  # no positive row
    assert (p == 0).all()
    assert torch.equal(new, mean)
    h[1] = math.nan  # not a positive row
    assert ref.peer_update(h, SIGN, mean, 0.03, 0.8)[1].isfinite().all()


@every_norm
@every_goodness
def test_gradient_is_that_of_the_loss(norm, goodness):
    x, weight, bias = layer_inputs()
    row_weight = rand(6, seed=7)
    peer = randn(5, seed=8) * 0.1

    def objective(weight, bias):
        _, g, scale, _ = ref.layer_forward(x, weight, bias, None, norm, 0.1, goodness)
        z = scale[:, None] * (x @ weight.T) + bias
        peers = (peer * z[0] + peer * z[3]).sum()
        return ref.local_loss(g, SIGN, row_weight, **LOSS)[0] + peers

    h, g, scale, _ = ref.layer_forward(x, weight, bias, None, norm, 0.1, goodness)
    assert (h == 0).any()
    assert (h > 0).any()
    _, coef, _ = ref.local_loss(g, SIGN, row_weight, **LOSS)
    dweight, dbias = ref.layer_grad(x, h, scale, coef, SIGN, peer, goodness)
    close(dweight, finite_differences(lambda w: objective(w, bias), weight), 1e-7, 1e-8)
    close(dbias, finite_differences(lambda b: objective(weight, b), bias), 1e-7, 1e-8)
    plain, _ = ref.layer_grad(x, h, scale, coef, None, None, goodness)
    outer = torch.outer(peer, scale[0] * x[0] + scale[3] * x[3])
    close(dweight - plain, outer, atol=1e-13)


@every_norm
@every_goodness
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_step_is_forward_loss_peer_gradient_update(norm, goodness, strength):
    x, weight, bias = layer_inputs()
    x.requires_grad_()
    mean = rand(5, seed=9)
    before = [t.clone() for t in (x, weight, bias, mean)]
    row_weight = rand(6, seed=7)
    layer = {"norm": norm, "eps": 0.1, "goodness": goodness}
    peers = {"peer_mean": mean, "peer_strength": strength, "peer_momentum": 0.7}
    rates = {"optimiser": "ema", "hyper": [0.9, 0.0, 0.0, 0.01]}
    ws, bs, step = states("ema", weight, 0.25)
    with torch.no_grad():
        new = ref.layer_step(
            x, SIGN, weight, bias, ws, bs, step, torch.tensor(0.3, dtype=F64),
            **layer, **LOSS, **rates, row_weight=row_weight, **peers,
        )  # fmt: skip
    for t, old in zip((x, weight, bias, mean), before, strict=True):
        assert torch.equal(t, old)
    assert x.grad is None

    h, g, scale, h_norm = ref.layer_forward(x, weight, bias, None, norm, 0.1, goodness)
    _, coef, stats = ref.local_loss(g, SIGN, row_weight, **LOSS)
    peer, mean = ref.peer_update(h, SIGN, mean, strength, 0.7)  # without strength the mean moves, and pulls nothing
    assert bool(peer.any()) == bool(strength)
    updated = ref.layer_update(x, h, scale, coef, SIGN, peer, weight, bias, ws, bs, step, 0.3, goodness, **rates)
    expected = (*updated, mean, h, h_norm, stats)
    for a, b in zip(new, expected, strict=True):
        assert a is not None
        assert not a.requires_grad
        close(a, b.detach())
    # and by hand, from the two gradients
    dweight, dbias = ref.layer_grad(x, h, scale, coef, SIGN, peer, goodness)
    assert (dweight.abs().sum(), dbias.abs().sum()) > (0.0, 0.0)
    close(new.weight, weight - 0.3 * (0.9 * 0.25 + 0.1 * dweight + 0.01 * weight))
    close(new.bias, bias - 0.3 * (0.9 * 0.25 + 0.1 * dbias))
    assert new.step.item() == 1
    assert new.step.dtype == torch.int64


def test_step_without_bias_and_with_a_known_norm():
    x, weight, _ = layer_inputs()
    ws, bs, step = states("sgd", weight)
    common = {**LAYER, **LOSS, "optimiser": "sgd", "hyper": [0.0, 0.0, 0.0, 0.0]}
    norm = 3 * x.norm(dim=1)
    new = ref.layer_step(x, SIGN, weight, None, ws, bs, step, 1.0, **common, x_norm=norm)
    assert new.bias is None
    assert torch.equal(new.bias_state, bs)

    def loss(w):
        g = ref.layer_forward(x, w, None, norm, **LAYER)[1]
        return ref.local_loss(g, SIGN, None, **LOSS)[0]

    close(weight - new.weight, finite_differences(loss, weight), 1e-7, 1e-8)
    with pytest.raises(ValueError, match="peer_mean is None"):
        ref.layer_step(x, SIGN, weight, None, ws, bs, step, 1.0, **common, peer_strength=0.1)


# --------------------------------------------------------------------------------- optimisers


@pytest.mark.parametrize("decay", [0.0, 0.03])
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_optimisers_are_those_of_torch(kind, decay):
    weight, bias = randn(4, 3), randn(4, seed=1)
    theirs = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    if kind == "sgd":
        hyper = [0.9, 0.0, 0.0, decay]
        optimiser = torch.optim.SGD(theirs, lr=0.05, momentum=0.9, weight_decay=decay)
    else:
        hyper = [0.85, 0.97, 1e-6, decay]
        make = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
        optimiser = make(theirs, lr=0.05, betas=(0.85, 0.97), eps=1e-6, weight_decay=decay)
    weight_state, bias_state, _ = states(kind, weight)
    for step in range(1, 11):
        dweight, dbias = randn(4, 3, seed=10 + step), randn(4, seed=50 + step)
        theirs[0].grad, theirs[1].grad = dweight.clone(), dbias.clone()
        optimiser.step()
        lr = torch.tensor(0.05, dtype=F64)
        weight, weight_state = ref.optimiser_update(
            kind, weight, dweight, weight_state, torch.tensor(step), lr, hyper, False
        )
        bias, bias_state = ref.optimiser_update(kind, bias, dbias, bias_state, step, lr, hyper, True)
        close(weight, theirs[0].detach())
        close(bias, theirs[1].detach())
    held = optimiser.state[theirs[0]]
    names = ["momentum_buffer"] if kind == "sgd" else ["exp_avg", "exp_avg_sq"]
    for slot, name in enumerate(names):
        close(weight_state[slot], held[name])


def test_ema_formula():
    weight, bias = randn(4, 3), randn(4, seed=1)
    weight_state, bias_state, _ = states("ema", weight)
    grads = [(randn(4, 3, seed=10 + s), randn(4, seed=50 + s)) for s in range(10)]
    expected_w, expected_b = weight.clone(), bias.clone()
    for step in range(1, 11):
        weight, weight_state = ref.optimiser_update(
            "ema", weight, grads[step - 1][0], weight_state, step, 0.2, [0.7, 0, 0, 0.1], False
        )
        bias, bias_state = ref.optimiser_update(
            "ema", bias, grads[step - 1][1], bias_state, step, 0.2, [0.7, 0, 0, 0.1], True
        )
        smooth = [sum(0.3 * 0.7 ** (step - 1 - k) * grads[k][i] for k in range(step)) for i in (0, 1)]
        expected_w = expected_w - 0.2 * (smooth[0] + 0.1 * expected_w)
        expected_b = expected_b - 0.2 * smooth[1]
        close(weight, expected_w)
        close(bias, expected_b)
        close(weight_state[0], smooth[0])


def test_hintons_smoothing_is_sgd_with_a_tenth_of_the_rate():
    ours = randn(4, 3)
    theirs = ours.clone().requires_grad_()
    optimiser = torch.optim.SGD([theirs], lr=1e-3, momentum=0.9)
    state = torch.zeros(1, 4, 3, dtype=F64)
    for step in range(1, 11):
        theirs.grad = randn(4, 3, seed=10 + step)
        ours, state = ref.optimiser_update("ema", ours, theirs.grad, state, step, 0.01, [0.9, 0, 0, 0], False)
        optimiser.step()
        close(ours, theirs.detach())


# ------------------------------------------------------------------------- shared first layer

CLASSES = 3
OVERLAY = torch.tensor([1.5, 0.4], dtype=F64)
LABELS = torch.tensor([[0, 1, 2, 1], [2, 0, 1, -1], [-1, -1, -1, -1]])


def overlaid(x: Tensor) -> Tensor:
    """What the shared operations stand for, written out row by row."""
    rows = x.repeat(3, 1).clone()
    for v, i in itertools.product(range(3), range(4)):
        label = int(LABELS[v, i])
        for k in range(CLASSES):
            on = 0.4 if label == -1 else 1.5 * float(label == k)
            rows[v * 4 + i, k] = on
    return rows


@every_norm
@every_goodness
def test_shared_operations_are_the_layer_on_overlaid_rows(norm, goodness):
    x, weight, bias = layer_inputs(4, 7, 5)
    x[:, :CLASSES] = 1e3  # ignored
    rows = overlaid(x)
    layer = {"norm": norm, "eps": 0.1, "goodness": goodness}
    base, rest = ref.shared_base(x, weight, CLASSES)
    close(base, x[:, CLASSES:] @ weight[:, CLASSES:].T)
    close(rest, x[:, CLASSES:].norm(dim=1))
    shared = ref.shared_variants(base, rest, weight, bias, LABELS, OVERLAY, CLASSES, **layer)
    plain = ref.layer_forward(rows, weight, bias, None, **layer)
    for a, b in zip(shared, plain, strict=True):
        close(a, b)

    sign = torch.tensor([1.0, 1, 0, 1, -1, -1, -1, -1, 0, 0, -1, 0])
    h, g, scale, _ = plain
    _, coef, _ = ref.local_loss(g, sign, None, **LOSS)
    peer = randn(5, seed=3)
    a = ref.shared_grad(x, h, scale, coef, LABELS, OVERLAY, CLASSES, sign, peer, goodness)
    b = ref.layer_grad(rows, h, scale, coef, sign, peer, goodness)
    close(a[0], b[0])
    close(a[1], b[1])

    ws, bs, step = states("adam", weight, 0.1)
    rates = {"optimiser": "adam", "hyper": [0.9, 0.99, 1e-8, 0.01]}
    a = ref.shared_update(
        x, h, scale, coef, LABELS, OVERLAY, CLASSES, sign, peer,
        weight, bias, ws, bs, step, 0.1, goodness, **rates,
    )  # fmt: skip
    b = ref.layer_update(rows, h, scale, coef, sign, peer, weight, bias, ws, bs, step, 0.1, goodness, **rates)
    for t, u in zip(a, b, strict=True):
        close(t, u)

    options = {**layer, **LOSS, **rates, "peer_mean": rand(5), "peer_strength": 0.3}
    options["row_weight"] = rand(12, seed=4)
    a = ref.shared_step(
        x, LABELS, sign, weight, bias, ws, bs, step, 0.1,
        classes=CLASSES, overlay=OVERLAY, **options,
    )  # fmt: skip
    b = ref.layer_step(rows, sign, weight, bias, ws, bs, step, 0.1, **options)
    for t, u in zip(a, b, strict=True):
        close(t, u)
    assert (a.weight - weight).abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_step_is_that_of_float32(dtype):
    x, weight, bias = (t.float() for t in layer_inputs(4, 7, 5))
    x = x.to(dtype)
    ws, bs, step = states("adam", weight)
    sign = torch.cat([torch.ones(4), -torch.ones(8)])
    options = {**LAYER, **LOSS, "optimiser": "adam", "hyper": [0.9, 0.99, 1e-8, 0.01]}
    options |= {"peer_mean": rand(5).float(), "peer_strength": 0.3}
    label = {"classes": CLASSES, "overlay": OVERLAY.float()}
    arguments = (sign, weight, bias, ws, bs, step, 0.1)
    low = ref.shared_step(x, LABELS, *arguments, **label, **options)
    high = ref.shared_step(x.float(), LABELS, *arguments, **label, **options)
    assert low.h.dtype == dtype
    assert torch.equal(low.h, high.h.to(dtype))
    for name in ("weight", "bias", "weight_state", "bias_state", "peer_mean", "h_norm", "stats"):
        a, b = getattr(low, name), getattr(high, name)
        assert a.dtype == (F64 if name == "stats" else torch.float32)
        close(a, b, rtol=0, atol=0)
    rows = x.repeat(3, 1)
    plain = ref.layer_step(rows, *arguments, **options)
    wide = ref.layer_step(rows.float(), *arguments, **options)
    assert plain.h.dtype == dtype
    # h is rounded on the way out only
    for name in ("weight", "bias", "weight_state", "h_norm", "stats"):
        close(getattr(plain, name), getattr(wide, name), rtol=0, atol=0)


@every_norm
def test_predict_goodness_is_a_loop_over_classes(norm):
    x, weight, bias = layer_inputs(4, 7, 5)
    weights = [weight, randn(6, 5, seed=11), randn(2, 6, seed=12)]
    biases = [bias, randn(6, seed=13), rand(2, seed=14)]
    found = ref.predict_goodness(x, weights, biases, CLASSES, OVERLAY, norm, 0.1, "mean_sq")
    assert found.shape == (3, 4, 3)
    for i, c in itertools.product(range(4), range(CLASSES)):
        y = x[i].clone()
        y[:CLASSES] = 0
        y[c] = 1.5
        for layer in range(3):
            size = y.square().sum().sqrt() / (y.numel() ** 0.5 if norm == "rms" else 1)
            y = y if norm == "none" else y / (size + 0.1)
            y = (weights[layer] @ y + biases[layer]).clamp(min=0)
            assert found[layer, i, c].item() == pytest.approx(y.square().mean().item(), rel=1e-11)


# ----------------------------------------------------------------------- labels and negatives


def test_overlay_and_concat():
    x, _, _ = layer_inputs(4, 7, 5)
    found = torch.cat([ref.overlay_label(x, row, CLASSES, OVERLAY) for row in LABELS])
    assert torch.equal(found, overlaid(x))
    wide = torch.cat([ref.concat_label(x, row, CLASSES, OVERLAY) for row in LABELS])
    assert torch.equal(wide[:, :CLASSES], overlaid(x)[:, :CLASSES])
    assert torch.equal(wide[:, CLASSES:], x.repeat(3, 1))
    low = ref.overlay_label(x.bfloat16(), LABELS[2], CLASSES, OVERLAY)
    assert low.dtype == torch.bfloat16
    assert (low[:, :CLASSES] == torch.tensor(0.4).bfloat16()).all()
    x[0, 0] = math.nan  # replaced, not multiplied
    assert ref.overlay_label(x, LABELS[0], CLASSES, OVERLAY).isfinite().all()


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_wrong_labels_are_wrong(classes, dtype):
    labels = torch.arange(classes)
    for u in (0.0, 0.5, LARGEST_U, 1.0):  # 1.0: a float64 number below 1, rounded
        found = ref.wrong_labels(labels, classes, torch.full((classes,), u, dtype=dtype))
        offset = min(math.floor(u * (classes - 1)), classes - 2)
        assert found.tolist() == [(y + 1 + offset) % classes for y in range(classes)]
        assert (found != labels).all()
    assert ref.wrong_labels(labels, classes, torch.full((classes,), LARGEST_U)).tolist() == [
        (y - 1) % classes for y in range(classes)
    ]


def test_wrong_labels_are_uniform():
    count = 9 * 1000
    u = (torch.arange(count, dtype=F64) + 0.5) / count
    for y in range(10):
        found = ref.wrong_labels(torch.full((count,), y), 10, u)
        expected = [0 if c == y else 1000 for c in range(10)]
        assert torch.bincount(found, minlength=10).tolist() == expected


def test_all_wrong_labels():
    assert ref.all_wrong_labels(torch.tensor([0, 2, 3]), 4).tolist() == [
        [1, 3, 0],
        [2, 0, 1],
        [3, 1, 2],
    ]
    assert ref.all_wrong_labels(torch.tensor([1, 0]), 2).tolist() == [[0, 1]]


def hard_probabilities(logits: Tensor, y: int) -> list[float]:
    rest = [math.exp(v) if c != y else 0.0 for c, v in enumerate(logits.tolist())]
    return [v / sum(rest) for v in rest]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("y", [0, 2, 5])
def test_hard_labels_follow_the_softmax(y, dtype):
    logits = torch.tensor([0.3, -1.2, 2.0, 0.0, 1.1, -0.4], dtype=F64)
    p = hard_probabilities(logits, y)
    count = 60000
    rows, labels = logits.to(dtype).expand(count, 6), torch.full((count,), y)
    # evenly spaced numbers: every class gets its share to one count
    grid = (torch.arange(count, dtype=F64) + 0.5) / count
    counts = torch.bincount(ref.hard_labels(rows, labels, grid.to(dtype)), minlength=6)
    assert counts[y] == 0
    assert counts.tolist() == pytest.approx([count * v for v in p], abs=2)
    # random ones: chi-square with 4 degrees of freedom, 23.5 is passed once in 10,000
    counts = torch.bincount(ref.hard_labels(rows, labels, rand(count, dtype=dtype)), minlength=6)
    assert counts[y] == 0
    chi = sum((n - count * v) ** 2 / (count * v) for n, v in zip(counts.tolist(), p, strict=True) if v)
    assert chi < 23.5


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_hard_labels_at_the_edges(dtype):
    def draw(logits, y, u):
        one = torch.tensor([logits], dtype=dtype)
        return int(ref.hard_labels(one, torch.tensor([y]), torch.tensor([u])))

    # the true class holds all the mass: the others still share as their softmax says
    assert [draw([0.0, 1e4, 0.0, 0.0], 1, u) for u in (0.0, 0.3, 0.4, 0.6, 0.7)] == [0, 0, 2, 2, 3]
    # one wrong class holds all of the rest
    for u in (0.0, 0.5, LARGEST_U, 1.0):
        assert draw([0.0, -1e4, 1e4, 5.0], 0, u) == 2
        assert draw([1e4, 1e4, -1e4, -1e4], 0, u) == 1
        assert draw([-math.inf, 7.0, -math.inf], 0, u) == 1
    assert draw([0.0, 0.0, 0.0], 0, 0.0) == 1
    assert draw([0.0, 0.0, 0.0], 0, LARGEST_U) == 2
    assert draw([0.0, 0.0, 0.0], 2, LARGEST_U) == 1
    assert draw([0.0, 0.0, 0.0], 2, 1.0) == 1
    for y, u in itertools.product((0, 1), (0.0, 0.5, LARGEST_U, 1.0)):
        assert draw([3.0, -2.0], y, u) == 1 - y
    for y, u in itertools.product(range(3), (0.0, 0.5, LARGEST_U)):
        assert draw([math.nan] * 3, y, u) == (y + 1) % 3
        assert draw([-math.inf] * 3, y, u) == (y + 1) % 3
        assert draw([math.inf] * 3, y, u) == (y + 1) % 3


# ----------------------------------------------------------------------------- hybrid images


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter, key, expected):
    """The vectors of the Random123 distribution (kat_vectors, philox4x32 with 10 rounds)."""
    words = ref._philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert " ".join(f"{int(w):08x}" for w in words) == expected


def test_hybrid_bits_are_numbered_as_said():
    seed, drawn, height, width = -(2**40) + 5, 2**32 - 2, 15, 20
    x = torch.ones(4, height * width)
    images, mask, _ = ref.hybrid_images(x, 0 * x, torch.tensor([seed, drawn]), height, width, 0)
    assert torch.equal(images, mask.float())
    key = [torch.tensor(seed % 2**64 % 2**32), torch.tensor(seed % 2**64 // 2**32)]
    for i in range(4):
        for p in range(height * width):
            number = drawn + i
            counter = [torch.tensor(c) for c in (number % 2**32, number // 2**32, p // 128, 0)]
            if p % 128 == 0:
                words = [int(w) for w in ref._philox(counter, key)]
            assert int(mask[i, p]) == words[p % 128 // 32] >> p % 32 & 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (9, 2), (17, 12)])
@pytest.mark.parametrize("blurs", [1, 2, 6, 20])
def test_hybrid_blur_is_a_convolution(height, width, blurs):
    """All blurs at once in float64: the filter with itself, over an image continued far enough by its border.

    Blurs that each continue the border anew are the same as one blur of the mirrored image, the
    border pixel doubled: that is what continues it here.
    """
    generator = torch.tensor([11, 3])
    bits = ref._random_bits(generator, 3, height * width).reshape(3, height, width)
    x = torch.ones(3, height * width)
    mask = ref.hybrid_images(x, 0 * x, generator, height, width, blurs)[1].reshape(3, height, width)
    kernel = np.array([1.0])
    for _ in range(blurs):
        kernel = np.convolve(kernel, [0.25, 0.5, 0.25])
    assert kernel.sum() == 1
    for image, found in zip(bits.numpy().astype(float), mask.numpy(), strict=True):
        wide = np.pad(image, blurs, mode="symmetric")
        rows = np.array([np.convolve(row, kernel, "valid") for row in wide])
        value = np.array([np.convolve(column, kernel, "valid") for column in rows.T]).T
        assert value.shape == (height, width)
        if blurs <= 2:  # few enough digits for float32 to be exact
            assert (found == (value > 0.5)).all()
        sure = abs(value - 0.5) > 1e-5
        assert sure.mean() > 0.9 or blurs <= 2
        assert (found == (value > 0.5))[sure].all()


def test_hybrid_masks_are_blobs_of_either_kind():
    def masks(blurs, seed=5):
        x = torch.ones(400, 784)
        return ref.hybrid_images(x, 0 * x, torch.tensor([seed, 0]), 28, 28, blurs)[1].double().reshape(400, 28, 28)

    bits = masks(0)
    assert abs(float(bits.mean()) - 0.5) < 5 * 0.5 / bits.numel() ** 0.5
    # independent: neighbours agree half of the time, and so do the same pixels of two images or seeds
    for a, b in (
        (bits[:, :, 1:], bits[:, :, :-1]),
        (bits[:, 1:], bits[:, :-1]),
        (bits[1:], bits[:-1]),
        (bits, masks(0, seed=6)),
    ):
        assert abs(float((a == b).double().mean()) - 0.5) < 5 * 0.5 / a.numel() ** 0.5
    agreement = [float((m[:, :, 1:] == m[:, :, :-1]).double().mean()) for m in map(masks, (0, 1, 6, 20))]
    assert agreement == sorted(agreement)
    assert agreement[2] > 0.85
    share = masks(6).mean((1, 2))
    assert abs(float(share.mean()) - 0.5) < 5 * float(share.std()) / 20
    border = masks(20)[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # the corners: continued, not filled with 0
    assert abs(float(border.mean()) - 0.5) < 5 * 0.5 / border.numel() ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_hybrid_images_choose_one_of_two(dtype):
    x, other = randn(6, 3 * 20, seed=1, dtype=dtype), randn(6, 3 * 20, seed=2, dtype=dtype)
    images, mask, generator = ref.hybrid_images(x, other, torch.tensor([9, 5]), 4, 5, 2)
    assert images.dtype == dtype
    assert mask.shape == (6, 20)
    assert generator.tolist() == [9, 11]
    for c in range(3):  # the same mask for every channel
        found, a, b = (t.reshape(6, 3, 20)[:, c] for t in (images, x, other))
        assert torch.equal(found[mask], a[mask])
        assert torch.equal(found[~mask], b[~mask])
    swapped = ref.hybrid_images(other, x, torch.tensor([9, 5]), 4, 5, 2)[0]
    assert torch.equal(images + swapped, x + other)
    x[~mask.repeat(1, 3)] = math.nan
    assert torch.equal(ref.hybrid_images(x, other, torch.tensor([9, 5]), 4, 5, 2)[0], images)
    first, second = (ref.hybrid_images(x[:3], x[:3], torch.tensor([9, n]), 4, 5, 2)[1] for n in (5, 8))
    assert torch.equal(torch.cat([first, second]), mask)


@pytest.mark.parametrize(
    ("height", "width", "blurs", "message"),
    [
        (4, 4, 1, "height is 4 and width 4; their product must divide the 60 inputs"),
        (0, 5, 1, "height is 0 and width 5"),
        (-4, -5, 1, "height is -4 and width -5"),
        (4, 5, -1, "blurs is -1; it must be at least 0"),
    ],
)
def test_hybrid_images_refuse(height, width, blurs, message):
    x = torch.ones(2, 60)
    with pytest.raises(ValueError, match=message):
        ref.hybrid_images(x, x, torch.tensor([0, 0]), height, width, blurs)


# --------------------------------------------------------------------------------------- head


def head_inputs() -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    h = [randn(4, 5, seed=1).relu(), randn(4, 3, seed=2).relu()]
    return h, [t.norm(dim=1) for t in h], randn(CLASSES, 8, seed=3), randn(CLASSES, seed=4)


@every_norm
def test_head_reads_normalised_states(norm):
    h, h_norm, weight, bias = head_inputs()
    parts = []
    for t in h:
        size = t.norm(dim=1) / (t.shape[1] ** 0.5 if norm == "rms" else 1)
        parts.append(t if norm == "none" else t / (size + 0.1)[:, None])
    logits = ref.head_forward(h, h_norm, weight, bias, norm, 0.1)
    close(logits, functional.linear(torch.cat(parts, 1), weight, bias))
    close(ref.head_forward(h, h_norm, weight, None, norm, 0.1), logits - bias, atol=1e-13)


@every_norm
def test_head_gradcheck(norm):
    h, h_norm, weight, bias = head_inputs()
    labels = torch.tensor([2, 0, 1, 1])

    def loss(weight, bias, first):
        logits = ref.head_forward([first, h[1]], h_norm, weight, bias, norm, 0.1)
        return functional.cross_entropy(logits, labels)

    arguments = [t.clone().requires_grad_() for t in (weight, bias, h[0])]
    assert torch.autograd.gradcheck(loss, arguments)


@pytest.mark.parametrize("with_bias", [True, False])
def test_head_step_descends_the_cross_entropy(with_bias):
    h, h_norm, weight, bias = head_inputs()
    bias = bias if with_bias else None
    labels = torch.tensor([2, 0, 1, 1])
    ws, bs, step = states("sgd", weight)

    def loss(w, b):
        logits = ref.head_forward(h, h_norm, w, b, "rms", 0.1)
        rows = [-math.log(float(logits[i].softmax(0)[labels[i]])) for i in range(4)]
        return sum(rows) / 4

    logits, new_w, new_b, new_ws, _, new_step, stats = ref.head_step(
        h, h_norm, labels, weight, bias, ws, bs, step, 1.0,
        norm="rms", eps=0.1, optimiser="sgd", hyper=[0.9, 0.0, 0.0, 0.0],
    )  # fmt: skip
    close(logits, ref.head_forward(h, h_norm, weight, bias, "rms", 0.1))
    close(weight - new_w, finite_differences(lambda w: loss(w, bias), weight), 1e-7, 1e-8)
    close(weight - new_w, new_ws[0], atol=1e-13)
    if bias is None:
        assert new_b is None
    else:
        close(bias - new_b, finite_differences(lambda b: loss(weight, b), bias), 1e-7, 1e-8)
    correct = sum(int(logits[i].argmax()) == int(labels[i]) for i in range(4))
    assert 0 < correct < 4
    close(stats, torch.tensor([4 * loss(weight, bias), correct, 4.0], dtype=F64))
    assert new_step.item() == 1


# --------------------------------------------------------------------------- Hinton's recipe


@pytest.mark.parametrize("shared", [False, True], ids=["stacked", "shared"])
def test_hintons_recipe(shared):
    """Three layers, 20 minibatches, hard negatives from the same uniform numbers."""
    classes, batch, steps, sizes = 5, 12, 20, [31, 24, 20, 17]
    rng = np.random.default_rng(17)
    initial = [rng.standard_normal((a, b)) / np.sqrt(a) for a, b in itertools.pairwise(sizes)]
    net = hinton_numpy.HintonNet([w.copy() for w in initial], [np.zeros(m) for m in sizes[1:]], classes)
    eps = math.exp(-100)
    overlay = torch.tensor([1.0, 1 / classes], dtype=F64)
    ema = {"optimiser": "ema", "hyper": [0.9, 0.0, 0.0, 0.001]}
    weights = [torch.from_numpy(w.T.copy()) for w in initial]
    biases = [torch.zeros(m, dtype=F64) for m in sizes[1:]]
    state = [list(states("ema", w)) for w in weights]
    means = [torch.full((m,), 0.5, dtype=F64) for m in sizes[1:]]
    head = torch.zeros(classes, sum(sizes[2:]), dtype=F64)
    head_state = list(states("ema", head))

    sign = torch.cat([torch.ones(batch), -torch.ones(batch)])
    different = drawn = 0
    for step in range(1, steps + 1):
        images, u = rng.random((batch, sizes[0])), rng.random(batch)
        labels = rng.integers(0, classes, batch)
        rate = hinton_numpy.gain(step, steps)
        net.step(images, labels, u, rate)

        x, y = torch.from_numpy(images), torch.from_numpy(labels)
        # neutral pass
        h, known, hs, norms = (
            ref.overlay_label(x, torch.full_like(y, -1), classes, overlay),
            None,
            [],
            [],
        )
        for w, b in zip(weights, biases, strict=True):
            h, _, _, known = ref.layer_forward(h, w, b, known, "rms", eps, "sum_sq")
            hs.append(h)
            norms.append(known)
        logits, head, _, *head_state, _ = ref.head_step(
            hs[1:], norms[1:], y, head, None, *head_state, 0.1 * rate,
            norm="rms", eps=eps, optimiser="ema", hyper=[0.9, 0.0, 0.0, 0.003],
        )  # fmt: skip
        wrong = ref.hard_labels(logits, y, torch.from_numpy(u))
        uniform = ref.wrong_labels(y, classes, torch.from_numpy(u))
        different += int((wrong != uniform).sum())
        drawn += batch

        h = torch.cat([ref.overlay_label(x, t, classes, overlay) for t in (y, wrong)])
        known = None
        for i, size in enumerate(sizes[1:]):
            options = {
                "norm": "rms", "eps": eps, "goodness": "sum_sq", "threshold": float(size),
                "temperature": 1.0, "peer_mean": means[i], "peer_strength": 0.03, **ema,
            }  # fmt: skip
            old, peer_mean = weights[i], means[i]
            if shared and i == 0:
                new = ref.shared_step(
                    x, torch.stack([y, wrong]), sign, weights[i], biases[i], *state[i],
                    0.01 * rate, classes=classes, overlay=overlay, **options,
                )  # fmt: skip
            else:
                new = ref.layer_step(h, sign, weights[i], biases[i], *state[i], 0.01 * rate, x_norm=known, **options)
            # the gradient of this minibatch alone
            rows, g, scale, _ = ref.layer_forward(h, old, biases[i], known, "rms", eps, "sum_sq")
            _, coef, _ = ref.local_loss(g, sign, None, float(size), 1.0)
            peer, _ = ref.peer_update(rows, sign, peer_mean, 0.03, 0.9)
            raw = ref.layer_grad(h, rows, scale, coef, sign, peer, "sum_sq")
            close(-raw[0].T, torch.from_numpy(net.log["raw_w"][i]), 1e-10, 1e-13)
            close(-raw[1], torch.from_numpy(net.log["raw_b"][i]), 1e-10, 1e-13)

            weights[i], biases[i], state[i], means[i] = new[0], new[1], list(new[2:5]), new[5]
            h, known = new.h, new.h_norm
            pairs = [
                (weights[i].T, net.weights[i]),
                (biases[i], net.biases[i]),
                (-state[i][0][0].T, net.weight_grads[i]),
                (-state[i][1][0], net.bias_grads[i]),
                (means[i], net.means[i]),
            ]
            for ours, his in pairs:
                close(ours, torch.from_numpy(his), 1e-10, 1e-13)
        assert wrong.tolist() == net.log["wrong"].tolist()
        assert (wrong != y).all()
        close(logits, torch.from_numpy(net.log["logits"]), 1e-10, 1e-13)
        close(head.T, torch.from_numpy(np.concatenate(net.head)), 1e-10, 1e-13)
        close(-head_state[0][0].T, torch.from_numpy(np.concatenate(net.head_grads)), 1e-10, 1e-13)
        assert int(head_state[2]) == int(state[0][2]) == step
    assert 0 < different < drawn
    # enough has moved for agreement to mean something
    assert all(np.abs(w - v).max() > 1e-3 for w, v in zip(initial, net.weights, strict=True))
    assert np.abs(np.concatenate(net.head)).max() > 1e-2
    energies = ref.predict_goodness(x, weights, biases, classes, overlay, "rms", eps, "sum_sq")
    close(energies, torch.from_numpy(net.energies(images)), 1e-10)


# ------------------------------------------------------------------------------ NaN and empty


@every_norm
@every_goodness
def test_nan_stays_in_its_row(norm, goodness):
    x, weight, bias = layer_inputs()
    clean = ref.layer_forward(x, weight, bias, None, norm, 0.1, goodness)
    x[2, 1] = math.nan
    dirty = ref.layer_forward(x, weight, bias, None, norm, 0.1, goodness)
    others = [0, 1, 3, 4, 5]
    assert dirty[0][2].isnan().all()
    assert dirty[1][2].isnan()
    assert dirty[3][2].isnan()
    for a, b in zip(clean, dirty, strict=True):
        close(a[others], b[others])
    _, coef, _ = ref.local_loss(dirty[1], torch.ones(6), None, **LOSS)
    assert coef[2].isnan()
    close(coef[others], ref.local_loss(clean[1], torch.ones(6), None, **LOSS)[1][others])


def test_no_rows():
    _, weight, bias = layer_inputs()
    x, sign, labels = (
        torch.zeros(0, 7, dtype=F64),
        torch.zeros(0),
        torch.zeros(0, dtype=torch.int64),
    )
    h, g, scale, h_norm = ref.layer_forward(x, weight, bias, None, **LAYER)
    assert [tuple(t.shape) for t in (h, g, scale, h_norm)] == [(0, 5), (0,), (0,), (0,)]
    loss, coef, stats = ref.local_loss(g, sign, None, **LOSS)
    assert loss.item() == 0
    assert coef.shape == (0,)
    assert stats.tolist() == [0.0] * 9
    p, mean = ref.peer_update(h, sign, bias, 0.1, 0.9)
    assert (p == 0).all()
    assert torch.equal(mean, bias)
    for grad in ref.layer_grad(x, h, scale, coef, sign, p, "sum_sq"):
        assert (grad == 0).all()
    ws, bs, step = states("sgd", weight)
    sgd = {"optimiser": "sgd", "hyper": [0.9, 0.0, 0.0, 0.5]}
    new = ref.layer_step(x, sign, weight, bias, ws, bs, step, 0.1, **LAYER, **LOSS, **sgd)
    close(new.weight, 0.95 * weight)  # nothing but the decay
    new = ref.shared_step(
        x, labels[None], sign, weight, bias, ws, bs, step, 0.1,
        classes=3, overlay=OVERLAY, **LAYER, **LOSS, **sgd,
    )  # fmt: skip
    close(new.weight, 0.95 * weight)
    states_in = [torch.zeros(0, 7, dtype=F64)]
    logits, new_w, *_, stats = ref.head_step(
        states_in, [sign.double()], labels, weight, bias, ws, bs, step, 0.1,
        norm="l2", eps=0.1, **sgd,
    )  # fmt: skip
    assert logits.shape == (0, 5)
    close(new_w, 0.95 * weight)
    assert stats.tolist() == [0.0, 0.0, 0.0]
    assert ref.predict_goodness(x, [weight], [bias], 3, OVERLAY, "l2", 0.1, "sum_sq").shape == (
        1,
        0,
        3,
    )
    assert ref.hard_labels(torch.zeros(0, 3), labels, sign).shape == (0,)
    assert ref.wrong_labels(labels, 3, sign).shape == (0,)
    assert ref.all_wrong_labels(labels, 3).shape == (2, 0)
