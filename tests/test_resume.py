"""A run that was stopped and taken up again ends with the bits of one that was not."""

import copy
import random
from functools import partial

import pytest
import torch
from nested import assert_same, at, changed, foreign, paths, without
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

import ffkern
from ffkern import Trainer, checkpoint, data, negatives, optim
from ffkern.callbacks import EarlyStop
from ffkern.generator import LinearGenerator, generated
from ffkern.trainer import Callback, EpochRecord

CLASSES, SHAPE, IMAGES, BATCH = 3, (1, 3, 4), 23, 7
PIXELS = 12

OPTIMISERS = {
    "adam": lambda p, lr: optim.Adam(p, lr, weight_decay=0.01),
    "adamw": lambda p, lr: optim.AdamW(p, lr),
    "sgd": lambda p, lr: optim.SGD(p, lr, momentum=0.9, weight_decay=0.01),
    "ema": lambda p, lr: optim.EMA(p, lr, momentum=0.8, weight_decay=0.01),
}
SCHEDULERS = {
    "linear": lambda opt: optim.linear_decay(opt, 3),
    "cosine": lambda opt: CosineAnnealingLR(opt, 4),
    "steps": lambda opt: MultiStepLR(opt, [1, 3], gamma=0.3),
    "sequential": lambda opt: SequentialLR(opt, [LinearLR(opt, 0.2, total_iters=2), CosineAnnealingLR(opt, 3)], [2]),
}

MADE = {
    "hybrid": lambda net: lambda x, generator: negatives.hybrid(x, generator, shape=SHAPE, blurs=1)[0],
    "generated": lambda net: partial(generated, net=net),
}


def make_data(seed=1, images=IMAGES):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, PIXELS, generator=generator), torch.arange(images) % CLASSES


def shifted(x, generator):
    return data.shift(x, SHAPE, 1, generator)


class StopAfter(Callback):
    """Stops after the given number of updates and writes the state to a file at that moment."""

    def __init__(self, updates, path):
        self.updates, self.path = updates, path

    def on_start(self, trainer):
        self.on_update(trainer)

    def on_update(self, trainer):
        if trainer.updates == self.updates:
            checkpoint._write(self.path, {"trainer": trainer.state_dict()})
            trainer.stop()


def make(case, seed=0, callbacks=()):
    """Everything fresh; the first weights from another seed than the run that is to be resumed."""
    case = {"schedule": "simultaneous", "kind": "adam", "head": False, "peer": 0.0, **case}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ffkern.FFNet(
            [PIXELS, 6, 5],
            CLASSES,
            label="none" if "images" in case else "concat",
            head_layers="all" if case["head"] else None,
            peer_strength=case["peer"],
        )
        if case.get("images") == "generated":
            net.generator = LinearGenerator(PIXELS, (6, 5), lr=0.1)
        for i in case.get("frozen", ()):
            net.layers[i].requires_grad_(False)
    opt = OPTIMISERS[case["kind"]](net.layers.parameters(), 0.05)
    head_opt = OPTIMISERS[case["kind"]](net.head.parameters(), 0.1) if case["head"] else None
    opts = [opt] if head_opt is None else [opt, head_opt]
    names = ("schedule", "negatives", "iterations", "epochs")
    options = {name: case[name] for name in names if name in case}
    if "images" in case:
        options["negatives"] = MADE[case["images"]](net)
    return Trainer(
        net,
        opt,
        head_opt=head_opt,
        scheduler=[SCHEDULERS[case["scheduler"]](o) for o in opts] if "scheduler" in case else None,
        augment=shifted if case.get("shift") else None,
        callbacks=callbacks,
        seed=9,
        **{"epochs": 3, "batch_size": BATCH, **options},
    )


def fit(trainer, case):
    valid = make_data(2, 11) if case.get("validation") else None
    trainer.fit(*make_data(), validation=valid)
    return trainer


