"""The linear generator: its formulas against autograd in float64, and training against what it makes."""

import copy
import math
from functools import partial

import pytest
import torch
from tolerance import UNIT, check_parity
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from ffkern import FFNet, Trainer, checkpoint, optim
from ffkern.generator import LinearGenerator, generated
from ffkern.recipes import RECIPES

PIXELS, WIDTHS, CLASSES = 24, (13, 7), 3


def everything(net):
    return [value.clone() for value in net.state_dict().values()]


def draws(seed=5):
    return torch.Generator().manual_seed(seed)


def make(lr=0.03, **options):
    net = FFNet([PIXELS, *WIDTHS], CLASSES, label="none", head_layers="all", threshold=0.3, **options)
    net.generator = LinearGenerator(PIXELS, WIDTHS, lr=lr)
    return net


def started(net):
    """As in the middle of training: no weight of the generator is 0."""
    for p in net.generator.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net


def features(rows):
    """Activities as FFNet.features returns them: of root mean square 1, some 0."""
    h = [torch.randn(rows, width).relu() for width in WIDTHS]
    return [a / (a.square().mean(1, keepdim=True).sqrt() + 1e-8) for a in h]


# ---------------------------------------------------------------- the generator


@pytest.mark.parametrize("rows", [1, 9])
def test_it_learns_down_the_gradient_of_the_cross_entropy(rows):
    """In float64 by autograd, of a loss written anew: a sum over pixels, a mean over rows."""

    def reference(weight, bias, seen, images):
        weight, bias = (p.detach().clone().requires_grad_() for p in (weight, bias))
        logits = seen @ weight.T + bias
        loss = binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)
        (by_weight, by_bias) = torch.autograd.grad(loss, (weight, bias))
        weight, bias = weight.detach() - 0.03 * by_weight, bias.detach() - 0.03 * by_bias
        return {"weight": weight, "bias": bias, "images": torch.sigmoid(seen @ weight.T + bias)}

    def operation(weight, bias, seen, images):
        net = make(lr=0.03)
        net.generator.load_state_dict({"weight": weight, "bias": bias})
        parts = seen.split(WIDTHS, 1)
        net.generator.learn(parts, images)
        return {"weight": net.generator.weight.detach(), "bias": net.generator.bias.detach(),
                "images": net.generator(parts)}  # fmt: skip

    a = {"weight": torch.randn(PIXELS, sum(WIDTHS)), "bias": torch.randn(PIXELS), "seen": torch.cat(features(rows), 1)}
    a["images"] = torch.rand(rows, PIXELS)
    got = check_parity(operation, reference, a)
    assert float((got["weight"] - a["weight"]).abs().max()) > 1e-3


def test_it_begins_grey_and_learns_to_reconstruct():
    artist, seen = LinearGenerator(PIXELS, WIDTHS, lr=0.05), features(12)
    images = torch.rand(12, PIXELS).round()
    assert bool((artist(seen) == 0.5).all())
    for _ in range(3000):
        artist.learn(seen, images)
    assert float((artist(seen) - images).abs().mean()) < 0.1  # 20 activities can tell 12 images apart


def test_an_empty_batch_teaches_nothing():
    net = started(make())
    before = everything(net)
    net.generator.learn(features(0), torch.empty(0, PIXELS))
    assert net.generator(features(0)).shape == (0, PIXELS)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(net), strict=True))


def test_between_mixes_activities_with_the_row_before():
    net, seen = started(make()), features(8)
    images, share = net.generator.between(seen, draws())
    assert torch.equal(share, torch.rand(8, 1, generator=draws()))
    rows = torch.cat(seen, 1).double()
    mixed = share * rows + (1 - share) * rows[[7, *range(7)]]
    weight, bias = (p.detach().double() for p in net.generator.parameters())
    logits = mixed @ weight.T + bias
    # A logit is a sum of 20 products and the sigmoid has slope 1/4; some roundings of the mix come first.
    bound = UNIT * (1 + (20 + 4) / 4 * float((mixed.abs() @ weight.abs().T + bias.abs()).max()))
    assert float((images - torch.sigmoid(logits)).abs().max()) <= bound
    assert torch.equal(images, net.generator.between(seen, draws())[0])
    assert not torch.equal(images, net.generator.between(seen, draws(6))[0])
    alone = [h[:1] for h in seen]
    torch.testing.assert_close(net.generator.between(alone, draws())[0], net.generator(alone))


def test_a_bad_rate_is_refused():
    for lr in (-0.1, math.nan):
        with pytest.raises(ValueError, match=f"lr is {lr}; expected a number >= 0"):
            LinearGenerator(PIXELS, WIDTHS, lr=lr)


