"""ffkern.arrays on the CPU: the specification's results from NumPy arrays of every kind, in place where that is said,
without copies where none are needed, and without torch."""

from __future__ import annotations

import array
import functools
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import op_cases as cases
import pytest
import torch
from op_cases import NORM_GOODNESS, SHAPES, Fenced
from tolerance import check_parity, conditioning, to_double
from torch import Tensor

from ffkern import _build, arrays
from ffkern import reference as ref

OPTIMISERS = tuple(arrays.SLOTS)
FUNCTIONS = {n for n in arrays.__all__ if n[0].islower()} - {"build_info", "get_num_threads", "set_num_threads"}
PARITY: set[str] = set()
Named = dict[str, Any]

every_optimiser = pytest.mark.parametrize("optimiser", OPTIMISERS)
every_kind = pytest.mark.parametrize(("norm", "goodness"), NORM_GOODNESS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = arrays.get_num_threads()
    arrays.set_num_threads(1)
    yield
    arrays.set_num_threads(before)


@pytest.fixture(params=[1, 2, 3])
def count(request: pytest.FixtureRequest) -> int:
    """Threads."""
    arrays.set_num_threads(request.param)
    return int(request.param)


# ------------------------------------------------------------------------------- from torch's cases


def to_numpy(value: Any) -> Any:
    """The same memory."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, list) and any(isinstance(v, Tensor) for v in value):
        return [to_numpy(v) for v in value]
    return value


def keywords(a: Named) -> Named:
    a = {name: to_numpy(value) for name, value in a.items()}
    if "overlay" in a:
        a["on_value"], a["neutral_value"] = map(float, a.pop("overlay"))
    return a


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def blanks(like: tuple[Any, ...], fenced: Fenced) -> tuple[Any, ...]:
    """Outputs that hold nothing of the results yet, inside of a fence where that can be."""
    empty = []
    for a in like:
        fill = torch.full(a.shape, {"f": float("nan"), "i": -99, "b": False}[a.dtype.kind])
        t = fill.to(torch.from_numpy(a).dtype)
        empty.append((t if t.dtype == torch.bool else fenced.copy(t)).numpy())
    return tuple(empty)


def same(a: Any, b: Any) -> bool:
    """The same bits."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def all_same(a: Named, b: Named) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert (value is None and b[name] is None) or same(value, b[name]), name


def into_new_and_given(fenced: Fenced, function: Callable[..., Any], **a: Any) -> tuple[Any, ...]:
    """The results, from a call that makes arrays for them and from one that gets them: the same bits."""
    results = as_tuple(function(**a))
    assert all(type(r) is np.ndarray for r in results)
    out = blanks(results, fenced)
    again = as_tuple(function(**a, out=out if len(out) > 1 else out[0]))
    assert all(r is o for r, o in zip(again, out, strict=True))
    assert all(same(r, o) for r, o in zip(results, out, strict=True))
    fenced.check()
    return results


def named(names: tuple[str, ...], values: tuple[Any, ...]) -> Named:
    return {n: torch.from_numpy(v) for n, v in zip(names, values, strict=True)}


RESULTS = {
    "layer_forward": cases.NAMES,
    "shared_base": ("base", "rest_norm"),
    "shared_variants": cases.NAMES,
    "local_loss": ("loss", "coef", "stats"),
    "layer_grad": ("dweight", "dbias"),
    "shared_grad": ("dweight", "dbias"),
    "predict_goodness": ("goodness",),
    "overlay_label": ("out",),
    "concat_label": ("out",),
    "wrong_labels": ("out",),
    "hard_labels": ("out",),
    "all_wrong_labels": ("out",),
    "head_forward": ("logits",),
}


def operation(name: str) -> cases.Call:
    """A function of ffkern.arrays, called as torch's operation is. Whoever makes one compares it."""
    PARITY.add(name)
    call = SPECIAL.get(name, plain)
    return lambda **a: call(name, **a)


def plain(name: str, **a: Any) -> Named:
    """A function that changes nothing."""
    return named(RESULTS[name], into_new_and_given(Fenced(), getattr(arrays, name), **keywords(a)))


def reference(name: str) -> cases.Call:
    function = getattr(ref, name)
    return lambda **a: dict(zip(RESULTS[name], as_tuple(function(**a)), strict=True))


def peer(name: str, **a: Any) -> Named:
    before, fenced, after = a.pop("mean"), Fenced(), []

    def function(**rest: Any) -> Any:
        mean = fenced.copy(before)
        after.append(mean)
        return getattr(arrays, name)(mean=mean.numpy(), **rest)

    (p,) = into_new_and_given(fenced, function, **keywords(a))
    assert torch.equal(*after)
    return {"p": torch.from_numpy(p), "mean": after[0]}


def hybrid(name: str, **a: Any) -> Named:
    before, fenced, after = a.pop("generator"), Fenced(), []

    def function(**rest: Any) -> Any:
        generator = fenced.copy(before)
        after.append(generator)
        return getattr(arrays, name)(generator=generator.numpy(), **rest)

    results = into_new_and_given(fenced, function, **keywords(a))
    assert torch.equal(*after)
    return named(cases.HYBRID_NAMES[:2], results) | {"generator": after[0]}


LEARNS = ("weight", "bias", "weight_state", "bias_state", "step", "peer_mean", "lr", "optimiser", "hyper", "keep")


def learner(a: Named, fenced: Fenced) -> arrays.Trained:
    """Trained in the middle of a run, as the arguments say."""
    b1, b2, eps, decay, tolerance = a["hyper"]
    weight, bias = (None if a[k] is None else fenced.copy(a[k]).numpy() for k in ("weight", "bias"))
    t = arrays.Trained(
        weight,
        bias,
        lr=float(a["lr"]),
        optimiser=a["optimiser"],
        momentum=b1,
        betas=(b1, b2),
        eps=eps,
        weight_decay=decay,
        row_tolerance=tolerance,
    )
    assert t.weight is weight
    assert t.bias is bias
    assert t.weight_state.shape == (arrays.SLOTS[a["optimiser"]], *weight.shape)
    assert (t.peer_mean == 0.5).all()
    assert not any(a.any() for a in (t.weight_state, t.bias_state, t.steps, t.stats))
    t.weight_state = fenced.copy(a["weight_state"]).numpy()
    if bias is not None:
        t.bias_state = fenced.copy(a["bias_state"]).numpy()
    t.steps[...] = int(a["step"])
    t.stats[...] = cases.STATS_BEFORE.numpy()
    if a.get("peer_mean") is not None:
        t.peer_mean[...] = a["peer_mean"].numpy()
    return t


STATE = ("weight", "bias", "weight_state", "bias_state", "steps", "peer_mean", "stats", "_lr")


def state_of(t: arrays.Trained) -> Named:
    return {name: getattr(t, name) for name in STATE}


def learnt(t: arrays.Trained, a: Named) -> Named:
    """The results of a reference that learns."""
    values = [t.weight, t.bias, t.weight_state, t.bias_state if t.bias is not None else None, t.steps]
    result = {n: None if v is None else torch.from_numpy(v) for n, v in zip(cases.STEP_NAMES, values, strict=False)}
    if t.bias is None:
        result["bias_state"] = a["bias_state"]
    return result


def call_learner(name: str, a: Named, times: int = 1) -> tuple[arrays.Trained, Any, Any]:
    """Runs a learning function: what learned, what it returned, and what it kept in `out`."""
    fenced = Fenced()
    t = learner(a, fenced)
    rest = keywords({k: v for k, v in a.items() if k not in LEARNS})
    out = None
    if a.get("keep"):
        rows, units = a["sign"].shape[0], a["weight"].shape[0]
        out = (fenced.nan(rows, units).numpy(), fenced.nan(rows).numpy())
        rest["out"] = out
    before = state_of(t)
    for _ in range(times):
        returned = getattr(arrays, name)(t, **rest)
    assert all(getattr(t, n) is v for n, v in before.items()), "in place"
    fenced.check()
    return t, returned, out


def update(name: str, **a: Any) -> Named:
    t, returned, _ = call_learner(name, a)
    assert returned is None
    return learnt(t, a)


def step(name: str, times: int = 1, **a: Any) -> Named:
    t, returned, out = call_learner(name, a, times)
    assert returned is None
    h, h_norm = (None, None) if out is None else map(torch.from_numpy, out)
    mean = None if a["peer_mean"] is None else torch.from_numpy(t.peer_mean)
    stats = (torch.from_numpy(t.stats) - cases.STATS_BEFORE)[:7]
    return learnt(t, a) | {"peer_mean": mean, "h": h, "h_norm": h_norm, "stats": stats}


def head_step(name: str, **a: Any) -> Named:
    t, logits, _ = call_learner(name, a)
    assert (t.stats[3:] == cases.STATS_BEFORE.numpy()[3:]).all()
    stats = torch.from_numpy(t.stats[:3]) - cases.STATS_BEFORE[:3]
    return {"logits": torch.from_numpy(logits)} | learnt(t, a) | {"stats": stats}


# Functions that change some of their arguments.
SPECIAL: dict[str, Callable[..., Named]] = {
    "peer_update": peer,
    "hybrid_images": hybrid,
    "layer_update": update,
    "shared_update": update,
    "layer_step": step,
    "shared_step": step,
    "head_step": head_step,
}

# ------------------------------------------------------------------------------- the specification

Case = tuple[cases.Call, cases.Call, Named]


def forward_cases() -> Iterator[Case]:
    both = operation("layer_forward"), reference("layer_forward")
    for i, shape in enumerate(SHAPES):
        norm, goodness = NORM_GOODNESS[i]
        yield *both, cases.layer_arguments(*shape, norm=norm, goodness=goodness, bias=i % 2 == 0, x_norm=i % 2 == 1)
        if i < 4:
            yield *both, cases.layer_arguments(*shape, dtype=torch.float16)
    for norm, goodness in NORM_GOODNESS:
        yield *both, cases.layer_arguments(13, 113, 65, norm=norm, goodness=goodness)


def variant_cases() -> Iterator[Case]:
    for i, (images, inputs, units, classes) in enumerate([(1, 3, 1, 2), (29, 67, 45, 10), (29, 67, 45, 10)]):
        dtype = torch.float16 if i == 2 else torch.float32
        layer = cases.layer_arguments(images, inputs, units, dtype=dtype)
        base = {"x": layer["x"], "weight": layer["weight"], "classes": classes}
        yield operation("shared_base"), reference("shared_base"), base
        product, rest_norm = ref.shared_base(**base)
        for norm, goodness in NORM_GOODNESS[i::2]:
            a = {"base": product.to(dtype), "rest_norm": rest_norm, "weight": layer["weight"].float()}
            a |= {"bias": None if i else layer["bias"]} | cases.label_arguments(i + 1, images, classes)
            a |= {"norm": norm, "eps": 1e-4, "goodness": goodness}
            yield operation("shared_variants"), reference("shared_variants"), a


def loss_cases() -> Iterator[Case]:
    for rows in (0, 1, 2, 113):
        a = {"goodness": 5 * torch.randn(rows), "sign": cases.signs(rows), "row_weight": None}
        a |= {"threshold": 1.25, "temperature": 0.7}
        yield operation("local_loss"), reference("local_loss"), a
        yield operation("local_loss"), reference("local_loss"), a | {"row_weight": torch.rand(rows)}
    far = torch.tensor([1e4, -1e4, 1e30, -1e30, 200.0, -200.0, 60.0, -60.0])
    a |= {"goodness": far, "sign": torch.tensor([1.0, -1.0]).repeat(4)}
    yield operation("local_loss"), reference("local_loss"), a


def peer_cases() -> Iterator[Case]:
    both = operation("peer_update"), cases.peer_reference
    for shape in ((1, 1), (7, 3), (137, 65), (512, 300)):
        for dtype in (torch.float32, torch.float16):
            a = {"h": torch.randn(*shape).relu().to(dtype), "sign": cases.signs(shape[0]), "mean": torch.rand(shape[1])}
            yield *both, a | {"strength": 0.3, "momentum": 0.8}
    a["sign"] = -torch.ones(shape[0])
    yield *both, a | {"strength": 0.3, "momentum": 0.8}


def shared_arguments(shape: tuple[int, ...], **options: Any) -> Named:
    images, inputs, units, classes, variants = shape
    return cases.step_arguments(images, inputs, units, classes=classes, variants=variants, **options)


SHARED = [(1, 3, 1, 2, 1), (9, 40, 17, 10, 2), (37, 113, 65, 10, 3), (23, 64, 33, 3, 10)]


def gradient_cases() -> Iterator[Case]:
    for i, shape in enumerate([*SHAPES[:4], *SHARED]):
        name = "shared_grad" if len(shape) == 5 else "layer_grad"
        make = shared_arguments if len(shape) == 5 else lambda s, **options: cases.step_arguments(*s, **options)
        norm, goodness = NORM_GOODNESS[i % 5]
        for with_peer in (False, True):
            a = cases.grad_arguments(make(shape, norm=norm, goodness=goodness), with_peer)
            yield operation(name), reference(name), a
        if i % 3 == 2:
            a["x"], a["h"] = a["x"].half(), a["h"].half()
            yield operation(name), reference(name), a


def prediction_cases() -> Iterator[Case]:
    both = operation("predict_goodness"), reference("predict_goodness")
    for i, (norm, goodness) in enumerate(NORM_GOODNESS):
        a = cases.predict_arguments(67 if i % 2 else 1, [67, 33, 17, 5], 4, norm=norm, goodness=goodness, bias=i < 3)
        yield *both, a
    yield *both, cases.predict_arguments(23, [40, 19], 10)
    yield *both, cases.predict_arguments(23, [40, 19, 7], 10, dtype=torch.float16)


def head_cases() -> Iterator[Case]:
    for shape in ((1, [1], 1), (7, [5, 3], 4), (137, [65, 33, 1], 10)):
        for norm in ref.NORMS:
            a = cases.head_arguments(*shape, bias=norm != "l2", norm=norm)
            yield operation("head_forward"), reference("head_forward"), a
    a["h"] = [h.half() for h in a["h"]]
    yield operation("head_forward"), reference("head_forward"), a


def label_cases() -> Iterator[Case]:
    """Exact."""
    for rows, inputs, classes in ((0, 5, 2), (1, 1, 1), (7, 10, 10), (33, 70, 3)):
        for dtype in (torch.float32, torch.float16):
            labels, overlay = torch.randint(-1, classes, (rows,)), torch.tensor([1.75, 0.375])
            a = {"x": torch.randn(rows, inputs).to(dtype), "labels": labels, "classes": classes, "overlay": overlay}
            for name in ("overlay_label", "concat_label"):
                yield operation(name), reference(name), a
    for classes in (2, 3, 10, 1000):
        labels, u = torch.randint(0, classes, (400,)), torch.rand(400)
        u[:100], u[100:200] = 1 - 2**-24, 0.0
        a = {"labels": labels, "classes": classes}
        yield operation("wrong_labels"), reference("wrong_labels"), a | {"u": u}
        yield operation("all_wrong_labels"), reference("all_wrong_labels"), a


def hybrid_cases() -> Iterator[Case]:
    both = operation("hybrid_images"), cases.hybrid_reference
    for images, (height, width), channels, blurs in ((0, (3, 3), 1, 1), (1, (1, 7), 3, 0), (5, (28, 28), 1, 6)):
        for dtype in (torch.float32, torch.float16):
            a = cases.hybrid_arguments(images, height, width, channels, blurs=blurs, dtype=dtype, drawn=7)
            yield *both, a


SUITE = {
    "forward": forward_cases,
    "variants": variant_cases,
    "loss": loss_cases,
    "peer": peer_cases,
    "gradient": gradient_cases,
    "prediction": prediction_cases,
    "head": head_cases,
    "labels": label_cases,
    "hybrid": hybrid_cases,
}


def check_bits_of_integers(got: Named, want: Named) -> None:
    for name, value in want.items():
        if not value.is_floating_point():
            assert torch.equal(got[name], value), name


@pytest.mark.parametrize("group", SUITE)
def test_results(group, isa):
    assert arrays._arrays.cpu_path()[0] == isa
    for call, by_definition, a in SUITE[group]():
        before = {k: v.clone() for k, v in a.items() if isinstance(v, Tensor)}
        check_parity(call, by_definition, a)
        for name, value in before.items():
            assert same(a[name], value), f"{name} is an input"


def learning_cases(optimiser: str) -> Iterator[Case]:
    """Bias, peer term, kept activities, row weights and known norms, each on and off."""
    steps, updates = operation("layer_step"), operation("layer_update")
    for shape in SHAPES[:4]:
        for on in (False, True):
            options = {"optimiser": optimiser, "bias": on, "row_weight": on, "x_norm": not on}
            a = cases.step_arguments(*shape, peer=on, keep=not on, **options)
            yield steps, cases.step_reference, a
            yield updates, cases.update_reference, cases.update_arguments(a, on)
    steps, updates = operation("shared_step"), operation("shared_update")
    for i, shape in enumerate(SHARED):
        a = shared_arguments(shape, optimiser=optimiser, peer=i % 2 == 0, keep=i < 2, bias=i > 0, row_weight=i > 1)
        yield steps, cases.step_reference, a
        yield updates, cases.update_reference, cases.update_arguments(a, i == 1)
    for i, shape in enumerate([(1, [1], 1), (7, [5, 3], 4), (137, [65, 33, 1], 10)]):
        a = cases.head_step_arguments(*shape, optimiser, bias=i != 1, norm=ref.NORMS[i])
        yield operation("head_step"), cases.head_step_reference, a


@every_optimiser
def test_learning(optimiser, isa):
    assert arrays._arrays.cpu_path()[0] == isa
    for case in learning_cases(optimiser):
        check_parity(*case[:2], case[2])


@every_kind
def test_steps_of_every_kind(norm, goodness):
    for on in (False, True):
        options = {"optimiser": "sgd", "norm": norm, "goodness": goodness, "peer": on, "keep": on}
        check_parity(operation("layer_step"), cases.step_reference, cases.step_arguments(37, 50, 33, **options))
        check_parity(operation("shared_step"), cases.step_reference, shared_arguments(SHARED[3], **options))


def several_steps(times: int, **a: Any) -> Named:
    """The reference, step after step; statistics add up."""
    carried = ("weight", "bias", "weight_state", "bias_state", "step", "peer_mean")
    stats = torch.zeros(7, dtype=torch.float64)
    for _ in range(times):
        result = cases.step_reference(**a)
        a |= {k: result[k] for k in carried}
        stats = stats + result["stats"]
    return result | {"stats": stats}


@every_optimiser
def test_several_steps(optimiser):
    """From a fresh start: state, count, peer mean and statistics carry over."""
    options = {"optimiser": optimiser, "fresh": True, "peer": True, "keep": True}
    for name, a in (
        ("layer_step", cases.step_arguments(23, 40, 17, x_norm=True, **options)),
        ("shared_step", shared_arguments(SHARED[1], **options)),
    ):
        a["lr"] = torch.tensor(0.01, dtype=torch.float64)
        got = check_parity(functools.partial(step, name, 4), lambda **a: several_steps(4, **a), a, draws=4)
        assert int(got["step"]) == 4
        assert float(got["stats"][5]) == 4 * float((a["sign"] > 0).sum())


def hard_label_cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.float16):
        logits, labels, u = (3 * torch.randn(900, 7)).to(dtype), torch.randint(0, 7, (900,)), torch.rand(900)
        u[:100], u[100:200] = 1 - 2**-24, 0.0
        yield operation("hard_labels"), reference("hard_labels"), {"logits": logits, "labels": labels, "u": u}


