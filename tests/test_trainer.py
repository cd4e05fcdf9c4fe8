"""Trainer: what it changes, what it leaves alone, and the numbers it reports."""

import copy
import math

import pytest
import torch

import ffkern
from ffkern import Trainer, data, reference
from ffkern._eager import EagerNet, compare_losses
from ffkern.trainer import Callback

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


class Watch(Callback):
    """Calls functions of the trainer, and of the record, at the moments named."""

    def __init__(self, start=None, update=None, epoch=None, end=None):
        self.start, self.update, self.epoch, self.end = start, update, epoch, end

    def on_start(self, trainer):
        if self.start:
            self.start(trainer)

    def on_update(self, trainer):
        if self.update:
            self.update(trainer)

    def on_epoch(self, trainer, record):
        if self.epoch:
            self.epoch(trainer, record)

    def on_end(self, trainer):
        if self.end:
            self.end(trainer)


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

    look = Watch(epoch=lambda _, record: seen.append((record.stage, bits(net), record)))
    start = bits(net)
    make_trainer(net, schedule="greedy", epochs=2, callbacks=[look], **head_options(net)).fit(*make_data())
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
    rates = []
    look = Watch(epoch=lambda trainer, _: rates.append(float(trainer.opt.param_groups[0]["lr"])))
    trainer = make_trainer(net, lr=0.01, epochs=4, callbacks=[look])
    trainer.schedulers = [torch.optim.lr_scheduler.ExponentialLR(trainer.opt, 0.5)]
    trainer.fit(*make_data())
    assert rates == pytest.approx([0.01 * 0.5**i for i in range(1, 5)], rel=1e-12)


# ---------------------------------------------------------------- many updates on one mini-batch


