"""Layers, networks and fused optimisers as ordinary torch.nn and torch.optim citizens."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import op_cases as cases
import pytest
import torch
from tolerance import assert_not_worse
from torch import Tensor, nn

import ffkern
from ffkern import FFLinear, FFNet, optim
from ffkern import reference as ref

OPTIMISERS = {
    "sgd": lambda p, **o: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, **o),
    "ema": lambda p, **o: optim.EMA(p, 0.1, momentum=0.9, weight_decay=0.003, **o),
    "adam": lambda p, **o: optim.Adam(p, 0.01, **o),
    "adamw": lambda p, **o: optim.AdamW(p, 0.01, weight_decay=0.1, **o),
}
every_optimiser = pytest.mark.parametrize("kind", OPTIMISERS)


def parameters(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def batch(rows: int = 24, inputs: int = 20) -> tuple[Tensor, Tensor]:
    sign = torch.ones(rows)
    sign[rows // 2 :] = -1
    return torch.randn(rows, inputs), sign


# ---------------------------------------------------------------------------------- nn.Linear


def test_state_dict_goes_both_ways():
    linear, layer = nn.Linear(9, 5), FFLinear(9, 5)
    layer.load_state_dict(linear.state_dict(), strict=True)
    assert same(parameters(layer), parameters(linear))
    other = nn.Linear(9, 5)
    other.load_state_dict(FFLinear(9, 5).state_dict(), strict=True)
    assert set(FFLinear(9, 5, bias=False).state_dict()) == {"weight"}
    assert set(FFLinear(9, 5, peer_strength=0.1).state_dict()) == {"weight", "bias", "peer_mean"}


def test_is_a_linear_layer():
    layer = FFLinear(9, 5, norm="none")
    assert isinstance(layer, nn.Linear)
    linear = nn.Linear(9, 5)
    linear.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 9)
    torch.testing.assert_close(layer(x), linear(x).relu())
    assert layer(x).shape == (2, 3, 5)
    torch.testing.assert_close(layer(x[0, 0]), linear(x[0, 0]).relu())
    assert "norm='none'" in repr(layer)


def test_from_linear_shares_parameters():
    linear = nn.Linear(20, 7)
    layer = FFLinear.from_linear(linear, norm="l2", threshold="width")
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert layer.threshold == 7.0
    before = parameters(linear)
    layer.step(*batch(), optim.SGD(linear.parameters(), 0.1))
    assert not same(before, parameters(linear))


def test_deepcopy_is_independent():
    layer = FFLinear(20, 7, peer_strength=0.1)
    opt = optim.Adam(layer.parameters(), 0.05)
    x, sign = batch()
    layer.step(x, sign, opt)
    twin = copy.deepcopy(layer)
    assert twin._slot is None
    assert same(parameters(twin), parameters(layer))
    assert torch.equal(twin.peer_mean, layer.peer_mean)
    kept = parameters(twin)
    mean = twin.peer_mean.clone()
    layer.step(x, sign, opt)
    assert same(kept, parameters(twin))
    assert torch.equal(mean, twin.peer_mean)
    assert not same(kept, parameters(layer))
    with pytest.raises(ValueError, match="does not hold this layer's weight"):
        twin.step(x, sign, opt)
    own = optim.Adam(twin.parameters(), 0.05)
    twin.step(x, sign, own)
    assert not same(kept, parameters(twin))
    # statistics of a copy count on their own
    layer.metrics()
    assert twin.metrics()["rows"] > 0


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_pickle_round_trip(how):
    net = FFNet([20, 7, 6], classes=3, head_layers="all", threshold=1.5)
    opt, head_opt = optim.Adam(net.layers.parameters()), optim.EMA(net.head.parameters())
    x, labels = torch.rand(10, 20), torch.randint(0, 3, (10,))
    net.step(x, labels, opt, negatives="hard", head_opt=head_opt)
    if how == "pickle":
        other = pickle.loads(pickle.dumps(net))
    else:
        buffer = io.BytesIO()
        torch.save(net, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert same(parameters(other), parameters(net))
    assert torch.equal(other(x), net(x))
    assert torch.equal(other.logits(x), net.logits(x))
    assert other.layers[0].threshold == 1.5
    other.step(x, labels, optim.Adam(other.layers.parameters()))
    assert not same(parameters(other), parameters(net))


def test_bfloat16_forward():
    layer = FFLinear(20, 12).to(torch.bfloat16)
    x = torch.randn(6, 20).bfloat16()
    h, goodness, scale, h_norm = (t.detach() for t in layer.activities(x))
    wide = [t.double() for t in (x, layer.weight.detach(), layer.bias.detach())]
    want = ref.layer_forward(*wide, None, layer.norm, layer.eps, layer.goodness)
    assert h.dtype == torch.bfloat16
    assert float((h - want[0]).abs().max()) <= 2.0**-8 * float(want[0].max())
    for got, exact in zip((goodness, scale, h_norm), want[1:], strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)


def test_step_on_bfloat16_weights_is_refused():
    layer = FFLinear(20, 12).to(torch.bfloat16)
    opt = optim.SGD(layer.parameters(), 0.1)
    before = parameters(layer)
    x, sign = batch()
    with pytest.raises(
        RuntimeError,
        match=r"layer_step_: weight is bfloat16; .*float32 \(keep float32 master weights",
    ):
        layer.step(x.bfloat16(), sign, opt)
    assert same(before, parameters(layer))
    assert int(opt.state[layer.weight]["step"]) == 0


# ----------------------------------------------------------- bfloat16 images, float32 weights


def low_batch(rows: int = 12, inputs: int = 20) -> tuple[Tensor, Tensor]:
    return torch.rand(rows, inputs).bfloat16(), torch.randint(0, 3, (rows,))


def trained_on_bfloat16(negatives: str = "uniform", **options: Any) -> tuple[FFNet, Any]:
    net = FFNet([20, 17, 9], classes=3, **options)
    opt = optim.SGD(net.layers.parameters(), 0.1)
    for _ in range(2):
        net.step(*low_batch(), opt, negatives=negatives)
    return net, opt


def test_weights_of_bfloat16_training_are_ordinary_ones():
    net, _ = trained_on_bfloat16()
    state = net.state_dict()
    assert set(state) == set(FFNet([20, 17, 9], classes=3).state_dict())
    assert all(t.dtype == torch.float32 for t in state.values())
    assert all(
        t.shape == other.shape
        for t, other in zip(state.values(), FFNet([20, 17, 9], 3).state_dict().values(), strict=True)
    )
    other = FFNet([20, 17, 9], classes=3)
    other.load_state_dict(state)
    x, labels = low_batch()
    assert torch.equal(other.goodness(x.float()), net.goodness(x.float()))
    before = parameters(other)
    other.step(x.float(), labels, optim.SGD(other.parameters(), 0.1))
    assert not same(before, parameters(other))


@pytest.mark.parametrize("negatives", ["uniform", "hard", "all"])
def test_bfloat16_training_is_float32_training_but_for_rounding(negatives):
    """A softmax head on it too: statistics, weights, logits and goodness."""
    start = FFNet([120, 100, 60], classes=10, head_layers="all", norm="rms", goodness="mean_sq", threshold=2.0)
    x, labels = torch.rand(60, 120).bfloat16(), torch.randint(0, 10, (60,))
    seen = []
    for given in (x, x.float()):
        net = copy.deepcopy(start)
        opts = [optim.SGD(part.parameters(), 0.5, momentum=0.9) for part in (net.layers, net.head)]
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            net.step(given, labels, opts[0], negatives=negatives, generator=generator, head_opt=opts[1])
        seen.append((net.state_dict(), net.metrics(), net.logits(given), net.goodness(given)))
    (low, low_metrics, *low_rest), (wide, wide_metrics, *rest) = seen
    for one, other in zip(low_metrics, wide_metrics, strict=True):
        assert one["rows"] == other["rows"]
        assert one["loss"] == pytest.approx(other["loss"], rel=0.02)
    for name, value in wide.items():
        moved = float((value - start.state_dict()[name]).norm())
        assert 0 < float((low[name] - value).norm()) <= 0.04 * moved, name
    for one, other in zip(low_rest, rest, strict=True):
        assert not torch.equal(one, other)
        # roundings of 2^-8 in a row: weights, activities and r dz of two layers; few add up in one direction
        torch.testing.assert_close(one, other, rtol=0, atol=2.0**-6 * float(other.abs().max()))


def check_fresh(net: FFNet) -> None:
    """Steps and answers are those of a copy, which has no packed weights that could be stale."""
    twin, (x, labels) = copy.deepcopy(net), low_batch()
    assert all(layer._low is None for layer in twin.layers)
    assert torch.equal(net.goodness(x), twin.goodness(x))
    for a, b in zip(net.features(x), twin.features(x), strict=True):
        assert torch.equal(a, b)
    twin = copy.deepcopy(net)
    for each in (net, twin):
        each.step(x, labels, optim.SGD(each.parameters(), 0.1), generator=torch.Generator().manual_seed(3))
    assert same(parameters(net), parameters(twin))
    for layer in net.layers:  # the update has left what a product reads
        assert torch.equal(layer._low, cases.packed(layer.weight.detach()))
        assert layer._low_is_current()


def in_place(net: FFNet, opt: Any) -> FFNet:
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.neg_()
    return net


def loaded(net: FFNet, opt: Any, assign: bool = False) -> FFNet:
    net.load_state_dict(FFNet([20, 17, 9], classes=3).state_dict(), assign=assign)
    return net


def replaced(net: FFNet, opt: Any) -> FFNet:
    for layer in net.layers:
        fresh = nn.Parameter(torch.empty_like(layer.weight))
        with torch.no_grad():
            while fresh._version < layer.weight._version:
                fresh.normal_()
        layer.weight = fresh
    return net


def in_float32(net: FFNet, opt: Any) -> FFNet:
    x, labels = low_batch()
    net.step(x.float(), labels, opt)
    return net


def by_torch(net: FFNet, opt: Any, fused: bool = False) -> FFNet:
    x, _ = low_batch()
    other = torch.optim.SGD(net.parameters(), 0.1, fused=fused)
    net.layers[0].local_loss(x, torch.ones(12))[0].backward()
    other.step()
    return net


def in_inference_mode(net: FFNet, opt: Any) -> FFNet:
    x, labels = low_batch()
    with torch.inference_mode():
        net.step(x, labels, opt)
        net.step(x.float(), labels, opt)
    return net


def frozen_for_a_while(net: FFNet, opt: Any) -> FFNet:
    net.layers[0].requires_grad_(False)
    net.step(*low_batch(), opt)
    net.layers[0].requires_grad_(True)
    return net


def refused(net: FFNet, opt: Any) -> FFNet:
    x, _labels = low_batch()
    with pytest.raises(RuntimeError, match="has shape"):
        net.layers[0].step(x[:, :19], torch.ones(12), opt)
    return in_place(net, opt)


@pytest.mark.parametrize(
    "change",
    [
        lambda net, opt: net,
        in_place,
        loaded,
        lambda net, opt: loaded(net, opt, assign=True),
        replaced,
        in_float32,
        by_torch,
        lambda net, opt: by_torch(net, opt, fused=True),
        in_inference_mode,
        frozen_for_a_while,
        refused,
        lambda net, opt: copy.deepcopy(net),
        lambda net, opt: pickle.loads(pickle.dumps(net)),
    ],
    ids=[
        "nothing",
        "in_place",
        "loaded",
        "assigned",
        "replaced",
        "float32",
        "torch",
        "torch_fused",
        "inference_mode",
        "frozen",
        "refused",
        "deepcopy",
        "pickle",
    ],
)
def test_packed_weights_are_never_stale(change):
    check_fresh(change(*trained_on_bfloat16()))


def test_only_the_first_layer_learns_from_bfloat16():
    """Then no activities are kept, and nothing but x says what the rows are."""
    net, opt = trained_on_bfloat16()
    net.layers[1:].requires_grad_(False)
    before = parameters(net.layers[0])
    net.step(*low_batch(), opt)
    assert not same(before, parameters(net.layers[0]))
    check_fresh(net)


def test_a_network_made_in_inference_mode_predicts_from_bfloat16():
    with torch.inference_mode():
        net = FFNet([20, 9], classes=3)
    x = torch.rand(5, 20).bfloat16()
    assert torch.equal(net.predict(x), net.goodness(x).sum(0).argmax(1))


def test_packed_weights_are_kept():
    """A step packs none: it reads those of the last one, in the same memory."""
    net, opt = trained_on_bfloat16()
    memory = [layer._low.data_ptr() for layer in net.layers]
    before = [layer._low.clone() for layer in net.layers]
    net.step(*low_batch(), opt)
    assert [layer._low.data_ptr() for layer in net.layers] == memory
    assert not any(torch.equal(layer._low, low) for layer, low in zip(net.layers, before, strict=True))
    # and they are what is read: others give other answers
    x, _ = low_batch()
    goodness = net.goodness(x)
    net.layers[0]._low.neg_()
    assert not torch.equal(net.goodness(x), goodness)


@pytest.mark.parametrize("negatives", ["uniform", "hard", "all"])
def test_a_frozen_layer_passes_bfloat16_activities_on(negatives):
    """The layer above sees those from before any update, so it learns the same whether the first learns or not."""
    start, _ = trained_on_bfloat16(head_layers="all")
    x, labels = low_batch()
    after = []
    for frozen in (False, True):
        net = copy.deepcopy(start)
        net.layers[0].requires_grad_(not frozen)
        opt = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
        net.step(x, labels, opt, negatives=negatives, generator=torch.Generator().manual_seed(5))
        after.append([parameters(layer) for layer in net.layers])
    assert same(after[1][0], parameters(start.layers[0]))
    assert not same(after[0][0], after[1][0])
    assert same(after[0][1], after[1][1])
    assert not same(after[1][1], parameters(start.layers[1]))


def test_prediction_from_bfloat16_images():
    net, _ = trained_on_bfloat16()
    x, _ = low_batch(50)
    goodness = net.goodness(x)
    assert goodness.dtype == torch.float32
    assert torch.equal(net.predict(x, "all"), goodness.sum(0).argmax(1))
    each = [net.goodness(x, torch.full((50,), c)) for c in range(3)]  # through the operations of a pass
    assert torch.equal(goodness, torch.stack(each, 2))


@pytest.mark.parametrize("negatives", ["uniform", "hard", "all"])
def test_autocast_on_the_cpu_trains_as_bfloat16_images_do(negatives):
    x, labels = torch.rand(12, 20), torch.randint(0, 3, (12,))
    start = FFNet([20, 17, 9], classes=3, head_layers="all")
    results = []
    for autocast in (False, True):
        net = copy.deepcopy(start)
        opts = [optim.SGD(part.parameters(), 0.1) for part in (net.layers, net.head)]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            given = x if autocast else x.bfloat16()
            for seed in range(2):
                generator = torch.Generator().manual_seed(seed)
                net.step(given, labels, opts[0], negatives=negatives, generator=generator, head_opt=opts[1])
            answers = [net.goodness(given), net.logits(given), *net.features(given)]
        results.append([*parameters(net), *answers])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_step_after_a_change_of_dtype_and_back():
    """Module.to(dtype) keeps the Parameter: the optimiser goes on with it."""
    layer = FFLinear(20, 12)
    opt = optim.SGD(layer.parameters(), 0.1)
    x, sign = batch()
    layer.step(x, sign, opt)
    layer.to(torch.bfloat16).to(torch.float32)
    before = parameters(layer)
    layer.step(x, sign, opt)
    assert not same(before, parameters(layer))


def test_float64_layer_is_refused_with_a_way_out():
    layer = FFLinear(4, 3).double()
    with pytest.raises(RuntimeError, match=r"float64.*reference"):
        layer(torch.randn(2, 4, dtype=torch.float64))


# ------------------------------------------------------------------------- one layer learns


def reference_layer(layer: FFLinear, kind: str) -> dict[str, Any]:
    """Float64 copy of a layer before its first step."""
    slots = ref.STATE_SLOTS[kind]
    w = layer.weight.detach().double()
    b = None if layer.bias is None else layer.bias.detach().double()
    return {
        "weight": w,
        "bias": b,
        "weight_state": torch.zeros(slots, *w.shape, dtype=torch.float64),
        "bias_state": torch.zeros(slots, w.shape[0], dtype=torch.float64),
        "step": torch.tensor(0),
        "peer_mean": None if layer.peer_mean is None else layer.peer_mean.double().clone(),
    }


def reference_settings(layer: FFLinear, opt: Any) -> dict[str, Any]:
    group = opt.param_groups[0]
    return {
        "lr": group["lr"],
        "norm": layer.norm,
        "eps": layer.eps,
        "goodness": layer.goodness,
        "threshold": layer.threshold,
        "temperature": layer.temperature,
        "peer_strength": layer.peer_strength,
        "peer_momentum": layer.peer_momentum,
        "optimiser": opt.kind,
        "hyper": opt.hyper(group),
    }


def advance(state: dict[str, Any], x: Tensor, sign: Tensor, settings: dict[str, Any], **rest: Any) -> Any:
    """One reference step; returns (h, h_norm, stats)."""
    result = ref.layer_step(x, sign, **state, **settings, **rest)._asdict()
    for name in state:
        state[name] = result[name]
    return result["h"], result["h_norm"], result["stats"]


def close_to(layer: FFLinear, state: dict[str, Any], factor: float = 2e-5) -> None:
    """Ten steps amplify a rounding by a few times; a wrong term would be off by far more."""
    for name in ("weight", "bias", "peer_mean"):
        got, want = getattr(layer, name), state[name]
        if want is None:
            assert got is None
            continue
        size = float(want.abs().max())
        assert float((got.detach() - want).abs().max()) <= factor * max(size, 0.1), name


@every_optimiser
@pytest.mark.parametrize("peer", [0.0, 0.3])
def test_ten_steps_equal_the_reference(kind, peer):
    layer = FFLinear(20, 12, bias=peer == 0, norm="l2", eps=1e-3, goodness="sum_sq", threshold=1.0,
                     temperature=0.5, peer_strength=peer, peer_momentum=0.8)  # fmt: skip
    opt = OPTIMISERS[kind](layer.parameters())
    state, start = reference_layer(layer, kind), parameters(layer)
    total = torch.zeros(9, dtype=torch.float64)
    for _ in range(10):
        x, sign = batch()
        weight = torch.rand(24) / 24
        layer.step(x, sign, opt, row_weight=weight)
        total += advance(state, x.double(), sign, reference_settings(layer, opt), row_weight=weight.double())[2]
    # Adam divides by the size of the gradient: an element whose gradient is rounding is not sharp
    close_to(layer, state, 2e-4 if kind.startswith("adam") else 2e-5)
    # all of it is far more than the bound: at most 2e-5 of weights below 1/4
    assert float((parameters(layer)[0] - start[0]).abs().max()) > 1e-3
    assert int(opt.state[layer.weight]["step"]) == 10
    metrics = layer.metrics()
    assert metrics["loss"] == pytest.approx(float(total[0]), rel=1e-4)
    assert metrics["goodness_pos"] == pytest.approx(float(total[1] / total[5]), rel=1e-4)
    assert metrics["goodness_neg"] == pytest.approx(float(total[2] / total[6]), rel=1e-4)
    assert metrics["separation"] == pytest.approx(float((total[3] + total[4]) / 240), abs=0.01)
    assert metrics["kept_pos"] == metrics["kept_neg"] == 1.0
    assert metrics["rows"] == 240
    assert layer.metrics()["rows"] == 0


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_torch_optimisers_reach_the_same_weights(kind):
    fused = FFLinear(20, 12)
    autograd = copy.deepcopy(fused)
    opt = OPTIMISERS[kind](fused.parameters())
    theirs = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
        "adam": lambda p: torch.optim.Adam(p, 0.01),
        "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    }[kind](autograd.parameters())
    start = parameters(fused)
    for _ in range(10):
        x, sign = batch()
        fused.step(x, sign, opt)
        theirs.zero_grad()
        autograd.local_loss(x, sign)[0].backward()
        theirs.step()
    for a, b, before in zip(parameters(fused), parameters(autograd), start, strict=True):
        assert float((a - before).abs().max()) > 1e-2
        assert float((a - b).abs().max()) <= 2e-5
    assert fused.metrics()["loss"] == pytest.approx(autograd.metrics()["loss"], rel=1e-5)


def test_kept_activities_are_those_before_the_update():
    layer = FFLinear(20, 12)
    x, sign = batch()
    h, goodness, _, h_norm = (t.detach() for t in layer.activities(x))
    keep = (torch.full((24, 12), float("nan")), torch.full((24,), float("nan")))
    layer.step(x, sign, optim.SGD(layer.parameters(), 0.5), keep=keep)
    torch.testing.assert_close(keep[0], h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(keep[1], h_norm, rtol=1e-5, atol=1e-6)
    assert float((layer.activities(x)[1] - goodness).detach().abs().max()) > 1e-3


def test_known_norms_are_used():
    x, sign = batch()
    layers = [FFLinear(20, 12) for _ in range(3)]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    norms = [None, x.norm(dim=1), 3 * x.norm(dim=1)]
    for layer, x_norm in zip(layers, norms, strict=True):
        layer.step(x, sign, optim.SGD(layer.parameters(), 0.5), x_norm=x_norm)
    torch.testing.assert_close(layers[0].weight, layers[1].weight)
    assert float((layers[0].weight - layers[2].weight).detach().abs().max()) > 1e-3


@every_optimiser
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("peer", [0.0, 0.3])
def test_learning_from_kept_activities_equals_the_step(kind, shared, peer):
    layers = [FFLinear(20, 12, peer_strength=peer), FFLinear(20, 12, peer_strength=peer)]
    layers[1].load_state_dict(layers[0].state_dict())
    opts = [OPTIMISERS[kind](layer.parameters()) for layer in layers]
    start = parameters(layers[0])
    for _ in range(3):
        x = torch.randn(8, 20)
        labels = torch.randint(-1, 3, (3, 8)) if shared else None
        sign = cases.signs(24 if shared else 8)
        overlay = torch.tensor([1.0, 0.3])
        if shared:
            options = {"classes": 3, "overlay": overlay}
            layers[0].step_shared(x, labels, sign, opts[0], **options)
            base = ffkern.ops.shared_base(x, layers[1].weight.detach(), 3)
            h, g, scale, _ = ffkern.ops.shared_variants(
                *base, layers[1].weight.detach(), layers[1].bias.detach(), labels, overlay, 3,
                "rms", 1e-8, "mean_sq",
            )  # fmt: skip
            layers[1].learn(x, (h, g, scale), sign, opts[1], labels=labels, **options)
        else:
            layers[0].step(x, sign, opts[0])
            h, g, scale, _ = (t.detach() for t in layers[1].activities(x))
            layers[1].learn(x, (h, g, scale), sign, opts[1])
    for a, b, before in zip(parameters(layers[0]), parameters(layers[1]), start, strict=True):
        assert not torch.equal(a, before)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    if peer:
        torch.testing.assert_close(layers[0].peer_mean, layers[1].peer_mean)
    assert layers[0].metrics() == pytest.approx(layers[1].metrics(), rel=1e-5)


def test_batches_of_any_size_follow_each_other():
    """The workspace grows when needed, and a smaller batch does not see what a larger one left."""
    layer = FFLinear(20, 12)
    opt = optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    state = reference_layer(layer, "sgd")
    for rows in (5, 64, 1, 33, 64):
        x, sign = batch(rows)
        layer.step(x, sign, opt)
        advance(state, x.double(), sign, reference_settings(layer, opt))
    close_to(layer, state)


def test_peer_term_belongs_to_the_step():
    layer = FFLinear(20, 12, peer_strength=0.1)
    with pytest.raises(RuntimeError, match=r"peer normalisation is part of FFLinear\.step"):
        layer.local_loss(*batch())


def test_frozen_bias_or_missing_bias_is_left_alone():
    layer = FFLinear(20, 12, bias=False)
    before = parameters(layer)
    layer.step(*batch(), optim.Adam(layer.parameters(), 0.1))
    assert layer.bias is None
    assert not same(before, parameters(layer))


# ------------------------------------------------------------------------------- optimisers


@pytest.mark.parametrize("name", ["LinearLR", "LambdaLR", "CosineAnnealingLR", "StepLR"])
def test_learning_rate_schedulers(name):
    layer = FFLinear(20, 12)
    twin = copy.deepcopy(layer)
    opt, theirs = optim.SGD(layer.parameters(), 0.2), torch.optim.SGD(twin.parameters(), 0.2)
    make = {
        "LinearLR": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 5),
        "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: 0.7**i),
        "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
        "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    }[name]
    theirs.step()  # torch's schedulers want to see one optimiser step first
    mine, other = make(opt), make(theirs)
    rates = []
    for _ in range(8):
        x, sign = batch()
        layer.step(x, sign, opt)
        theirs.zero_grad()
        twin.local_loss(x, sign)[0].backward()
        theirs.step()
        rates.append((float(opt.param_groups[0]["lr"]), float(theirs.param_groups[0]["lr"])))
        mine.step()
        other.step()
    assert len({round(r[0], 6) for r in rates}) > 2
    for a, b in rates:
        assert a == pytest.approx(b, rel=1e-6)
    torch.testing.assert_close(layer.weight, twin.weight, rtol=1e-4, atol=1e-5)


def test_learning_rate_as_a_plain_number():
    layers = [FFLinear(20, 12), FFLinear(20, 12)]
    layers[1].load_state_dict(layers[0].state_dict())
    opts = [optim.SGD(layer.parameters(), 0.1) for layer in layers]
    x, sign = batch()
    start = parameters(layers[0])
    opts[0].param_groups[0]["lr"] = 0.4
    opts[1].param_groups[0]["lr"].fill_(0.4)
    for layer, opt in zip(layers, opts, strict=True):
        layer.step(x, sign, opt)
    assert same(parameters(layers[0]), parameters(layers[1]))
    opts[0].param_groups[0]["lr"] = 0.0
    moved = parameters(layers[0])
    assert not same(start, moved)
    layers[0].step(x, sign, opts[0])
    assert same(moved, parameters(layers[0]))


def test_hyper_parameters_changed_by_hand_take_effect():
    """As in any torch optimiser, param_groups is where settings live."""
    layer = FFLinear(20, 12)
    opt = optim.SGD(layer.parameters(), 0.1)
    x, sign = batch()
    layer.step(x, sign, opt)
    twin = copy.deepcopy(layer)
    decayed = optim.SGD(twin.parameters(), 0.1, weight_decay=0.5)
    opt.param_groups[0]["weight_decay"] = 0.5
    layer.step(x, sign, opt)
    twin.step(x, sign, decayed)
    assert same(parameters(layer), parameters(twin))


def test_parameter_groups():
    net = FFNet([20, 12, 8], classes=3)
    first, second = net.layers
    opt = optim.SGD([{"params": first.parameters(), "lr": 0.0}, {"params": second.parameters()}], lr=0.3)
    before = parameters(first), parameters(second)
    net.step(torch.rand(6, 20), torch.randint(0, 3, (6,)), opt)
    assert same(before[0], parameters(first))
    assert not same(before[1], parameters(second))


def test_one_learning_rate_tensor_for_two_groups_stays_two_rates():
    net = FFNet([20, 12, 8], classes=3)
    groups = [{"params": layer.parameters()} for layer in net.layers]
    opt = optim.SGD(groups, lr=0.3)
    opt.param_groups[0]["lr"].fill_(0.0)
    assert float(opt.param_groups[1]["lr"]) == 0.3


@every_optimiser
def test_saved_training_continues_bit_identically(kind):
    data = [batch() for _ in range(6)]
    layer = FFLinear(20, 12, peer_strength=0.1)
    opt = OPTIMISERS[kind](layer.parameters())
    for x, sign in data[:3]:
        layer.step(x, sign, opt)
    buffer = io.BytesIO()
    torch.save({"layer": layer.state_dict(), "opt": opt.state_dict()}, buffer)
    for x, sign in data[3:]:
        layer.step(x, sign, opt)

    buffer.seek(0)
    saved = torch.load(buffer)
    other = FFLinear(20, 12, peer_strength=0.1)
    other.step(*data[0], OPTIMISERS[kind](other.parameters()))
    again = OPTIMISERS[kind](other.parameters())
    again.param_groups[0]["lr"].fill_(77.0)
    other.step(*data[0], again)  # state that loading has to replace
    other.load_state_dict(saved["layer"])
    again.load_state_dict(saved["opt"])
    for x, sign in data[3:]:
        other.step(x, sign, again)
    assert same(parameters(layer), parameters(other))
    assert torch.equal(layer.peer_mean, other.peer_mean)
    for p, q in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(opt.state[p]["slots"], again.state[q]["slots"])
    assert int(again.state[other.weight]["step"]) == 6
    assert again.state[other.weight]["step"].dtype == torch.int64


@every_optimiser
def test_step_of_the_optimiser_raises(kind):
    layer = FFLinear(20, 12)
    with pytest.raises(RuntimeError, match=r"updates inside FFLinear\.step.*torch\.optim"):
        OPTIMISERS[kind](layer.parameters()).step()


def test_optimiser_survives_deepcopy_and_pickle():
    net = FFLinear(20, 12)
    opt = optim.Adam(net.parameters(), 0.01)
    x, sign = batch()
    net.step(x, sign, opt)
    net2, opt2 = pickle.loads(pickle.dumps((net, opt)))
    net3, opt3 = copy.deepcopy((net, opt))
    net.step(x, sign, opt)
    net2.step(x, sign, opt2)
    net3.step(x, sign, opt3)
    assert same(parameters(net), parameters(net2))
    assert same(parameters(net), parameters(net3))


def test_zero_grad_and_unused_parameters_do_no_harm():
    net = FFNet([20, 12, 8], classes=3, head_layers="all")
    opt = optim.Adam(net.parameters())
    opt.zero_grad()
    net.step(torch.rand(6, 20), torch.randint(0, 3, (6,)), opt)
    assert net.head.weight not in opt.state


# --------------------------------------------------------------------------------- networks

IMAGES, INPUTS, CLASSES = 14, 20, 4


def images() -> tuple[Tensor, Tensor]:
    return torch.rand(IMAGES, INPUTS), torch.randint(0, CLASSES, (IMAGES,))


def make_net(**options: Any) -> FFNet:
    return FFNet([INPUTS, 15, 12, 9], classes=CLASSES, **({"norm": "rms", "eps": 1e-3} | options))


def test_from_sequential_shares_parameters():
    model = nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 6), nn.ReLU())
    net = FFNet.from_sequential(model, classes=CLASSES, norm="l2", label_value=2.0)
    assert net.layers[0].weight is model[1].weight
    assert net.layers[1].bias is model[4].bias
    assert net.layers[1].norm == "l2"
    assert torch.equal(net.overlay, torch.tensor([2.0, 0.5]))
    before = parameters(model)
    net.step(*images(), optim.SGD(model.parameters(), 0.1))
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def expand(net: FFNet, x: Tensor, variants: Tensor) -> Tensor:
    """Rows of label variants as the specification builds them, float64."""
    overlay = net._overlay(x).double()
    x = x.flatten(1).double().repeat(variants.shape[0], 1)
    labels = variants.reshape(-1)
    if net.label == "concat":
        return ref.concat_label(x, labels, net.classes, overlay)
    return ref.overlay_label(x, labels, net.classes, overlay)


def reference_step(net: FFNet, states: list[dict[str, Any]], opt: Any, x: Tensor, variants: Tensor) -> None:
    """Every layer on these variants, first one positive, layer by layer: the next layer sees
    activities from before the update."""
    negatives = variants.shape[0] - 1
    n = x.shape[0]
    sign = torch.cat((torch.ones(n), -torch.ones(n * negatives)))
    weight = torch.cat((torch.full((n,), 0.5 / n), torch.full((n * negatives,), 0.5 / (n * negatives))))
    h, h_norm = expand(net, x, variants), None
    for layer, state in zip(net.layers, states, strict=True):
        h, h_norm, _ = advance(
            state,
            h,
            sign,
            reference_settings(layer, opt),
            row_weight=weight.double(),
            x_norm=h_norm,
        )


@every_optimiser
@pytest.mark.parametrize("label", ["overlay", "concat"])
@pytest.mark.parametrize("negatives", ["uniform", "all"])
def test_one_pass_step(kind, label, negatives):
    """Equals the layer-by-layer reference, simultaneous order, with the same random numbers."""
    net = make_net(label=label, peer_strength=0.1 if label == "concat" else 0.0)
    opt = OPTIMISERS[kind](net.parameters())
    states = [reference_layer(layer, kind) for layer in net.layers]
    generator, copy_ = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    start = parameters(net)
    for _ in range(3):
        x, labels = images()
        net.step(x, labels, opt, negatives=negatives, generator=generator)
        if negatives == "all":
            wrong = ref.all_wrong_labels(labels, CLASSES)
        else:
            wrong = ref.wrong_labels(labels, CLASSES, torch.rand(IMAGES, generator=copy_))[None]
        reference_step(net, states, opt, x, torch.cat((labels[None], wrong)))
    for layer, state in zip(net.layers, states, strict=True):
        close_to(layer, state, 5e-4 if kind.startswith("adam") else 2e-5)
    assert not any(torch.equal(a, b) for a, b in zip(start, parameters(net), strict=True))


def test_the_next_layer_sees_activities_from_before_the_update():
    """The other order gives other weights, by far more than the bound of the test above."""
    net = make_net()
    opt = optim.SGD(net.parameters(), 0.5)
    states = [reference_layer(layer, "sgd") for layer in net.layers]
    x, labels = images()
    variants = torch.cat((labels[None], ref.all_wrong_labels(labels, CLASSES)))
    n, rows = IMAGES, variants.numel()
    sign = torch.cat((torch.ones(n), -torch.ones(rows - n)))
    weight = torch.cat((torch.full((n,), 0.5 / n), torch.full((rows - n,), 0.5 / (rows - n)))).double()
    h = expand(net, x, variants)
    for layer, state in zip(net.layers, states, strict=True):
        settings = reference_settings(layer, opt)
        advance(state, h, sign, settings, row_weight=weight)
        h = ref.layer_forward(h, state["weight"], state["bias"], None, layer.norm, layer.eps, layer.goodness)[0]
    net.step(x, labels, opt, negatives="all")
    close_to(net.layers[0], states[0])
    with pytest.raises(AssertionError, match="weight"):
        close_to(net.layers[1], states[1])


@pytest.mark.parametrize("negatives", ["hard", "uniform", "all"])
@pytest.mark.parametrize("head_layers", ["all", "all_but_first", [0, 2]])
@pytest.mark.parametrize("learn_head", [True, False])
def test_two_pass_step(negatives, head_layers, learn_head):
    """Neutral pass, head, negatives drawn from its logits, then every layer, composed."""
    if negatives != "hard" and not learn_head:
        negatives = "hard"
    peer = 0.2 if negatives == "all" else 0.0
    net = make_net(head_layers=head_layers, peer_strength=peer)
    opt = OPTIMISERS["ema"](net.layers.parameters())
    head_opt = OPTIMISERS["ema"](net.head.parameters())
    with torch.no_grad():
        net.head.weight.normal_(0, 0.3)
        net.head.bias.normal_(0, 0.3)
    states = [reference_layer(layer, "ema") for layer in net.layers]
    hw, hb = net.head.weight.detach().double(), net.head.bias.detach().double()
    head_state = [
        hw,
        hb,
        torch.zeros(1, *hw.shape).double(),
        torch.zeros(1, CLASSES).double(),
        torch.tensor(0),
    ]
    generator, copy_ = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    start = parameters(net)
    losses = torch.zeros(3, dtype=torch.float64)
    drawn = []
    for _ in range(3):
        x, labels = images()
        # the reference first: its draw decides both
        h, h_norm, kept = expand(net, x, torch.full((1, IMAGES), -1)), None, []
        for layer, state in zip(net.layers, states, strict=True):
            h, _, _, h_norm = ref.layer_forward(
                h, state["weight"], state["bias"], h_norm, layer.norm, layer.eps, layer.goodness
            )
            kept.append((h, h_norm))
        chosen = [kept[i] for i in net.head_layers]
        hs, norms = [c[0] for c in chosen], [c[1] for c in chosen]
        logits = ref.head_forward(hs, norms, head_state[0], head_state[1], net.head.norm, net.head.eps)
        if learn_head:
            result = ref.head_step(
                hs, norms, labels, *head_state, head_opt.param_groups[0]["lr"], norm=net.head.norm,
                eps=net.head.eps, optimiser="ema", hyper=head_opt.hyper(head_opt.param_groups[0]),
            )  # fmt: skip
            head_state = list(result[1:6])
            losses += result[6]
        if negatives == "all":
            wrong = ref.all_wrong_labels(labels, CLASSES)
        else:
            u = torch.rand(IMAGES, generator=copy_)
            draw = (logits, labels, u.double()) if negatives == "hard" else (labels, CLASSES, u)
            wrong = (ref.hard_labels if negatives == "hard" else ref.wrong_labels)(*draw)[None]
        drawn.append(wrong)
        reference_step(net, states, opt, x, torch.cat((labels[None], wrong)))
        net.step(
            x, labels, opt, negatives=negatives, generator=generator,
            head_opt=head_opt if learn_head else None,
        )  # fmt: skip
    for layer, state in zip(net.layers, states, strict=True):
        close_to(layer, state, 5e-5)
    assert float((net.head.weight.detach() - head_state[0]).abs().max()) < 5e-5
    assert float((net.head.bias.detach() - head_state[1]).abs().max()) < 5e-5
    changed = [not torch.equal(a, b) for a, b in zip(start, parameters(net), strict=True)]
    assert changed == [True] * 6 + [learn_head] * 2
    metrics = net.head.metrics()
    if learn_head:
        assert metrics["loss"] == pytest.approx(float(losses[0] / losses[2]), rel=1e-4)
        assert metrics["accuracy"] == pytest.approx(float(losses[1] / losses[2]), abs=0.03)
        assert metrics["rows"] == 3 * IMAGES
    else:
        assert metrics["rows"] == 0
    assert net.metrics()[0]["rows"] == sum(IMAGES + w.numel() for w in drawn)


def test_two_pass_and_one_pass_agree():
    """A head that learns alongside changes nothing for the layers."""
    net = make_net(head_layers="all")
    twin = copy.deepcopy(net)
    opts = [optim.SGD(n.layers.parameters(), 0.2) for n in (net, twin)]
    x, labels = images()
    net.step(x, labels, opts[0], negatives="all")
    twin.step(x, labels, opts[1], negatives="all", head_opt=optim.SGD(twin.head.parameters(), 0.1))
    for a, b in zip(net.layers.parameters(), twin.layers.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert net.metrics()[2] == pytest.approx(twin.metrics()[2], rel=1e-5)


def test_hard_negatives_need_a_head():
    with pytest.raises(ValueError, match="build the network with head_layers"):
        make_net().step(*images(), optim.SGD([torch.zeros(1)], 0.1), negatives="hard")


def test_head_optimiser_needs_a_head():
    net = make_net()
    opt = optim.SGD(net.parameters(), 0.1)
    before = parameters(net)
    with pytest.raises(ValueError, match="head_layers"):
        net.step(*images(), opt, head_opt=opt)
    assert same(before, parameters(net))


@pytest.mark.parametrize("negatives", ["uniform", "all"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_step_layer_leaves_the_others_alone(index, negatives):
    net = make_net()
    opt = optim.SGD(net.parameters(), 0.1, momentum=0.9)
    states = [reference_layer(layer, "sgd") for layer in net.layers]
    start = [parameters(layer) for layer in net.layers]
    generator, copy_ = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for _ in range(3):
        x, labels = images()
        net.step_layer(index, x, labels, opt, negatives=negatives, generator=generator)
        if negatives == "all":
            wrong = ref.all_wrong_labels(labels, CLASSES)
        else:
            wrong = ref.wrong_labels(labels, CLASSES, torch.rand(IMAGES, generator=copy_))[None]
        # all layers learn in the reference, on a copy of the frozen ones
        frozen = [dict(s) if i != index else s for i, s in enumerate(states)]
        reference_step(net, frozen, opt, x, torch.cat((labels[None], wrong)))
    close_to(net.layers[index], states[index])
    for i, layer in enumerate(net.layers):
        assert same(start[i], parameters(layer)) == (i != index)


# --------------------------------------------------------------------------- labels and answers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_value": 3.0},
        {"label_value": "max"},
        {"neutral_value": 0.7},
        {"label_value": "max", "neutral_value": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("label", ["overlay", "concat"])
def test_answers(label, options):
    net = make_net(label=label, head_layers="all_but_first", **options)
    x, _ = images()
    x = 4 * x
    on = {"max": float(x.max())}.get(options.get("label_value"), options.get("label_value", 1.0))
    neutral = options.get("neutral_value", on / CLASSES)
    overlay = torch.tensor([on, neutral]).double()

    def activities(labels: Tensor) -> Any:
        place = ref.concat_label if label == "concat" else ref.overlay_label
        h, h_norm, result = place(x.double(), labels, CLASSES, overlay), None, []
        for layer in net.layers:
            w, b = layer.weight.detach().double(), layer.bias.detach().double()
            h, g, _, h_norm = ref.layer_forward(h, w, b, h_norm, layer.norm, layer.eps, layer.goodness)
            result.append((h, g, h_norm))
        return result

    want = torch.stack(
        [torch.stack([a[1] for a in activities(torch.full((IMAGES,), c))]) for c in range(CLASSES)],
        2,
    )
    got = net.goodness(x)
    assert got.shape == (3, IMAGES, CLASSES)
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(net(x).double(), want.sum(0), rtol=2e-5, atol=1e-6)
    assert torch.equal(net.predict(x), net(x).argmax(1))
    assert torch.equal(net.predict(x, "all_but_first"), got[1:].sum(0).argmax(1))

    labels = torch.randint(-1, CLASSES, (IMAGES,))
    for given, which in ((labels, labels), (None, torch.full((IMAGES,), -1))):
        for feature, (h, _, h_norm) in zip(net.features(x, given), activities(which), strict=True):
            normed = h / (h_norm / h.shape[1] ** 0.5 + 1e-3)[:, None]
            torch.testing.assert_close(feature.double(), normed, rtol=2e-5, atol=2e-5)

    with torch.no_grad():
        net.head.weight.normal_()
        net.head.bias.normal_()
    kept = activities(torch.full((IMAGES,), -1))[1:]
    logits = ref.head_forward(
        [k[0] for k in kept], [k[2] for k in kept], net.head.weight.detach().double(),
        net.head.bias.detach().double(), "rms", 1e-3,
    )  # fmt: skip
    torch.testing.assert_close(net.logits(x).double(), logits, rtol=2e-5, atol=2e-5)
    assert torch.equal(net.predict_softmax(x), net.logits(x).argmax(1))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("label", "dtype"), [("overlay", "float32"), ("overlay", "bfloat16"), ("concat", "float32")])
def test_memory_of_a_prediction_does_not_grow_with_the_images(label, dtype):
    torch.set_num_threads(2)  # each has its block of images: on many threads 5,000 images fill none
    net = FFNet([784, 100, 50], classes=10, label=label)

    def peak(function: Any, images: int) -> int:
        """Most bytes that torch's allocator had given out at a time during the call."""
        x = torch.rand(images, 784).to(getattr(torch, dtype))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            function(x)
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))

    def kept(images: int) -> int:  # goodness, its sum over layers, the label
        return images * (4 * (2 + 1) * 10 + 8)

    few, many = 5_000, 20_000
    blocks = 2 if label == "concat" else 1  # the goodness of blocks, and of all
    peak(net.goodness, few)  # packs the weights, once
    scratch = peak(net.goodness, few) - blocks * 4 * 2 * 10 * few
    assert scratch > 0
    assert peak(net.goodness, many) - blocks * 4 * 2 * 10 * many <= scratch
    assert all(peak(net.predict, images) <= blocks * kept(images) + scratch for images in (few, many))