def test_hard_labels_follow_the_definition():
    for call, by_definition, a in hard_label_cases():
        got, want = call(**a)["out"], by_definition(**a)["out"]
        logits, labels, u = a["logits"], a["labels"], a["u"]
        others = logits.double().masked_fill(torch.nn.functional.one_hot(labels, 7).bool(), -torch.inf)
        sure = (others.softmax(1).cumsum(1) - u.double()[:, None]).abs().amin(1) > 1e-6
        assert int(sure.sum()) > 600
        assert torch.equal(got[sure], want[sure])
        assert not bool((got == labels).any())


def test_every_function_is_compared_with_its_definition():
    """By the cases of test_results, test_learning and test_hard_labels_follow_the_definition."""
    PARITY.clear()  # what other tests made does not count
    for make in (*SUITE.values(), functools.partial(learning_cases, "adam"), hard_label_cases):
        list(make())
    assert PARITY == FUNCTIONS


def test_the_bound_can_fail():
    a = cases.step_arguments(13, 113, 65, keep=True)
    exact = cases.step_reference(**to_double(a))
    assert conditioning(cases.step_reference, a, exact, ("sign", "lr"))["weight"] < 1e-5
    for name in ("weight", "bias", "weight_state", "h", "stats"):

        def worse(name: str = name, **arguments: Any) -> Named:
            got = step("layer_step", **arguments)
            return got | {name: got[name] * (1 + 1e-3)}

        with pytest.raises(AssertionError, match=name):
            check_parity(worse, cases.step_reference, a)


