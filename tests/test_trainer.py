"""Trainer: what it changes, what it leaves alone, and the numbers it reports."""

import copy
import math

import pytest
import torch

import ffkern
from ffkern import Trainer, data, reference
from ffkern._eager import EagerNet, compare_losses

CLASSES, INPUTS, IMAGES, BATCH = 4, 12, 37, 10


def make_net(seed=0, head=None, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ffkern.FFNet([INPUTS, 16, 8, 8], CLASSES, label="concat", head_layers=head, **options)


def make_data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(IMAGES, INPUTS, generator=generator)
    return x, torch.randint(CLASSES, (IMAGES,), generator=generator)


def make_trainer(net, lr=0.01, **options):
    opt = ffkern.optim.Adam(net.layers.parameters(), lr=lr)
    return Trainer(net, opt, **{"batch_size": BATCH, "epochs": 3, **options})


def bits(net):
    return [p.detach().clone() for p in net.parameters()]


def same(a, b):
    return [torch.equal(p, q) for p, q in zip(a, b, strict=True)]


def head_options(net):
    return {"head_opt": ffkern.optim.SGD(net.head.parameters(), lr=0.1)}


# ---------------------------------------------------------------- determinism


@pytest.mark.parametrize("negatives", ["uniform", "hard", "all"])
def test_same_seed_same_bits_another_seed_others(negatives):
    def trained(seed):
        net = make_net(head="all")
        trainer = make_trainer(net, negatives=negatives, seed=seed, **head_options(net))
        history = trainer.fit(*make_data())
        return bits(net), [(e.stage, e.layers, e.head) for e in history.epochs]

    torch.manual_seed(1)
    weights, history = trained(3)
    torch.manual_seed(2)  # the global generator must not matter
    again, history_again = trained(3)
    other, _ = trained(4)
    assert all(same(weights, again))
    assert history == history_again
    assert not any(same(weights[:2], other[:2]))


def test_global_generator_is_left_alone():
    net = make_net()
    before = torch.get_rng_state()
    make_trainer(net).fit(*make_data())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("negatives", ["uniform", "hard", "all"])
def test_simultaneous_is_the_plain_loop(negatives):
    x, y = make_data()
    net, twin = make_net(head="all"), make_net(head="all")
    make_trainer(net, negatives=negatives, seed=7, **head_options(net)).fit(x, y)

    opt = ffkern.optim.Adam(twin.layers.parameters(), lr=0.01)
    head_opt = head_options(twin)["head_opt"]
    generator = torch.Generator().manual_seed(7)
    for _ in range(3):
        order = torch.randperm(IMAGES, generator=generator)
        for begin in range(0, IMAGES, BATCH):
            rows = order[begin : begin + BATCH]
            twin.step(x[rows], y[rows], opt, negatives=negatives, generator=generator, head_opt=head_opt)
    assert all(same(bits(net), bits(twin)))


# ---------------------------------------------------------------- what learns


def test_greedy_trains_one_layer_at_a_time():
    net = make_net(head="all")
    seen = []

    def look(record):
        seen.append((record.stage, bits(net), record))

    start = bits(net)
    make_trainer(net, schedule="greedy", epochs=2, progress=look, **head_options(net)).fit(*make_data())
    assert [s for s, _, _ in seen] == [n for n in ("layer 0", "layer 1", "layer 2", "head") for _ in "12"]
    before = start
    for stage, after, record in seen:
        learnt = 3 if stage == "head" else int(stage[-1])
        unchanged = same(before, after)
        assert unchanged == [i // 2 != learnt for i in range(8)]
        assert [i for i, layer in enumerate(record.layers) if layer is not None] == [learnt][: learnt < 3]
        assert (record.head is not None) == (stage == "head")
        before = after


def test_greedy_equals_step_layer():
    x, y = make_data()
    net, twin = make_net(), make_net()
    make_trainer(net, schedule="greedy", epochs=2, seed=5).fit(x, y)
    opt = ffkern.optim.Adam(twin.layers.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(5)
    for layer in range(3):
        for _ in range(2):
            for images, labels in data.batches(x, y, BATCH, generator):
                twin.step_layer(layer, images, labels, opt, generator=generator)
    assert all(same(bits(net), bits(twin)))


def test_frozen_layers_are_passed_over():
    net = make_net()
    net.layers[1].requires_grad_(False)
    before = bits(net)
    make_trainer(net, epochs=1).fit(*make_data())
    assert same(before, bits(net)) == [False, False, True, True, False, False]
    before = bits(net)
    history = make_trainer(net, schedule="greedy", epochs=1).fit(*make_data())
    assert [e.stage for e in history.epochs] == ["layer 0", "layer 2"]
    assert same(before, bits(net)) == [False, False, True, True, False, False]
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="every layer of net is frozen"):
        make_trainer(net)


def test_head_without_optimiser_stays():
    net = make_net(head="all")
    before = bits(net.head)
    history = make_trainer(net, epochs=1).fit(*make_data())
    assert all(same(before, bits(net.head)))
    assert history.epochs[0].head is None


def test_scheduler_steps_once_an_epoch_without_a_warning():
    net = make_net()
    trainer = make_trainer(net, lr=0.01, epochs=4)
    rates = []
    trainer.progress = lambda record: rates.append(float(trainer.opt.param_groups[0]["lr"]))
    trainer.schedulers = [torch.optim.lr_scheduler.ExponentialLR(trainer.opt, 0.5)]
    trainer.fit(*make_data())
    assert rates == pytest.approx([0.01 * 0.5**i for i in range(1, 5)], rel=1e-12)


# ---------------------------------------------------------------- numbers


def test_records_are_those_of_the_reference():
    """An epoch of small batches in float64, written out with ffkern.reference."""
    x, y = make_data()
    net = make_net()
    twin = copy.deepcopy(net)
    record = make_trainer(net, lr=0.0, epochs=1, seed=2).fit(x, y).epochs[0]

    generator = torch.Generator().manual_seed(2)
    weights = [(layer.weight.double(), layer.bias.double()) for layer in twin.layers]
    total, steps = torch.zeros(3, 7, dtype=torch.float64), 0
    for images, labels in data.batches(x, y, BATCH, generator):
        u = torch.rand(len(labels), generator=generator)
        wrong = reference.wrong_labels(labels, CLASSES, u)
        h = torch.cat(
            [reference.concat_label(images.double(), v, CLASSES, twin.overlay.double()) for v in (labels, wrong)]
        )
        sign = torch.cat((torch.ones(len(labels)), -torch.ones(len(labels)))).double()
        for i, (weight, bias) in enumerate(weights):
            h, goodness, _, _ = reference.layer_forward(h, weight, bias, None, "rms", 1e-8, "mean_sq")
            total[i] += reference.local_loss(goodness, sign, None, 2.0, 1.0)[2].detach()
        steps += 1
    assert steps == math.ceil(IMAGES / BATCH)
    for seen, wanted in zip(record.layers, total.tolist(), strict=True):
        loss, pos, neg, right_pos, right_neg, n_pos, n_neg = wanted
        assert n_pos == n_neg == IMAGES
        assert seen.loss == pytest.approx(loss / steps, rel=2e-6)
        assert seen.goodness_pos == pytest.approx(pos / n_pos, rel=2e-6)
        assert seen.goodness_neg == pytest.approx(neg / n_neg, rel=2e-6)
        assert seen.separation == (right_pos + right_neg) / (n_pos + n_neg)


def test_statistics_from_before_do_not_count():
    x, y = make_data()
    net, twin = make_net(), make_net()
    other = ffkern.optim.Adam(net.layers.parameters(), lr=0.0)
    net.step(x, y, other)
    a = make_trainer(net, epochs=1).fit(x, y).epochs[0].layers
    b = make_trainer(twin, epochs=1).fit(x, y).epochs[0].layers
    assert a == b


def test_evaluate_counts_wrong_answers(monkeypatch):
    monkeypatch.setattr("ffkern.trainer.EVALUATED_ROWS", 15)  # several calls, the last one smaller
    x, y = make_data()
    net = make_net(head="all")
    trainer = make_trainer(net, epochs=4, **head_options(net))
    trainer.fit(x, y)
    weights = [layer.weight.double() for layer in net.layers]
    biases = [layer.bias.double() for layer in net.layers]
    padded = torch.cat((torch.zeros(IMAGES, CLASSES), x), 1).double()
    goodness = reference.predict_goodness(
        padded, weights, biases, CLASSES, net.overlay.double(), "rms", 1e-8, "mean_sq"
    )
    features = torch.cat(net.features(x), 1)
    logits = features @ net.head.weight.T + net.head.bias
    wanted = {
        "error": (goodness.sum(0).argmax(1) != y).sum() / IMAGES,
        "error_but_first": (goodness[1:].sum(0).argmax(1) != y).sum() / IMAGES,
        "error_softmax": (logits.argmax(1) != y).sum() / IMAGES,
    }
    assert trainer.evaluate(x, y) == pytest.approx({k: float(v) for k, v in wanted.items()})


def test_validation_is_evaluated_after_every_epoch():
    x, y = make_data()
    net = make_net()
    seen = []
    trainer = make_trainer(net, epochs=2)
    trainer.progress = lambda record: seen.append(trainer.evaluate(x, y))
    history = trainer.fit(x, y, validation=(x, y))
    assert [e.validation for e in history.epochs] == seen
    assert history.as_dicts()[1]["validation"] == seen[1]
    assert set(seen[0]) == {"error", "error_but_first"}
    assert history.seconds == sum(e.seconds for e in history.epochs) > 0


def test_digits_are_learnt():
    digits = data.digits().scaled("mean-image")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ffkern.FFNet([64, 200, 200], 10, label="concat", head_layers="all")
    head_opt = ffkern.optim.Adam(net.head.parameters(), lr=0.01)
    trainer = make_trainer(net, lr=0.005, epochs=15, batch_size=50, head_opt=head_opt)
    history = trainer.fit(digits.train_x, digits.train_y)
    result = trainer.evaluate(digits.test_x, digits.test_y)
    assert result["error"] < 0.08
    assert result["error_softmax"] < 0.08
    first, last = history.epochs[0], history.epochs[-1]
    for early, late in zip(first.layers, last.layers, strict=True):
        assert late.loss < 0.8 * early.loss
        assert late.separation > 0.85 > early.separation
        assert late.goodness_pos > 2 > late.goodness_neg
    assert last.head.accuracy > 0.95 > first.head.accuracy


# ---------------------------------------------------------------- eager PyTorch


@pytest.mark.parametrize("negatives", ["uniform", "all"])
@pytest.mark.parametrize("label", ["concat", "overlay"])
def test_eager_and_ffkern_agree_with_float64(negatives, label):
    digits = data.digits().scaled("mean-image")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = ffkern.FFNet([64, 50, 30], 10, label=label)
    before = bits(net)
    found = compare_losses(net, digits.train_x, digits.train_y, lr=0.003, negatives=negatives, batch_size=50, seed=3)
    assert found.ffkern.shape == found.eager.shape == (50, 2)
    assert found.holds
    assert 0 < found.ffkern.max() < 1e-5
    assert 0 < found.eager.max() < 1e-5
    assert all(same(before, bits(net)))


def test_disagreement_is_found(monkeypatch):
    digits = data.digits().scaled("mean-image")
    net = ffkern.FFNet([64, 30, 20], 10, label="concat")
    options = {"lr": 0.003, "negatives": "uniform", "batch_size": 50, "seed": 0, "steps": 3}
    found = compare_losses(net, digits.train_x, digits.train_y, **options)
    assert found.holds
    real = ffkern.FFNet.metrics
    monkeypatch.setattr(
        ffkern.FFNet,
        "metrics",
        lambda self: [{**m, "loss": m["loss"] * (1 + 1e-5)} for m in real(self)],
    )
    assert not compare_losses(net, digits.train_x, digits.train_y, **options).holds


@pytest.mark.parametrize("negatives", ["uniform", "all"])
def test_eager_trains_the_same_network(negatives):
    """An epoch later the parameters, the head's too, differ by rounding alone.

    33 images a step: with a multiple of ten the first gradient of a head's bias can be exactly 0,
    and Adam would make a full step of its rounding.
    """
    digits = data.digits().scaled("mean-image")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = ffkern.FFNet([64, 40, 30], 10, label="concat", head_layers="all", eps=1e-3)
    eager = EagerNet(net, 0.003, negatives, head_lr=0.01)
    x, y = digits.train_x[:500], digits.train_y[:500]
    head_opt = ffkern.optim.Adam(net.head.parameters(), lr=0.01)
    make_trainer(net, lr=0.003, epochs=1, batch_size=33, seed=9, negatives=negatives, head_opt=head_opt).fit(x, y)
    eager.train_epoch(x, y, 33, torch.Generator().manual_seed(9))
    pairs = [*zip(net.layers, eager.linears, strict=True), (net.head, eager.head)]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.weight, theirs.weight, atol=5e-5, rtol=0)
        torch.testing.assert_close(ours.bias, theirs.bias, atol=5e-5, rtol=0)
    wrong = (net.predict(digits.test_x) != digits.test_y).double().mean()
    assert eager.error(digits.test_x, digits.test_y) == pytest.approx(float(wrong), abs=0.01)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"schedule": "both"}, "schedule is 'both'; expected one of 'simultaneous', 'greedy'"),
        ({"negatives": "easy"}, "negatives is 'easy'; expected one of 'uniform', 'hard', 'all'"),
        ({"batch_size": 0}, "batch_size is 0; expected an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; expected an integer of at least 1"),
        ({"epochs": -1}, "epochs is -1; expected an integer of at least 0"),
        ({"negatives": "hard"}, "negatives is 'hard', which draws from the softmax head"),
    ],
)
def test_bad_settings(options, text):
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        make_trainer(make_net(), **options)