def test_images_of_any_shape():
    net = FFNet([48, 10], classes=3)
    x = torch.rand(5, 3, 4, 4)
    assert torch.equal(net(x), net(x.flatten(1)))
    net.step(x, torch.randint(0, 3, (5,)), optim.SGD(net.parameters(), 0.1))


def test_label_inputs_of_the_images_are_ignored():
    net = make_net()
    x, _ = images()
    changed = x.clone()
    changed[:, :CLASSES] = 55.0
    assert torch.equal(net(x), net(changed))


def test_logits_need_a_head():
    with pytest.raises(RuntimeError, match="build it with head_layers"):
        make_net().logits(images()[0])


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"])
def test_answers_and_steps_without_gradients(guard):
    """Training and prediction under either guard, and normally afterwards."""
    net = make_net(head_layers="all")
    opt, head_opt = optim.Adam(net.layers.parameters()), optim.Adam(net.head.parameters())
    x, labels = images()
    want = net(x)
    with guard():
        assert torch.equal(net(x), want)
        net.layers[0](x)
        before = parameters(net)
        net.step(x, labels, opt)
        net.step(x, labels, opt, negatives="hard", head_opt=head_opt)
        assert not same(before, parameters(net))
    before = parameters(net)
    net.step(x, labels, opt)
    net.step(x, labels, opt, negatives="hard", head_opt=head_opt)
    assert not same(before, parameters(net))
    assert net.metrics()[0]["rows"] == 8 * IMAGES


