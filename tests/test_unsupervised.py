"""Learning without labels: hybrid negatives, FFNet(label="none"), and the trainer with a function of images."""

from __future__ import annotations

import copy
import itertools
import math
import re
from functools import partial

import op_cases as cases
import pytest
import torch
from nested import assert_same
from tolerance import STORAGE_UNIT, UNIT, assert_not_worse, check_parity
from torch import Tensor

from ffkern import FFNet, Trainer, negatives, optim, reference
from ffkern.trainer import evaluate

CLASSES, SHAPE, BLURS = 3, (2, 5, 6), 2
INPUTS, WIDTHS = 60, (23, 17, 9)
COUNTED, HEAD_COUNTED = [0, 1, 2, 5, 6], [0, 2]  # but not rows that a rounding moves over a threshold, or leaves out
SETTINGS = {"norm": "rms", "eps": 1e-4, "goodness": "mean_sq", "temperature": 1.3}


def draws(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(**options) -> FFNet:
    options = {"head_layers": "all_but_first", "threshold": 0.4, "peer_strength": 0.1, **SETTINGS, **options}
    return FFNet([INPUTS, *WIDTHS], CLASSES, label="none", **options)


def optimisers(net: FFNet, kind: str = "sgd") -> tuple[optim.FusedOptimizer, optim.FusedOptimizer | None]:
    # No Adam: its first step has the size of lr however small, and uncertain, a gradient is.
    rule = {"sgd": partial(optim.SGD, lr=0.5, momentum=0.9, weight_decay=0.01), "ema": partial(optim.EMA, lr=0.1)}
    return rule[kind](net.layers.parameters()), None if net.head is None else rule[kind](net.head.parameters())


def everything(net: FFNet) -> list[Tensor]:
    counted = [layer.statistics() for layer in net.layers] + ([net.head.statistics()] if net.head is not None else [])
    return [value.clone() for value in (*net.state_dict().values(), *counted)]


def data(rows: int = 21, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.rand(rows, INPUTS).to(dtype), torch.randint(CLASSES, (rows,))


# ---------------------------------------------------------------- hybrids


@cases.every_backend_of(torch.float32, torch.bfloat16, torch.float16)
@pytest.mark.parametrize(("shape", "rows", "blurs"), [((1, 28, 28), 6, 6), ((3, 5, 7), 9, 1), ((2, 1, 4), 3, 0)])
def test_hybrids_are_those_of_the_reference(shape, rows, blurs, dtype, backend):
    """Bit for bit, masks and images, in both backends: each image with the one before it in the batch."""
    channels, height, width = shape
    x = torch.randn(rows, channels * height * width).to(dtype)
    images, mask = negatives.hybrid(x, draws(), shape=shape, blurs=blurs)
    seed = torch.randint(2**63 - 1, (1,), generator=draws())
    before = torch.cat((x[-1:], x[:-1]))
    wanted = reference.hybrid_images(x, before, torch.cat((seed, torch.zeros_like(seed))), height, width, blurs)
    assert (images.dtype, mask.dtype) == (dtype, torch.bool)
    assert torch.equal(images, wanted[0])
    assert torch.equal(mask, wanted[1])
    assert bool(((images == x) | (images == before)).all())  # every pixel is one of the two
    assert mask.any()
    assert not mask.all()


def test_hybrids_draw_one_number():
    x, generator = data()[0], draws()
    first = negatives.hybrid(x, generator, shape=SHAPE)
    after = draws()
    torch.randint(2**63 - 1, (1,), generator=after)
    assert torch.equal(generator.get_state(), after.get_state())
    second = negatives.hybrid(x, generator, shape=SHAPE)
    assert torch.equal(first[0], negatives.hybrid(x, draws(), shape=SHAPE)[0])
    assert torch.equal(first[1], negatives.hybrid(x, draws(), shape=SHAPE)[1])
    assert not torch.equal(first[1], second[1])
    before = torch.get_rng_state()
    negatives.hybrid(x, draws(), shape=SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_hybrids_of_views_and_small_batches():
    wide = torch.rand(INPUTS, 2, 21)
    view = wide[:, 1].T
    assert not view.is_contiguous()
    for got, wanted in zip(*(negatives.hybrid(x, draws(), shape=SHAPE) for x in (view, view.clone())), strict=True):
        assert torch.equal(got, wanted)
    one = torch.rand(1, INPUTS)
    assert torch.equal(negatives.hybrid(one, draws(), shape=SHAPE)[0], one)
    images, mask = negatives.hybrid(torch.rand(0, INPUTS), draws(), shape=SHAPE)
    assert (images.shape, mask.shape) == ((0, INPUTS), (0, 30))


def test_hybrids_leave_the_images_alone():
    x = torch.rand(4, INPUTS, requires_grad=True)
    kept = x.detach().clone()
    assert not negatives.hybrid(x, draws(), shape=SHAPE)[0].requires_grad
    assert torch.equal(x, kept)
    for shape in ((1, 7, 6), SHAPE[1:], (3, *SHAPE[1:])):
        with pytest.raises(ValueError, match=re.escape(f"shape is {shape} and x is [4, {INPUTS}]; expected (C, H, W)")):
            negatives.hybrid(x, draws(), shape=shape)


# ---------------------------------------------------------------- a step against the specification


def learnt(net: FFNet, opts, steps, **batch) -> dict[str, Tensor]:
    """What a few steps leave: parameters, peer means, statistics."""
    net = copy.deepcopy(net)
    for p, frozen in zip(net.parameters(), batch.pop("frozen"), strict=True):
        p.requires_grad_(not frozen)
    opt, head_opt = opts(net)
    with_head = batch["labels"] is not None
    for _ in range(steps):
        net.step_images(batch["x"], batch["negatives"], opt, labels=batch["labels"],
                        head_opt=head_opt if with_head else None)  # fmt: skip
    result = {name: value.detach() for name, value in net.state_dict().items()}
    result |= {f"statistics {i}": layer.statistics()[COUNTED] for i, layer in enumerate(net.layers)}
    return result | ({"statistics head": net.head.statistics()[HEAD_COUNTED]} if net.head is not None else {})


def specified(net: FFNet, opts, steps, *, x, negatives, labels, frozen, **state) -> dict[str, Tensor]:
    """The same by reference.layer_step and head_step, in the dtype of ``state``: the network's parameters."""
    opt, head_opt = opts(net)
    dtype = next(iter(state.values())).dtype
    state, n, q = dict(state), len(x), len(negatives)
    frozen = dict(zip((name for name, _ in net.named_parameters()), frozen, strict=True))
    sign = torch.cat((torch.ones(n), -torch.ones(q))).to(dtype)
    weight = None if n == q else torch.cat((torch.full((n,), 0.5 / n), torch.full((q,), 0.5 / q))).to(dtype)
    slots, counts = {}, {}
    form = {"norm": SETTINGS["norm"], "eps": SETTINGS["eps"]}

    def rule(opt):
        return {"optimiser": opt.kind, "hyper": opt.hyper(opt.param_groups[0])}

    def held(name, opt):
        new = reference.STATE_SLOTS[opt.kind]
        parameters = state[f"{name}.weight"], state[f"{name}.bias"]
        slots.setdefault(name, [*(torch.zeros(new, *p.shape, dtype=dtype) for p in parameters), torch.tensor(0)])
        return [*parameters, *slots[name]]

    stored = x.dtype
    for _ in range(steps):
        h, length, kept = torch.cat((x, negatives)), None, []
        for i, layer in enumerate(net.layers):
            name = f"layers.{i}"
            if frozen[f"{name}.weight"]:
                h, _, _, length = reference.layer_forward(
                    h, state[f"{name}.weight"], state[f"{name}.bias"], length, **form, goodness=SETTINGS["goodness"]
                )
            else:
                done = reference.layer_step(
                    h, sign, *held(name, opt), float(opt.param_groups[0]["lr"]), **form, goodness=SETTINGS["goodness"],
                    threshold=layer.threshold, temperature=SETTINGS["temperature"], **rule(opt), row_weight=weight,
                    x_norm=length, peer_mean=state.get(f"{name}.peer_mean"), peer_strength=layer.peer_strength,
                )  # fmt: skip
                state[f"{name}.weight"], state[f"{name}.bias"], *slots[name] = done[:5]
                if layer.peer_strength:
                    state[f"{name}.peer_mean"] = done.peer_mean
                counts[f"statistics {i}"] = counts.get(f"statistics {i}", 0) + done.stats[COUNTED]
                h, length = done.h, done.h_norm
            h = h.to(stored)
            kept.append((h[:n], length[:n]))
        if labels is not None and not frozen["head.weight"]:
            seen = zip(*(kept[i] for i in net.head_layers), strict=True)
            _, *new, stats = reference.head_step(
                *map(list, seen), labels, *held("head", head_opt), float(head_opt.param_groups[0]["lr"]), **form,
                **rule(head_opt),
            )  # fmt: skip
            state["head.weight"], state["head.bias"], *slots["head"] = new
            counts["statistics head"] = counts.get("statistics head", 0) + stats[HEAD_COUNTED]
    nothing = {f"statistics {i}": torch.zeros(len(COUNTED), dtype=torch.float64) for i in range(len(net.layers))}
    nothing |= {"statistics head": torch.zeros(len(HEAD_COUNTED), dtype=torch.float64)} if net.head is not None else {}
    return {**state, **nothing, **counts}


def check(net: FFNet, x: Tensor, others: Tensor, labels: Tensor | None, kind: str, frozen=(), steps: int = 2) -> None:
    names = [name for name, _ in net.named_parameters()]
    still = [any(name.startswith(part) for part in frozen) for name in names]
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    opts = partial(optimisers, kind=kind)
    batch = {"x": x, "negatives": others}
    fixed = {"labels": labels, "frozen": still}
    unit = STORAGE_UNIT[x.dtype]

    def operation(x, negatives, **parameters):
        del parameters
        return learnt(net, opts, steps, x=x, negatives=negatives, **fixed)

    def exact(x, negatives, **parameters):
        return specified(net, opts, steps, x=x, negatives=negatives, **fixed, **parameters)

    got = check_parity(operation, exact, {**batch, **state}, unit=max(unit, UNIT))
    for name, stays in zip(names, still, strict=True):
        moves = not stays and (labels is not None or not name.startswith("head"))
        assert torch.equal(got[name], state[name]) != moves, name


STEPS = {
    "plain": {},
    "ema": {"kind": "ema"},
    "more negatives": {"negatives": 33},
    "fewer negatives": {"negatives": 4},
    "one of each": {"rows": 1, "negatives": 1},
    "first frozen": {"frozen": ["layers.0"]},
    "middle frozen": {"frozen": ["layers.1"], "negatives": 30},
    "last frozen": {"frozen": ["layers.2"], "kind": "ema"},
    "layers frozen": {"frozen": ["layers"]},
    "head frozen": {"frozen": ["head"]},
    "no labels": {"labels": False},
    "no head": {"labels": False, "head_layers": None},
    "head on all": {"head_layers": "all"},
    "no peers": {"peer_strength": 0.0},
    "sums": {"threshold": "width"},
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_the_specifications(name):
    """Two steps, so that the state of the optimisers and the peer means matter."""
    case = {"rows": 21, "kind": "sgd", "frozen": [], "labels": True, **STEPS[name]}
    options = {key: case[key] for key in ("head_layers", "peer_strength", "threshold") if key in case}
    x, y = data(case["rows"])
    others, _ = data(case.get("negatives", case["rows"]))
    check(make(**options), x, others, y if case["labels"] else None, case["kind"], case["frozen"])


@pytest.mark.parametrize("frozen", [[], ["layers.1"]])
def test_a_step_of_bfloat16_rows(frozen):
    x, y = data(dtype=torch.bfloat16)
    check(make(), x, data(30, torch.bfloat16)[0], y, "sgd", frozen)


def test_a_step_of_views():
    x, others, y = torch.rand(INPUTS, 21).T, torch.rand(8, 2 * INPUTS)[:, ::2], data()[1]
    assert not x.is_contiguous()
    assert not others.is_contiguous()
    check(make(), x, others, y, "sgd")
    nets = [make(), None]
    nets[1] = copy.deepcopy(nets[0])
    for net, images in zip(nets, (x, x.clone().reshape(-1, *SHAPE)), strict=True):
        opt, head_opt = optimisers(net)
        net.step_images(images, others, opt, labels=y, head_opt=head_opt)
    assert all(torch.equal(a, b) for a, b in zip(*map(everything, nets), strict=True))


@pytest.mark.emulated
@pytest.mark.parametrize("device", ["sm_80"])
def test_a_step_on_cuda_kernels(device):
    import emulated

    with emulated.device(device):
        x, y = data()
        check(make(), x, negatives.hybrid(x, draws(), shape=SHAPE, blurs=BLURS)[0], y, "sgd")


def test_a_batch_without_images_or_without_negatives():
    net, (x, y) = make(), data(6)
    opt, head_opt = optimisers(net)
    net.step_images(x, x[:0], opt, labels=y, head_opt=head_opt)
    assert [seen["rows"] for seen in net.metrics()] == [6] * 3
    net.step_images(x[:0], x, opt)
    assert [seen["rows"] for seen in net.metrics()] == [6] * 3
    assert all(bool(p.isfinite().all()) for p in net.parameters())


# ---------------------------------------------------------------- refusals


def others(net: FFNet) -> tuple[optim.FusedOptimizer, ...]:
    return optimisers(copy.deepcopy(net))


REFUSED = {
    "labels alone": (lambda a: a.pop("head_opt"), ValueError, "expected labels and head_opt together"),
    "head_opt alone": (lambda a: a.pop("labels"), ValueError, "expected labels and head_opt together"),
    "dtype": (lambda a: a.update(negatives=a["negatives"].half()), ValueError, "negatives is torch.float16 on cpu"),
    "few pixels": (lambda a: a.update(x=a["x"][:, 1:]), ValueError, r"x has shape \[21, 59\]"),
    "few pixels of negatives": (lambda a: a.update(negatives=a["negatives"][:, 1:]), ValueError, r"shape \[21, 59\]"),
    "float64": (
        lambda a: a.update(x=a["x"].double(), negatives=a["negatives"].double()), RuntimeError, "x is float64",
    ),
    "few labels": (lambda a: a.update(labels=a["labels"][1:]), ValueError, r"labels has shape \[20\]; expected \[21\]"),
    "labels of another dtype": (lambda a: a.update(labels=a["labels"].int()), TypeError, "labels is int32"),
    "a label too high": (
        lambda a: a.update(labels=a["labels"] + CLASSES), ValueError, r"labels holds \d to \d; expected 0 to 2",
    ),
    "a neutral label": (lambda a: a["labels"].__setitem__(3, -1), ValueError, r"labels holds -1 to \d; expected 0"),
    "no images": (lambda a: a.update(x=a["x"][:0], labels=a["labels"][:0]), ValueError, "x has no rows; expected"),
    "torch's optimiser": (
        lambda a: a.update(opt=torch.optim.SGD([torch.zeros(1)])), TypeError, "opt is a SGD; a fused step takes",
    ),
    "torch's optimiser of the head": (
        lambda a: a.update(head_opt=torch.optim.SGD([torch.zeros(1)])), TypeError, "opt is a SGD; a fused step takes",
    ),
    "another network's optimiser": (
        lambda a: a.update(opt=others(a["net"])[0]), ValueError, "does not hold this layer's weight",
    ),
    "another head's optimiser": (
        lambda a: a.update(head_opt=others(a["net"])[1]), ValueError, "does not hold this layer's weight",
    ),
    "an optimiser of the first layer": (
        lambda a: a.update(opt=optim.SGD(a["net"].layers[0].parameters())), ValueError, "does not hold this layer's",
    ),
    "a frozen bias": (
        lambda a: a["net"].layers[2].bias.requires_grad_(False), RuntimeError, "the layer is frozen",
    ),
    "all frozen": (lambda a: a["net"].requires_grad_(False), RuntimeError, "every layer is frozen"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_step_changes_nothing(name):
    spoil, error, message = REFUSED[name]
    net, (x, y) = make(), data()
    opt, head_opt = optimisers(net)
    net.step_images(x, data()[0], opt, labels=y, head_opt=head_opt)
    arguments = {"net": net, "x": x, "negatives": data()[0], "opt": opt, "labels": y, "head_opt": head_opt}
    spoil(arguments)
    states = [copy.deepcopy(o.state_dict()) for o in (opt, head_opt)]
    before = everything(net)
    with pytest.raises(error, match=message):
        arguments.pop("net").step_images(**arguments)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(net), strict=True))
    assert_same(states, [o.state_dict() for o in (opt, head_opt)])


def test_networks_that_learn_otherwise_are_told():
    x, y = data()
    labelled, net = FFNet([INPUTS, 9], CLASSES), make(head_layers=None)
    with pytest.raises(RuntimeError, match="label is 'overlay'; expected 'none'"):
        labelled.step_images(x, x, optimisers(labelled)[0])
    opt = optimisers(net)[0]
    with pytest.raises(ValueError, match="head_opt is given, but the network has no softmax head"):
        net.step_images(x, x, opt, labels=y, head_opt=opt)
    for action in (
        lambda: net.step(x, y, opt),
        lambda: net.lesson(0, x, torch.stack((y, y))),
        lambda: net.step_layer(0, x, y, opt),
        lambda: net(x),
        lambda: net.predict(x),
    ):
        with pytest.raises(RuntimeError, match=r"label is 'none': .* learns by step_images\(\) and answers by"):
            action()
    with pytest.raises(RuntimeError, match="no softmax head"):
        net.logits(x)
    with pytest.raises(ValueError, match="net has neither labels nor a head"):
        evaluate(net, x, y)


# ---------------------------------------------------------------- answers


def test_what_such_a_network_tells():
    """Goodness, features, logits and answers from the formulas in float64; labels are refused."""
    net, (x, y) = make(), data()
    torch.nn.init.normal_(net.head.weight)
    torch.nn.init.normal_(net.head.bias)

    def told(dtype: torch.dtype) -> dict[str, Tensor]:
        h, length, found, seen = x.to(dtype), None, {}, []
        for i, layer in enumerate(net.layers):
            h, goodness, _, length = reference.layer_forward(
                h, layer.weight.detach().to(dtype), layer.bias.detach().to(dtype), length, SETTINGS["norm"],
                SETTINGS["eps"], SETTINGS["goodness"],
            )  # fmt: skip
            size = (h.square().mean(1, keepdim=True)).sqrt() + SETTINGS["eps"]
            found |= {f"goodness {i}": goodness, f"features {i}": h / size}
            seen.append((h, length))
        head = [p.detach().to(dtype) for p in (net.head.weight, net.head.bias)]
        found["logits"] = reference.head_forward(*zip(*seen[1:], strict=True), *head, SETTINGS["norm"], SETTINGS["eps"])
        return found

    goodness, features = net.goodness(x), net.features(x)
    assert goodness.shape == (3, 21)
    got = {f"goodness {i}": value for i, value in enumerate(goodness)}
    got |= {f"features {i}": value for i, value in enumerate(features)} | {"logits": net.logits(x)}
    exact, eager = told(torch.float64), told(torch.float32)
    for name, value in got.items():
        # each row of a layer is a sum of up to 60 products, normalised by what the layer before erred in
        assert_not_worse(value, eager[name], exact[name], floor=60 * UNIT * float(exact[name].abs().max()), what=name)
    assert torch.equal(net.predict_softmax(x), net.logits(x).argmax(1))
    for ask in (net.goodness, net.features):
        with pytest.raises(RuntimeError, match="label is 'none'"):
            ask(x, y)
    wrong = float((exact["logits"].argmax(1) != y).double().mean())
    margin = exact["logits"].topk(2).values
    near = float((margin[:, 0] - margin[:, 1] < 1e-4).double().mean())
    found = evaluate(net, x, y)
    assert list(found) == ["error_softmax"]
    assert abs(found["error_softmax"] - wrong) <= near + 1e-9


# ---------------------------------------------------------------- the trainer


def mixed(x: Tensor, generator: torch.Generator) -> Tensor:
    return negatives.hybrid(x, generator, shape=SHAPE, blurs=BLURS)[0]


def trainer_of(net: FFNet, **options) -> Trainer:
    opt, head_opt = optimisers(net)
    options = {"negatives": mixed, "head_opt": head_opt, "batch_size": 8, "epochs": 2, "seed": 9, **options}
    return Trainer(net, opt, **options)


@pytest.mark.parametrize("with_head", [True, False])
def test_the_trainer_gives_images_and_their_negatives(with_head):
    """Order, augmentation and negatives from one generator, in this order."""
    net, (x, y) = make(), data()
    other = copy.deepcopy(net)

    def moved(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.rand(x.shape, generator=generator)

    options = {} if with_head else {"head_opt": None}
    trainer = trainer_of(net, augment=moved, **options)
    history = trainer.fit(x, y, validation=(x, y))
    assert trainer.updates == 6
    opt, head_opt = optimisers(other)
    generator = draws(9)
    for _ in range(2):
        for rows in torch.randperm(21, generator=generator).split(8):
            images = moved(x[rows], generator)
            made = mixed(images, generator)
            if with_head:
                other.step_images(images, made, opt, labels=y[rows], head_opt=head_opt)
            else:
                other.step_images(images, made, opt)
    assert_same(net.state_dict(), other.state_dict())
    record = history.epochs[-1]
    assert list(record.validation) == ["error_softmax"]
    assert (record.head is not None) == with_head
    assert record.validation == trainer.evaluate(x, y)


@pytest.mark.emulated
def test_the_trainer_does_not_notice_the_device():
    """The same hybrids, bit for bit, and the same losses on CUDA kernels."""
    import emulated

    start, (x, y) = make(), data(40)
    seen, made = [], []

    def watched(x: Tensor, generator: torch.Generator) -> Tensor:
        made.append(mixed(x, generator))
        return made[-1]

    for device in (None, "sm_80"):
        net = copy.deepcopy(start)
        trainer = trainer_of(net, negatives=watched, epochs=1)
        if device is None:
            seen.append(trainer.fit(x, y).epochs[-1])
        else:
            with emulated.device(device):
                seen.append(trainer.fit(x, y).epochs[-1])
    assert len(made) == 10
    assert all(torch.equal(a, b) for a, b in zip(made[:5], made[5:], strict=True))
    for cpu, cuda in itertools.chain(zip(seen[0].layers, seen[1].layers, strict=True), [(seen[0].head, seen[1].head)]):
        # five updates: sums of up to 60 products in another order
        assert cuda.loss == pytest.approx(cpu.loss, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": "uniform"}, "negatives is 'uniform'; expected a function that makes negative images"),
        ({"schedule": "greedy"}, "schedule is 'greedy'; expected 'simultaneous'"),
    ],
)
def test_the_trainer_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(make(), **options)
    x, y = data()
    for made, error, text in (
        (None, TypeError, "negatives gave a NoneType; expected a tensor"),
        (x[:, 1:], ValueError, f"negatives gave shape .*{INPUTS - 1}"),
        (x * math.nan, ValueError, "negatives gave NaN or infinity"),
    ):
        net = make()
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(error, match=text):
            trainer_of(net, negatives=lambda images, generator, made=made: made).fit(x, y)
        assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(ValueError, match="negatives is a function and the network's label 'concat'"):
        trainer_of(FFNet([INPUTS, 9], CLASSES, label="concat"))
