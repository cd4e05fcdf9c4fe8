"""Measurements that decide features: rows that still teach, early exit, bfloat16. Their figures are not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import accuracy, early_exit, kept_rows
from ffkern import FFNet, checkpoint, trainer
from ffkern import reference as ref
from ffkern.recipes import RECIPES

CLASSES = 4
norms = pytest.mark.parametrize(("norm", "goodness"), [("rms", "sum_sq"), ("l2", "mean_sq")])


def make_net(**options: str | float) -> FFNet:
    net = FFNet([23, 31, 17, 13], CLASSES, **options)
    for layer in net.layers:
        nn.init.normal_(layer.bias, 0.2, 0.1)
    return net


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a short run."""
    folder = tmp_path_factory.mktemp("digits")
    recipe = RECIPES["digits"].override(epochs=3, held_out=300)
    images = recipe.load()
    net = recipe.network(images.inputs, images.classes, recipe.strength(images))
    keep = checkpoint.Checkpointer(folder / checkpoint.NAME, recipe, images)
    recipe.trainer(net, images, [keep]).fit(images.train_x, images.train_y)
    return folder


# ------------------------------------------------------------ rows that still teach


def gradient_norms(net: FFNet, index: int, images: Tensor, labels: Tensor, sign: float) -> Tensor:
    """Norm of each row's part of dW, by autograd in float64."""
    layer = net.layers[index]
    result = []
    for image, label in zip(images, labels, strict=True):
        h, norm = ref.overlay_label(image[None].double(), label[None], CLASSES, net.overlay.double()), None
        for i, below in enumerate(net.layers):
            weight = below.weight.detach().double().requires_grad_()
            h, g, _, norm = ref.layer_forward(
                h.detach(), weight, below.bias.detach().double(), norm, below.norm, below.eps, below.goodness
            )
            norm = norm.detach()
            if i == index:
                functional.softplus(-sign * (g - layer.threshold) / layer.temperature).sum().backward()
                result.append(weight.grad[:, CLASSES if i == 0 else 0 :].norm())
                break
    return torch.stack(result)


@norms
def test_kept_rows_follow_the_gradients(norm, goodness):
    net = make_net(norm=norm, goodness=goodness, temperature=0.02 if goodness == "sum_sq" else 2e-4)
    x, y = torch.rand(12, 23), torch.randint(CLASSES, (12,))
    wrong = (y + 1) % CLASSES
    for layer, g in zip(net.layers, net.goodness(x, y), strict=True):
        layer.threshold = float(g.mean())
    tolerance = 0.1
    with torch.no_grad():
        found = kept_rows.kept_rows(net, x, y, wrong, tolerance)
    for index, shares in enumerate(found):
        positive, negative = gradient_norms(net, index, x, y, 1.0), gradient_norms(net, index, x, wrong, -1.0)
        product = positive + negative if index == 0 else torch.cat((positive, negative))
        limit = tolerance * product.sum() / len(product)
        want = [(rows > limit).double().mean() for rows in (product, positive, negative)]
        assert torch.equal(shares[:3], torch.stack(want))
        assert shares[:3].min() > 0
    assert found[:, :3].min() < 1


def test_rows_with_a_coefficient_of_zero():
    net = make_net(goodness="sum_sq", temperature=1e-6)  # the slope is 0 or 1 / temperature
    x, y = torch.rand(12, 23), torch.randint(CLASSES, (12,))
    wrong = (y + 1) % CLASSES
    positive = net.goodness(x, y)
    for layer, g in zip(net.layers, positive, strict=True):
        layer.threshold = float(g.sort().values[3:5].mean())
    with torch.no_grad():
        found = kept_rows.kept_rows(net, x, y, wrong, 0.0)
    for index, (layer, shares) in enumerate(zip(net.layers, found, strict=True)):
        right = torch.stack((positive[index] > layer.threshold, net.goodness(x, wrong)[index] < layer.threshold))
        product = right.all(0) if index == 0 else right
        torch.testing.assert_close(shares[3:], torch.stack([r.double().mean() for r in (product, *right)]))
        assert float(shares[4]) == pytest.approx(8 / 12)


