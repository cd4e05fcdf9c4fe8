"""Recipes: their settings, what they build, and that their training is that of the specification."""

import itertools
import json
import math

import hinton_numpy
import numpy as np
import pytest
import torch
from tolerance import UNIT

from ffkern import FFNet, data, optim, reference
from ffkern.recipes import RECIPES, Recipe
from ffkern.trainer import Callback

every_recipe = pytest.mark.parametrize("name", RECIPES)

HINTON = {
    "dataset": "mnist", "scaling": "none", "shift": 0, "label": "overlay", "label_value": 1.0, "norm": "rms",
    "goodness": "sum_sq", "threshold": "width", "temperature": 1.0, "peer": 0.03, "init": "normal",
    "head": "all_but_first", "schedule": "simultaneous", "negatives": "hard", "batch_size": 100, "optimiser": "ema",
    "lr": 0.01, "momentum": 0.9, "weight_decay": 0.001, "head_lr": 0.1, "head_weight_decay": 0.003, "decay": "linear",
}  # fmt: skip
SUPERVISED = {**HINTON, "held_out": 0, "layers": (2000,) * 4, "epochs": 60}
PUBLISHED = {
    "hinton": {**HINTON, "held_out": 10_000, "layers": (1000,) * 3, "epochs": 100},
    "supervised": SUPERVISED,
    "supervised-fast": {**SUPERVISED, "epochs": 40, "lr": 0.02, "head_lr": 0.2},
    "supervised-jitter": {**HINTON, "held_out": 0, "layers": (1000,) * 3, "shift": 2},
    "supervised-jitter-paper": {**SUPERVISED, "shift": 2, "epochs": 500},
    "unsupervised": {**SUPERVISED, "label": "none", "negatives": "hybrid", "epochs": 100},
    "generator": {
        **SUPERVISED, "label": "none", "negatives": "generated", "layers": (500, 500), "head": "all", "epochs": 10,
        "lr": 0.03, "generator_lr": 0.001,
    },
    "fashion": {**SUPERVISED, "dataset": "fashion-mnist"},
    "article": {
        "dataset": "mnist", "scaling": "mean", "held_out": 0, "layers": (512, 512), "label": "overlay",
        "label_value": "max", "norm": "l2", "eps": 1e-4, "goodness": "mean_sq", "threshold": 3.0, "peer": 0.0,
        "schedule": "greedy-batch", "iterations": 1000, "negatives": "uniform", "batch_size": 20_000, "epochs": 1,
        "optimiser": "adam", "lr": 0.03, "weight_decay": 0.0, "decay": "none",
    },
    "digits": {"dataset": "digits", "label": "concat", "scaling": "mean-image", "held_out": 0},
}  # fmt: skip