def noise(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def plain_greedy_batch(net, x, y, opt, *, epochs, iterations, negatives, seed, augment=None):
    """The schedule written out; what the layers below say is computed anew before every update."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(IMAGES, generator=generator).split(BATCH):
            images, labels = x[rows], y[rows]
            if augment:
                images = augment(images, generator)
            if negatives == "all":
                wrong = reference.all_wrong_labels(labels, CLASSES)
            else:
                wrong = reference.wrong_labels(labels, CLASSES, torch.rand(len(rows), generator=generator))[None]
            variants = torch.cat((labels[None], wrong))
            images = torch.cat((torch.zeros(len(rows), CLASSES), images), 1)
            sign = torch.cat((torch.ones(len(rows)), -torch.ones(wrong.numel())))
            weight = torch.where(sign > 0, 0.5 / len(rows), 0.5 / wrong.numel()) if negatives == "all" else None
            first = net.layers[0]
            for i, layer in enumerate(net.layers):
                for _ in range(0 if layer.frozen else iterations):
                    if i == 0:
                        layer.step_shared(
                            images, variants, sign, opt, classes=CLASSES, overlay=net.overlay, row_weight=weight
                        )
                        continue
                    base, rest = torch.ops.ffkern.shared_base(images, first.weight, CLASSES)
                    h, _, _, h_norm = torch.ops.ffkern.shared_variants(
                        base, rest, first.weight, first.bias, variants, net.overlay, CLASSES, "rms", 1e-8, "mean_sq"
                    )
                    for below in net.layers[1:i]:
                        h, _, _, h_norm = below.activities(h, h_norm)
                    layer.step(h, sign, opt, row_weight=weight, x_norm=h_norm)


@pytest.mark.parametrize("negatives", ["uniform", "all"])
@pytest.mark.parametrize("frozen", [None, 0, 1])
@pytest.mark.parametrize("augment", [None, noise])
def test_greedy_batch_is_the_plain_loop(negatives, frozen, augment):
    x, y = make_data()
    net, twin = make_net(), make_net()
    if frozen is not None:
        for n in (net, twin):
            n.layers[frozen].requires_grad_(False)
    options = {"epochs": 2, "iterations": 3, "negatives": negatives, "seed": 6, "augment": augment}
    start = bits(net)
    make_trainer(net, schedule="greedy-batch", **options).fit(x, y)
    plain_greedy_batch(twin, x, y, ffkern.optim.Adam(twin.layers.parameters(), lr=0.01), **options)
    assert all(same(bits(net), bits(twin)))
    assert same(start, bits(net)) == [i // 2 == frozen for i in range(6)]


@pytest.mark.parametrize(("iterations", "counts"), [(1, [1]), (100, [100]), (101, [100, 1]), (230, [100, 100, 30])])
def test_greedy_batch_records_up_to_100_updates_of_a_layer(iterations, counts):
    net = make_net()
    net.layers[1].requires_grad_(False)
    marks, rates = [], []
    look = Watch(epoch=lambda trainer, _: marks.append(trainer.updates))
    trainer = make_trainer(
        net, lr=0.0, schedule="greedy-batch", iterations=iterations, epochs=2, batch_size=20, callbacks=[look]
    )
    trainer.schedulers = [torch.optim.lr_scheduler.LambdaLR(trainer.opt, lambda done: rates.append(done) or 0.0)]
    rates.clear()
    history = trainer.fit(*make_data(), validation=make_data(2)).epochs
    batches = 2 * math.ceil(IMAGES / 20)
    assert [r.stage for r in history] == (["layer 0"] * len(counts) + ["layer 2"] * len(counts)) * batches
    assert [b - a for a, b in zip([0, *marks], marks, strict=False)] == counts * 2 * batches
    for stage in ("layer 0", "layer 2"):
        assert [r.epoch for r in history if r.stage == stage] == list(range(1, batches * len(counts) + 1))
    assert rates == list(range(1, len(history) + 1))
    for record in history:
        learnt = int(record.stage[-1])
        assert [i for i, layer in enumerate(record.layers) if layer is not None] == [learnt]
        assert record.head is None
        assert set(record.validation) == {"error", "error_but_first"}
    # At rate 0 all records of a layer on a mini-batch hold the same means, be they of 100 updates or of 30.
    for begin in range(0, len(history), len(counts)):
        layers = [r.layers[int(r.stage[-1])] for r in history[begin : begin + len(counts)]]
        for layer in layers:
            assert vars(layer) == pytest.approx(vars(layers[0]), rel=1e-12)
    assert len({r.layers[0].loss for r in history if r.stage == "layer 0"}) >= batches


# ---------------------------------------------------------------- changed images


@pytest.mark.parametrize("schedule", ["simultaneous", "greedy"])
def test_images_are_changed_anew_in_every_step(schedule):
    x, y = make_data()
    net, twin = make_net(head="all"), make_net(head="all")
    make_trainer(net, schedule=schedule, epochs=2, seed=3, augment=noise, **head_options(net)).fit(x, y)
    opt, head_opt = ffkern.optim.Adam(twin.layers.parameters(), lr=0.01), head_options(twin)["head_opt"]
    generator = torch.Generator().manual_seed(3)
    for stage in ["all"] if schedule == "simultaneous" else [0, 1, 2, "head"]:
        for _ in range(2):
            for images, labels in data.batches(x, y, BATCH, generator):
                images = noise(images, generator)
                if stage == "all":
                    twin.step(images, labels, opt, generator=generator, head_opt=head_opt)
                elif stage == "head":
                    twin.step_head(images, labels, head_opt)
                else:
                    twin.step_layer(stage, images, labels, opt, generator=generator)
    assert all(same(bits(net), bits(twin)))


@pytest.mark.parametrize(("schedule", "calls"), [("simultaneous", 8), ("greedy", 24), ("greedy-batch", 8)])
def test_augment_is_called_once_a_step_and_once_a_mini_batch(schedule, calls):
    seen = []

    def augment(x, generator):
        seen.append((len(x), generator))
        return x

    iterations = 4 if schedule == "greedy-batch" else 1
    trainer = make_trainer(make_net(), schedule=schedule, epochs=2, iterations=iterations, augment=augment)
    trainer.fit(*make_data())
    assert [rows for rows, _ in seen] == [10, 10, 10, 7] * (calls // 4)
    assert len({id(generator) for _, generator in seen}) == 1


def test_images_outside_the_trainer_stay_as_they_are():
    x, y = make_data()
    kept = x.clone()
    seen = []
    trainer = make_trainer(make_net(), epochs=1, augment=lambda images, _: seen.append(1) or images.zero_())
    checked = trainer.fit(x, y, validation=(x, y)).epochs[0].validation
    assert torch.equal(x, kept)
    assert checked == trainer.evaluate(x, y)
    assert len(seen) == 4


# ---------------------------------------------------------------- position and stop

SCHEDULES = [("simultaneous", 3 * 4), ("greedy", 3 * 4 * 4), ("greedy-batch", 3 * 4 * 3 * 2)]


def scheduled(schedule, callbacks=(), **options):
    net = make_net(head="all")
    more = {"iterations": 2} if schedule == "greedy-batch" else head_options(net)
    return make_trainer(net, schedule=schedule, seed=4, callbacks=callbacks, **more, **options)


@pytest.mark.parametrize(("schedule", "total"), SCHEDULES)
def test_stop_between_any_two_updates(schedule, total):
    weights = []
    watch = Watch(start=lambda t: weights.append(bits(t.net)), update=lambda t: weights.append(bits(t.net)))
    scheduled(schedule, [watch]).fit(*make_data())
    assert len(weights) == total + 1
    for k in range(total + 1):
        calls = {"update": 0, "end": 0}

        def count(name, calls=calls):
            calls[name] += 1

        def look(trainer, k=k):
            if trainer.updates == k:
                trainer.stop()

        watch = Watch(start=look, update=lambda t: (count("update"), look(t)), end=lambda _: count("end"))
        trainer = scheduled(schedule, [watch])
        history = trainer.fit(*make_data())
        assert (trainer.updates, trainer.total_updates, trainer.finished) == (k, total, k == total)
        assert calls == {"update": k, "end": 1}
        assert all(same(weights[k], bits(trainer.net)))
        assert history.epochs == trainer.history


def test_a_stopped_trainer_starts_again_from_its_seed():
    stopped = scheduled("simultaneous", [Watch(update=lambda t: t.stop() if t.updates == 7 else None)])
    stopped.fit(*make_data())
    stopped.callbacks.clear()
    stopped.net.load_state_dict(make_net(head="all").state_dict())
    again = make_trainer(stopped.net, seed=4, **head_options(stopped.net))
    fresh = scheduled("simultaneous")
    again.fit(*make_data())
    fresh.fit(*make_data())
    assert all(same(bits(again.net), bits(fresh.net)))
    stopped.fit(*make_data())
    assert (stopped.updates, stopped.finished, len(stopped.history)) == (12, True, 3)


@pytest.mark.parametrize(("schedule", "total"), SCHEDULES)
def test_totals_and_the_order_of_callbacks(schedule, total):
    calls = []

    def note(who):
        return Watch(
            start=lambda t: calls.append((who, "start", t.updates, t.total_updates, t.finished)),
            update=lambda t: calls.append((who, "update", t.updates, t.total_updates, t.finished)),
            epoch=lambda t, r: calls.append((who, "epoch", t.updates, r is t.history[-1], t.finished)),
            end=lambda t: calls.append((who, "end", t.updates, t.total_updates, t.finished)),
        )

    scheduled(schedule, [note("a"), note("b")]).fit(*make_data())
    assert calls[::2] == [("a", *c[1:]) for c in calls[1::2]]
    assert [c[1:] for c in calls[::2] if c[1] != "epoch"] == [
        ("start", 0, total, False),
        *(("update", k, total, k == total) for k in range(1, total + 1)),
        ("end", total, total, True),
    ]
    every = 2 if schedule == "greedy-batch" else 4
    assert [c for c in calls[::2] if c[1] == "epoch"] == [
        ("a", "epoch", k, True, k == total) for k in range(every, total + 1, every)
    ]
    # an update comes before the record that it completes
    assert all(calls[i - 2][1:3] == ("update", c[2]) for i, c in enumerate(calls) if c[:2] == ("a", "epoch"))


def test_run_trains_when_it_is_asked():
    trainer = make_trainer(make_net())
    records = trainer.run(*make_data())
    assert trainer.updates == 0
    first = next(records)
    assert (first.epoch, trainer.updates) == (1, 4)
    assert [r.epoch for r in records] == [2, 3]


# ---------------------------------------------------------------- numbers


def test_records_are_those_of_the_reference():
    """An epoch of small batches in float64, written out with ffkern.reference."""
    x, y = make_data()
    net = make_net()
    twin = copy.deepcopy(net)
    record = make_trainer(net, lr=0.0, epochs=1, seed=2).fit(x, y).epochs[0]

    generator = torch.Generator().manual_seed(2)
    weights = [(layer.weight.double(), layer.bias.double()) for layer in twin.layers]
    total, steps = torch.zeros(3, 9, dtype=torch.float64), 0
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
        loss, pos, neg, right_pos, right_neg, n_pos, n_neg, *_ = wanted
        assert n_pos == n_neg == IMAGES
        assert seen.loss == pytest.approx(loss / steps, rel=2e-6)
        assert seen.goodness_pos == pytest.approx(pos / n_pos, rel=2e-6)
        assert seen.goodness_neg == pytest.approx(neg / n_neg, rel=2e-6)
        assert seen.separation == (right_pos + right_neg) / (n_pos + n_neg)
        assert seen.kept_pos == seen.kept_neg == 1.0  # with Adam, far from any threshold


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
    look = Watch(epoch=lambda trainer, _: seen.append(trainer.evaluate(x, y)))
    trainer = make_trainer(net, epochs=2, callbacks=[look])
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
        ({"iterations": 0}, "iterations is 0; expected an integer of at least 1"),
        ({"iterations": True}, "iterations is True; expected an integer of at least 1"),
        ({"iterations": 2}, "iterations is 2; expected 1 with schedule='simultaneous'"),
        ({"iterations": 2, "schedule": "greedy"}, "iterations is 2; expected 1 with schedule='greedy'"),
    ],
)
def test_bad_settings(options, text):
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        make_trainer(make_net(), **options)


def test_more_bad_settings():
    net = make_net(head="all")
    with pytest.raises(ValueError, match="negatives is 'hard', which needs every layer"):
        make_trainer(net, negatives="hard", schedule="greedy")
    with pytest.raises(ValueError, match="with schedule='greedy-batch'"):
        make_trainer(net, negatives="hard", schedule="greedy-batch")
    with pytest.raises(ValueError, match="head_opt is given; expected none with schedule='greedy-batch'"):
        make_trainer(net, schedule="greedy-batch", **head_options(net))
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