# ------------------------------------------------------------ early exit


@norms
def test_bounds_hold(norm, goodness):
    net = make_net(norm=norm, goodness=goodness)
    x = torch.rand(50, 23)
    found = early_exit.Judge(net)(x)
    torch.testing.assert_close(found.goodness.float(), net.goodness(x), rtol=1e-4, atol=1e-6)
    to_come = found.goodness.flip(0).cumsum(0).flip(0)
    for name, rest in found.rest.items():
        assert (rest >= to_come * (1 - 1e-6)).all(), name
    assert (found.rest["distance"] <= found.rest["norm"] * (1 + 1e-6)).all()
    assert (found.rest["distance"] < 0.9 * found.rest["norm"]).any()
    assert (found.rest["products"] < found.rest["norm"]).all()


def test_no_bound_without_a_norm():
    with pytest.raises(ValueError, match="norm is 'none' and goodness 'mean_sq'; expected 'rms' or 'l2'"):
        early_exit.Judge(make_net(norm="none"))


@pytest.mark.parametrize("rule", [early_exit.stop, early_exit.drop, early_exit.leader_first])
def test_sound_rules_change_no_winner(rule):
    goodness = torch.rand(4, 300, 7, dtype=torch.float64)
    goodness[1:] *= 0.1
    rest = goodness.flip(0).cumsum(0).flip(0) * (1 + 0.3 * torch.rand_like(goodness))
    if rule is not early_exit.leader_first:
        rest = rest.amax((1, 2), keepdim=True)
    found = rule(goodness, rest)
    assert torch.equal(found.winner, goodness.sum(0).argmax(1))
    assert found.sent[0].all()
    assert not (found.sent[1:] & ~found.sent[:-1]).any()  # a layer needs the one below
    assert 0.05 < float((~found.sent).double().mean()) < 0.75


def test_a_rule_with_too_low_a_bound_does_change_winners():
    goodness = torch.rand(3, 100, 5, dtype=torch.float64)
    for rule in (early_exit.stop, early_exit.drop, early_exit.leader_first):
        found = rule(goodness, torch.zeros_like(goodness))
        assert torch.equal(found.winner, goodness[0].argmax(1))
        assert (found.winner != goodness.sum(0).argmax(1)).any()


def test_what_lies_behind_is_tight():
    goodness = torch.rand(3, 200, 5, dtype=torch.float64)
    reach, winner = early_exit.behind(goodness), goodness.sum(0).argmax(1)
    assert torch.equal(early_exit.drop(goodness, reach).winner, winner)
    for layer in (1, 2):
        less = reach.clone()
        less[layer] *= 1 - 1e-9
        assert (early_exit.drop(goodness, less).winner != winner).sum() == 1


def test_work_left_out():
    net = make_net()  # 23 * 31 shared, then 31 * 17 and 17 * 13 a label
    sent = torch.ones(3, 2, CLASSES, dtype=torch.bool)
    sent[1:, 0, 1:] = False
    sent[2, 1] = False
    whole = 23 * 31 + CLASSES * (31 * 17 + 17 * 13)
    assert early_exit.left_out(net, sent) == pytest.approx((1.5 * 31 * 17 + 3.5 * 17 * 13) / whole)


@pytest.mark.usefixtures("threads")
def test_early_exit_of_a_run(digits, capsys):
    assert early_exit.main([str(digits)]) == 0
    shown = capsys.readouterr().out
    assert "74-500-500 (digits, 3 epochs)" in shown
    assert "Learnt from 300 images kept apart" in shown
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("| ")]
    changed = {(rule, bound): count for rule, bound, _, count in rows}
    assert changed["drop", "norm"] == changed["leader first", "distance"] == changed["drop", "hindsight"] == "0"


