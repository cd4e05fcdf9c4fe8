"""Variants that the kernels lack: every layer's update against its formula, written once more in NumPy."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from nested import assert_same
from tolerance import UNIT

from ffkern import FFNet, Trainer, checkpoint, cli, data, optim, reference
from ffkern.plain import ACTIVATIONS, PAIR_LOSSES, PlainNet
from ffkern.recipes import RECIPES, Recipe
from ffkern.trainer import Callback

CLASSES, SHAPE, UNITS = 3, (2, 3, 4), (8, 12)
PIXELS = math.prod(SHAPE)
STEP = 1e-8  # of differences
GOODNESS = ("sum_sq", "mean_sq", "neg_sum_sq", "neg_mean_sq", "sum_abs")
SWITCHES = {
    "leaky": {"activation": "leaky"},
    "gelu": {"activation": "gelu"},
    "student_t": {"activation": "student_t"},
    "symba": {"pair_loss": "symba", "temperature": 0.7},
    "swish": {"pair_loss": "swish", "temperature": 0.7},
    "regions": {"regions": 2, "shape": SHAPE},
    "noise": {"weight_noise": 0.5},
    "black box": {"between": "black-box"},
    "all of them": {
        "activation": "student_t", "pair_loss": "swish", "regions": 2, "shape": SHAPE, "weight_noise": 0.3,
        "between": "black-box",
    },
}  # fmt: skip
every_switch = pytest.mark.parametrize("switch", SWITCHES)


def network(switch=None, units=UNITS, **options):
    """A network in float64."""
    return PlainNet([PIXELS, *units], CLASSES, **{**(SWITCHES[switch] if switch else {}), **options}).double()


def batch(images=6):
    return torch.rand(images, PIXELS, dtype=torch.float64), torch.randint(CLASSES, (images,))


# ---------------------------------------------------------------- the formulas, in NumPy


def erf(z):
    return np.vectorize(math.erf)(z)


def act(kind, z):
    if kind == "relu":
        return np.where(z > 0, z, 0)
    if kind == "leaky":
        return np.where(z > 0, z, z / 100)
    if kind == "gelu":
        return z * (1 + erf(z / 2**0.5)) / 2
    return -np.log(1 / (np.pi * (1 + z**2))) - np.log(np.pi)  # Cauchy's density


def good(kind, h):
    value = {"sq": np.square, "abs": np.abs}[kind[-3:].strip("_")](h)
    value = value.mean(1) if "mean" in kind else value.sum(1)
    return -value if kind.startswith("neg") else value


def region(net, pixel, g):
    """The part of the image that an input behind the label belongs to."""
    y, x = divmod(pixel % (SHAPE[1] * SHAPE[2]), SHAPE[2])
    return math.floor(y * g / SHAPE[1]) * g + math.floor(x * g / SHAPE[2])


def inputs(net, index, x):
    """What the layer gets of the activities of the one below."""
    if index and net.between == "black-box":
        unit = x / (np.sqrt((x**2).mean(1, keepdims=True)) + 1e-8)
        return np.rint(2 * unit @ getattr(net, f"box_{index}").numpy()) / 2
    return x


def forward(net, index, x, weight, bias):
    """h [R, M], group after group, each from what it sees."""
    x = inputs(net, index, x)
    scale = 1 / (np.sqrt((x**2).mean(1)) + 1e-8)
    gain = getattr(net, f"gain_{index}")
    weight = weight if gain is None else weight * gain.numpy()
    g = math.isqrt(net.groups)
    found = []
    for group, rows in enumerate(np.split(np.arange(len(weight)), net.groups)):
        seen = np.ones(x.shape[1])
        if index == 0 and g > 1:
            front = CLASSES if net.label == "concat" else 0
            pixels = np.arange(x.shape[1]) - front
            seen = np.array([p < CLASSES - front or region(net, p, g) == group for p in pixels], dtype=float)
        found.append(scale[:, None] * ((x * seen) @ weight[rows].T) + bias[rows])
    return act(net.activation, np.concatenate(found, 1))


def loss(net, layer, h, images, signs="both"):
    """Sum over the groups; the first rows are positive."""
    total = 0.0
    for part in np.split(h, net.groups, 1):
        g = good(layer.goodness, part)
        share = net.groups if "sum" in layer.goodness else 1
        pos, neg = g[:images], g[images:].reshape(-1, images)
        t, threshold = layer.temperature, layer.threshold / share
        if net.pair_loss == "threshold":
            if signs != "negative":
                total += np.log1p(np.exp(-(pos - threshold) / t)).mean() / 2
            if signs != "positive":
                total += np.log1p(np.exp((neg - threshold) / t)).mean() / 2
        else:
            z = -(pos - neg) / t
            total += (np.log1p(np.exp(z)) if net.pair_loss == "symba" else z / (1 + np.exp(-z))).mean()
    return total


def check_gradients(net, signs="both", negatives="all"):
    """One step of SGD with rate 1 moves by the gradient, which is that of the formula along random directions."""
    opt = optim.SGD(net.layers.parameters(), lr=1.0, row_tolerance=0.0)
    x, y = batch()
    before = [[p.detach().numpy().copy() for p in (layer.weight, layer.bias)] for layer in net.layers]
    wrong = net.wrong_labels(y, "all")
    label = {"overlay": reference.overlay_label, "concat": reference.concat_label}[net.label]
    h = torch.cat([label(x, v, CLASSES, net.overlay) for v in (y, *wrong)]).numpy()
    net.step(x, y, opt, negatives=negatives, signs=signs)
    for i, (layer, (weight, bias)) in enumerate(zip(net.layers, before, strict=True)):
        gradient = [a - b.detach().numpy() for a, b in zip((weight, bias), (layer.weight, layer.bias), strict=True)]
        assert all(np.abs(g).max() > 1e-5 for g in gradient)
        for _ in range(4):
            way = [torch.randn(g.shape, dtype=torch.float64).numpy() for g in gradient]
            ends = [
                loss(net, layer, forward(net, i, h, weight + s * way[0], bias + s * way[1]), len(y), signs)
                for s in (STEP, -STEP)
            ]
            slope = (ends[0] - ends[1]) / (2 * STEP)
            expected = sum((a * b).sum() for a, b in zip(gradient, way, strict=True))
            # A loss of about 5 rounds by some 10 x 2^-53; this divided by STEP is 1e-7. So short a STEP meets the kink
            # of relu, where the difference means nothing, in one of thousands of runs.
            assert slope == pytest.approx(expected, rel=1e-5, abs=1e-6), i
        h = forward(net, i, h, weight, bias)


@every_switch
@pytest.mark.parametrize("goodness", GOODNESS)
def test_gradient_is_that_of_the_formula(switch, goodness):
    threshold = -1.5 if goodness.startswith("neg") else 1.5
    check_gradients(network(switch, goodness=goodness, threshold=threshold))


@every_switch
def test_gradient_with_the_label_in_front(switch):
    check_gradients(network(switch, label="concat", label_value=0.6))


@pytest.mark.parametrize("signs", ["positive", "negative"])
@pytest.mark.parametrize("regions", [1, 2])
def test_gradient_of_one_sign(signs, regions):
    check_gradients(network(regions=regions, shape=SHAPE), signs)


@pytest.mark.parametrize("signs", ["both", "positive", "negative"])
@pytest.mark.parametrize("net_of", [FFNet, PlainNet])
def test_one_sign_is_the_step_without_the_other_rows(net_of, signs):
    """Two layers with peers: weights, means and counts of the specification, in which the other rows have sign 0."""
    net = net_of([PIXELS, *UNITS], CLASSES, peer_strength=0.1)
    opt = optim.EMA(net.layers.parameters(), lr=8.0, row_tolerance=0.0)
    x, y = (t.float() if t.is_floating_point() else t for t in batch())
    wrong = net.wrong_labels(y, "all")
    rows = torch.cat([reference.overlay_label(x, v, CLASSES, net.overlay) for v in (y, *wrong)]).double()
    positive = torch.arange(len(rows)) < len(y)
    sign = torch.where(positive, 1.0, -1.0).double()
    weight = torch.where(positive, 0.5 / len(y), 0.5 / (len(rows) - len(y))).double()
    if signs != "both":
        sign[~positive if signs == "positive" else positive] = 0
    exact = []
    h, h_norm = rows, None
    for layer in net.layers:
        w, b = layer.weight.detach().double(), layer.bias.detach().double()
        step = reference.layer_step(
            h, sign, w, b, torch.zeros(1, *w.shape).double(), torch.zeros(1, *b.shape).double(), torch.tensor(0), 8.0,
            norm="rms", eps=1e-8, goodness="mean_sq", threshold=2.0, temperature=1.0, optimiser="ema",
            hyper=[0.9, 0.0, 0.0, 0.0], row_weight=weight, x_norm=h_norm, peer_mean=torch.zeros(len(b)).double(),
            peer_strength=0.1,
        )  # fmt: skip
        exact.append(step)
        h, h_norm = step.h, step.h_norm
    first = [layer.weight.detach().clone() for layer in net.layers]
    net.step(x, y, opt, negatives="all", signs=signs)
    for layer, old, step in zip(net.layers, first, exact, strict=True):
        # Sums of up to 24 products of numbers below 3, their squares and a logistic: 64 roundings at most.
        close = {"rtol": 64 * UNIT, "atol": 64 * UNIT}
        torch.testing.assert_close(layer.weight.detach().double(), step.weight, **close)
        torch.testing.assert_close(layer.bias.detach().double(), step.bias, **close)
        torch.testing.assert_close(layer.peer_mean.double(), step.peer_mean, **close)
        torch.testing.assert_close(layer.statistics(), step.stats, rtol=64 * UNIT, atol=64 * UNIT)
        assert (layer.weight - old).abs().max() > 1e-3
    kept = net.layers[0].metrics()["rows"]
    assert kept == {"both": 3, "positive": 1, "negative": 2}[signs] * len(y)


# ---------------------------------------------------------------- what the switches are


def test_noise_and_box_come_from_the_seed_and_not_from_the_weights():
    recipe = RECIPES["digits"].override(layers=(300, 200), weight_noise=0.5, between="black-box", init="normal")

    def made(**settings):
        return recipe.override(**settings).network(64, 10, 1.0)

    first, again, other = made(), made(), made(seed=1)
    for name in ("gain_0", "gain_1", "box_1"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    fused = made(weight_noise=0.0, between="nothing")
    assert type(fused) is FFNet
    assert_same(first.state_dict(), fused.state_dict())  # the same start, and nothing more to save
    for i in range(2):
        noise = (first.get_buffer(f"gain_{i}") - 1) / 0.5
        count = noise.numel()
        assert abs(float(noise.mean())) < 5 / math.sqrt(count)
        assert float(noise.var()) == pytest.approx(1, rel=5 * math.sqrt(2 / count))
        weight = first.layers[i].weight.detach().flatten()
        assert abs(float(torch.corrcoef(torch.stack((noise.flatten(), weight)))[0, 1])) < 5 / math.sqrt(count)


def test_a_noisy_network_is_one_of_other_weights():
    net = network("noise").float()
    exact = FFNet([PIXELS, *UNITS], CLASSES)
    with torch.no_grad():
        for i, (layer, own) in enumerate(zip(exact.layers, net.layers, strict=True)):
            layer.weight.copy_(own.weight * net.get_buffer(f"gain_{i}"))
            layer.bias.copy_(own.bias)
    x = batch()[0].float()
    torch.testing.assert_close(net.goodness(x), exact.goodness(x))
    assert not torch.allclose(net.goodness(x), FFNet([PIXELS, *UNITS], CLASSES).goodness(x), rtol=1e-2)


def test_the_box_has_no_derivative_and_a_finite_length():
    net = network("black box", units=(40, 40))
    rows = torch.randn(9, 40, dtype=torch.float64).requires_grad_()
    rows.data[0] = 0
    weight = net.layers[1].weight.detach().requires_grad_()
    z, _, _ = net._forward(1, rows, None, torch.eye(40, dtype=torch.float64), None)
    along, into = torch.autograd.grad(net._forward(1, rows, None, weight, None)[0].square().sum(), (rows, weight))
    assert not bool(along.any())
    assert bool(into.any())
    seen = inputs(net, 1, rows.detach().numpy()[1:])
    np.testing.assert_array_equal(2 * seen, np.rint(2 * seen))
    assert not bool(z[0].any())
    lengths = np.linalg.norm(seen, axis=1) / math.sqrt(40)
    assert (lengths > 0.3).all()  # rows of root mean square 1 times a matrix that keeps lengths, give or take a third
    assert (lengths < 3).all()


def test_groups_see_their_part_of_the_image_and_the_label():
    net = network("regions", units=(8, 8)).float()
    x, y = batch(1)[0].float(), torch.tensor([1])
    for pixel in range(CLASSES, PIXELS):
        other = x.clone()
        other[0, pixel] += 1
        z = net._forward(0, reference._variants(other, y[None], CLASSES, net.overlay), torch.ones(1), *_parameters(net))
        was = net._forward(0, reference._variants(x, y[None], CLASSES, net.overlay), torch.ones(1), *_parameters(net))
        changed = (z[0] != was[0]).view(4, 2).any(1).nonzero().flatten().tolist()
        assert changed == [region(net, pixel, 2)]
    z, was = (
        net._forward(0, reference._variants(x, label[None], CLASSES, net.overlay), torch.ones(1), *_parameters(net))[0]
        for label in (torch.tensor([2]), y)
    )
    assert bool((z != was).all())  # every group has the label


def _parameters(net):
    return net.layers[0].weight.detach(), net.layers[0].bias.detach()


def test_goodness_of_every_label_is_that_of_given_ones():
    for switch in SWITCHES:
        net = network(switch)
        x, _ = batch()
        every = net.goodness(x)
        assert every.shape == (2, len(x), CLASSES)
        for label in range(CLASSES):
            given = net.goodness(x, torch.full((len(x),), label))
            torch.testing.assert_close(every[:, :, label], given, rtol=1e-12, atol=1e-12)
        spread = every.amax(2) - every.amin(2)
        assert bool((spread > 1e-6).any())


def test_pairs_are_counted_by_who_is_better():
    net = network("symba")
    x, y = batch(40)
    wrong = net.wrong_labels(y, "all")
    goodness = torch.stack([net.goodness(x, v) for v in (y, *wrong)], 1)  # [L, V, N]
    net.step(x, y, optim.SGD(net.layers.parameters(), lr=0.0), negatives="all")
    for g, found in zip(goodness, net.metrics(), strict=True):
        won = (g[1:] < g[0]).double().mean()
        assert found["separation"] == pytest.approx(float(won))
        assert 0 < found["separation"] < 1
        assert found["goodness_pos"] == pytest.approx(float(g[0].mean()))
        assert found["goodness_neg"] == pytest.approx(float(g[1:].mean()))
        assert found["rows"] == 3 * len(x)


def test_bfloat16_images_are_computed_in_float32():
    net = network(activation="gelu").float()
    x = batch()[0].bfloat16()
    goodness, features = net.goodness(x), net.features(x)
    assert {goodness.dtype, *(f.dtype for f in features)} == {torch.float32}
    assert torch.equal(goodness, net.goodness(x.float()))


def test_frozen_layers_pass_their_activities_on():
    net = network("all of them")
    net.layers[0].requires_grad_(False)
    kept, moved = net.layers[0].weight.clone(), net.layers[1].weight.clone()
    net.step(*batch(), optim.SGD(net.layers[1].parameters(), lr=1.0))
    assert torch.equal(kept, net.layers[0].weight)
    assert not torch.equal(moved, net.layers[1].weight)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"activation": "tanh"}, "activation is 'tanh'; expected one of 'relu', 'leaky', 'gelu', 'student_t'"),
        ({"pair_loss": "hinge"}, "pair_loss is 'hinge'; expected one of 'threshold', 'symba', 'swish'"),
        ({"between": "box"}, "between is 'box'; expected one of 'nothing', 'black-box'"),
        ({"regions": 0}, "regions is 0; expected an integer of at least 1"),
        ({"regions": 2}, r"shape is None; expected \(channels, height, width\) of 24 inputs with regions=2"),
        ({"regions": 2, "shape": (1, 2, 3)}, r"shape is \(1, 2, 3\); expected .* of 24 inputs"),
        ({"regions": 3, "shape": SHAPE}, r"regions is 3 and layers\[0\] has 8 units; expected a multiple of 9"),
        ({"regions": 2, "shape": (2, 1, 12)}, "regions is 2; expected at most 1, for images of"),
        ({"weight_noise": -0.1}, "weight_noise is -0.1; expected a finite number of at least 0"),
        ({"weight_noise": math.nan}, "weight_noise is nan; expected a finite number of at least 0"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        network(**options)


def test_pairs_need_both_rows():
    net = network("swish")
    opt = optim.SGD(net.layers.parameters(), lr=1.0)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="signs is 'positive'; expected 'both' with pair_loss='swish'"):
        net.step(*batch(), opt, signs="positive")
    mute = network("swish", label="none", head_layers="all").float()
    x = batch()[0].float()
    with pytest.raises(
        ValueError, match="negatives has 2 rows; expected 6, one for each image, with pair_loss='swish'"
    ):
        mute.step_images(x, x[:2], optim.SGD(mute.layers.parameters(), lr=1.0))
    assert_same(before, net.state_dict())


def test_signs_are_named():
    net = FFNet([PIXELS, 4], CLASSES)
    with pytest.raises(ValueError, match="signs is 'none'; expected one of 'both', 'positive', 'negative'"):
        net.step(batch()[0].float(), batch()[1], optim.SGD(net.parameters(), lr=1.0), signs="none")


# ---------------------------------------------------------------- runs

RUNS = {
    **{name: {k: v for k, v in switch.items() if k != "shape"} for name, switch in SWITCHES.items()},
    "plain": {"path": "plain"},
    "phase": {"phase": 3},
    "plain phase": {"phase": 3, "path": "plain"},
    "greedy": {"activation": "gelu", "schedule": "greedy", "negatives": "uniform", "head": "all"},
    "mute": {"activation": "gelu", "pair_loss": "symba", "label": "none", "negatives": "hybrid"},
}  # fmt: skip
every_run = pytest.mark.parametrize("name", RUNS)
SMALL = Recipe(
    "small", "", {}, dataset="mnist", layers=(32, 24), goodness="sum_sq", threshold="width", peer=0.03, init="normal",
    negatives="hard", batch_size=20, epochs=30, optimiser="ema", lr=0.02, head_lr=0.1,
)  # fmt: skip


def strokes(images=60):
    """Random images of ten classes, as thin as strokes are; those of a class light up the same tenth of the pixels."""
    y = torch.randint(10, (images,))
    shape = torch.rand(10, 784) < 0.1
    x = shape[y] * torch.rand(images, 784)
    x[:, :60] = 0  # a border to write labels over
    return data.Dataset("mnist", x, y, x[:9].clone(), y[:9].clone(), 10, (1, 28, 28)).scaled("none")


def trained(recipe, images, callbacks=()):
    net = recipe.network(images.inputs, images.classes, 1.0, images.shape)
    trainer = recipe.trainer(net, images, callbacks)
    trainer.fit(images.train_x, images.train_y)
    return trainer


@every_run
def test_loss_falls(name):
    longer = {"epochs": 90} if name == "mute" else {}  # hybrids of random strokes are hard to tell from images
    trainer = trained(SMALL.override(**RUNS[name], **longer), strokes())
    assert isinstance(trainer.net, PlainNet) == (name != "phase")
    for i in range(2):
        losses = [record.layers[i].loss for record in trainer.history if record.layers[i] is not None]
        early, late = losses[:5], losses[-5:]
        # Swish falls below 0, and phases see one sign more often than the other in an epoch: means of five epochs.
        assert sum(late) < sum(early) - 0.25 * abs(sum(early)), (i, losses)


@every_run
def test_same_seed_same_bits(name):
    images, recipe = strokes(), SMALL.override(**RUNS[name], epochs=3)
    first, again = (trained(recipe, images).net.state_dict() for _ in range(2))
    assert_same(first, again)
    other = trained(recipe.override(seed=1), images).net.state_dict()
    assert not torch.equal(first["layers.1.weight"], other["layers.1.weight"])


class StopAfter(Callback):
    def __init__(self, updates):
        self.updates = updates

    def on_update(self, trainer):
        if trainer.updates == self.updates:
            trainer.stop()


@every_run
def test_resumed_in_the_middle_with_the_same_bits(name, tmp_path):
    """Through a checkpoint file, after an update within an epoch and, with phases, within a phase."""
    images, recipe = strokes(), SMALL.override(**RUNS[name], epochs=4)
    whole = trained(recipe, images)
    after = int(torch.randint(1, whole.total_updates - 1, ()))
    path = tmp_path / "checkpoint.pt"
    stopped = trained(recipe, images, [StopAfter(after), checkpoint.Checkpointer(path, recipe, images, 1e9)])
    assert stopped.updates == after
    saved = checkpoint.load(path)
    assert saved.recipe == recipe
    assert type(saved.net) is type(whole.net)
    assert saved.net.layers[0].weight.device.type == "cpu"
    if recipe.label != "none":
        assert torch.equal(saved.net.goodness(images.test_x), stopped.net.goodness(images.test_x))
    if saved.net.head is not None:
        assert torch.equal(saved.net.logits(images.test_x), stopped.net.logits(images.test_x))
    trainer = recipe.trainer(saved.net, images)
    trainer.load_state_dict(saved.trainer)
    trainer.fit(images.train_x, images.train_y)
    assert trainer.finished
    assert_same(trainer.net.state_dict(), whole.net.state_dict())
    assert trainer.evaluate(images.test_x, images.test_y) == whole.evaluate(images.test_x, images.test_y)


@pytest.mark.parametrize("path", ["fused", "plain"])
def test_phases_alternate_beginning_with_positive_rows(path):
    images, seen = strokes(), []

    class Watch(Callback):
        def on_update(self, trainer):
            counted = trainer.net.layers[0].statistics()[5:7].tolist()
            past = [sum(n) for n in zip(*seen, strict=True)] if seen and trainer._in_record > 1 else [0, 0]
            seen.append([a - b for a, b in zip(counted, past, strict=True)])

    trained(SMALL.override(phase=4, path=path, epochs=1, batch_size=6), images, [Watch()])
    signs = [(pos > 0, neg > 0) for pos, neg in seen[:-1]]  # the last update's counts went into the record
    assert signs == [((i // 4) % 2 == 0, (i // 4) % 2 == 1) for i in range(9)]


def test_phases_need_labels_and_all_layers_at_once():
    net = FFNet([PIXELS, 4], CLASSES)
    opt = optim.SGD(net.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="phase is 3; expected 0 with schedule='greedy' and label='overlay'"):
        Trainer(net, opt, phase=3, schedule="greedy")
    with pytest.raises(ValueError, match="phase is -1; expected an integer of at least 0"):
        Trainer(net, opt, phase=-1)


# ---------------------------------------------------------------- recipes and commands


def test_the_path_follows_from_the_settings():
    digits = RECIPES["digits"]
    assert (digits.plain, digits.path_taken) == (False, "fused kernels")
    assert digits.override(phase=5).path_taken == "fused kernels"
    assert digits.override(path="plain").path_taken == "plain PyTorch: path=plain"
    gelu = digits.override(activation="gelu", weight_noise=0.5)
    assert (gelu.plain, gelu.path_taken) == (True, "plain PyTorch: activation=gelu, weight_noise=0.5")
    for name, value in {"activation": "gelu", "pair_loss": "symba", "regions": 2, "between": "black-box"}.items():
        with pytest.raises(ValueError, match=f"path is 'fused' with {name}={value}; expected 'auto' or 'plain'"):
            digits.override(path="fused", **{name: value})


def test_commands_say_the_path_and_take_the_run(capsys, tmp_path):
    """train, eval and predict of a plain run, with a part of the image for every group."""
    out = tmp_path / "run"
    few = ["--layers", "16,8", "--epochs", "1", "--out", str(out), "--head", "all", "--negatives", "hard"]
    assert cli.main(["train", *few, "--regions", "2", "--activation", "student_t"]) == 0
    assert "path           plain PyTorch: activation=student_t, regions=2\n" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["path"] == "plain PyTorch: activation=student_t, regions=2"
    assert cli.main(["eval", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["error"] == result["test"]["error"]
    pictures = tmp_path / "x.npy"
    np.save(pictures, data.digits().test_x[:3].reshape(3, 8, 8).numpy())
    assert cli.main(["predict", str(out), str(pictures), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert cli.main(["plot", str(out)]) == 0


@pytest.mark.parametrize("options", [["--activation", "gelu"], ["--phase", "2"], ["--path", "plain"]])
def test_eager_is_compared_with_what_it_has(options, capsys):
    assert cli.main(["train", *options, "--compare-eager"]) == 2
    assert "expected --phase 0 and --path fused" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_registries_and_settings_name_the_same_choices():
    wanted = {"activation": ACTIVATIONS, "pair_loss": ["threshold", *PAIR_LOSSES]}
    for name, choices in wanted.items():
        for choice in choices:
            assert getattr(RECIPES["digits"].override(**{name: choice}), name) == choice