@every_recipe
def test_settings_are_the_published_ones(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert recipe.source
    assert {key: getattr(recipe, key) for key in PUBLISHED[name]} == PUBLISHED[name]


@every_recipe
def test_plain_data_and_back(name):
    recipe = RECIPES[name].override(folder="x", seed=5)
    plain = json.loads(json.dumps(recipe.as_dict()))
    assert Recipe.from_dict(plain) == recipe
    assert Recipe.from_dict(plain) != RECIPES[name]
    for key in plain:
        with pytest.raises(ValueError, match=f"the recipe lacks {key}"):
            Recipe.from_dict({k: v for k, v in plain.items() if k != key})


def test_override_leaves_the_original():
    changed = RECIPES["hinton"].override(lr=1, layers=(3,), threshold=2.0)
    assert (changed.lr, changed.layers, changed.threshold, changed.source) == (1, (3,), 2.0, RECIPES["hinton"].source)
    assert (RECIPES["hinton"].lr, RECIPES["hinton"].threshold) == (0.01, "width")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rate": 1}, "'rate' is no setting of a recipe; expected one of dataset, folder, "),
        ({"name": "mine"}, "'name' is no setting of a recipe"),
        ({"lr": "high"}, "lr is 'high'; expected a finite number"),
        ({"lr": True}, "lr is True; expected a finite number"),
        ({"lr": math.nan}, "lr is nan; expected a finite number"),
        ({"eps": math.inf}, "eps is inf; expected a finite number"),
        ({"seed": 1.0}, "seed is 1.0; expected an integer"),
        ({"seed": None}, "seed is None; expected an integer"),
        ({"dataset": 3}, "dataset is 3; expected a text"),
        ({"folder": 3}, "folder is 3; expected a text or None"),
        ({"layers": [3]}, r"layers is \[3\]; expected integers such as \(500, 500\)"),
        ({"layers": (3.0,)}, "layers is .*; expected integers"),
        ({"layers": (True,)}, "layers is .*; expected integers"),
        ({"layers": ()}, "layers is .*; expected at least one, each of at least 1 unit"),
        ({"layers": (5, 0)}, "layers is .*; expected at least one, each of at least 1 unit"),
        ({"label": "over"}, "label is 'over'; expected 'overlay' or 'concat'"),
        ({"label_value": "min"}, "label_value is 'min'; expected a finite number or 'max'"),
        ({"threshold": "height"}, "threshold is 'height'; expected a finite number or 'width'"),
        ({"scaling": None}, "scaling is None; expected 'none' or 'mean-image' or 'mean'"),
        ({"epochs": -1}, "epochs is -1; expected an integer of at least 0"),
        ({"shift": -2}, "shift is -2; expected an integer of at least 0"),
        ({"shift": 1}, "shift is 1; expected 0 with scaling='mean-image', where no pixel is blank"),
        ({"held_out": -2}, "held_out is -2; expected an integer of at least 0"),
        ({"batch_size": 0}, "batch_size is 0; expected an integer of at least 1"),
        ({"iterations": 0}, "iterations is 0; expected an integer of at least 1"),
        ({"regions": 0}, "regions is 0; expected an integer of at least 1"),
        ({"phase": -1}, "phase is -1; expected an integer of at least 0"),
        ({"phase": 5, "pair_loss": "symba"}, "phase is 5; expected 0 with pair_loss='symba': pairs need both rows"),
        ({"weight_noise": -0.5}, "weight_noise is -0.5; expected a number >= 0"),
        ({"activation": "tanh"}, "activation is 'tanh'; expected 'relu' or 'leaky' or 'gelu' or 'student_t'"),
        ({"path": "fused", "regions": 2}, "path is 'fused' with regions=2; expected 'auto' or 'plain'"),
        ({"schedule": "greedy-batch"}, "decay is 'linear'; expected 'none' with schedule='greedy-batch'"),
        ({"schedule": "greedy-batch", "decay": "none", "head": "all"}, "head is 'all' .* expected no head"),
        (
            {"label": "none", "negatives": "hybrid", "schedule": "greedy"},
            "schedule is 'greedy'; expected 'simultaneous'",
        ),
        ({"lr": -1.0}, "lr is -1.0; expected a number >= 0"),
        ({"head_lr": -1.0}, "head_lr is -1.0; expected a number >= 0"),
        ({"generator_lr": -1.0}, "generator_lr is -1.0; expected a number >= 0"),
        ({"peer": -1.0}, "peer is -1.0; expected a number >= 0"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number > 0"),
        ({"momentum": 1.0}, "momentum is 1.0; expected a number in "),
    ],
)
def test_bad_settings_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        RECIPES["digits"].override(**settings)


def test_a_generator_needs_pixels_from_0_to_1():
    recipe = RECIPES["generator"].override(layers=(8,))
    images = mnist_like()
    spread = data.Dataset("mnist", 3 * images.train_x, images.train_y, images.test_x, images.test_y, 10, images.shape)
    net = recipe.network(784, 10, 1.0)
    recipe.trainer(net, images)
    with pytest.raises(ValueError, match=r"the images are in 0 \.\. .*; expected 0 \.\. 1 with negatives='generated'"):
        recipe.trainer(net, spread)


# ---------------------------------------------------------------- what they build


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_weights_come_from_the_seed_alone(init):
    recipe = RECIPES["digits"].override(init=init, layers=(9, 7))

    def weights(seed):
        net = recipe.override(seed=seed).network(64, 10, 1.0)
        return torch.cat([p.detach().flatten() for p in net.layers.parameters()])

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, weights(3))
    assert not torch.equal(first, weights(4))