# --------------------------------------------------------------------------------- it learns


@pytest.mark.parametrize("negatives", ["uniform", "hard", "all"])
def test_learning_happens(negatives):
    """Noisy prototypes: positives end above negatives in every layer, and answers are right."""
    torch.manual_seed(11)
    prototypes = torch.rand(CLASSES, 40)
    prototypes[:, :CLASSES] = 0

    def draw(n: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, CLASSES, (n,))
        return prototypes[labels] + 0.1 * torch.randn(n, 40), labels

    net = FFNet([40, 60, 60], classes=CLASSES, head_layers="all")
    opt = optim.Adam(net.layers.parameters(), 0.01)
    head_opt = optim.Adam(net.head.parameters(), 0.01)
    test, truth = draw(200)
    before = (net.predict(test) == truth).float().mean()
    for _ in range(150):
        net.step(*draw(64), opt, negatives=negatives, head_opt=head_opt)
    net.metrics()
    net.step(*draw(200), opt, negatives=negatives, head_opt=head_opt)
    for layer in net.metrics():
        assert layer["goodness_pos"] > 1.2 * layer["goodness_neg"]
        assert layer["separation"] > 0.7
    after = (net.predict(test) == truth).float().mean()
    assert float(after) > 0.9
    assert float(after) > float(before) + 0.2
    assert float((net.predict_softmax(test) == truth).float().mean()) > 0.9


