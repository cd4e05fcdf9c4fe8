"""Networks, optimisers and the trainer as they are, with the CUDA kernels under them."""

from __future__ import annotations

import contextlib
import copy
import itertools

import emulated
import pytest
import torch
from torch import Tensor

from ffkern import FFNet, data, nn, ops, optim
from ffkern._eager import compare_losses
from ffkern.trainer import Trainer

pytestmark = pytest.mark.emulated


def as_on_cuda(patch: pytest.MonkeyPatch) -> None:
    """What the modules tell from the device of a tensor: activities are stored as x is, and weights are not packed."""
    patch.setattr(nn, "_stored", lambda x: torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype)
    patch.setattr(nn, "_packed", lambda weight: False)


def digits_net() -> tuple[FFNet, Tensor, Tensor]:
    found = data.digits().scaled("mean-image")
    return FFNet([64, 500, 500], 10, label="concat"), found.train_x, found.train_y


@pytest.mark.parametrize("device", ["sm_75", "sm_80"])
def test_digits_losses_are_those_of_float64(device: str) -> None:
    """The first losses of every layer: as close to the specification as eager PyTorch's, twice."""
    net, x, y = digits_net()
    with emulated.device(device):
        found = compare_losses(net, x, y, lr=0.003, negatives="uniform", batch_size=50, seed=3, steps=12)
    assert found.holds