def test_more_bad_settings():
    net = make_net(head="all")
    with pytest.raises(ValueError, match="negatives is 'hard', which needs every layer"):
        make_trainer(net, negatives="hard", schedule="greedy")
    with pytest.raises(TypeError, match=r"opt is a SGD; expected an optimiser of ffkern\.optim"):
        Trainer(net, torch.optim.SGD(net.parameters(), lr=0.1))
    head_opt = head_options(net)["head_opt"]
    with pytest.raises(ValueError, match="head_opt is given, but the network has no head"):
        make_trainer(make_net(), head_opt=head_opt)


def nan_in_row_5(x, y):
    x = x.clone()
    x[5, 3] = float("nan")
    return x, y


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (nan_in_row_5, r"x\[5\] holds NaN or infinity; expected finite numbers"),
        (
            lambda x, y: (x[:0], y[:0]),
            r"x has shape \[0, 12\]; expected \[N, 12\] with at least one",
        ),
        (lambda x, y: (x[:, 1:], y), r"x has shape \[37, 11\]; expected \[N, 12\]"),
        (lambda x, y: (x.double(), y), r"x is float64; expected one of float32, bfloat16, float16"),
        (lambda x, y: (x, y[1:]), r"y has shape \[36\]; expected \[37\], one label for each image"),
        (lambda x, y: (x, y.int()), "y is int32; expected int64"),
        (lambda x, y: (x, y + 1), "y holds 4; expected 0 to 3"),
        (lambda x, y: (x, y - 1), "y holds -1; expected 0 to 3"),
    ],
)
def test_bad_data_is_refused_before_anything_changes(spoil, text):
    net = make_net()
    before = bits(net)
    trainer = make_trainer(net)
    x, y = spoil(*make_data())
    with pytest.raises(ValueError, match=text):
        trainer.fit(x, y)
    with pytest.raises(ValueError, match=text):
        trainer.evaluate(x, y)
    named = rf"validation\[{'xy'.index(text[0])}\]" + text[1:]
    with pytest.raises(ValueError, match=named):
        trainer.fit(*make_data(), validation=(x, y))
    assert all(same(before, bits(net)))


def test_images_are_flattened_and_no_epoch_changes_nothing():
    x, y = make_data()
    net, twin = make_net(), make_net()
    make_trainer(net).fit(x.reshape(-1, 3, 4), y)
    make_trainer(twin).fit(x, y)
    assert all(same(bits(net), bits(twin)))
    before = bits(net)
    assert make_trainer(net, epochs=0).fit(x, y).epochs == []
    assert all(same(before, bits(net)))


def test_progress_bar_needs_a_terminal(capsys):
    make_trainer(make_net(), progress=True).fit(*make_data())
    assert capsys.readouterr().err.strip() == ""