def test_module_forward_is_the_op():
    layer = FFLinear(INPUTS, 7)
    x, _ = images()
    a = {"x": x, "weight": layer.weight.detach(), "bias": layer.bias.detach(), "x_norm": None}
    a |= {"norm": layer.norm, "eps": layer.eps, "goodness": layer.goodness}
    exact = cases.forward_reference(**{k: v.double() if isinstance(v, Tensor) else v for k, v in a.items()})
    assert_not_worse(layer(x).detach(), cases.forward_reference(**a)["h"], exact["h"], 1e-6, "h")


@pytest.mark.parametrize("negatives", ["uniform", "all", "hard"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_frozen_layers_pass_activities_on(index, negatives):
    """A frozen layer stays bit-equal, and the others learn what they would learn with a rate of 0 for it."""
    torch.manual_seed(3)
    frozen = FFNet([20, 16, 12, 8], classes=4, head_layers="all")
    twin = copy.deepcopy(frozen)
    frozen.layers[index].requires_grad_(False)
    x, labels = torch.rand(9, 20), torch.randint(0, 4, (9,))
    before = [p.clone() for p in frozen.layers[index].parameters()]
    still = {id(p) for p in twin.layers[index].parameters()}
    groups = [
        {"params": [p for layer in twin.layers for p in layer.parameters() if id(p) not in still]},
        {"params": list(twin.layers[index].parameters()), "lr": 0.0},
    ]
    one = optim.SGD([p for layer in frozen.layers for p in layer.parameters()], 0.5)
    other = optim.SGD(groups, 0.5)
    for step in range(3):
        for net, opt in ((frozen, one), (twin, other)):
            net.step(x, labels, opt, negatives=negatives, generator=torch.Generator().manual_seed(step))
    for mine, kept in zip(frozen.layers[index].parameters(), before, strict=True):
        assert torch.equal(mine, kept)
    for mine, theirs in zip(frozen.layers.parameters(), twin.layers.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(RuntimeError, match="the layer is frozen"):
        frozen.layers[index].step(torch.rand(2, frozen.layers[index].in_features), torch.tensor([1.0, -1.0]), one)
    frozen.layers.requires_grad_(False)
    if negatives != "hard":
        with pytest.raises(RuntimeError, match="every layer is frozen"):
            frozen.step(x, labels, one, negatives=negatives)


def test_settings_of_a_parameter_group_count():
    """weight_decay, betas and momentum of a group are used; the default of the others stays."""
    torch.manual_seed(5)
    one, two = FFLinear(20, 12), FFLinear(20, 12)
    two.load_state_dict(one.state_dict())
    x, sign = batch()
    grouped = optim.Adam([{"params": one.parameters(), "weight_decay": 0.5, "betas": (0.5, 0.9)}], 0.1)
    plain = optim.Adam(two.parameters(), 0.1, betas=(0.5, 0.9), weight_decay=0.5)
    for _ in range(3):
        one.step(x, sign, grouped)
        two.step(x, sign, plain)
    assert same(parameters(one), parameters(two))
    with pytest.raises(ValueError, match="weight_decay is -1"):
        optim.SGD([{"params": one.parameters(), "weight_decay": -1}], 0.1)
    with pytest.raises(ValueError, match="weight and bias are in different parameter groups"):
        one.step(x, sign, optim.SGD([{"params": [one.weight]}, {"params": [one.bias], "lr": 0.0}], 0.1))


def test_a_replaced_parameter_is_noticed():
    layer = FFLinear(20, 12)
    opt = optim.Adam(layer.parameters(), 0.1)
    layer.step(*batch(), opt)
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    with pytest.raises(ValueError, match="does not hold this layer's weight"):
        layer.step(*batch(), opt)


def test_a_refused_network_step_moves_no_layer():
    net = FFNet([20, 12, 8], classes=3)
    opt = optim.Adam(net.layers[0].parameters(), 0.1)
    before = parameters(net)
    with pytest.raises(ValueError, match="does not hold this layer's weight"):
        net.step(torch.rand(6, 20), torch.randint(0, 3, (6,)), opt)
    assert same(before, parameters(net))


def test_a_frozen_head_stays():
    net = FFNet([20, 12, 8], classes=3, head_layers="all")
    net.head.requires_grad_(False)
    before = parameters(net.head)
    opt = optim.Adam([p for layer in net.layers for p in layer.parameters()], 0.1)
    head_opt = optim.Adam(net.head.parameters(), 0.1)
    net.step(torch.rand(6, 20), torch.randint(0, 3, (6,)), opt, head_opt=head_opt)
    assert same(before, parameters(net.head))
    with pytest.raises(RuntimeError, match="the head is frozen"):
        net.step_head(torch.rand(6, 20), torch.randint(0, 3, (6,)), head_opt)


def test_changing_batch_sizes_do_not_pile_up():
    """One buffer for the layer below the last, as large as the largest batch so far."""
    net = FFNet([20, 12, 8], classes=3)
    opt = optim.Adam(net.parameters(), 0.1)
    for images in (7, 3, 9, 1, 8):
        net.step(torch.rand(images, 20), torch.randint(0, 3, (images,)), opt)
    assert {index: kept.numel() for index, kept in net._kept.items()} == {0: 18 * 12}


CHANGES: dict[str, Callable[[FFNet, Any, Any], Any]] = {
    "threshold": lambda net, opt, head_opt: setattr(net.layers[1], "threshold", 0.5),
    "temperature": lambda net, opt, head_opt: setattr(net.layers[0], "temperature", 0.5),
    "frozen": lambda net, opt, head_opt: net.layers[1].requires_grad_(False),
    "frozen head": lambda net, opt, head_opt: net.head.requires_grad_(False),
    "goodness": lambda net, opt, head_opt: [setattr(layer, "goodness", "sum_sq") for layer in net.layers],
    "norm of the head": lambda net, opt, head_opt: setattr(net.head, "norm", "l2"),
    "momentum": lambda net, opt, head_opt: opt.param_groups[0].update(momentum=0.1),
    "rate, a number": lambda net, opt, head_opt: opt.param_groups[0].update(lr=0.5),
    "rate, in place": lambda net, opt, head_opt: head_opt.param_groups[0]["lr"].fill_(0.5),
    "state": lambda net, opt, head_opt: opt.load_state_dict(opt.state_dict()),
    "weights": lambda net, opt, head_opt: net.load_state_dict({k: 2 * v for k, v in net.state_dict().items()}),
    "data of a frozen layer": lambda net, opt, head_opt: [
        net.layers[0].requires_grad_(False),
        net.step(torch.ones(4, INPUTS), torch.arange(4), opt, negatives="all"),
        setattr(net.layers[0].weight, "data", torch.ones(15, INPUTS)),
    ],
    "peer mean": lambda net, opt, head_opt: setattr(net.layers[0], "peer_mean", torch.ones(15)),
    "statistics": lambda net, opt, head_opt: net.metrics(),
    "memory": lambda net, opt, head_opt: net._forget(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_network_keeps_between_steps_is_never_stale(change):
    """One network goes on after the change; the other has to gather everything again."""
    net = make_net(head_layers="all", peer_strength=0.1)
    opt, head_opt = (optim.EMA(part.parameters(), 0.1) for part in (net.layers, net.head))
    batches = [images() for _ in range(3)]
    results = []
    for fresh in (False, True):
        one = copy.deepcopy((net, opt, head_opt))
        for i, batch in enumerate(batches):
            if i == 2:
                CHANGES[change](*one)
            if fresh:
                one[0]._forget()
                for part in (*one[0].layers, one[0].head):
                    part._slot = None
            generator = torch.Generator().manual_seed(i)
            one[0].step(*batch, one[1], negatives="hard", generator=generator, head_opt=one[2])
        counted = [part.statistics() for part in (*one[0].layers, one[0].head)]
        slots = [state["slots"] for each in one[1:] for state in each.state.values()]
        results.append([*one[0].state_dict().values(), *counted, *slots])
    assert same(*results)


def test_a_network_follows_its_optimiser_and_its_parameters():
    net = make_net()
    x, labels = images()
    first, second = optim.SGD(net.parameters(), 0.1), optim.SGD(net.parameters(), 0.0)
    net.step(x, labels, first)
    before = parameters(net)
    net.step(x, labels, second)  # whose rate is 0
    assert same(before, parameters(net))
    net.layers[1].weight = nn.Parameter(net.layers[1].weight.detach().clone())
    with pytest.raises(ValueError, match="does not hold this layer's weight"):
        net.step(x, labels, first)
    assert same(before, parameters(net))


def test_a_refused_label_moves_no_layer():
    net = make_net(head_layers="all")
    opt, head_opt = (optim.Adam(part.parameters(), 0.1) for part in (net.layers, net.head))
    x, labels = images()
    net.step(x, labels, opt, negatives="hard", head_opt=head_opt)
    before = [p.clone() for p in net.state_dict().values()]
    labels[3] = CLASSES
    with pytest.raises(RuntimeError, match=f"labels holds {CLASSES}; expected 0 to {CLASSES - 1}"):
        net.step(x, labels, opt, negatives="hard", head_opt=head_opt)
    assert same(before, list(net.state_dict().values()))
    assert net.metrics()[0]["rows"] == 2 * IMAGES


@pytest.mark.parametrize("depth", [3, 5, 8])
def test_activities_do_not_grow_with_depth(depth):
    """Two buffers take turns, and the workspace is one layer's, when all labels are known beforehand."""
    net = FFNet([20] + [12] * depth, classes=3)
    net.step(torch.rand(7, 20), torch.randint(0, 3, (7,)), optim.Adam(net.parameters(), 0.1))
    shallow = FFNet([20, 12, 12], classes=3)
    shallow.step(torch.rand(7, 20), torch.randint(0, 3, (7,)), optim.Adam(shallow.parameters(), 0.1))
    assert {index: kept.numel() for index, kept in net._kept.items()} == {0: 14 * 12, 1: 14 * 12}
    assert net._workspace.numel() == shallow._workspace.numel()


@pytest.mark.parametrize(
    ("x", "labels", "error", "message"),
    [
        (torch.rand(4, 20).numpy(), torch.zeros(4, dtype=torch.int64), TypeError, "x is a ndarray; expected a tensor"),
        (torch.rand(20), torch.zeros(1, dtype=torch.int64), ValueError, r"x has shape \[20\]; expected \[N, 20\]"),
        (
            torch.rand(4, 19),
            torch.zeros(4, dtype=torch.int64),
            ValueError,
            r"x has shape \[4, 19\]; expected \[N, 20\]",
        ),
        (torch.ones(4, 20, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), TypeError, "x is uint8; expected"),
        (torch.ones(4, 20).bool(), torch.zeros(4, dtype=torch.int64), TypeError, "x is bool; expected float32"),
        (torch.rand(4, 20), torch.zeros(4, dtype=torch.int32), TypeError, "labels is int32; expected int64"),
        (torch.rand(4, 20), torch.zeros(4, 3, dtype=torch.int64), ValueError, r"labels has shape \[4, 3\]; expected"),
        (torch.rand(4, 20), [0, 1, 2, 0], TypeError, "labels is a list; expected an int64 tensor"),
    ],
)
def test_what_a_network_refuses(x, labels, error, message):
    net = FFNet([20, 12], classes=3)
    before = parameters(net)
    with pytest.raises(error, match=message):
        net.step(x, labels, optim.Adam(net.parameters(), 0.1))
    assert same(before, parameters(net))


# ---------------------------------------------------------------------------- goodness of given labels


@pytest.mark.parametrize("label", ["overlay", "concat"])
@pytest.mark.parametrize("options", [{}, {"label_value": 3.0, "neutral_value": 0.2}, {"label_value": "max"}], ids=str)
def test_goodness_of_given_labels(label, options):
    net = make_net(label=label, **options)
    x, _ = images()
    x = 4 * x
    every = net.goodness(x)
    for labels in (torch.randint(0, CLASSES, (IMAGES,)), torch.zeros(IMAGES, dtype=torch.int64)):
        picked = every.gather(2, labels.expand(3, -1)[..., None])[..., 0]
        got = net.goodness(x, labels)
        assert got.shape == (3, IMAGES)
        torch.testing.assert_close(got, picked, rtol=2e-6, atol=1e-7)
    on = {"max": float(x.max())}.get(options.get("label_value"), options.get("label_value", 1.0))
    overlay = torch.tensor([on, options.get("neutral_value", on / CLASSES)]).double()
    labels = torch.randint(-1, CLASSES, (IMAGES,))
    labels[:2] = -1
    place = ref.concat_label if label == "concat" else ref.overlay_label
    h, h_norm, wanted = place(x.double(), labels, CLASSES, overlay), None, []
    for layer in net.layers:
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        h, g, _, h_norm = ref.layer_forward(h, weight, bias, h_norm, layer.norm, layer.eps, layer.goodness)
        wanted.append(g)
    got = net.goodness(x, labels)
    torch.testing.assert_close(got.double(), torch.stack(wanted), rtol=2e-5, atol=1e-6)
    assert not got.requires_grad
    # the neutral label is none of the others
    assert float((got[:, :2, None] - every[:, :2]).abs().amin()) > 1e-6


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.zeros(IMAGES - 1, dtype=torch.int64), ValueError, r"labels has shape \[\d+\]; expected \[\d+\]"),
        (torch.zeros(IMAGES, 1, dtype=torch.int64), ValueError, "one label for each image"),
        (torch.zeros(IMAGES, dtype=torch.int32), TypeError, "labels is int32; expected int64"),
        (torch.zeros(IMAGES), TypeError, "labels is float32; expected int64"),
        ([0] * IMAGES, TypeError, "labels is a list; expected an int64 tensor"),
        (torch.full((IMAGES,), CLASSES), RuntimeError, "label"),
        (torch.full((IMAGES,), -2), RuntimeError, "label"),
    ],
)
def test_goodness_refuses_bad_labels(labels, error, message):
    net = make_net()
    with pytest.raises(error, match=message):
        net.goodness(images()[0], labels)


@pytest.mark.parametrize("negatives", ["uniform", "all"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_lesson_is_many_updates_on_the_same_rows(index, negatives):
    net = make_net(peer_strength=0.1)
    twin = copy.deepcopy(net)
    x, labels = images()
    variants = torch.cat((labels[None], net.wrong_labels(labels, negatives, torch.Generator().manual_seed(3))))
    opts = [OPTIMISERS["ema"](n.parameters()) for n in (net, twin)]
    before = parameters(net)
    update = net.lesson(index, x, variants)
    assert same(before, parameters(net))
    for _ in range(4):
        update(opts[0])
        # step_layer draws the same labels anew and computes everything anew
        twin.step_layer(index, x, labels, opts[1], negatives=negatives, generator=torch.Generator().manual_seed(3))
        assert same(parameters(net), parameters(twin))
    assert int(opts[0].state[net.layers[index].weight]["step"]) == 4
    assert [not torch.equal(a, b) for a, b in zip(before, parameters(net), strict=True)] == [
        i // 2 == index for i in range(6)
    ]
    for ours, theirs in zip(net.metrics(), twin.metrics(), strict=True):
        assert ours == pytest.approx(theirs, nan_ok=True)


def test_a_lesson_keeps_what_the_layers_below_said():
    net = make_net()
    twin = copy.deepcopy(net)
    x, labels = images()
    variants = torch.stack((labels, (labels + 1) % CLASSES))
    updates = [n.lesson(1, x, variants) for n in (net, twin)]
    with torch.no_grad():
        net.layers[0].weight.zero_()
    for n, update in zip((net, twin), updates, strict=True):
        update(optim.SGD(n.parameters(), 0.1))
    assert torch.equal(net.layers[1].weight, twin.layers[1].weight)
    with torch.no_grad():
        x.zero_()  # nor does it look at the images again
    updates[0](optim.SGD(net.parameters(), 0.1))
    updates[1](optim.SGD(twin.parameters(), 0.1))
    assert torch.equal(net.layers[1].weight, twin.layers[1].weight)


def test_a_lesson_of_a_frozen_layer_is_refused():
    net = make_net()
    net.layers[1].requires_grad_(False)
    x, labels = images()
    update = net.lesson(1, x, torch.stack((labels, (labels + 1) % CLASSES)))
    with pytest.raises(RuntimeError, match="the layer is frozen"):
        update(optim.SGD(net.parameters(), 0.1))


@pytest.mark.parametrize("classes", [0, 3])
def test_statistics_are_what_metrics_read(classes):
    layer = FFLinear(20, 7)
    x, sign = batch()
    layer.step(x, sign, optim.SGD(layer.parameters(), 0.1))
    counted = layer.statistics()
    assert counted.dtype == torch.float64
    assert counted[5:].tolist() == [12.0, 12.0, 12.0, 12.0]
    assert float(counted[0]) == layer.metrics(reset=False)["loss"]
    counted.mul_(2)  # it is the tensor itself, which a resumed run fills
    assert layer.metrics()["rows"] == 48
    assert not bool(layer.statistics().any())