def test_normal_weights_have_variance_one_over_inputs():
    net = RECIPES["hinton"].override(layers=(300, 200)).network(784, 10, 1.0)
    for layer in net.layers:
        weight, count, inputs = layer.weight.detach(), layer.weight.numel(), layer.in_features
        # the variance of n normal numbers is off by sqrt(2 / n) of itself
        assert float(weight.var()) == pytest.approx(1 / inputs, rel=5 * math.sqrt(2 / count))
        assert abs(float(weight.mean())) < 5 / math.sqrt(inputs * count)
        assert float(weight.abs().max()) > 3 / math.sqrt(inputs)  # no uniform distribution reaches that far
        assert not bool(layer.bias.any())


def test_uniform_weights_are_those_of_linear():
    net = RECIPES["digits"].override(layers=(300,)).network(64, 10, 1.0)
    bound = 1 / math.sqrt(74)
    assert 0.99 * bound < float(net.layers[0].weight.detach().abs().max()) <= bound
    assert bool(net.layers[0].bias.any())


@pytest.mark.parametrize(
    ("head", "negatives", "layers"),
    [("auto", "uniform", []), ("auto", "hard", [0, 1, 2]), ("none", "all", []), ("all", "uniform", [0, 1, 2]),
     ("all_but_first", "hard", [1, 2])],
)  # fmt: skip
def test_layers_of_the_head(head, negatives, layers):
    recipe = RECIPES["digits"].override(head=head, negatives=negatives, layers=(5, 4, 3))
    assert recipe.network(64, 10, 1.0).head_layers == layers