def result(trainer):
    """All that a run leaves behind, times aside."""
    state = copy.deepcopy(trainer.state_dict())
    for fields in state["history"]:
        assert fields.pop("seconds") > 0
    assert state.pop("seconds") >= 0
    rates = [float(group["lr"]) for opt in (trainer.opt, trainer.head_opt) if opt for group in opt.param_groups]
    return {**state, "rates": rates, "tested": trainer.evaluate(*make_data(3))}


CASES = {
    "uniform": {"validation": True},
    "all": {"negatives": "all", "kind": "adamw", "scheduler": "cosine"},
    "hard, head, peers": {"negatives": "hard", "head": True, "peer": 0.1, "kind": "ema", "scheduler": "linear"},
    "head, shift": {"head": True, "kind": "sgd", "shift": True, "scheduler": "sequential"},
    "greedy": {"schedule": "greedy", "kind": "ema", "peer": 0.1, "scheduler": "steps", "epochs": 2},
    "greedy, head, shift": {
        "schedule": "greedy", "negatives": "all", "head": True, "shift": True, "validation": True, "epochs": 2,
        "scheduler": "linear",
    },
    "greedy, frozen": {"schedule": "greedy", "frozen": [0], "epochs": 2},
    "greedy-batch": {
        "schedule": "greedy-batch", "iterations": 4, "epochs": 2, "shift": True, "scheduler": "cosine",
        "validation": True,
    },
    "greedy-batch, all": {
        "schedule": "greedy-batch", "iterations": 3, "epochs": 2, "negatives": "all", "peer": 0.2, "kind": "sgd",
    },
    "greedy-batch, frozen": {"schedule": "greedy-batch", "iterations": 5, "epochs": 2, "frozen": [1], "kind": "adamw"},
    "hybrid images": {
        "images": "hybrid", "head": True, "shift": True, "peer": 0.1, "kind": "ema", "scheduler": "linear",
    },
    "hybrid images, frozen": {"images": "hybrid", "head": True, "frozen": [0], "epochs": 2},
    "generated images": {"images": "generated", "head": True, "kind": "sgd", "validation": True},
}  # fmt: skip


def stopped(case, after, path, before=None):
    """A run stopped after so many updates, begun anew or taken up from a file."""
    trainer = make(case, seed=0 if before is None else 5, callbacks=[StopAfter(after, path)])
    if before is not None:
        trainer.load_state_dict(checkpoint._read(before)["trainer"])
    fit(trainer, case)
    assert trainer.updates == after
    return trainer


@pytest.mark.parametrize("name", CASES)
def test_stopped_after_any_update(tmp_path, name):
    case, path = CASES[name], tmp_path / "state.pt"
    whole = fit(make(case), case)
    wanted = result(whole)
    assert whole.finished
    for after in range(whole.total_updates + 1):
        stopped(case, after, path)
        trainer = make(case, seed=5)
        assert not torch.equal(trainer.net.layers[1].weight, make(case).net.layers[1].weight)
        trainer.load_state_dict(checkpoint._read(path)["trainer"])
        fit(trainer, case)
        assert trainer.finished
        assert_same(wanted, result(trainer), f"after {after}")


@pytest.mark.parametrize("name", CASES)
def test_stopped_many_times(tmp_path, name, seed):
    case, rng = CASES[name], random.Random(seed)
    whole = fit(make(case), case)
    for _ in range(2):
        before = None
        for i, after in enumerate(sorted(rng.choices(range(whole.total_updates + 1), k=3))):  # twice the same, too
            path = tmp_path / f"{i}.pt"
            stopped(case, after, path, before)
            before = path
        trainer = make(case, seed=5)
        trainer.load_state_dict(checkpoint._read(before)["trainer"])
        assert_same(result(whole), result(fit(trainer, case)))


def test_records_of_a_hundred_updates_survive_a_stop(tmp_path):
    case = {"schedule": "greedy-batch", "iterations": 130, "epochs": 1, "frozen": [0]}
    whole = fit(make(case), case)
    assert len(whole.history) == 4 * 2
    for after in (1, 99, 100, 101, 129, 130, 131, 300, whole.total_updates - 1):
        stopped(case, after, tmp_path / "s.pt")
        trainer = make(case, seed=5)
        trainer.load_state_dict(checkpoint._read(tmp_path / "s.pt")["trainer"])
        assert_same(result(whole), result(fit(trainer, case)))