# ------------------------------------------------------------------------------- threads


def work() -> list[tuple[cases.Call, cases.Call, Named]]:
    """Large enough to be cut into parts."""
    predict = operation("predict_goodness"), reference("predict_goodness")
    gradient = cases.grad_arguments(cases.step_arguments(300, 250, 333), True)
    shared = shared_arguments((100, 250, 333, 10, 3), optimiser="sgd", peer=True)
    return [
        (operation("layer_forward"), reference("layer_forward"), cases.layer_arguments(300, 250, 333)),
        (operation("layer_grad"), reference("layer_grad"), gradient),
        list(peer_cases())[-2],
        (operation("layer_step"), cases.step_reference, cases.step_arguments(300, 250, 333, peer=True, keep=True)),
        (operation("shared_step"), cases.step_reference, shared),
        (*predict, cases.predict_arguments(300, [250, 133, 70], 10)),
        (operation("head_step"), cases.head_step_reference, cases.head_step_arguments(300, [250, 33], 10, "ema")),
        (operation("hybrid_images"), cases.hybrid_reference, cases.hybrid_arguments(50, 28, 28, 3)),
    ]


def test_any_number_of_threads_and_repeats(count):
    for call, by_definition, a in work():
        first = check_parity(call, by_definition, a, draws=1)
        for _ in range(3):
            all_same(call(**a), first)


def test_products_do_not_depend_on_the_number_of_threads(isa):
    """Neither do masks. Sums over rows (statistics, biases) may."""
    a = cases.layer_arguments(300, 250, 333)
    p, images = cases.predict_arguments(300, [250, 133, 70], 10), cases.hybrid_arguments(50, 28, 28, 3)
    base = {"x": a["x"], "weight": a["weight"], "classes": 10}
    found = []
    for count in (1, 2, 3, 7):
        arrays.set_num_threads(count)
        results = operation("layer_forward")(**a) | operation("shared_base")(**base)
        results |= operation("hybrid_images")(**images)
        found.append(results | {"predicted": operation("predict_goodness")(**p)["goodness"]})
    for other in found[1:]:
        all_same(found[0], other)


