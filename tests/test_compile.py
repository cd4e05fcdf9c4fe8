"""torch.compile, torch.export and autocast."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import ffkern
from ffkern import FFLinear, FFNet, optim
from ffkern import reference as ref

# torch's inductor imports parts of torch that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def graphs() -> int:
    """Graphs that torch.compile has made in this test.  (The backend may be asked twice for one:
    torch first tries to keep Python floats as inputs, then starts over with constants.)"""
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def batch(rows: int = 16, inputs: int = 12) -> tuple[Tensor, Tensor]:
    sign = torch.ones(rows)
    sign[rows // 2 :] = -1
    return torch.randn(rows, inputs), sign


def parameters(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------- compile


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_twenty_steps_compile_once(backend):
    """With a learning rate that changes and Adam's step that counts: the bits of eager."""
    layer = FFLinear(12, 9, peer_strength=0.1)
    twin = copy.deepcopy(layer)
    opt, other = optim.Adam(layer.parameters(), 0.05), optim.Adam(twin.parameters(), 0.05)
    start = parameters(layer)
    data = [batch() for _ in range(21)]
    layer.step(*data[0], opt)  # the workspace and the optimiser's state come into being
    twin.step(*data[0], other)
    step = torch.compile(lambda x, s: layer.step(x, s, opt), fullgraph=True, backend=backend)
    for i, (x, sign) in enumerate(data[1:]):
        rate = 0.05 / (1 + i)
        for o in (opt, other):
            o.param_groups[0]["lr"].fill_(rate)
        step(x, sign)
        twin.step(x, sign, other)
    assert graphs() == 1
    assert same(parameters(layer), parameters(twin))
    assert not same(parameters(layer), start)
    assert torch.equal(layer.peer_mean, twin.peer_mean)
    assert int(opt.state[layer.weight]["step"]) == 21
    assert layer.metrics() == twin.metrics()
    # and the rate does matter
    opt.param_groups[0]["lr"].fill_(0.0)
    before = parameters(layer)
    step(*data[0])
    assert same(parameters(layer), before)
    assert graphs() == 1


def test_bfloat16_steps_compile_once():
    """The bits of eager, though a compiled step rounds the weights anew, and no stale ones afterwards."""
    net = FFNet([12, 9, 8], classes=3)
    twin = copy.deepcopy(net)
    opt, other = optim.Adam(net.parameters(), 0.05), optim.Adam(twin.parameters(), 0.05)
    x, labels = torch.rand(10, 12).bfloat16(), torch.randint(0, 3, (10,))
    step = torch.compile(lambda x, y: net.step(x, y, opt, negatives="all"), fullgraph=True, backend="aot_eager")
    for compiled in (False, True, True, False, True):
        (step if compiled else lambda x, y: net.step(x, y, opt, negatives="all"))(x, labels)
        twin.step(x, labels, other, negatives="all")
        assert same(parameters(net), parameters(twin))
    assert graphs() == 1
    predict = torch.compile(net.predict, fullgraph=True, backend="aot_eager")
    assert torch.equal(predict(x), twin.predict(x))
    assert torch.equal(net.goodness(x), twin.goodness(x))


def test_a_whole_network_compiles_once():
    net = FFNet([12, 9, 8], classes=3)
    twin = copy.deepcopy(net)
    opt, other = optim.EMA(net.parameters(), 0.05), optim.EMA(twin.parameters(), 0.05)
    step = torch.compile(lambda x, y: net.step(x, y, opt, negatives="all"), fullgraph=True, backend="aot_eager")
    x, labels = torch.rand(10, 12), torch.randint(0, 3, (10,))
    net.step(x, labels, opt, negatives="all")
    twin.step(x, labels, other, negatives="all")
    for _ in range(4):
        x, labels = torch.rand(10, 12), torch.randint(0, 3, (10,))
        step(x, labels)
        twin.step(x, labels, other, negatives="all")
    assert graphs() == 1
    assert same(parameters(net), parameters(twin))
    predict = torch.compile(net.predict, fullgraph=True, backend="aot_eager")
    assert torch.equal(predict(x), twin.predict(x))