def mnist_like(images=60, seed=0, how="none"):
    """Random images, as thin as strokes are: those of a class light up the same tenth of the pixels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (images,), generator=generator)
    strokes = torch.rand(10, 784, generator=generator) < 0.1
    x = strokes[y] * torch.rand(images, 784, generator=generator)
    x[:, :60] = 0  # a border to write labels over
    return data.Dataset("mnist", x, y, x[:9].clone(), y[:9].clone(), 10, (1, 28, 28)).scaled(how)


def test_the_largest_pixel_is_fixed_at_training():
    images, recipe = mnist_like(how="mean"), RECIPES["article"].override(layers=(12, 9))
    strength = recipe.strength(images)
    assert strength == float(images.train_x.max())
    assert strength != 1.0
    net = recipe.network(784, 10, strength)
    assert torch.equal(net.overlay, torch.tensor([strength, strength / 10]))
    bright = torch.cat((images.test_x[:1], 7 * images.test_x[1:]))
    torch.testing.assert_close(net.goodness(bright)[:, 0], net.goodness(bright[:1])[:, 0], rtol=1e-5, atol=1e-7)
    loose = FFNet([784, 12, 9], 10, label_value="max", norm="l2", eps=1e-4)
    loose.load_state_dict(net.state_dict())  # as it was before: the batch mates decide
    assert not torch.allclose(loose.goodness(bright)[:, 0], loose.goodness(bright[:1])[:, 0], rtol=1e-2)
    assert RECIPES["hinton"].strength(images) == 1.0


@pytest.mark.parametrize("how", ["none", "mean"])
def test_shifts_uncover_black(how):
    images, recipe = mnist_like(how=how), RECIPES["digits"].override(dataset="mnist", scaling=how, shift=3, layers=(4,))
    trainer = recipe.trainer(recipe.network(784, 10, 1.0), images)
    moved = trainer.augment(torch.full((200, 784), 5.0), torch.Generator().manual_seed(0))
    black = float((0 - images.scaling.mean) / images.scaling.scale)
    assert (black == 0) == (how == "none")
    assert moved.unique().tolist() == pytest.approx(sorted([black, 5.0]))
    corners = moved.reshape(-1, 28, 28)[:, [0, 2, 3], [0, 2, 3]] == 5.0
    assert corners[:, 2].all()
    assert not corners[:, 0].all()
    assert RECIPES["digits"].trainer(recipe.network(784, 10, 1.0), images).augment is None


def test_load_holds_out_before_it_scales():
    recipe = RECIPES["digits"].override(held_out=200, scaling="mean")
    images, whole = recipe.load(), data.digits().held_out(200)
    assert (len(images.train_y), len(images.valid_y), len(images.test_y)) == (1147, 200, 450)
    assert float(images.scaling.mean) == pytest.approx(float(whole.train_x.mean()))
    torch.testing.assert_close(images.valid_x, (whole.valid_x - whole.train_x.mean()) / images.scaling.scale)


# ---------------------------------------------------------------- training


def specification(recipe, net, images, dtype, nudge=False):
    """A recipe's run in ffkern.reference, step by step: parameters and peer means in the end.

    nudge: moves every parameter by one rounding after every update, at random.
    """

    def given(tensor):
        tensor = tensor.detach().to(dtype)
        return tensor * (1 + UNIT * torch.randn_like(tensor).sign()) if nudge else tensor

    def fresh(weight, bias):
        slots = reference.STATE_SLOTS[recipe.optimiser]
        state = [torch.zeros((slots, *p.shape), dtype=dtype) for p in (weight, bias)]
        return [given(weight), given(bias), *state, torch.tensor(0)]

    def hyper(decay):
        first = [0.9, 0.999, 1e-8] if recipe.optimiser.startswith("adam") else [recipe.momentum, 0.0, 0.0]
        return [*first, decay]

    layers = [fresh(layer.weight, layer.bias) for layer in net.layers]
    means = [torch.zeros(len(layer[1]), dtype=dtype) if recipe.peer else None for layer in layers]
    head = fresh(net.head.weight, net.head.bias) if net.head is not None else None
    artist = [given(p) for p in net.generator.parameters()] if recipe.negatives == "generated" else []
    form = {"norm": recipe.norm, "eps": recipe.eps}
    place = reference.concat_label if recipe.label == "concat" else reference.overlay_label
    strength = recipe.strength(images)
    overlay = torch.tensor([strength, strength / 10], dtype=dtype)
    generator = torch.Generator().manual_seed(recipe.seed)

    def learn(i, h, h_norm, sign, rate):
        state = layers[i]
        width = len(state[1])
        step = reference.layer_step(
            h, sign, *state, recipe.lr * rate, **form, goodness=recipe.goodness,
            threshold=float(width) if recipe.threshold == "width" else recipe.threshold,
            temperature=recipe.temperature, optimiser=recipe.optimiser, hyper=hyper(recipe.weight_decay),
            x_norm=h_norm, peer_mean=means[i], peer_strength=recipe.peer,
        )  # fmt: skip
        layers[i] = [given(step.weight), given(step.bias), *step[2:5]]
        means[i] = step.peer_mean
        return step.h, step.h_norm

    def learn_head(seen, y, rate):
        logits, *new, _ = reference.head_step(
            *zip(*seen, strict=True), y, *head, recipe.head_lr * rate, **form, optimiser=recipe.optimiser,
            hyper=hyper(recipe.head_weight_decay),
        )  # fmt: skip
        head[:] = [given(new[0]), given(new[1]), *new[2:]]
        return logits

    def forward(i, h, h_norm):
        h, _, _, h_norm = reference.layer_forward(h, *layers[i][:2], h_norm, **form, goodness=recipe.goodness)
        return h, h_norm

    def generated(x):
        """Between the activities of each image and the one before; then one step of the generator."""
        weight, bias = artist
        h, h_norm, seen = x, None, []
        for i in range(len(layers)):
            h, h_norm = forward(i, h, h_norm)
            seen.append(h / (h_norm[:, None] / h.shape[1] ** 0.5 + recipe.eps))
        rows = torch.cat(seen, 1)
        share = torch.rand(len(x), 1, generator=generator).to(dtype)
        made = torch.sigmoid((share * rows + (1 - share) * rows.roll(1, 0)) @ weight.T + bias)
        error = (torch.sigmoid(rows @ weight.T + bias) - x) / len(x)
        rate = recipe.generator_lr
        artist[:] = [given(weight - rate * error.T @ rows), given(bias - rate * error.sum(0))]
        return made

    for epoch in range(1, recipe.epochs + 1):
        rate = hinton_numpy.gain(epoch, recipe.epochs) if recipe.decay == "linear" else 1.0
        for rows in torch.randperm(len(images.train_y), generator=generator).split(recipe.batch_size):
            x, y = images.train_x[rows], images.train_y[rows]
            if recipe.shift:
                x = data.shift(x, images.shape, recipe.shift, generator)
            if recipe.label == "none":
                if recipe.negatives == "generated":
                    mixed = generated(x.to(dtype))
                else:
                    seed = torch.randint(2**63 - 1, (1,), generator=generator)
                    drawn = torch.cat((seed, torch.zeros_like(seed)))
                    mixed, _, _ = reference.hybrid_images(x, x.roll(1, 0), drawn, 28, 28, recipe.blurs)
                h, h_norm, kept = torch.cat((x, mixed)).to(dtype), None, []
                sign = torch.ones(len(h), dtype=dtype)
                sign[len(y) :] = -1
                for i in range(len(layers)):
                    h, h_norm = learn(i, h, h_norm, sign, rate)
                    kept.append((h[: len(y)], h_norm[: len(y)]))
                learn_head([kept[i] for i in net.head_layers], y, rate)
                continue
            x = x.to(dtype)
            if head is not None:
                h, h_norm, kept = place(x, torch.full_like(y, -1), 10, overlay), None, []
                for i in range(len(layers)):
                    h, h_norm = forward(i, h, h_norm)
                    kept.append((h, h_norm))
                logits = learn_head([kept[i] for i in net.head_layers], y, rate)
            u = torch.rand(len(y), generator=generator)
            if recipe.negatives == "hard":
                wrong = reference.hard_labels(logits, y, u)
            else:
                wrong = reference.wrong_labels(y, 10, u)
            h = torch.cat([place(x, label, 10, overlay) for label in (y, wrong)])
            sign = torch.cat((torch.ones(len(y)), -torch.ones(len(y)))).to(dtype)
            h_norm = None
            for i in range(len(layers)):
                if recipe.schedule == "greedy-batch":
                    for _ in range(recipe.iterations):
                        learn(i, h, h_norm, sign, rate)
                    h, h_norm = forward(i, h, h_norm)
                else:
                    h, h_norm = learn(i, h, h_norm, sign, rate)
    found = [p.double() for layer in layers for p in layer[:2]]
    found += [m.double() for m in means if m is not None] + ([p.double() for p in head[:2]] if head else [])
    return found + [p.double() for p in artist]


FOUR = {"layers": (14, 13, 12, 11), "epochs": 4, "batch_size": 20, "precision": "float32"}
SMALL = {
    "digits": {"dataset": "mnist", "label": "overlay", "layers": (14, 11), "epochs": 4, "batch_size": 20},
    "article": {"layers": (14, 11), "iterations": 12, "batch_size": 25},
    "hinton": {"held_out": 0, "layers": (14, 12, 11), "epochs": 5, "batch_size": 20},
    "supervised": FOUR,
    "supervised-fast": FOUR,
    "supervised-jitter": {**FOUR, "layers": (14, 12, 11)},
    "supervised-jitter-paper": FOUR,
    "unsupervised": FOUR,
    "generator": {**FOUR, "layers": (14, 11)},
    "fashion": FOUR,
}


@every_recipe
@pytest.mark.parametrize("path", ["fused", "plain"])
def test_a_few_updates_equal_the_specification(name, path):
    """Bound: twice the error of the specification itself in float32, and what one rounding an update does to it."""
    recipe = RECIPES[name].override(**SMALL[name], path=path)
    images = mnist_like(how=recipe.scaling)
    net = recipe.network(784, 10, recipe.strength(images))
    exact = specification(recipe, net, images, torch.float64)
    plain = specification(recipe, net, images, torch.float32)
    moved = [specification(recipe, net, images, torch.float64, nudge=True) for _ in range(3)]
    means = [layer.peer_mean for layer in net.layers if layer.peer_mean is not None]
    found = [*net.layers.parameters(), *means, *(net.head.parameters() if net.head is not None else [])]
    if recipe.negatives == "generated":
        found += net.generator.parameters()
    start = [p.detach().clone() for p in found]
    recipe.trainer(net, images).fit(images.train_x, images.train_y)
    assert len(found) == len(exact)
    for i, (ours, wanted) in enumerate(zip(found, exact, strict=True)):
        bound = 2 * (plain[i] - wanted).abs().max() + 8 * max((m[i] - wanted).abs().max() for m in moved)
        error = (ours.detach().double() - wanted).abs().max()
        assert error <= bound + 4 * UNIT * wanted.abs().max(), (i, error, bound)
        move = (ours.detach() - start[i]).abs().max()
        assert move > 20 * bound, (i, move, bound)  # else the bound would say nothing


@every_recipe
def test_loss_falls(name):
    longer = {"iterations": 300} if name == "article" else {"epochs": 60}
    layers = tuple(3 * units for units in SMALL[name]["layers"])
    recipe = RECIPES[name].override(**{**SMALL[name], **longer, "layers": layers})
    images = mnist_like(how=recipe.scaling)
    net = recipe.network(784, 10, recipe.strength(images))
    history = recipe.trainer(net, images).fit(images.train_x, images.train_y).epochs
    for i in range(len(net.layers)):
        losses = [record.layers[i].loss for record in history if record.layers[i] is not None]
        assert losses[-1] < 0.75 * losses[0], (i, losses)


class NoHeadBias(Callback):
    """The program's softmax has none."""

    def on_update(self, trainer):
        with torch.no_grad():
            bias = trainer.net.head.bias
            bias.zero_()
            trainer.head_opt.state[bias]["slots"].zero_()