# ------------------------------------------------------------ bfloat16


@norms
def test_rounding_errors(norm, goodness):
    """Against the reference with images, weights and activities in bfloat16."""
    net = make_net(norm=norm, goodness=goodness, label_value=2.0)
    x = torch.rand(300, 23)
    kind = (net.layers[0].norm, net.layers[0].eps, net.layers[0].goodness)
    weights, biases = [la.weight.detach() for la in net.layers], [la.bias.detach() for la in net.layers]
    low = [w.bfloat16().float() for w in weights]
    exact = ref.predict_goodness(x, weights, biases, CLASSES, net.overlay, *kind)
    rounded = ref.predict_goodness(x.bfloat16(), low, biases, CLASSES, net.overlay, *kind)
    off = (rounded - exact).sum(0).double().abs()
    bound, typical = accuracy.rounding_errors(net, x, exact)
    assert (off <= bound).all()
    assert (off > 1e-3 * bound).any()
    assert 0.2 < float((off.square().mean() / typical.square().mean()).sqrt()) < 5


def test_a_run_is_trained_once(tmp_path, monkeypatch):
    recipe = RECIPES["digits"].override(epochs=1)
    dtypes, fit = [], trainer.Trainer.fit
    monkeypatch.setattr(trainer.Trainer, "fit", lambda self, x, y: (dtypes.append(x.dtype), fit(self, x, y))[1])
    recipes = [recipe.override(precision=dtype) for dtype in accuracy.DTYPES]
    first = [accuracy.run(r, tmp_path) for r in recipes]
    assert [accuracy.run(r, tmp_path) for r in recipes] == first
    assert dtypes == [torch.float32, torch.bfloat16]
    assert json.loads((tmp_path / "digits-0-bfloat16.json").read_text())["test"] == first[1]
    with pytest.raises(SystemExit, match=r"digits-0-float32.json is of a run with another recipe; expected another"):
        accuracy.run(recipe.override(lr=0.1), tmp_path)


@pytest.mark.usefixtures("threads")
def test_table_of_errors(tmp_path, capsys):
    for seed in (0, 1):
        for dtype, error in (("float32", 0.02), ("bfloat16", 0.03)):
            recipe = RECIPES["digits"].override(epochs=2, seed=seed, precision=dtype)
            settings = {"recipe": recipe.as_dict(), "threads": 1, "test": {"error": error + seed / 100}}
            (tmp_path / f"digits-{seed}-{dtype}.json").write_text(json.dumps(settings))
    arguments = ["train", "digits", "--epochs", "2", "--seeds", "0,1", "--out", str(tmp_path)]
    assert accuracy.main(arguments) == 0
    assert "| error | 2.50 % (2.00, 3.00) | 3.50 % (3.00, 4.00) | +1.00 |" in capsys.readouterr().out


@pytest.mark.usefixtures("threads")
def test_flips_and_their_bounds(digits, monkeypatch, capsys):
    assert accuracy.main(["predict", str(digits)]) == 0
    shown = capsys.readouterr().out
    assert "of 450 winners differ" in shown
    assert "EXCEEDED" not in shown
    goodness = FFNet.goodness

    def worse(net: FFNet, x: Tensor) -> Tensor:  # another label wins the first image, by far
        found = goodness(net, x)
        if x.dtype == torch.bfloat16:
            found[0, 0, int(found[:, 0].sum(0).argmin())] = 1e6
        return found

    monkeypatch.setattr(FFNet, "goodness", worse)
    monkeypatch.setattr(accuracy, "UNIT", 0.0)
    monkeypatch.setattr(accuracy, "_stretch", lambda _: 0.0)
    accuracy.main(["predict", str(digits)])
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 0 |")]
    assert len(shown) == 1
    assert shown[0].endswith("EXCEEDED |")