def test_activities():
    layer = FFLinear(12, 9)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        h, goodness, scale, h_norm = layer.activities(2 * x)
        return h + 1, goodness, scale, h_norm

    compiled = torch.compile(run, fullgraph=True, backend="inductor")
    for _ in range(2):
        x, _ = batch()
        for a, b in zip(compiled(x), run(x), strict=True):
            torch.testing.assert_close(a, b)
    assert graphs() == 1


def test_local_loss_and_backward():
    layer = FFLinear(12, 9)
    twin = copy.deepcopy(layer)

    def loss(x: Tensor, sign: Tensor) -> Tensor:
        return layer.local_loss(x, sign)[0]

    compiled = torch.compile(loss, fullgraph=True, backend="inductor")
    opts = [torch.optim.SGD(m.parameters(), 0.1) for m in (layer, twin)]
    for _ in range(3):
        x, sign = batch()
        for o in opts:
            o.zero_grad()
        a, b = compiled(x, sign), twin.local_loss(x, sign)[0]
        torch.testing.assert_close(a, b)
        a.backward()
        b.backward()
        torch.testing.assert_close(layer.weight.grad, twin.weight.grad)
        assert float(layer.weight.grad.abs().max()) > 0
        for o in opts:
            o.step()
    assert graphs() == 1
    assert layer.metrics() == pytest.approx(twin.metrics(), rel=1e-6)


def test_input_gradient():
    layer = FFLinear(12, 9, norm="l2", eps=0.1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, _ = batch()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(a).square().sum().backward()
    layer(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_dynamic_batch_size():
    """A second size makes one dynamic graph, further ones none; the workspace fits the largest."""
    layer = FFLinear(12, 9)
    twin = copy.deepcopy(layer)
    opt, other = optim.SGD(layer.parameters(), 0.1), optim.SGD(twin.parameters(), 0.1)
    activities = torch.compile(layer.activities, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 17, 64, 2):
        x, _ = batch(rows)
        for a, b in zip(activities(x), layer.activities(x), strict=True):
            assert torch.equal(a, b)
    assert graphs() == 1

    layer.step(*batch(64), opt)
    twin.load_state_dict(layer.state_dict())
    step = torch.compile(lambda x, s: layer.step(x, s, opt), fullgraph=True, backend="aot_eager")
    for rows in (16, 20, 40, 64, 30):
        x, sign = batch(rows)
        step(x, sign)
        twin.step(x, sign, other)
        assert same(parameters(layer), parameters(twin))
    assert graphs() <= 1 + 2


def test_export():
    layer = FFLinear(12, 9)
    x, _ = batch()
    rows = torch.export.Dim("rows", min=2, max=100)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: rows},))
    names = [str(node.target) for node in program.graph.nodes]
    assert "ffkern.layer_forward.default" in names
    for size in (16, 3, 77):
        x, _ = batch(size)
        assert torch.equal(program.module()(x), layer(x))


# ------------------------------------------------------------------------------------ autocast


def autocast() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("variants", [False, True])
def test_step_under_autocast(variants):
    """Casts x and nothing else: the update reaches the float32 weights themselves."""
    layer = FFLinear(12, 9)
    twin = copy.deepcopy(layer)
    opt, other = optim.SGD(layer.parameters(), 0.5), optim.SGD(twin.parameters(), 0.5)
    before, pointer = parameters(layer), layer.weight.data_ptr()
    x, sign = batch()
    options = {"classes": 3, "overlay": torch.tensor([1.0, 0.3])}
    labels = torch.randint(0, 3, (2, 16))
    keep = (torch.zeros(16, 9, dtype=torch.bfloat16), torch.zeros(16))
    with autocast():
        if variants:
            layer.step_shared(x, labels, torch.cat((sign, -sign)), opt, **options)
        else:
            layer.step(x, sign, opt, keep=keep)
    rounded = x.bfloat16()
    if variants:
        twin.step_shared(rounded, labels, torch.cat((sign, -sign)), other, **options)
    else:
        h = twin(rounded)
        twin.step(rounded, sign, other)
        assert torch.equal(keep[0], h)
    assert layer.weight.dtype == torch.float32
    assert layer.weight.data_ptr() == pointer
    assert not same(before, parameters(layer))
    assert same(parameters(layer), parameters(twin))