def test_hintons_trainer_is_hintons_program():
    """Five epochs of three mini-batches: order, hard negatives, peers, decay of weights and of the rate."""
    recipe = RECIPES["hinton"].override(held_out=0, layers=(24, 20, 17), epochs=5, batch_size=12, eps=0.0, seed=3)
    images = mnist_like(36)
    net = recipe.network(784, 10, 1.0)
    weights = [layer.weight.detach().double().numpy().T.copy() for layer in net.layers]
    program = hinton_numpy.HintonNet([w.copy() for w in weights], [np.zeros(w.shape[1]) for w in weights], 10)
    generator = torch.Generator().manual_seed(3)
    x, y = images.train_x.double().numpy(), images.train_y.numpy()
    steps = 0
    for epoch in range(1, 6):
        for rows in torch.randperm(36, generator=generator).split(12):
            u = torch.rand(12, generator=generator).double().numpy()
            program.step(x[rows], y[rows], u, hinton_numpy.gain(epoch, 5))
            steps += 1
    trainer = recipe.trainer(net, images, [NoHeadBias()])
    trainer.fit(images.train_x, images.train_y)
    assert trainer.updates == steps == 15
    pairs = [(layer.weight.T, w) for layer, w in zip(net.layers, program.weights, strict=True)]
    pairs += [(layer.bias, b) for layer, b in zip(net.layers, program.biases, strict=True)]
    # The program's means begin at 0.5; what is left of that is the same for all units and drops out of the rule.
    pairs += [(layer.peer_mean, m - 0.5 * 0.9**15) for layer, m in zip(net.layers, program.means, strict=True)]
    pairs += [(net.head.weight.T, np.concatenate(program.head))]
    for ours, his in pairs:
        # 15 updates of numbers up to about 1, in each of them sums over up to 784 products
        np.testing.assert_allclose(ours.detach().double().numpy(), his, rtol=0, atol=2e-5)
    for before, after in zip(weights, program.weights, strict=True):
        assert np.abs(before - after).max() > 1e-2
    assert np.abs(np.concatenate(program.head)).max() > 1e-2
    assert float(trainer.opt.param_groups[0]["lr"]) == 0.01  # the next stage would begin anew


@pytest.mark.parametrize("epochs", range(1, 26))
def test_linear_decay_is_the_programs(epochs):
    opt = optim.EMA([torch.zeros(3, 2)], lr=0.01)
    scheduler = optim.linear_decay(opt, epochs)
    for epoch in itertools.chain(*[range(1, epochs + 1)] * 2):  # it begins anew
        assert float(opt.param_groups[0]["lr"]) == pytest.approx(0.01 * hinton_numpy.gain(epoch, epochs), rel=1e-14)
        scheduler.step()


def test_linear_decay_of_no_epochs_keeps_the_rate():
    opt = optim.SGD([torch.zeros(3, 2)], lr=0.5)
    optim.linear_decay(opt, 0).step()
    assert float(opt.param_groups[0]["lr"]) == 0.5