def test_one_state_serves_many_runs():
    """Neither the run it was taken from nor the first that takes it up may change it."""
    case = CASES["hard, head, peers"]
    taken = []

    def take(trainer):
        if trainer.updates == 5:
            taken.append(copy.deepcopy(trainer.state_dict()))

    watch = type("Take", (Callback,), {"on_update": lambda self, trainer: take(trainer)})()
    whole = fit(make(case, callbacks=[watch]), case)
    for _ in range(2):
        trainer = make(case, seed=5)
        trainer.load_state_dict(taken[0])
        assert_same(result(whole), result(fit(trainer, case)))


def test_a_resumed_trainer_starts_anew_the_next_time():
    case = CASES["uniform"]
    trainer = fit(make(case), case)
    trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert fit(trainer, case).updates == trainer.total_updates
    assert len(trainer.history) == 3
    before = [p.clone() for p in trainer.net.parameters()]
    fit(trainer, case)
    assert not any(map(torch.equal, before, trainer.net.parameters()))


def test_records_go_to_plain_data_and_back(tmp_path):
    case = {**CASES["greedy, head, shift"]}
    history = fit(make(case), case).history
    assert [EpochRecord.from_dict(fields) for fields in ffkern.trainer.History(history).as_dicts()] == history


def test_early_stop_holds_after_a_resume(tmp_path):
    case = {"validation": True, "epochs": 30}

    def run(callbacks, path=None, patience=2):
        trainer = make(case, callbacks=[EarlyStop(patience), *callbacks])
        if path:
            trainer.load_state_dict(checkpoint._read(path)["trainer"])
        return fit(trainer, case)

    whole = run([])
    assert 0 < whole.updates < whole.total_updates
    assert not whole.finished
    # stopped on the way, and at the very update after which it ends
    for after in (3, 4, whole.updates - 4, whole.updates - 1, whole.updates):
        run([StopAfter(after, tmp_path / "s.pt")])
        assert_same(result(whole), result(run([], tmp_path / "s.pt")))
    # the state of the stopped run itself
    checkpoint._write(tmp_path / "end.pt", {"trainer": whole.state_dict()})
    again = run([], tmp_path / "end.pt")
    assert_same(result(whole), result(again))


# ---------------------------------------------------------------- refusals


def everything(trainer):
    parts = [trainer.net.state_dict(), trainer.opt.state_dict(), [s.state_dict() for s in trainer.schedulers]]
    return copy.deepcopy(parts + ([trainer.head_opt.state_dict()] if trainer.head_opt else []))


BASE = {"head": True, "scheduler": "linear", "peer": 0.1, "kind": "sgd"}


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"schedule": "greedy"}, "schedule is 'greedy'; expected 'simultaneous', as in the run that was saved"),
        ({"negatives": "all"}, "negatives is 'all'; expected 'uniform'"),
        ({"epochs": 4}, "epochs is 4; expected 3"),
        ({"frozen": [1]}, r"learning is \[0\]; expected \[0, 1\]"),
        ({"kind": "ema"}, r"opt is \['ema', 4\]; expected \['sgd', 4\]"),
        ({"kind": "adam"}, r"opt is \['adam', 4\]; expected \['sgd', 4\]"),
        ({"head": False}, "shapes is "),
        ({"peer": 0.0}, "shapes is "),
        (
            {"scheduler": "cosine"},
            r"scheduler is \['CosineAnnealingLR', 'CosineAnnealingLR'\]; expected \['LambdaLR', ",
        ),
    ],
)
def test_a_run_with_other_settings_is_refused_and_unchanged(other, text):
    state = fit(make(BASE), BASE).state_dict()
    trainer = make({**BASE, **other}, seed=5)
    before = everything(trainer)
    with pytest.raises(ValueError, match=text):
        trainer.load_state_dict(state)
    assert_same(before, everything(trainer))
    fit(trainer, BASE)  # and it is as good as new
    assert trainer.finished