def test_the_trainer_does_not_notice() -> None:
    """One epoch of digits on CPU kernels and on CUDA kernels: the same batches, the same losses, the same answers."""
    start, x, y = digits_net()
    x, y = x[:400], y[:400]
    seen = []
    for device in (None, "sm_80"):
        net = copy.deepcopy(start)
        trainer = Trainer(net, optim.Adam(net.layers.parameters(), lr=0.003), epochs=1, batch_size=50, seed=7)
        with emulated.device(device) if device else contextlib.nullcontext():
            history = trainer.fit(x, y)
            seen.append((history, net.predict(x)))
    (cpu, cpu_labels), (cuda, cuda_labels) = seen
    for one, other in zip(cpu.epochs[-1].layers, cuda.epochs[-1].layers, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert other.goodness_pos == pytest.approx(one.goodness_pos, rel=1e-4)
    assert float((cpu_labels == cuda_labels).float().mean()) > 0.99


@pytest.mark.parametrize("negatives", ["uniform", "hard", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_step_of_the_articles_network(dtype: torch.dtype, negatives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """784-500-500 with a softmax head, against the CPU: statistics, weights, and low copies beside the weights."""
    rows = 20 if negatives == "all" else 60
    x = torch.rand(rows, 784).to(dtype)
    labels = torch.randint(0, 10, (rows,))
    # 16-bit operands move everything by their rounding; Adam makes steps of lr whatever the gradient, so SGD here.
    near = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    start = FFNet([784, 500, 500], 10, head_layers="all", norm="rms", goodness="mean_sq", threshold=2.0)
    nets, logits = [], []
    for device in ("cpu", "sm_80"):
        net = copy.deepcopy(start)
        opt = optim.SGD(net.layers.parameters(), lr=0.5, momentum=0.9)
        head_opt = optim.SGD(net.head.parameters(), lr=0.5, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        on = emulated.device(device) if device != "cpu" else contextlib.nullcontext()
        with on, monkeypatch.context() as patch:
            if device != "cpu":
                as_on_cuda(patch)
            for _ in range(2):
                net.step(x, labels, opt, negatives=negatives, generator=generator, head_opt=head_opt)
            logits.append(net.logits(x))
            goodness = net.goodness(x[:5])
        nets.append((net, net.metrics(), goodness))
    (cpu, cpu_seen, cpu_goodness), (cuda, cuda_seen, cuda_goodness) = nets
    for one, other in zip(cpu_seen, cuda_seen, strict=True):
        assert one["rows"] == other["rows"]
        assert other["loss"] == pytest.approx(one["loss"], rel=near)
        assert other["goodness_pos"] == pytest.approx(one["goodness_pos"], rel=near)
    for name, value in cpu.state_dict().items():
        moved = (value - start.state_dict()[name]).norm()
        assert float((cuda.state_dict()[name] - value).norm()) <= 2 * near * float(moved), name
    assert torch.allclose(logits[0], logits[1], rtol=5 * near, atol=near * float(logits[0].abs().max()))
    assert torch.allclose(cpu_goodness, cuda_goodness, rtol=5 * near)
    if dtype != torch.float32:
        for layer in cuda.layers:
            assert torch.equal(layer._low, layer.weight.detach().to(dtype))


def test_weights_changed_by_hand_reach_the_low_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_cuda(monkeypatch)
    layer = nn.FFLinear(24, 16)
    other = copy.deepcopy(layer)
    x, sign = torch.randn(8, 24).bfloat16(), torch.tensor([1.0, -1] * 4)
    opts = [optim.SGD(each.parameters(), lr=0.1) for each in (layer, other)]
    with emulated.device("sm_80"):
        layer.step(x, sign, opts[0])
        with torch.no_grad():
            layer.weight.copy_(other.weight + 1)
            layer.bias.copy_(other.bias)
            other.weight.add_(1)
        opts[0].state.clear()
        opts[0].generation += 1
        layer.step(x, sign, opts[0])
        other.step(x, sign, opts[1])
    assert torch.equal(layer.weight, other.weight)


def stepped(layer: nn.FFLinear, x: Tensor, sign: Tensor) -> Tensor:
    """The weights after one more step from where the layer is."""
    other = copy.deepcopy(layer)  # has no low copy that could be stale
    for each in (layer, other):
        each.step(x, sign, optim.SGD(each.parameters(), lr=0.1))
    assert torch.equal(layer.weight, other.weight)
    return layer.weight


@pytest.mark.parametrize("change", ["assign", "parameter", "inference", "refused", "float32"])
def test_the_low_copy_is_never_stale(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens between two steps, the second reads the weights that are there."""
    as_on_cuda(monkeypatch)
    x, sign = torch.randn(8, 24).bfloat16(), torch.tensor([1.0, -1] * 4)
    layer, other = nn.FFLinear(24, 16), nn.FFLinear(24, 16)
    with emulated.device("sm_80"):
        stepped(layer, x, sign), stepped(other, x, sign)
        if change == "assign":
            layer.load_state_dict(other.state_dict(), assign=True)
        elif change == "parameter":
            fresh = torch.nn.Parameter(torch.empty(16, 24))
            with torch.no_grad():
                while fresh._version < layer.weight._version:
                    fresh.normal_()
            layer.weight = fresh
        elif change == "float32":  # moves the weights and no copy
            layer.step(x.float(), sign, optim.SGD(layer.parameters(), lr=0.1))
        elif change == "inference":
            with torch.inference_mode():
                layer.step(x, sign, optim.SGD(layer.parameters(), lr=0.1))
            with torch.no_grad():
                layer.weight.neg_()
        else:
            with pytest.raises(RuntimeError):
                layer.step(x, sign, optim.SGD(layer.parameters(), lr=0.1), x_norm="no tensor")
            with torch.no_grad():
                layer.weight.neg_()
        stepped(layer, x, sign)


@pytest.mark.parametrize("negatives", ["uniform", "hard"])
def test_autocast_reaches_every_update(negatives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 images under autocast train as bfloat16 images do, whether the passes are one or two."""
    as_on_cuda(monkeypatch)
    x, labels = torch.rand(7, 30), torch.randint(0, 5, (7,))
    start = FFNet([30, 20, 12], 5, head_layers="all")
    weights = []
    for autocast in (False, True):
        net = copy.deepcopy(start)
        opt, head_opt = (optim.SGD(part.parameters(), lr=0.1) for part in (net.layers, net.head))
        generator = torch.Generator().manual_seed(0)
        with emulated.device("sm_80"), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            images = x if autocast else x.bfloat16()
            net.step(images, labels, opt, negatives=negatives, generator=generator, head_opt=head_opt)
        weights.append(net.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_passes_without_a_step_use_the_tensor_cores_too(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_cuda(monkeypatch)
    net = FFNet([30, 20, 12], 5, head_layers="all")
    x = torch.rand(7, 30).bfloat16()
    with emulated.device("sm_80") as driver:
        driver.driver_clear()
        net.logits(x), net.features(x), net.predict(x)
        kernels = [record["kernel"] for record in driver.driver_last_stats()]
    products = [kernel for kernel in kernels if kernel.startswith("ffkern_forward")]
    assert len(products) == 6
    assert all(kernel.startswith("ffkern_forward_bf16") for kernel in products)


def test_features_follow_the_kernels() -> None:
    """Features of every layer, and prediction over layers, equal the CPU's within rounding."""
    net = FFNet([40, 33, 17], 5)
    x = torch.rand(23, 40)
    with emulated.device("sm_90"):
        features, goodness = net.features(x), net.goodness(x, torch.randint(0, 5, (23,)))
        assert goodness.shape == (2, 23)
        everything = net.goodness(x)
    for a, b in itertools.chain(zip(features, net.features(x), strict=True), [(everything, net.goodness(x))]):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_prediction_in_several_blocks_of_images() -> None:
    """Activities of one block take about 8 MiB: here one image of a wide layer exceeds that."""
    widths = [90, 30000, 3]
    weights = [torch.randn(m, k) / k**0.5 for k, m in itertools.pairwise(widths)]
    x = torch.rand(3, 90)
    a = (weights, [None, None], 80, torch.tensor([1.0, 0.1]), "rms", 1e-4, "mean_sq")
    with emulated.device("sm_80"):
        got = ops.predict_goodness(x, *a)
        one = ops.predict_goodness(x[2:], *a)
    assert torch.equal(got[:, 2:], one)
    assert torch.allclose(got, ops.predict_goodness(x, *a), rtol=1e-3)