def test_local_loss_under_autocast():
    layer = FFLinear(12, 9)
    before = parameters(layer)
    opt = torch.optim.SGD(layer.parameters(), 0.5)
    x, sign = batch()
    with autocast():
        loss, h = layer.local_loss(x, sign)
        assert h.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
    loss.backward()
    w, b = (p.double().requires_grad_() for p in (before[0].bfloat16(), before[1]))
    wide = x.bfloat16().double()
    h64, g, scale, _ = ref.layer_forward(wide, w, b, None, layer.norm, layer.eps, layer.goodness)
    loss64, coef, _ = ref.local_loss(g, sign, None, layer.threshold, layer.temperature)
    loss64.backward()
    assert layer.weight.grad.dtype == torch.float32
    # h is kept in bfloat16 for the backward pass, and r dz rounded to it for the product: 2^-8 of each term, twice.
    dz = (2 / h64.shape[1] * coef[:, None] * h64).abs().detach()
    terms = ((scale[:, None] * dz).T.detach() @ wide.abs(), dz.sum(0))
    rounding = (1 + 2.0**-8) ** 2 - 1 + 2.0**-20  # and some roundings to float32
    for p, exact, size in zip(layer.parameters(), (w.grad, b.grad), terms, strict=True):
        assert bool(((p.grad - exact).abs() <= rounding * size).all())
    opt.step()
    assert layer.weight.dtype == torch.float32
    assert not same(before, parameters(layer))


def test_network_under_autocast():
    net = FFNet([12, 9, 8], classes=3, head_layers="all")
    opt, head_opt = (
        optim.Adam(net.layers.parameters(), 0.05),
        optim.Adam(net.head.parameters(), 0.05),
    )
    x, labels = torch.rand(10, 12), torch.randint(0, 3, (10,))
    for negatives, head in (("all", None), ("uniform", None), ("hard", head_opt)):
        before = parameters(net.layers)
        with autocast():
            net.step(x, labels, opt, negatives=negatives, head_opt=head)
        assert not any(torch.equal(a, b) for a, b in zip(before, net.layers.parameters(), strict=True))
        assert all(p.dtype == torch.float32 for p in net.parameters())
    with autocast():
        goodness = net.goodness(x)
        h = net.layers[0](x)
    assert h.dtype == torch.bfloat16
    assert goodness.dtype == torch.float32
    assert torch.equal(goodness, net.goodness(x.bfloat16()))
    torch.testing.assert_close(goodness, net.goodness(x), rtol=0.05, atol=0.02)


def test_autocast_leaves_float64_and_integers_alone():
    """As torch's own, which casts neither: they are refused as they are without autocast."""
    layer = FFLinear(12, 9)
    with autocast():
        for x in (torch.zeros(4, 12, dtype=torch.float64), torch.zeros(4, 12, dtype=torch.int64)):
            with pytest.raises(RuntimeError, match=r"layer_forward: x is (float64|int64)"):
                layer(x)


def test_compiled_step_under_autocast():
    layer = FFLinear(12, 9)
    twin = copy.deepcopy(layer)
    opt, other = optim.SGD(layer.parameters(), 0.5), optim.SGD(twin.parameters(), 0.5)
    x, sign = batch()
    step = torch.compile(lambda a, s: layer.step(a, s, opt), fullgraph=True, backend="aot_eager")
    with autocast():  # bfloat16 takes more workspace
        layer.step(x, sign, opt)
        twin.step(x, sign, other)
    for _ in range(2):
        x, sign = batch()
        with autocast():
            step(x, sign)
            twin.step(x, sign, other)
    assert same(parameters(layer), parameters(twin))


def test_operations_are_reachable_without_the_modules():
    assert ffkern.ops.layer_forward is torch.ops.ffkern.layer_forward
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ffkern.ops.nothing