def test_two_python_threads_at_once(count):
    arguments = [cases.step_arguments(200, 150, 120, peer=True, keep=True) for _ in range(2)]
    call = operation("layer_step")
    alone = [call(**a) for a in arguments]
    results: list[list[Named]] = [[], []]

    def learn(i: int) -> None:
        results[i].extend(call(**arguments[i]) for _ in range(8))

    workers = [threading.Thread(target=learn, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for mine, want in zip(results, alone, strict=True):
        assert len(mine) == 8
        for got in mine:
            all_same(got, want)


def test_outputs_belong_to_the_thread_that_gave_them():
    """Another thread's call in the middle does not take them."""
    x, w = np.ones((64, 700), np.float32), np.ones((300, 700), np.float32)
    first = arrays.layer_forward(x, w)
    right: dict[bool, int] = {True: 0, False: 0}

    def forward(own: bool) -> None:
        for _ in range(100):
            got = arrays.layer_forward(x, w, out=first if own else None)
            right[own] += all((g is f) == own for g, f in zip(got, first, strict=True))

    workers = [threading.Thread(target=forward, args=(own,)) for own in (True, False)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert right == {True: 100, False: 100}


@pytest.mark.parametrize("shape", [(1500, 3000, 2000), (5000, 1, 9000)], ids=["product", "rows"])
def test_other_python_threads_run_meanwhile(shape):
    """During the product, and during what is done row by row."""
    rows, inputs, units = shape
    x, w = np.ones((rows, inputs), np.float32), np.ones((units, inputs), np.float32)
    out = arrays.layer_forward(x, w)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    clock = threading.Thread(target=tick)
    clock.start()
    begin = time.perf_counter()
    arrays.layer_forward(x, w, out=out)
    end = time.perf_counter()
    done.set()
    clock.join()
    length = end - begin
    assert length > 0.02
    assert sum(begin + 0.2 * length < t < end - 0.2 * length for t in ticks) >= 3


def test_number_of_threads(count):
    assert arrays.get_num_threads() == count
    for bad in (0, -1, 65537, 2**31, 2**80):
        with pytest.raises(ValueError, match=rf"count is {bad}; expected 1 to 65536"):
            arrays.set_num_threads(bad)
    for wrong in (1.5, "2", None):
        with pytest.raises(TypeError, match=r"count is .*; expected an integer"):
            arrays.set_num_threads(wrong)
    assert arrays.get_num_threads() == count
    arrays.set_num_threads(np.int64(5))
    assert arrays.get_num_threads() == 5


# ------------------------------------------------------------------------------- NumPy's arrays


def transposed(a: Any) -> Any:
    return np.ascontiguousarray(a.T).T


def pitched(a: Any) -> Any:
    wide = np.full((*a.shape[:-1], a.shape[-1] + 7), 3, a.dtype)
    wide[..., 5:-2] = a
    return wide[..., 5:-2]


def backwards(a: Any) -> Any:
    every = (slice(None, None, -1),) * a.ndim
    return a[every].copy()[every]


def spread(a: Any) -> Any:
    wide = np.full((*a.shape[:-1], 3 * a.shape[-1]), 3, a.dtype)
    wide[..., 1::3] = a
    return wide[..., 1::3]


def misaligned(a: Any) -> Any:
    memory = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    memory[...] = a
    return memory


def field(a: Any) -> Any:
    """Strides that are no multiple of an element."""
    records = np.zeros(a.shape, [("flag", "u1"), ("value", a.dtype)])
    records["value"] = a
    return records["value"]


def wide_field(a: Any) -> Any:
    """Also of one row, whose stride is never used."""
    records = np.zeros(a.shape[:1], [("flag", "u1"), ("value", a.dtype, (*a.shape[1:], 2))])
    records["value"][..., 0] = a
    return records["value"][..., 0]


def read_only(a: Any) -> Any:
    a = a.copy()
    a.setflags(write=False)
    return a


def other_kind(a: Any) -> Any:
    return a.astype(np.float64 if a.dtype.kind == "f" else np.int16)


def long_kind(a: Any) -> Any:
    return a.astype(np.longdouble if a.dtype.kind == "f" else np.int32)


def swapped(a: Any) -> Any:
    return a.astype(a.dtype.newbyteorder())


class Own(np.ndarray):
    """A subclass of somebody's."""


KINDS: dict[str, Callable[[Any], Any]] = {
    "transposed": transposed,
    "pitched": pitched,
    "backwards": backwards,
    "spread": spread,
    "misaligned": misaligned,
    "field": field,
    "wide_field": wide_field,
    "read_only": read_only,
    "float64": other_kind,
    "longdouble": long_kind,
    "swapped": swapped,
    "matrix": lambda a: a.view(np.matrix) if a.ndim == 2 else a,
    "subclass": lambda a: a.view(Own),
    "list": lambda a: a.tolist(),
    "memoryview": memoryview,
    "torch": lambda a: torch.from_numpy(a.copy()),
    "strided torch": lambda a: torch.from_numpy(spread(a)),
    "torch float64": lambda a: torch.from_numpy(other_kind(a)),
}


def turned(a: Named, kind: Callable[[Any], Any]) -> Named:
    def turn(value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
            return [kind(v) for v in value]
        return kind(value) if isinstance(value, np.ndarray) and value.ndim else value

    return {name: turn(value) for name, value in a.items()}


def readers(rows: int) -> list[tuple[Callable[..., Any], Named]]:
    """Every function that only reads, and those that learn (into a copy), with plain arguments."""
    s = cases.step_arguments(rows, 34, 19, peer=True, keep=True)
    v = shared_arguments((rows, 34, 19, 10, 3), peer=True, keep=True)
    base = ref.shared_base(v["x"], v["weight"], 10)
    variants = {"base": base[0], "rest_norm": base[1]}
    variants |= {k: v[k] for k in ("weight", "bias", "labels", "overlay", "classes")}
    head = cases.head_step_arguments(rows, [9, 6], 5, "adam")
    label = {"x": s["x"], "labels": torch.randint(0, 5, (rows,)), "classes": 5, "overlay": torch.tensor([1.5, 0.1])}

    def forward(**a: Any) -> Any:
        return arrays.layer_forward(**a)

    def learn(name: str, a: Named) -> tuple[Callable[..., Any], Named]:
        def run(**rest: Any) -> Any:
            t = learner(a, Fenced())
            returned = getattr(arrays, name)(t, **rest)
            return [*state_of(t).values(), returned]

        return run, {k: w for k, w in a.items() if k not in LEARNS}

    found: list[tuple[Callable[..., Any], Named]] = [
        (forward, cases.layer_arguments(rows, 34, 19, x_norm=True)),
        (arrays.shared_base, {"x": v["x"], "weight": v["weight"], "classes": 10}),
        (arrays.shared_variants, variants),
        (arrays.local_loss, {"goodness": torch.randn(rows), "sign": s["sign"], "row_weight": s["row_weight"]}),
        (arrays.layer_grad, cases.grad_arguments(s, True)),
        (arrays.shared_grad, cases.grad_arguments(v, True)),
        (arrays.predict_goodness, cases.predict_arguments(rows, [34, 19, 7], 10)),
        (arrays.overlay_label, label),
        (arrays.concat_label, label),
        (arrays.wrong_labels, {"labels": label["labels"], "u": torch.rand(rows), "classes": 5}),
        (arrays.hard_labels, {"logits": torch.randn(rows, 5), "labels": label["labels"], "u": torch.rand(rows)}),
        (arrays.all_wrong_labels, {"labels": label["labels"], "classes": 5}),
        (arrays.head_forward, {k: head[k] for k in ("h", "h_norm", "weight", "bias")}),
        learn("layer_update", cases.update_arguments(s, True)),
        learn("shared_update", cases.update_arguments(v, True)),
        learn("layer_step", s),
        learn("shared_step", v),
        learn("head_step", head),
    ]

    def means(**a: Any) -> Any:
        mean = np.full(19, 0.25, np.float32)
        return mean, arrays.peer_update(mean=mean, **a)

    def masks(**a: Any) -> Any:
        generator = np.array([1, 2])
        return generator, *arrays.hybrid_images(generator=generator, height=17, width=2, **a)

    found.append((means, {"h": torch.rand(rows, 19), "sign": s["sign"]}))
    found.append((masks, {"x": s["x"], "other": torch.randn(rows, 34)}))
    return [(function, keywords(a)) for function, a in found]


def halved(a: Named) -> Named:
    """Rows in float16, as far as there are any."""

    def half(value: Any) -> Any:
        return [v.astype(np.float16) for v in value] if isinstance(value, list) else value.astype(np.float16)

    return {name: half(v) if name in ("x", "other", "h", "base", "logits") else v for name, v in a.items()}


OTHER_DTYPE = {"float64", "longdouble", "list", "torch float64"}


@pytest.mark.parametrize("rows", [1, 21])
@pytest.mark.parametrize(
    ("kind", "half"), [(k, False) for k in KINDS] + [(k, True) for k in KINDS if k not in OTHER_DTYPE]
)
def test_every_kind_of_array_gives_the_same_bits(kind, half, rows):
    for function, a in readers(rows):
        a = halved(a) if half else a
        want = as_tuple(function(**a))
        views = turned(a, KINDS[kind])
        kept = turned(a, np.copy)
        got = as_tuple(function(**views))
        for g, w in zip(got, want, strict=True):
            parts = zip(g, w, strict=True) if isinstance(g, list) else [(g, w)]
            assert all((x is None and y is None) or same(x, y) for x, y in parts), function.__name__
        for name, value in kept.items():  # inputs stay as they are
            if isinstance(value, np.ndarray):
                assert np.array_equal(np.asarray(views[name], value.dtype), value), name


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64])
def test_labels_of_any_integer_dtype(dtype):
    x = np.ones((4, 6), np.float32)
    want = ref.overlay_label(torch.ones(4, 6), torch.tensor([0, 1, 2, 2]), 3, torch.tensor([1.0, 0.1]))
    got = arrays.overlay_label(x, np.array([0, 1, 2, 2], dtype), classes=3)
    assert np.array_equal(got, want.numpy())


@pytest.mark.parametrize("labels", [np.zeros(4), np.zeros(4, bool), np.zeros(4, "c8"), ["a"] * 4, [None] * 4, None])
def test_labels_that_are_no_integers(labels):
    with pytest.raises(TypeError, match=r"labels is .*; expected"):
        arrays.overlay_label(np.ones((4, 6), np.float32), labels, classes=3)


def test_labels_beyond_int64_do_not_wrap_around():
    """2^64 - 1 is not -1, the neutral label."""
    with pytest.raises(ValueError, match=r"labels holds 18446744073709551615; expected a number that fits"):
        arrays.overlay_label(np.ones((1, 6), np.float32), np.array([2**64 - 1], np.uint64), classes=3)


@pytest.mark.parametrize("dtype", ["i8", "u1", "?", "c8", "c16", "U3", "O", "S4", "M8[s]"])
def test_dtypes_that_are_no_floats(dtype):
    bad = np.zeros((3, 4), dtype)
    w, ones = np.ones((2, 4), np.float32), np.ones(3, np.float32)
    for call, name in (
        (lambda: arrays.layer_forward(bad, w), "x"),
        (lambda: arrays.layer_forward(w, bad), "weight"),
        (lambda: arrays.layer_forward(w, w, bad[0]), "bias"),
        (lambda: arrays.local_loss(ones, ones, bad[:, 0]), "row_weight"),
        *([] if dtype == "i8" else [(lambda: arrays.local_loss(ones, bad[:, 0]), "sign")]),  # signs may be integers
        (lambda: arrays.predict_goodness(w, [bad], [None], classes=2), "weights"),
        (lambda: arrays.head_forward([bad], [ones], w), "h"),
    ):
        with pytest.raises(TypeError, match=rf"^{name} is .*; expected floating point"):
            call()


def test_masked_arrays_are_refused_wherever_they_come():
    """Their mask would be ignored without a word."""
    x, w, ones = (np.ones(s, np.float32) for s in ((3, 4), (2, 4), 3))
    m = np.ma.masked_array
    for call, name in (
        (lambda: arrays.layer_forward(m(x, mask=x > 0), w), "x"),
        (lambda: arrays.local_loss(ones, m(ones)), "sign"),
        (lambda: arrays.overlay_label(x, m(np.zeros(3, int)), classes=2), "labels"),
        (lambda: arrays.overlay_label(x, np.zeros(3, int), classes=2, out=m(np.ones_like(x))), "out"),
        (lambda: arrays.peer_update(x, ones, m(np.ones(4, np.float32))), "mean"),
        (lambda: arrays.hybrid_images(x, x, m(np.zeros(2, int)), height=2, width=2), "generator"),
        (lambda: arrays.Trained(m(w), lr=0.1), "weight"),
        (lambda: arrays.Trained(w, m(np.ones(2, np.float32)), lr=0.1), "bias"),
    ):
        with pytest.raises(TypeError, match=rf"{name}.* is a masked array; expected one without a mask"):
            call()


def test_scalars_and_0_dimensional_arrays():
    x, w = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)
    loss = arrays.local_loss(np.ones(3, np.float32), np.ones(3, np.float32))
    assert loss.loss.shape == ()
    out = (np.full((), np.nan, np.float32), np.empty(3, np.float32), np.empty(9))
    assert arrays.local_loss(np.ones(3), np.ones(3), out=out).loss is out[0]
    assert out[0] == loss.loss
    options = {"eps": np.float32(0.5), "norm": np.str_("l2")}
    assert same(arrays.layer_forward(x, w, **options).h, arrays.layer_forward(x, w, eps=0.5, norm="l2").h)
    assert same(arrays.overlay_label(x, [0, 1, 0], classes=np.int8(2)), arrays.overlay_label(x, [0, 1, 0], classes=2))
    for scalar in (1.0, np.float32(1), np.ones((), np.float32)):
        with pytest.raises(ValueError, match=r"x has shape \[\]; expected a matrix"):
            arrays.layer_forward(scalar, w)
        with pytest.raises(ValueError, match=r"x has shape \[\]; expected a matrix"):
            arrays.layer_step(arrays.Trained(w.copy(), lr=0.1), scalar, np.ones(3, np.float32))


def test_dlpack_tensors_that_numpy_cannot_read():
    w = np.ones((2, 4), np.float32)
    for bad in (torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(3, 4, requires_grad=True)):
        with pytest.raises(TypeError, match=r"x is a Tensor that NumPy cannot read: "):
            arrays.layer_forward(bad, w)
    with pytest.raises(TypeError, match=r"x is int32; expected floating point"):
        arrays.layer_forward(torch.ones(3, 4, dtype=torch.int32), w)
    with pytest.raises(ValueError, match=r"^weight: .*require gradient"):
        arrays.Trained(torch.ones(3, 4, requires_grad=True), lr=0.1)


# ------------------------------------------------------------------------------- values


@pytest.mark.parametrize("norm", ref.NORMS)
def test_special_values_stay_in_their_rows(norm, isa):
    a = cases.layer_arguments(41, 29, 21, norm=norm, goodness="sum_sq")
    plain = operation("layer_forward")(**a)
    a["x"] = a["x"].clone()
    for row, value in enumerate((float("nan"), float("inf"), float("-inf"), 1e30, 1e-30, 1e-40, -0.0)):
        a["x"][row, row::7] = value
    a["x"][7], a["x"][8], a["x"][9] = 1e30, 1e-30, 1e-42
    got, eager = operation("layer_forward")(**a), cases.forward_reference(**a)
    for name, value in plain.items():
        assert torch.equal(got[name][10:], value[10:]), name
    for name, value in eager.items():
        assert torch.equal(got[name].isnan(), value.isnan()), name
        assert torch.equal(got[name].isinf(), value.isinf()), name
        finite = value.isfinite()
        assert torch.allclose(got[name][finite], value[finite], rtol=1e-4, atol=1e-4), name
    assert got["h"][0].isnan().all()


def test_denormals_are_numbers(isa):
    """Nothing is flushed to zero."""
    x = np.full((9, 33), 3e-41, np.float32)
    h = arrays.layer_forward(x, np.full((5, 33), 0.25, np.float32), norm="none").h
    assert np.allclose(h, 33 * 0.25 * float(x[0, 0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["layer_step", "shared_step"])
def test_nan_in_a_step_reaches_the_weights(name):
    a = cases.step_arguments(6, 8, 5, optimiser="sgd", keep=True, row_weight=False)
    if name == "shared_step":
        a = shared_arguments((6, 8, 5, 3, 2), optimiser="sgd", row_weight=False)
    a["x"][2, 5] = float("nan")
    a["sign"] = torch.ones_like(a["sign"])
    got, want = operation(name)(**a), cases.step_reference(**to_double(a))
    for key in ("weight", "bias", "weight_state"):
        assert torch.equal(got[key].isnan(), want[key].isnan()), key
    assert got["bias"].isnan().all()


def test_no_rows():
    for call, by_definition, a in (
        (operation("layer_forward"), reference("layer_forward"), cases.layer_arguments(0, 9, 4)),
        (operation("layer_grad"), reference("layer_grad"), cases.grad_arguments(cases.step_arguments(0, 9, 4))),
        (operation("shared_grad"), reference("shared_grad"), cases.grad_arguments(shared_arguments((0, 9, 4, 3, 2)))),
        (operation("predict_goodness"), reference("predict_goodness"), cases.predict_arguments(0, [9, 4, 3], 5)),
        (operation("head_forward"), reference("head_forward"), cases.head_arguments(0, [9, 4], 5)),
    ):
        got, want = call(**a), by_definition(**a)
        assert all(torch.equal(got[k], want[k]) and got[k].dtype == want[k].dtype for k in want)
    none = np.zeros(0, np.int64)
    assert arrays.wrong_labels(none, np.zeros(0), classes=3).shape == (0,)
    assert arrays.all_wrong_labels(none, classes=3).shape == (2, 0)
    assert arrays.hard_labels(np.zeros((0, 3)), none, np.zeros(0)).shape == (0,)
    mean = np.ones(4, np.float32)
    assert not arrays.peer_update(np.zeros((0, 4)), np.zeros(0), mean).any()
    assert (mean == 1).all()


# ------------------------------------------------------------------------------- memory

BIG = (2000, 784, 8)  # x is 6 MiB, what is computed from it 64 KiB
SMALL = 16 << 10  # objects of Python and NumPy


def peak(function: Callable[[], Any]) -> int:
    """Most bytes that NumPy and Python held beyond those before."""
    function()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def big_calls() -> dict[str, tuple[Callable[[Any, Any, Any], Any], int]]:
    """With x, labels and the outputs in `out`; and the scratch in bytes that each may take."""
    rows, inputs, units = BIG
    w, sign = np.ones((units, inputs), np.float32), np.ones(rows, np.float32)
    h, vector = np.ones((rows, units), np.float32), np.ones(rows, np.float32)
    t = arrays.Trained(w.copy(), lr=0.1)
    gradient_scratch = 4 * arrays._arrays.cpu.update_workspace(w, rows, 10, 1, "adam", False)
    predict_scratch = 4 * 1024 * 1024  # predict.cpp: blocks of rows, some hundred KiB; not a copy of x
    mean, generator = np.ones(inputs, np.float32), np.array([1, 2])
    return {
        "layer_forward": (lambda x, y, out: arrays.layer_forward(x, w, out=out), 0),
        "shared_base": (lambda x, y, out: arrays.shared_base(x, w, classes=10, out=out), 0),
        "layer_grad": (lambda x, y, out: arrays.layer_grad(x, h, vector, vector, out=out), gradient_scratch),
        "shared_grad": (
            lambda x, y, out: arrays.shared_grad(x, h, vector, vector, labels=y[None], classes=10, out=out),
            gradient_scratch,
        ),
        "layer_update": (lambda x, y, out: arrays.layer_update(t, x, h, vector, vector), 0),
        "layer_step": (lambda x, y, out: arrays.layer_step(t, x, sign, out=(h, vector)), 0),
        "shared_step": (lambda x, y, out: arrays.shared_step(t, x, y[None], sign, classes=10), 0),
        "predict_goodness": (
            lambda x, y, out: arrays.predict_goodness(x, [w], [None], classes=10, out=out),
            predict_scratch,
        ),
        "overlay_label": (lambda x, y, out: arrays.overlay_label(x, y, classes=10, out=out), 0),
        "concat_label": (lambda x, y, out: arrays.concat_label(x, y, classes=10, out=out), 0),
        "hybrid_images": (
            lambda x, y, out: arrays.hybrid_images(x, x, generator, height=28, width=28, out=out),
            64 * 784,
        ),
        "hard_labels": (lambda x, y, out: arrays.hard_labels(x, y, vector, out=out), 0),
        "head_forward": (lambda x, y, out: arrays.head_forward([x], [vector], w, out=out), 4 * rows * (2 * units + 4)),
        "peer_update": (lambda x, y, out: arrays.peer_update(x, sign, mean, out=out), 4 * 2 * inputs),
    }


NO_PITCH = {"hard_labels", "peer_update"}  # these kernels take one block


@pytest.mark.parametrize("name", big_calls())
def test_copies_are_made_only_where_they_are_needed(name):
    call, scratch = big_calls()[name]
    x, labels = np.random.default_rng(1).random(BIG[:2], np.float32), np.zeros(BIG[0], np.int64)
    results = call(x, labels, None)
    out = None if results is None else tuple(np.empty_like(r) for r in as_tuple(results))
    allowed = scratch + SMALL
    assert allowed < x.nbytes
    assert peak(lambda: call(x, labels, out)) <= allowed
    seen = peak(lambda: call(pitched(x), labels, out)) - peak(lambda: pitched(x))
    assert (seen > 0.9 * x.nbytes) if name in NO_PITCH else (seen <= allowed)
    for copied in (np.asfortranarray(x), x.astype(np.float64)):
        assert peak(lambda copied=copied: call(copied, labels, out)) > 0.9 * x.nbytes


def test_labels_in_int64_are_not_copied():
    u, labels = np.random.default_rng(1).random(200_000, np.float32), np.zeros(200_000, np.int64)
    out = np.empty_like(labels)
    assert peak(lambda: arrays.wrong_labels(labels, u, classes=3, out=out)) < SMALL
    assert peak(lambda: arrays.wrong_labels(labels.astype(np.int32), u, classes=3, out=out)) > labels.nbytes


def test_results_of_shared_variants_and_losses_go_where_they_are_told():
    base, w = np.ones((2000, 50), np.float32), np.ones((50, 60), np.float32)
    labels, rest = np.zeros((10, 2000), np.int64), np.ones(2000, np.float32)
    out = arrays.shared_variants(base, rest, w, labels=labels, classes=10)
    call = lambda: arrays.shared_variants(base, rest, w, labels=labels, classes=10, out=out)  # noqa: E731
    assert peak(call) < SMALL + 4 * 16 * 50 * 2
    loss = arrays.local_loss(out.goodness, out.goodness)
    assert peak(lambda: arrays.local_loss(out.goodness, out.goodness, out=loss)) < SMALL


def test_foreign_memory_is_written_in_place():
    """torch by DLPack, array.array and memoryview by the buffer protocol."""
    a = cases.step_arguments(9, 14, 5, optimiser="sgd", fresh=True)
    x, sign = a["x"].numpy(), a["sign"].numpy()
    plain = arrays.Trained(a["weight"].numpy().copy(), a["bias"].numpy().copy(), lr=0.3, optimiser="sgd")
    arrays.layer_step(plain, x, sign)

    weight, bias = a["weight"].clone(), a["bias"].clone()
    pointer = weight.data_ptr()
    by_torch = arrays.Trained(weight, bias, lr=0.3, optimiser="sgd")
    arrays.layer_step(by_torch, a["x"], a["sign"])
    assert by_torch.weight is weight
    assert weight.data_ptr() == pointer
    assert same(weight, plain.weight)
    assert same(bias, plain.bias)
    assert not torch.equal(weight, a["weight"])

    memory = bytearray(a["weight"].numpy().tobytes())
    view = memoryview(memory).cast("f", (5, 14))
    by_buffer = arrays.Trained(view, array.array("f", a["bias"].tolist()), lr=0.3, optimiser="sgd")
    arrays.layer_step(by_buffer, x, sign)
    assert bytes(memory) == plain.weight.tobytes()
    assert by_buffer.bias.tobytes() == plain.bias.tobytes()

    h, p, mean = torch.zeros(9, 5), array.array("f", [0.0] * 14), array.array("f", [0.5] * 14)
    arrays.layer_step(by_torch, x, sign, out=(h, None))
    assert h.any()
    want = np.full(14, 0.5, np.float32)
    term = arrays.peer_update(x, sign, want)
    assert arrays.peer_update(x, sign, mean, out=p) is p
    assert (p.tobytes(), mean.tobytes()) == (term.tobytes(), want.tobytes())


# ------------------------------------------------------------------------------- refusals


class World:
    """Arguments of a small network, and everything that calls could change."""

    def __init__(self) -> None:
        r = np.random.default_rng()
        f = lambda *shape: r.random(shape, np.float32)  # noqa: E731
        self.x, self.weight, self.bias, self.sign = f(6, 12), f(5, 12), f(5), np.float32([1, -1, 1, 0, 1, -1])
        self.labels, self.sign2 = np.array([[0, 1, 2, 3, 0, 1], [1, 2, 3, 0, 1, -1]]), f(12)
        self.act = arrays.Activities(f(6, 5), f(6), f(6), f(6))
        self.mean, self.generator = f(5), np.array([3, 4])
        self.t = arrays.Trained(f(5, 12), f(5), lr=0.1)
        self.head = arrays.Trained(f(4, 5), f(4), lr=0.1)
        self.out = arrays.Activities(f(6, 5), f(6), f(6), f(6))
        self.half = self.x.astype(np.float16)
        self.image, self.wide = f(6, 12), f(6, 24)

    def snapshot(self) -> dict[str, bytes]:
        found: Named = {}
        for name, value in vars(self).items():
            if isinstance(value, arrays.Trained):
                found |= {f"{name}.{n}": v for n, v in state_of(value).items()}
            elif isinstance(value, tuple):
                found |= {f"{name}.{i}": v for i, v in enumerate(value)}
            else:
                found[name] = value
        return {name: np.asarray(v).tobytes() for name, v in found.items()}

    def forward(self, **changed: Any) -> Any:
        return arrays.layer_forward(**({"x": self.x, "weight": self.weight, "bias": self.bias} | changed))

    def step(self, x: Any = ..., sign: Any = ..., trained: Any = ..., **changed: Any) -> None:
        x, sign, trained = (d if v is ... else v for v, d in ((x, self.x), (sign, self.sign), (trained, self.t)))
        arrays.layer_step(trained, x, sign, **changed)

    def shared(self, x: Any = ..., labels: Any = ..., classes: Any = 4, **changed: Any) -> None:
        x, labels = (d if v is ... else v for v, d in ((x, self.x), (labels, self.labels)))
        arrays.shared_step(self.t, x, labels, self.sign2, classes=classes, **changed)

    def update(self, **changed: Any) -> None:
        a = {"x": self.x, "h": self.act.h, "scale": self.act.scale, "coef": self.act.goodness} | changed
        arrays.layer_update(self.t, **a)

    def changed(self, **state: Any) -> arrays.Trained:
        for name, value in state.items():
            setattr(self.t, name, value)
        return self.t


def zeros(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape, dtype)


REFUSED: dict[str, tuple[Callable[[World], Any], type[Exception], str]] = {
    "inputs": (lambda w: w.forward(x=zeros(6, 11)), ValueError, r"x has shape \[6, 11\]; expected \[\*, 12\]"),
    "vector": (lambda w: w.forward(x=zeros(12)), ValueError, r"x has shape \[12\]; expected a matrix"),
    "bias": (lambda w: w.forward(bias=zeros(4)), ValueError, r"bias has shape \[4\]; expected \[5\]"),
    "no units": (lambda w: w.forward(weight=zeros(0, 12), bias=None), ValueError, r"weight has shape \[0, 12\]"),
    "x_norm": (lambda w: w.forward(x_norm=zeros(5)), ValueError, r"x_norm has shape \[5\]; expected \[6\]"),
    "norm": (lambda w: w.forward(norm="L2"), ValueError, r"norm is 'L2'; expected 'l2', 'rms' or 'none'"),
    "eps": (lambda w: w.forward(eps=-1), ValueError, r"eps is -1; expected a number >= 0"),
    "goodness": (lambda w: w.forward(goodness="x"), ValueError, r"goodness is 'x'; expected 'sum_sq'"),
    "None": (lambda w: w.forward(x=None), TypeError, r"x is None; expected an array"),
    "no units to train": (
        lambda w: arrays.layer_step(arrays.Trained(zeros(0, 12), lr=0.1), w.x, w.sign),
        ValueError,
        r"weight has shape \[0, 12\]; expected at least one unit and one input",
    ),
    "no inputs to train": (
        lambda w: arrays.layer_update(
            arrays.Trained(zeros(5, 0), lr=0.1), zeros(6, 0), zeros(6, 5), zeros(6), zeros(6)
        ),
        ValueError,
        r"weight has shape \[5, 0\]; expected at least one unit and one input",
    ),
    "bias length": (
        lambda w: arrays.Trained(w.weight, zeros(4), lr=0.1),
        ValueError,
        r"bias has shape \[4\]; expected \[5\], one number a unit",
    ),
    "bias in weight": (
        lambda w: (lambda square: arrays.Trained(square, square[0], lr=0.1))(zeros(5, 5)),
        ValueError,
        r"Trained: bias shares memory",
    ),
    "weights as rows": (
        lambda w: (lambda t: arrays.layer_step(t, t.weight, zeros(5)))(arrays.Trained(zeros(5, 12), lr=0.1)),
        ValueError,
        r"layer_step: weight shares memory with an input",
    ),
    "rate": (lambda w: arrays.Trained(w.weight, lr=None), ValueError, r"lr is None; expected a finite number >= 0"),
    "rate nan": (lambda w: arrays.Trained(w.weight, lr=np.nan), ValueError, r"lr is nan; expected a finite number"),
    "rate set": (
        lambda w: setattr(arrays.Trained(w.weight, lr=1), "lr", -1),
        ValueError,
        r"lr is -1; expected a finite number >= 0",
    ),
    "no trained": (
        lambda w: arrays.layer_step(w.weight, w.x, w.sign),
        TypeError,
        r"trained is ndarray; expected arrays.Trained",
    ),
    "peer strength": (
        lambda w: arrays.layer_step(arrays.Trained(w.weight, lr=0.1), w.x, w.sign, peer_strength=np.nan),
        ValueError,
        r"ffkern.arrays.layer_step: peer strength is nan; expected a finite number",
    ),
    "text": (lambda w: w.forward(x="abc"), TypeError, r"x is <U3; expected floating point"),
    "out dtype": (
        lambda w: w.forward(out=w.out._replace(h=zeros(6, 5, dtype=np.float64))),
        ValueError,
        r"out 'h' is float64; expected float32",
    ),
    "out shape": (
        lambda w: w.forward(out=w.out._replace(h=zeros(5, 6))),
        ValueError,
        r"out 'h' has shape \[5, 6\]; expected \[6, 5\]",
    ),
    "out order": (
        lambda w: w.forward(out=w.out._replace(h=np.zeros((6, 5), np.float32, order="F"))),
        ValueError,
        r"out 'h' is not contiguous \(C order\)",
    ),
    "out byte order": (
        lambda w: w.forward(out=w.out._replace(h=zeros(6, 5, dtype=">f4"))),
        ValueError,
        r"out 'h' is another dtype; expected float32",
    ),
    "out read-only": (
        lambda w: w.forward(out=w.out._replace(scale=read_only(zeros(6)))),
        ValueError,
        r"out 'scale' is read-only",
    ),
    "out misaligned": (
        lambda w: w.forward(out=w.out._replace(h=misaligned(zeros(6, 5)))),
        ValueError,
        r"out 'h': .* is not aligned",
    ),
    "out number": (
        lambda w: w.forward(out=w.out[:3]),
        ValueError,
        r"layer_forward: out has 3 entries; expected a tuple of 4: h, goodness, scale, h_norm",
    ),
    "out list": (lambda w: w.forward(out=list(w.out)[:3]), ValueError, r"out has 3 entries; expected a tuple of 4"),
    "out no array": (
        lambda w: w.forward(out=(1, 2, 3, 4)),
        TypeError,
        r"out 'h' is int; expected an array that can be written in place",
    ),
    "out without elements": (
        lambda w: w.forward(out=w.out._replace(h=zeros(6, 5, dtype="V0"))),
        ValueError,
        r"an array has elements of 0 bytes; expected numbers",
    ),
    "out is x": (
        lambda w: arrays.overlay_label(w.x, w.labels[0], classes=4, out=w.x),
        ValueError,
        r"overlay_label: out 'out' shares memory with an input or another output",
    ),
    "out in x": (
        lambda w: w.forward(out=w.out._replace(h=w.x.reshape(-1)[20:50].reshape(6, 5))),
        ValueError,
        r"layer_forward: out 'h' shares memory",
    ),
    "out twice": (
        lambda w: w.forward(out=w.out._replace(scale=w.out.goodness)),
        ValueError,
        r"out 'scale' shares memory with an input or another output; expected an array of its own",
    ),
    "float16 out": (lambda w: w.forward(x=w.half, out=w.out), ValueError, r"out 'h' is float32; expected float16"),
    "kept in x": (
        lambda w: w.step(out=(w.x.reshape(-1)[:30].reshape(6, 5), None)),
        ValueError,
        r"layer_step: out 'h' shares memory",
    ),
    "kept across rows of x": (
        lambda w: w.step(x=w.wide[:, :12], out=(None, w.wide[1, 10:16])),
        ValueError,
        r"layer_step: out 'h_norm' shares memory",
    ),
    "kept in the weights": (
        lambda w: w.step(out=(w.t.weight.reshape(-1)[:30].reshape(6, 5), None)),
        ValueError,
        r"layer_step: out 'h' shares memory",
    ),
    "kept twice": (
        lambda w: w.step(out=(w.out.h, w.out.h.reshape(-1)[:6])),
        ValueError,
        r"layer_step: out 'h_norm' shares memory",
    ),
    "kept dtype": (lambda w: w.step(out=(w.out.h.astype("f8"), None)), ValueError, r"h is float64; .*float32"),
    "kept number": (lambda w: w.step(out=w.out.h), ValueError, r"layer_step: out has 1 entries; .* 2: h, h_norm"),
    "mean in h": (
        lambda w: arrays.peer_update(w.act.h, w.sign, w.act.h[2]),
        ValueError,
        r"peer_update: mean shares memory with an input",
    ),
    "mean list": (
        lambda w: arrays.peer_update(w.act.h, w.sign, [0.5] * 5),
        TypeError,
        r"mean is list; expected an array that can be written in place",
    ),
    "mean float64": (
        lambda w: arrays.peer_update(w.act.h, w.sign, w.mean.astype("f8")),
        ValueError,
        r"mean is float64; .*float32",
    ),
    "mean size": (
        lambda w: arrays.peer_update(w.act.h, w.sign, w.mean[:4]),
        ValueError,
        r"mean has shape \[4\]; expected \[5\]",
    ),
    "p size": (
        lambda w: arrays.peer_update(w.act.h, w.sign, w.mean, out=zeros(4)),
        ValueError,
        r"out 'p' has shape \[4\]; expected \[5\]",
    ),
    "generator": (
        lambda w: arrays.hybrid_images(w.x, w.image, [1, 2], height=3, width=4),
        TypeError,
        r"generator is list; expected an array that can be written",
    ),
    "generator int32": (
        lambda w: arrays.hybrid_images(w.x, w.image, w.generator.astype("i4"), height=3, width=4),
        ValueError,
        r"generator is int32; expected int64",
    ),
    "mask dtype": (
        lambda w: arrays.hybrid_images(
            w.x, w.image, w.generator, height=3, width=4, out=(np.zeros_like(w.x), zeros(6, 12, dtype=np.uint8))
        ),
        ValueError,
        r"out 'mask' is uint8; expected bool",
    ),
    "picture": (
        lambda w: arrays.hybrid_images(w.x, w.image, w.generator, height=5, width=4),
        ValueError,
        r"height is 5 and width 4; expected",
    ),
    "blurs": (
        lambda w: arrays.hybrid_images(w.x, w.image, w.generator, height=3, width=4, blurs=1.5),
        TypeError,
        r"blurs is 1.5; expected an integer",
    ),
    "step without rows": (lambda w: w.step(x=w.x[:0], sign=w.sign[:0]), ValueError, r"x has no rows"),
    "step sign": (lambda w: w.step(sign=zeros(5)), ValueError, r"sign has shape \[5\]; expected \[6\]"),
    "step without sign": (lambda w: w.step(sign=None), TypeError, r"sign is None; expected an array"),
    "step x": (lambda w: w.step(x=zeros(6, 13)), ValueError, r"x has shape \[6, 13\]; expected \[\*, 12\]"),
    "step x None": (lambda w: w.step(x=None), TypeError, r"x is None; expected an array"),
    "temperature": (lambda w: w.step(temperature=0), ValueError, r"temperature is 0; expected a number > 0"),
    "threshold": (lambda w: w.step(threshold=np.nan), ValueError, r"threshold is -?nan; expected a finite number"),
    "momentum": (lambda w: w.step(peer_momentum=1.5), ValueError, r"peer momentum is 1.5; expected 0 to 1"),
    "labels 0-d": (lambda w: w.shared(labels=3), ValueError, r"labels has shape \[\]; expected a matrix"),
    "labels 1-d": (lambda w: w.shared(labels=w.labels[0]), ValueError, r"labels has shape \[6\]; expected a matrix"),
    "labels high": (lambda w: w.shared(classes=3), ValueError, r"labels holds 3; expected -1 \(neutral\) or 0 to 2"),
    "labels low": (lambda w: w.shared(labels=w.labels - 2), ValueError, r"labels holds -[23]; expected -1"),
    "classes": (lambda w: w.shared(classes=12), ValueError, r"classes is 12; expected 1 to 11"),
    "many classes": (lambda w: w.shared(classes=10**12), ValueError, r"classes is 1000000000000; expected 1 to 11"),
    "no classes": (lambda w: w.shared(classes=-1), ValueError, r"classes is -1; expected 1 to 11"),
    "half classes": (lambda w: w.shared(classes=2.5), TypeError, r"classes is 2.5; expected an integer"),
    "peer alone": (lambda w: w.update(peer=zeros(5)), ValueError, r"peer is given but sign is not; expected both"),
    "update h": (lambda w: w.update(h=zeros(6, 4)), ValueError, r"h has shape \[6, 4\]; expected \[6, 5\]"),
    "update scale": (lambda w: w.update(scale=zeros(5)), ValueError, r"scale has shape \[5\]; expected \[6\]"),
    "head labels": (
        lambda w: arrays.head_step(w.head, [w.act.h], [w.act.h_norm], [0, 1, 2, 3, 4, 0]),
        ValueError,
        r"labels holds 4; expected 0 to 3",
    ),
    "head widths": (
        lambda w: arrays.head_step(w.head, [w.x], [w.act.h_norm], [0] * 6),
        ValueError,
        r"weight has shape \[4, 5\]; expected \[classes, 12\]",
    ),
    "head layers": (
        lambda w: arrays.head_step(w.head, [w.act.h], [], [0] * 6),
        ValueError,
        r"h has 1 and h_norm 0 tensors",
    ),
    "head logits": (
        lambda w: arrays.head_step(w.head, [w.act.h], [w.act.h_norm], [0] * 6, out=zeros(6, 3)),
        ValueError,
        r"out 'logits' has shape \[6, 3\]; expected \[6, 4\]",
    ),
    "logits in weights": (
        lambda w: arrays.head_step(
            w.head, [w.act.h[:5]], [w.act.h_norm[:5]], [0] * 5, out=w.head.weight.reshape(-1).reshape(5, 4)
        ),
        ValueError,
        r"out 'logits' shares memory with an input",
    ),
    "trained list": (lambda w: arrays.Trained([[1.0]], lr=0.1), TypeError, r"weight is list; expected an array"),
    "trained None": (lambda w: arrays.Trained(None, lr=0.1), TypeError, r"weight is NoneType; expected an array"),
    "trained float64": (
        lambda w: arrays.Trained(w.weight.astype("f8"), lr=0.1),
        ValueError,
        r"weight is float64 \[5, 12\]; expected a float32 array of 2 dimensions: it is updated in place",
    ),
    "trained swapped": (lambda w: arrays.Trained(swapped(w.weight), lr=0.1), ValueError, r"weight is another dtype"),
    "trained vector": (lambda w: arrays.Trained(w.bias, lr=0.1), ValueError, r"weight is float32 \[5\]; expected"),
    "trained order": (lambda w: arrays.Trained(w.weight.T, lr=0.1), ValueError, r"weight is not contiguous; expected"),
    "trained view": (lambda w: arrays.Trained(w.weight[:, :7], lr=0.1), ValueError, r"weight is not contiguous"),
    "trained read-only": (
        lambda w: arrays.Trained(read_only(w.weight), lr=0.1),
        ValueError,
        r"weight is read-only; expected a contiguous \(C order\), writable array: it is updated in place",
    ),
    "trained bias": (
        lambda w: arrays.Trained(w.weight, read_only(w.bias), lr=0.1),
        ValueError,
        r"bias is read-only; expected",
    ),
    "optimiser": (
        lambda w: arrays.Trained(w.weight, lr=0.1, optimiser="rmsprop"),
        ValueError,
        r"optimiser is 'rmsprop'; expected one of sgd, ema, adam, adamw",
    ),
    "bias size": (
        lambda w: w.step(trained=arrays.Trained(w.weight, zeros(4), lr=0.1)),
        ValueError,
        r"bias has shape \[4\]; expected \[5\]",
    ),
    "betas": (
        lambda w: w.step(trained=arrays.Trained(w.weight, lr=0.1, betas=(1.5, 0.9))),
        ValueError,
        r"beta1 or momentum\) is 1.5; expected a number in \[0, 1\)",
    ),
    "state later": (
        lambda w: w.step(trained=w.changed(weight_state=zeros(1, 5, 12))),
        ValueError,
        r"weight_state has shape \[1, 5, 12\]; expected \[2, 5, 12\]",
    ),
    "weights later": (
        lambda w: w.step(trained=w.changed(weight=read_only(w.weight))),
        ValueError,
        r"weight is read-only",
    ),
    "stats later": (lambda w: w.step(trained=w.changed(stats=zeros(9))), ValueError, r"stats is float32; .*float64"),
    "overlay": (lambda w: w.shared(on_value="a"), ValueError, r"could not convert"),
    "no weights": (
        lambda w: arrays.predict_goodness(w.x, [], [], classes=3),
        ValueError,
        r"weights is empty; expected one matrix per layer",
    ),
    "biases": (
        lambda w: arrays.predict_goodness(w.x, [w.weight], [], classes=3),
        ValueError,
        r"biases has 0 entries; expected 1",
    ),
}


def test_signs_may_be_integers():
    w = World()
    both = [arrays.Trained(w.weight.copy(), lr=0.1) for _ in range(2)]
    sign = np.array([1, -1, 0, 1, 1, -1])
    arrays.layer_step(both[0], w.x, sign)
    arrays.layer_step(both[1], w.x, sign.astype(np.float32))
    np.testing.assert_array_equal(both[0].weight, both[1].weight)
    assert (both[0].weight != w.weight).any()


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_nothing_changed(case):
    call, error, message = REFUSED[case]
    w = World()
    before = w.snapshot()
    with pytest.raises(error, match=message):
        call(w)
    after = w.snapshot()
    # Cases called "... later" put another array in the place of an attribute first.
    changed = {name for name, value in before.items() if after[name] != value}
    assert len(changed) == case.endswith("later"), changed
    w.forward()  # nothing of the refused call is left behind
    arrays.layer_step(arrays.Trained(w.weight, w.bias, lr=0.1), w.x, w.sign)


# ------------------------------------------------------------------------------- other processes


def python(code: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "FFKERN_CPU_ISA")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=clean | {"OMP_NUM_THREADS": "1"} | environment,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


NETWORK = """
import sys
import numpy as np
from ffkern import arrays
r = np.random.default_rng(0)
x, w = r.random((300, 250), np.float32), r.random((333, 250), np.float32) - np.float32(0.5)
sign = np.where(np.arange(300) % 2, 1, -1).astype(np.float32)
def learn():
    t = arrays.Trained(w.copy(), lr=0.1)
    for _ in range(3):
        arrays.layer_step(t, x, sign)
    return t.weight.tobytes() + arrays.predict_goodness(x, [w], [None], classes=10).tobytes()
"""


def test_torch_is_not_imported():
    code = "learn(); print(sorted({'torch', 'cupy', 'ffkern.arrays'} & set(sys.modules)))"
    assert python(NETWORK + code) == "['ffkern.arrays']\n"


def test_fork_after_use():
    """The child has threads of its own."""
    code = """
import multiprocessing
arrays.set_num_threads(2)
want = learn()
context = multiprocessing.get_context("fork")
def child(pipe):
    pipe.send_bytes(learn())
pipes = [context.Pipe(duplex=False) for _ in range(2)]
children = [context.Process(target=child, args=(send,)) for _, send in pipes]
for c in children: c.start()
assert all(receive.recv_bytes() == want for receive, _ in pipes)
for c in children: c.join()
assert [c.exitcode for c in children] == [0, 0] and learn() == want
print("done")
"""
    assert python(NETWORK + code) == "done\n"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the private module of subinterpreters is gone there")
def test_subinterpreters_elsewhere_in_the_process():
    """With one, PyGILState_Check() is always true, whatever the thread."""
    code = """
import _xxsubinterpreters
arrays.set_num_threads(2)
want = learn()
other = _xxsubinterpreters.create()
assert learn() == want
_xxsubinterpreters.destroy(other)
print("done")
"""
    assert python(NETWORK + code) == "done\n"


@pytest.mark.parametrize(("text", "want"), [("3", 3), ("2,4", 2), ("none", 0), ("0", 0), ("", 0)])
def test_default_number_of_threads(text, want):
    code = "from ffkern import arrays; import os; print(arrays.get_num_threads(), len(os.sched_getaffinity(0)))"
    threads, cpus = map(int, python(code, OMP_NUM_THREADS=text).split())
    assert threads == (want or cpus)


def test_cupy_beside():
    """CuPy has no driver here; that is its own affair until an array of its is passed."""
    code = """
import warnings
warnings.simplefilter("ignore")  # CuPy's own
import cupy
learn()
try:
    cupy.zeros(3)
    print("device")
except Exception as error:
    print(type(error).__module__.partition(".")[0])
"""
    assert python(NETWORK + code).strip() in ("cupy_backends", "cupy", "device")


def test_device_arrays_without_a_driver():
    """Say what is missing. In a process of its own: the driver is looked for once."""
    code = """
class Device:
    __cuda_array_interface__ = {"shape": (6, 12), "typestr": "<f4", "data": (4096, False), "version": 3}
    shape, dtype = (6, 12), np.dtype(np.float32)
    def __array_namespace__(self):
        return np
d = Device()
for call in (lambda: arrays.layer_forward(d, d), lambda: arrays.layer_forward(d, w), lambda: arrays.Trained(d, lr=0.1)):
    try:
        call()
        print("no error")
    except (RuntimeError, ValueError) as error:
        print(type(error).__name__, error)
"""
    lines = python(NETWORK + code, FFKERN_CUDA_DRIVER="/nowhere/libcuda.so.1").strip().splitlines()
    assert len(lines) == 3
    for line in lines:
        if hasattr(arrays._arrays, "cuda"):
            assert line.startswith("RuntimeError ")
            assert "driver" in line
            assert "/nowhere/libcuda.so.1" in line
        else:
            assert line.startswith("ValueError ")
            assert "this build has no CUDA kernels (FFKERN_CUDA=1 builds them)" in line


def test_build_info():
    facts = arrays.build_info()
    assert facts == _build.build_info()
    assert facts["cpu_isas"][0] == "portable"
    path, available = arrays._arrays.cpu_path()
    assert path in available.split(", ")
    assert set(available.split(", ")) <= set(facts["cpu_isas"])
    assert hasattr(arrays._arrays, "cuda") == bool(facts.get("cuda_archs"))
    assert facts["version"] == __import__("ffkern").__version__


# ---------------------------------------------------------------- the whole network's step, as the binding has it


@pytest.mark.parametrize("hard", [False, True])
def test_a_networks_step_on_arrays(hard):
    """No function of this module offers it yet: the binding is that of torch's operation, on NumPy's memory."""
    options: Named = {"head_layers": (0, 1), "hard": True, "frozen": (0,)} if hard else {"variants": 3, "peer": True}
    a = cases.network_arguments(13, [31, 17, 9], 5, optimiser="ema", **options)

    def step(**a: Any) -> Named:
        fenced = Fenced()
        arguments, written = cases.network_call(a, fenced)
        arrays._arrays.cpu.network_step_(*(to_numpy(value) for value in arguments))
        fenced.check()
        counted = [None if t is None else (t - cases.STATS_BEFORE[: len(t)])[:7] for t in written["stats"]]
        return cases._named(written | {"stats": counted})

    check_parity(step, cases.network_reference, a)