@pytest.mark.parametrize("change", [lambda s: [], lambda s: s[:1], lambda s: s * 2])
def test_another_number_of_schedulers_is_refused(change):
    state = fit(make(BASE), BASE).state_dict()
    trainer = make(BASE, seed=5)
    trainer.schedulers = change(trainer.schedulers)
    before = everything(trainer)
    with pytest.raises(
        ValueError, match=r"scheduler is .*; expected \['LambdaLR', 'LambdaLR'\], as in the run that was"
    ):
        trainer.load_state_dict(state)
    assert_same(before, everything(trainer))


def test_other_groups_of_parameters_are_refused():
    state = fit(make({}), {}).state_dict()
    trainer = make({}, seed=5)
    trainer.opt = optim.Adam([{"params": layer.parameters()} for layer in trainer.net.layers], 0.05)
    before = everything(trainer)
    with pytest.raises(ValueError, match=r"opt is \['adam', 2, 2\]; expected \['adam', 4\]"):
        trainer.load_state_dict(state)
    assert_same(before, everything(trainer))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x, y: (x.clone().index_fill_(0, torch.tensor([22]), 0.25), y),
        lambda x, y: (x, y.flip(0)),
        lambda x, y: (x[:-1], y[:-1]),
        lambda x, y: (x.flip(0), y.flip(0)),
        lambda x, y: (x.bfloat16(), y),
    ],
)
def test_other_data_are_refused_when_the_run_begins(spoil):
    whole = fit(make(BASE), BASE)
    trainer = make(BASE, seed=5)
    trainer.load_state_dict(whole.state_dict())
    before = everything(trainer)
    with pytest.raises(
        ValueError, match="x or y holds other data than the run that was saved; expected the same images"
    ):
        trainer.run(*spoil(*make_data()))
    assert_same(before, everything(trainer))
    assert_same(result(whole), result(fit(trainer, BASE)))  # the right ones still go


def test_there_is_nothing_to_save_before_a_run():
    with pytest.raises(RuntimeError, match="there is no run to save"):
        make({}).state_dict()


def may_be(path, other):
    """A layer or head that did not learn, an epoch without validation, and figures of other names are no mistake."""
    return (
        other is None
        and path[:1] == ("history",)
        and path[2:3] in {("layers",), ("head",), ("validation",)}
        and (len(path) == (4 if path[2] == "layers" else 3))
    )


@pytest.mark.parametrize("name", ["hard, head, peers", "greedy-batch"])
def test_a_foreign_value_anywhere_is_refused(name):
    case = {**CASES[name], "validation": True}
    state = fit(make(case), case).state_dict()
    trainer = make(case, seed=5)
    before, tried = everything(trainer), 0
    for path in paths(state):
        for other in foreign(at(state, path)):
            if may_be(path, other):
                continue
            with pytest.raises(ValueError, match=r"\w"):  # a way through shows `path` and `other`
                trainer.load_state_dict(changed(state, path, other))
            tried += 1
    assert tried > 300
    assert_same(before, everything(trainer))


@pytest.mark.parametrize("name", ["hard, head, peers", "greedy-batch"])
def test_a_missing_key_anywhere_is_refused(name):
    case = {**CASES[name], "validation": False}
    state = fit(make(case), case).state_dict()
    trainer = make(case, seed=5)

    tried = 0
    for path in paths(state):
        if isinstance(path[-1], int) or (
            name == "greedy-batch" and path == ("run", "head_opt")
        ):  # a parameter that never moved; no head: None
            continue
        with pytest.raises(ValueError, match=r"\w"):
            trainer.load_state_dict(without(state, path))
        tried += 1
    assert tried > 60


def test_partial_augmentation_of_a_recipe_resumes(tmp_path):
    """The shift of a recipe is a functools.partial, which no state can hold: it is built anew."""
    case = {"shift": True}
    trainer = make(case)
    trainer.augment = partial(shifted)
    assert_same(result(fit(make(case), case)), result(fit(trainer, case)))