# ---------------------------------------------------------------- negatives


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_negatives_are_made_before_the_generator_learns(dtype):
    net, x = started(make()), torch.rand(8, PIXELS).to(dtype)
    other = copy.deepcopy(net)
    images = generated(x, draws(), net=net)
    seen = other.features(x)
    assert images.dtype == dtype
    assert torch.equal(images, other.generator.between(seen, draws())[0].to(dtype))
    other.generator.learn(seen, x.float())  # from the unmixed pairs
    assert torch.equal(net.generator.weight, other.generator.weight)
    assert torch.equal(net.generator.bias, other.generator.bias)


def test_no_gradient_flows_anywhere():
    net = started(make())
    x = torch.rand(8, PIXELS, requires_grad=True)
    images = generated(x, draws(), net=net)
    seen = [h.requires_grad_() for h in net.features(x)]
    for made in (images, net.generator(seen), net.generator.between(seen, draws())[0]):
        assert not made.requires_grad
    net.generator.learn(seen, x)
    assert x.grad is None
    assert all(p.grad is None and p.is_leaf for p in net.parameters())
    assert all(h.grad is None for h in seen)


def test_a_step_with_generated_images_is_a_step_with_these_images():
    """And the layers' update leaves the generator alone."""
    net, (x, y) = started(make()), (torch.rand(9, PIXELS), torch.randint(CLASSES, (9,)))
    other = copy.deepcopy(net)
    trainer, plain = (
        Trainer(
            n,
            optim.SGD(n.parameters(), 0.1),
            negatives=partial(generated, net=n),
            head_opt=optim.SGD(n.head.parameters(), 0.1),
            batch_size=9,
            epochs=1,
            seed=4,
        )
        for n in (net, other)
    )
    trainer.fit(x, y)
    order = torch.randperm(9, generator=(generator := draws(4)))
    made = generated(x[order], generator, net=other)
    other.step_images(x[order], made, plain.opt, labels=y[order], head_opt=plain.head_opt)
    assert all(torch.equal(a, b) for a, b in zip(everything(net), everything(other), strict=True))


def test_a_network_without_generator_is_refused():
    net = FFNet([PIXELS, *WIDTHS], CLASSES, label="none")
    with pytest.raises(AttributeError, match="generator"):
        generated(torch.rand(3, PIXELS), draws(), net=net)
    net.generator = torch.nn.Linear(3, 4)
    with pytest.raises(TypeError, match=r"net\.generator is a Linear; expected a LinearGenerator"):
        generated(torch.rand(3, PIXELS), draws(), net=net)


# ---------------------------------------------------------------- runs


def recipe(**settings):
    return RECIPES["generator"].override(
        **{"dataset": "digits", "layers": (20, 16), "epochs": 3, "batch_size": 300, **settings}
    )


def run(made, callbacks=()):
    images = made.load()
    trainer = made.trainer(made.network(images.inputs, 10, 1.0), images, callbacks)
    trainer.fit(images.train_x, images.train_y)
    return trainer


def test_same_seed_same_bits():
    first, again, other = (run(recipe(seed=seed)).net for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(everything(first), everything(again), strict=True))
    assert not torch.equal(first.generator.weight, other.generator.weight)


def test_a_checkpoint_holds_the_generator(tmp_path):
    made = recipe(epochs=1, generator_lr=0.002)
    images = made.load()
    trainer = run(made, [checkpoint.Checkpointer(tmp_path / "checkpoint.pt", made, images)])
    saved = checkpoint.load(tmp_path)
    assert saved.net.generator.lr == 0.002
    assert all(torch.equal(a, b) for a, b in zip(everything(saved.net), everything(trainer.net), strict=True))
    assert bool(saved.net.generator.weight.any())


def test_both_learn_from_each_other():
    """The generator reconstructs better than the mean image, and the layers still tell its images from data."""
    made = recipe(layers=(60, 40), epochs=15, batch_size=50, lr=0.01, generator_lr=0.01, precision="float32")
    trainer, images = run(made), made.load()
    x, net = images.test_x, trainer.net

    def far(means):
        return float(binary_cross_entropy(means, x))

    assert far(net.generator(net.features(x))) < 0.9 * far(images.train_x.mean(0).clamp(1e-3, 1 - 1e-3).expand_as(x))
    assert all(layer.separation > 0.6 for layer in trainer.history[-1].layers)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"label": "overlay"},
            "label is 'overlay' and negatives 'generated'; expected 'none' together with 'hybrid' or",
        ),
        ({"negatives": "hard"}, "label is 'none' and negatives 'hard'; expected 'none' together with 'hybrid' or"),
        ({"scaling": "mean"}, "scaling is 'mean'; expected 'none' with negatives='generated', pixels in 0 .. 1"),
        ({"generator_lr": "high"}, "generator_lr is 'high'; expected a finite number"),
    ],
)
def test_settings_that_do_not_go_together(settings, text):
    with pytest.raises(ValueError, match=text):
        RECIPES["generator"].override(**settings)
