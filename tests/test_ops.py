"""Every operation against its specification, ffkern.reference in float64."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import op_cases as cases
import pytest
import torch
from op_cases import NORM_GOODNESS, SHAPES, TENSOR_OPS, Fenced, sample, shape_name
from tolerance import check_parity, conditioning, to_double
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ffkern import ops
from ffkern import reference as ref

pytestmark = pytest.mark.usefixtures("poisoned")

OPTIMISERS = ("sgd", "ema", "adam", "adamw")
LOW = (torch.bfloat16, torch.float16)
PARITY: dict[str, list[str]] = {}

# Every shape with one kind and every kind with one shape; the kinds of the rest take turns.
SHAPE_KIND = [(shape, NORM_GOODNESS[i]) for i, shape in enumerate(SHAPES)]
SHAPE_KIND += [(SHAPES[2], kind) for kind in NORM_GOODNESS]
every_shape_and_kind = pytest.mark.parametrize(
    ("shape", "kind"), SHAPE_KIND, ids=lambda v: shape_name(v) if v in SHAPES else "-".join(v)
)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
every_kind = pytest.mark.parametrize(("norm", "goodness"), NORM_GOODNESS)
every_device = pytest.mark.usefixtures("device")
every_optimiser = pytest.mark.parametrize("optimiser", OPTIMISERS)
every_backend = pytest.mark.usefixtures("backend")
storage = cases.every_backend_of(*LOW)


def parity(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Records that a test compares these operations with the reference."""

    def record(test: Callable[..., None]) -> Callable[..., None]:
        for name in names:
            PARITY.setdefault(name, []).append(test.__name__)
        return test

    return record


def without(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in arguments.items() if k not in names}


def equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    """The same bits (NaN included)."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        if value is None:
            assert b[name] is None
        else:
            assert torch.equal(value.view(torch.uint8) if value.dim() else value, bits(b[name])), name


def bits(t: Tensor) -> Tensor:
    return t.view(torch.uint8) if t.dim() else t


# ------------------------------------------------------------------------------- completeness


def test_every_operation_has_its_tests():
    assert set(PARITY) == set(ops.SCHEMAS)
    assert set(TENSOR_OPS) | cases.NO_TENSORS == set(ops.SCHEMAS)
    assert set(ops.SCHEMAS) <= set(ops.__all__)
    for name in TENSOR_OPS:
        assert callable(getattr(ops, name))
        sample(name)


# ------------------------------------------------------------------------------------ forward


@parity("layer_forward", "layer_forward_")
@every_backend
@every_shape_and_kind
def test_layer_forward(shape, kind):
    norm, goodness = kind
    for bias, x_norm in ((True, False), (False, True)):
        a = cases.layer_arguments(*shape, norm=norm, goodness=goodness, bias=bias, x_norm=x_norm)
        got = check_parity(cases.forward, cases.forward_reference, a)
        equal(cases.forward_in_place(**a), got)


@storage
@pytest.mark.parametrize("shape", [(1, 7, 3), (13, 113, 65), (137, 200, 33)], ids=shape_name)
def test_layer_forward_in_low_precision_storage(shape, dtype, backend):
    """float32 sums: h errs by its own rounding to storage. The CPU computes float16 in float32, to the bit."""
    a = cases.layer_arguments(*shape, dtype=dtype)
    with cases.expecting_bfloat16(backend, dtype):
        got = check_parity(cases.forward, cases.forward_reference, a)
    if not backend.startswith("cpu") or dtype == torch.bfloat16:
        return
    wide = cases.forward(**{k: v.float() if k in ("x", "weight") else v for k, v in a.items()})
    assert torch.equal(got["h"], wide["h"].to(dtype))
    for name in ("goodness", "scale", "h_norm"):
        assert torch.equal(got[name], wide[name]), name


@parity("shared_base")
@cases.every_backend_of(torch.float32, *LOW)
@pytest.mark.parametrize("shape", [(1, 2, 1), (13, 113, 65), (137, 200, 33)], ids=shape_name)
def test_shared_base(shape, dtype, backend):
    classes = min(10, shape[1] - 1)
    a = cases.layer_arguments(*shape, dtype=dtype)
    a = {"x": a["x"], "weight": a["weight"], "classes": classes}
    with cases.expecting_bfloat16(backend, dtype):
        first = check_parity(cases.base, cases.base_reference, a)
        a["x"] = a["x"].clone()
        a["x"][:, :classes] = float("nan")  # never read
        equal(cases.base(**a), first)


@parity("shared_variants", "shared_variants_")
@every_backend
@every_kind
@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_shared_variants(count, norm, goodness):
    for images, inputs, units, classes, bias in ((1, 3, 1, 2, True), (29, 67, 45, 10, False)):
        layer = cases.layer_arguments(images, inputs, units, norm=norm, bias=bias)
        base, rest_norm = ref.shared_base(layer["x"], layer["weight"], classes)
        a = {"base": base, "rest_norm": rest_norm, "weight": layer["weight"], "bias": layer["bias"]}
        a |= cases.label_arguments(count, images, classes)
        a |= {"norm": norm, "eps": 1e-4, "goodness": goodness}
        got = check_parity(cases.variants, cases.variants_reference, a)
        equal(cases.variants_in_place(**a), got)


@pytest.mark.usefixtures("product")
@every_shape
def test_layer_forward_with_either_product(shape):
    check_parity(cases.forward, cases.forward_reference, cases.layer_arguments(*shape))


# --------------------------------------------------------------------------------------- loss


@parity("local_loss")
@every_device
@pytest.mark.parametrize("rows", [0, 1, 2, 113])
@pytest.mark.parametrize("weighted", [False, True])
def test_local_loss(rows, weighted):
    a = {
        "goodness": 5 * torch.randn(rows),
        "sign": cases.signs(rows),
        "row_weight": torch.rand(rows) if weighted else None,
        "threshold": 1.25,
        "temperature": 0.7,
    }
    got = check_parity(cases.loss, cases.loss_reference, a)
    assert bool((got["coef"][a["sign"] == 0] == 0).all())


@every_device
def test_local_loss_far_from_the_threshold():
    """log(1 + exp(l)) overflows from l = 88.7 on; the loss does not, tails keep their digits."""
    goodness = torch.tensor([1e4, -1e4, 1e30, -1e30, 200.0, -200.0, 60.0, -60.0]).repeat(2)
    a = {
        "goodness": goodness,
        "sign": torch.ones(16).index_fill(0, torch.arange(8), -1),
        "row_weight": None,
        "threshold": 2.0,
        "temperature": 1.0,
    }
    got = check_parity(cases.loss, cases.loss_reference, a)
    exact = ref.local_loss(goodness.double(), a["sign"], None, 2.0, 1.0)[1]
    assert torch.allclose(got["coef"].double(), exact, rtol=1e-6, atol=1e-38)
    assert float(got["coef"][7]) != 0.0  # exp(-62) / 16


@every_device
def test_a_row_that_takes_no_part_has_no_part():
    a = {"goodness": torch.randn(9), "sign": cases.signs(9), "row_weight": torch.rand(9)}
    a["sign"][4] = 0
    a |= {"threshold": 1.0, "temperature": 1.0}
    before = cases.loss(**a)
    a["goodness"][4] = float("nan")
    a["row_weight"][4] = float("inf")
    equal(cases.loss(**a), before)


# --------------------------------------------------------------------------------------- peer


@parity("peer_update_")
@every_backend
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (137, 65), (512, 300)], ids=shape_name)
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_peer_update(shape, dtype):
    a = {
        "h": torch.randn(*shape).relu().to(dtype),
        "sign": cases.signs(shape[0]),
        "mean": torch.rand(shape[1]),
        "strength": 0.3,
        "momentum": 0.8,
    }
    check_parity(cases.peer, cases.peer_reference, a)


@every_device
def test_peer_update_without_a_positive_row():
    a = {"h": torch.rand(4, 5), "sign": torch.tensor([-1.0, 0, -1, 0]), "mean": torch.rand(5)}
    got = cases.peer(**a, strength=0.3, momentum=0.8)
    assert torch.equal(got["mean"], a["mean"])
    assert torch.equal(got["p"], torch.zeros(5))


# ------------------------------------------------------------------------- gradient and update


@parity("layer_grad")
@every_backend
@every_shape_and_kind
def test_layer_grad(shape, kind):
    norm, goodness = kind
    for peer in (False, True):
        a = cases.step_arguments(*shape, norm=norm, goodness=goodness)
        a = cases.grad_arguments(a, peer)
        check_parity(cases.gradient, cases.gradient_reference, a)


@storage
def test_layer_grad_of_low_precision_storage(dtype, backend):
    a = cases.grad_arguments(cases.step_arguments(53, 70, 41), peer=True)
    a["x"], a["h"] = a["x"].to(dtype), a["h"].to(dtype)
    with cases.expecting_bfloat16(backend, dtype):
        check_parity(cases.gradient, cases.gradient_reference, a, unit=cases.operand_unit(backend, dtype))


@every_backend
@pytest.mark.parametrize("rows", [5000, 40000])
def test_gradient_over_many_rows(rows):
    """Sums over a batch do not lose digits with its size: eager PyTorch adds pairwise.

    Enough weights that the largest error of a few does not decide by luck.
    """
    for peer in (False, True):
        a = cases.step_arguments(rows, 33, 40, norm="rms", goodness="sum_sq", optimiser="sgd", peer=peer)
        g = cases.grad_arguments(a, peer)
        check_parity(cases.gradient, cases.gradient_reference, g)
        check_parity(cases.step, cases.step_reference, a)


SHARED = [(1, 3, 1, 2, 1), (9, 40, 17, 10, 2), (37, 113, 65, 10, 3), (23, 64, 33, 3, 10)]
every_shared = pytest.mark.parametrize("shape", SHARED, ids=shape_name)


def shared_arguments(shape: tuple[int, ...], **options: Any) -> dict[str, Any]:
    images, inputs, units, classes, variants = shape
    return cases.step_arguments(images, inputs, units, classes=classes, variants=variants, **options)


@parity("shared_grad")
@every_backend
@every_kind
@pytest.mark.parametrize("shape", [SHARED[0], SHARED[3]], ids=shape_name)
def test_shared_grad(shape, norm, goodness):
    for peer in (False, True):
        a = shared_arguments(shape, norm=norm, goodness=goodness)
        a = cases.grad_arguments(a, peer)
        check_parity(cases.gradient, cases.gradient_reference, a)


@parity("layer_update_", "shared_update_", "update_workspace")
@every_backend
@every_optimiser
@pytest.mark.parametrize("shape", [(1, 7, 3), (13, 113, 65), (33, 300, 150)], ids=shape_name)
def test_layer_update(shape, optimiser):
    for peer, bias in ((False, True), (True, False)):
        a = cases.step_arguments(*shape, optimiser=optimiser, bias=bias)
        check_parity(cases.update, cases.update_reference, cases.update_arguments(a, peer))
        if shape[1] > 10:
            a = shared_arguments((*shape, 10, 2), optimiser=optimiser, bias=bias)
            check_parity(cases.update, cases.update_reference, cases.update_arguments(a, peer))


# --------------------------------------------------------------------------------------- step


@parity("layer_step_", "step_workspace")
@every_backend
@every_optimiser
@pytest.mark.parametrize("shape", SHAPES[:4], ids=shape_name)
def test_layer_step(shape, optimiser):
    """Bias, peer term, kept activities, row weights and known norms, each on and off."""
    for on in (False, True):
        a = cases.step_arguments(
            *shape,
            optimiser=optimiser,
            peer=on,
            keep=not on,
            bias=on,
            row_weight=on,
            x_norm=not on,
        )
        check_parity(cases.step, cases.step_reference, a)


@every_backend
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_layer_step_of_many_units_and_inputs(optimiser):
    a = cases.step_arguments(*SHAPES[4], optimiser=optimiser, peer=optimiser == "adam")
    check_parity(cases.step, cases.step_reference, a, draws=1)


@every_backend
@every_kind
@pytest.mark.parametrize("shape", [(1, 7, 3), (137, 50, 33)], ids=shape_name)
def test_layer_step_of_every_kind(shape, norm, goodness):
    for on in (False, True):
        a = cases.step_arguments(*shape, optimiser="sgd", norm=norm, goodness=goodness, peer=on, keep=on)
        check_parity(cases.step, cases.step_reference, a)


@parity("shared_step_")
@every_backend
@every_optimiser
@every_shared
def test_shared_step(shape, optimiser):
    for keep in (False, True):
        for peer in (False, True):
            a = shared_arguments(shape, optimiser=optimiser, peer=peer, keep=keep, bias=keep, row_weight=peer)
            check_parity(cases.step, cases.step_reference, a)


@every_backend
@every_kind
def test_shared_step_of_every_kind(norm, goodness):
    for peer in (False, True):
        a = shared_arguments((23, 64, 33, 3, 10), optimiser="sgd", norm=norm, goodness=goodness, peer=peer)
        check_parity(cases.step, cases.step_reference, a)


@every_backend
@every_optimiser
def test_first_step_from_empty_state(optimiser):
    a = cases.step_arguments(13, 113, 65, optimiser=optimiser, fresh=True)
    check_parity(cases.step, cases.step_reference, a)
    a = shared_arguments((9, 40, 17, 10, 2), optimiser=optimiser, fresh=True)
    check_parity(cases.step, cases.step_reference, a)


@storage
@pytest.mark.parametrize("peer", [False, True])
@pytest.mark.parametrize("variants", [0, 3])
def test_step_on_low_precision_inputs(dtype, variants, peer, backend):
    """x rounded first; float32 but for the operands of products, and for activities kept in bfloat16."""
    keep = cases.kept_dtype(dtype) if backend.startswith("cpu") else True
    a = cases.step_arguments(29, 67, 45, variants=variants, classes=10 if variants else 0, keep=keep, peer=peer)
    a["x"] = a["x"].to(dtype).float()
    unit = cases.operand_unit(backend, dtype)
    with cases.expecting_bfloat16(backend, dtype):
        step = lambda x, **rest: cases.smooth(cases.step(x=x.to(dtype), **rest))  # noqa: E731
        check_parity(step, cases.smooth_step_reference, a, unit=unit)


MANY = (2200, 5, 2000)  # rows * units beyond 4 Mi floats: the rows come in chunks, which add up


@every_backend
@pytest.mark.parametrize("variants", [0, 2])
def test_step_in_several_chunks_of_rows(variants):
    assert MANY[0] * MANY[2] > 4 << 20
    a = cases.step_arguments(
        *MANY,
        optimiser="sgd",
        variants=variants,
        classes=3 if variants else 0,
        row_weight=False,
        keep=not variants,
    )
    got = check_parity(cases.step, cases.step_reference, a, draws=1)
    other = cases.step(**(a | {"keep": not a["keep"]}))
    for name in ("weight", "bias", "weight_state", "stats"):  # keeping activities changes nothing
        assert torch.equal(got[name], other[name]), name


@every_backend
def test_update_in_several_chunks_of_rows():
    a = cases.step_arguments(MANY[0], MANY[2], MANY[1], optimiser="sgd")
    check_parity(cases.update, cases.update_reference, cases.update_arguments(a, True), draws=1)
    check_parity(cases.gradient, cases.gradient_reference, cases.grad_arguments(a), draws=1)


@every_device
def test_step_of_many_rows_with_peer_term():
    a = cases.step_arguments(*MANY, optimiser="sgd", peer=True)
    check_parity(cases.step, cases.step_reference, a, draws=1)


@every_backend
@pytest.mark.parametrize("shape", [(3, 1500, 1100), (2, 200000, 13)], ids=shape_name)
def test_step_of_wide_layers(shape):
    """Gradient and update run group by group of columns and block by block of units."""
    a = cases.step_arguments(*shape, optimiser="ema")
    check_parity(cases.step, cases.step_reference, a, draws=1)


@pytest.mark.usefixtures("product")
@every_backend
@pytest.mark.parametrize("shape", SHAPES[:4], ids=shape_name)
def test_step_with_either_product(shape):
    check_parity(cases.step, cases.step_reference, cases.step_arguments(*shape))
    if shape[1] > 2:
        a = shared_arguments((*shape, 2, 3), keep=True)
        check_parity(cases.step, cases.step_reference, a)


@pytest.mark.usefixtures("product")
def test_chunks_and_wide_layers_with_either_product():
    for shape in (MANY, (3, 1500, 1100)):
        a = cases.step_arguments(*shape, optimiser="sgd")
        check_parity(cases.step, cases.step_reference, a, draws=1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 5])
def test_step_on_any_number_of_threads(count):
    torch.set_num_threads(count)
    for shape in ((137, 200, 333), (2, 500, 70)):
        a = cases.step_arguments(*shape, peer=True, keep=True)
        check_parity(cases.step, cases.step_reference, a)
        check_parity(cases.step, cases.step_reference, shared_arguments((*shape, 10, 3), peer=True))


# ----------------------------------------------------------------------- prediction, labels, head


@parity("predict_goodness")
@every_backend
@every_kind
@pytest.mark.parametrize("sizes", [[20, 9], [67, 33, 17, 5]], ids=shape_name)
def test_predict_goodness(sizes, norm, goodness):
    for images, bias in ((1, True), (67, False)):
        a = cases.predict_arguments(images, sizes, 4, norm=norm, goodness=goodness, bias=bias)
        check_parity(cases.predict, cases.predict_reference, a, draws=1)


@storage
def test_predict_goodness_of_low_precision_storage(dtype, backend):
    """The CPU keeps float16 activities between layers in float32; the reference, and CUDA, round them."""
    a = cases.predict_arguments(23, [40, 19, 7], 10, dtype=dtype)
    with cases.expecting_bfloat16(backend, dtype):
        check_parity(cases.predict, cases.predict_reference, a)


@pytest.mark.usefixtures("product")
def test_predict_goodness_with_either_product():
    a = cases.predict_arguments(70, [67, 33, 17], 10)
    check_parity(cases.predict, cases.predict_reference, a)


@parity("pack_weight_")
@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 32), (17, 33), (65, 113), (48, 640)], ids=shape_name)
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_pack_weight(shape, dtype):
    """The bits of torch's conversion: ties to even, overflow to infinity, NaN as NaN."""
    weight = torch.randn(shape) * 2.0 ** torch.randint(-60, 60, shape)
    special = [2.0**-126, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-23, 3.4e38, -3.4e38, -0.0]
    special += [float("inf"), float("-inf"), float("nan")]
    for value in special:
        weight[torch.rand(shape) < 0.05] = value
    weight.view(torch.int32)[torch.rand(shape) < 0.05] = 0x7F800001  # rounding alone would make it infinity
    weight.view(torch.int32)[torch.rand(shape) < 0.05] = -1  # and this one 0
    weight = weight.to(dtype)
    weight = torch.where(weight.abs() < 2.0**-126, 0, weight)  # subnormal numbers: test_subnormal_weights
    want = cases.packed_reference(weight)
    number = ~want.isnan()
    for same in (weight, Fenced().copy(weight, 3, shape[1] + 5), weight.t().contiguous().t()):
        got = cases.packed(same)
        assert torch.equal(got.isnan(), ~number)
        assert torch.equal(got.view(torch.int16)[number], want.view(torch.int16)[number])


@pytest.mark.usefixtures("unit")
def test_subnormal_weights():
    """Rounded, or 0 as the units for bfloat16 take them."""
    weight = 2.0**-127 * torch.randn(17, 70)
    got, want = cases.packed(weight).float(), cases.packed_reference(weight).float()
    assert bool(((got == want) | (got == 0)).all())


@parity("overlay_label", "concat_label")
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize(("rows", "inputs", "classes"), [(1, 1, 1), (7, 10, 10), (33, 70, 3)])
def test_labels_in_the_input(rows, inputs, classes, dtype):
    x = torch.randn(rows, inputs).to(dtype)
    labels = torch.randint(-1, classes, (rows,))
    overlay = torch.tensor([1.7, 0.3])
    for name in ("overlay_label", "concat_label"):
        before = x.clone()
        got = getattr(ops, name)(x, labels, classes, overlay)
        want = getattr(ref, name)(x, labels, classes, overlay)
        assert got.dtype == dtype
        assert torch.equal(got, want), name
        assert torch.equal(x, before)
        assert got.data_ptr() != x.data_ptr()


LARGEST_U = 1 - 2**-24


@parity("wrong_labels")
@every_device
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_wrong_labels(classes):
    labels = torch.randint(0, classes, (4000,))
    u = torch.rand(4000)
    u[:1000], u[1000:2000] = LARGEST_U, 0.0
    got = ops.wrong_labels(labels, classes, u)
    assert torch.equal(got, ref.wrong_labels(labels, classes, u))
    assert not bool((got == labels).any())
    assert int(got.min()) >= 0
    assert int(got.max()) < classes
    if classes <= 10:  # a uniform draw reaches every wrong class
        drawn = ((got - labels - 1) % classes)[2000:]
        assert set(drawn.tolist()) == set(range(classes - 1))


@parity("hard_labels")
@every_device
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_hard_labels(classes, dtype):
    rows = 3000
    logits = (3 * torch.randn(rows, classes)).to(dtype)
    labels, u = torch.randint(0, classes, (rows,)), torch.rand(rows)
    u[:100], u[100:200] = LARGEST_U, 0.0
    got = ops.hard_labels(logits, labels, u)
    assert not bool((got == labels).any())
    want = ref.hard_labels(logits.double(), labels, u.double())
    # A draw may fall on the other side of a step of the cumulative sum by rounding alone.
    others = logits.double().masked_fill(torch.nn.functional.one_hot(labels, classes).bool(), -torch.inf)
    cumulative = others.softmax(1).cumsum(1)
    distance = (cumulative - u.double()[:, None]).abs().amin(1)
    sure = distance > 1e-6
    assert int(sure.sum()) > 0.9 * (rows - 200)
    assert torch.equal(got[sure], want[sure])


@every_device
def test_hard_labels_follow_the_probabilities():
    rows = 40000
    logits = torch.tensor([0.0, 1.0, 5.0, 2.0]).expand(rows, 4)
    got = ops.hard_labels(logits, torch.full((rows,), 2), torch.rand(rows))
    share = torch.bincount(got, minlength=4) / rows
    want = torch.tensor([0.0, 1.0, -torch.inf, 2.0]).softmax(0)
    assert float((share - want).abs().max()) < 5 * 0.5 / rows**0.5  # five standard deviations


@every_device
@pytest.mark.parametrize(
    "row",
    [
        [0.0, 500.0, -300.0, -310.0],  # certain of the true class: the rest must not underflow
        [0.0, 0.0, -1e30, -1e30],
        [float("-inf"), 3.0, 2.0, float("-inf")],
        [float("nan"), 1.0, 2.0, 3.0],
        [float("inf"), 1.0, 2.0, 3.0],
        [float("-inf"), 1.0, float("-inf"), float("-inf")],
        [1.0, float("nan"), 2.0, 3.0],
        [1.0, float("inf"), 2.0, 3.0],
    ],
    ids=str,
)
def test_hard_labels_at_the_edges(row):
    u = torch.tensor([0.0, 0.3, 0.7, LARGEST_U])
    logits = torch.tensor(row).expand(4, 4)
    labels = torch.ones(4, dtype=torch.int64)
    got = ops.hard_labels(logits, labels, u)
    assert torch.equal(got, ref.hard_labels(logits.double(), labels, u.double()))


@parity("all_wrong_labels")
@every_device
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_all_wrong_labels(classes):
    labels = torch.randint(0, classes, (57,))
    got = ops.all_wrong_labels(labels, classes)
    assert torch.equal(got, ref.all_wrong_labels(labels, classes))
    everything = torch.cat((labels[None], got)).sort(0).values
    assert torch.equal(everything, torch.arange(classes)[:, None].expand(classes, 57))


HYBRID = [(1, 1), (1, 7), (28, 28), (33, 5)]


@parity("hybrid_images_")
@every_device
@pytest.mark.parametrize("shape", HYBRID, ids=shape_name)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("blurs", [0, 1, 6, 20])
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_hybrid_images(shape, channels, blurs, dtype):
    """Bits of the reference: masks, and images, whatever they hold."""
    for images in (0, 1, 5):
        a = cases.hybrid_arguments(images, *shape, channels, blurs=blurs, dtype=dtype, drawn=7)
        for special in (float("nan"), float("inf"), -0.0):
            a["x"][torch.rand(a["x"].shape) < 0.1] = special
            a["other"][torch.rand(a["x"].shape) < 0.1] = special
        before = {k: v.clone() for k, v in a.items() if isinstance(v, Tensor)}
        got = cases.hybrid(**a)
        equal(got, cases.hybrid_reference(**a))
        assert got["images"].dtype == dtype
        assert got["generator"].tolist() == [int(a["generator"][0]), 7 + images]
        equal({k: a[k] for k in before}, before)


@every_device
def test_hybrid_images_of_views():
    for dtype in (torch.float32, *LOW):
        a = cases.hybrid_arguments(5, 6, 5, 3, dtype=dtype)
        want = cases.hybrid(**a)
        fenced = Fenced()
        wide = a["other"].repeat_interleave(2, 1)
        for views in (
            {"x": fenced.copy(a["x"], 5, 97), "other": fenced.copy(a["other"], 3, 101)},
            {"x": a["x"].t().contiguous().t(), "other": wide[:, ::2]},
        ):
            equal(cases.hybrid(**(a | views)), want)
        fenced.check()
        for expanded in (a["x"][:1].expand(5, -1), a["x"][:, :1].expand(-1, 90)):
            views = {"x": expanded, "other": a["x"]}
            equal(cases.hybrid(**(a | views)), cases.hybrid_reference(**(a | views)))


@every_device
def test_hybrid_images_draw_on():
    """Two calls of N are one call of 2N: the generator counts images, not calls."""
    a = cases.hybrid_arguments(10, 13, 11, 3)
    whole = cases.hybrid(**a)
    generator = a["generator"].clone()
    parts = [
        ops.hybrid_images_(x, other, generator, 13, 11, 6)
        for x, other in zip(a["x"].split(5), a["other"].split(5), strict=True)
    ]
    for part, name in zip(zip(*parts, strict=True), ("images", "mask"), strict=True):
        assert torch.equal(torch.cat(part), whole[name])
    assert torch.equal(generator, whole["generator"])


@every_device
@pytest.mark.parametrize("seed", [0, -1, 1, 2**32, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("drawn", [0, 2**32 - 2, 2**63 - 2, -2])
def test_hybrid_images_of_every_seed_and_count(seed, drawn):
    """Both halves of seed and count take part; the count runs through its whole range and around."""
    a = cases.hybrid_arguments(4, 9, 20, blurs=0, seed=seed, drawn=drawn)
    got = cases.hybrid(**a)
    equal(got, cases.hybrid_reference(**a))
    assert int(got["generator"][1]) == (drawn + 4 + 2**63) % 2**64 - 2**63
    masks = [got["mask"]]
    for other in (seed ^ 1, seed ^ 2**40):
        masks.append(cases.hybrid(**(a | {"generator": torch.tensor([other, drawn])}))["mask"])
    for mask in (drawn ^ 2**40, drawn ^ 2**20):
        masks.append(cases.hybrid(**(a | {"generator": torch.tensor([seed, mask])}))["mask"])
    assert len({tuple(row) for mask in masks for row in mask.tolist()}) == 4 * len(masks)


@every_device
@pytest.mark.parametrize("blurs", [0, 6, 20])
def test_hybrid_masks_are_half_and_half(blurs):
    images = 1000
    mask = cases.hybrid(**cases.hybrid_arguments(images, 28, 28, blurs=blurs))["mask"].double()
    share = mask.mean(1)  # of one image; images are independent
    assert abs(float(share.mean()) - 0.5) < 6 * float(share.std()) / images**0.5
    each = mask.mean(0)  # of one pixel, those on the border included
    assert float((each - 0.5).abs().max()) < 7 * 0.5 / images**0.5


@every_device
def test_hybrid_images_choose():
    """What the mask leaves out may be anything: it is not multiplied by 0."""
    a = cases.hybrid_arguments(5, 8, 9, 3)
    want = cases.hybrid(**a)
    chosen = want["mask"].repeat(1, 3)
    a["x"][~chosen], a["other"][chosen] = float("nan"), float("inf")
    equal(cases.hybrid(**a), want)
    a["x"].requires_grad_()
    assert not ops.hybrid_images_(*a.values())[0].requires_grad  # negatives are data


@pytest.mark.usefixtures("threads")
def test_hybrid_images_on_any_number_of_threads():
    a = cases.hybrid_arguments(50, 28, 28, 3)
    want = cases.hybrid_reference(**a)
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        equal(cases.hybrid(**a), want)


HEADS = [(1, [1], 1), (7, [5, 3], 4), (137, [65, 33, 1], 10)]


@parity("head_forward")
@every_backend
@pytest.mark.parametrize("shape", HEADS, ids=str)
@pytest.mark.parametrize("norm", ref.NORMS)
def test_head_forward(shape, norm):
    for bias in (True, False):
        a = cases.head_arguments(*shape, bias=bias, norm=norm)
        check_parity(cases.head, cases.head_reference, a)


@parity("head_step_")
@every_backend
@pytest.mark.parametrize("shape", HEADS, ids=str)
@every_optimiser
def test_head_step(shape, optimiser):
    for bias, norm in ((True, "rms"), (False, "none")):
        a = cases.head_step_arguments(*shape, optimiser, bias=bias, norm=norm)
        check_parity(cases.head_step, cases.head_step_reference, a)


@every_device
def test_head_step_with_huge_logits():
    a = cases.head_step_arguments(9, [5, 3], 4, "sgd")
    a["weight"] = a["weight"] * 1e4
    check_parity(cases.head_step, cases.head_step_reference, a)


@parity("float32_precision")
def test_float32_precision_is_torchs():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for setting in ("ieee", "tf32"):
            torch.backends.cuda.matmul.fp32_precision = setting
            assert ops.float32_precision() == setting
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_the_product_of_this_processor(monkeypatch):
    """torch's BLAS, except on AMD's processors."""
    monkeypatch.delenv("FFKERN_GEMM", raising=False)
    amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    assert ops.reset_cpu_path().split(";")[2] == ("own" if amd else "blas")


@parity("cpu_path", "reset_cpu_path")
def test_cpu_path(isa, monkeypatch):
    assert ops.cpu_path().split(";")[0] == isa
    monkeypatch.setenv("FFKERN_CPU_ISA", "mmx")
    with pytest.raises(RuntimeError, match=r"FFKERN_CPU_ISA is 'mmx'.*portable"):
        ops.reset_cpu_path()
    monkeypatch.setenv("FFKERN_CPU_ISA", "portable")
    assert ops.reset_cpu_path().startswith("portable;")
    for name in ("avx", "avx512_bf16"):  # the second goes with AVX-512
        monkeypatch.setenv("FFKERN_BF16", name)
        with pytest.raises(RuntimeError, match=rf"FFKERN_BF16 is '{name}'.*has: amx_emulated, fma$"):
            ops.reset_cpu_path()
    monkeypatch.delenv("FFKERN_BF16")
    assert ops.reset_cpu_path().split(";")[3:] == ["fma", "amx_emulated, fma"]
    monkeypatch.setenv("FFKERN_GEMM", "magic")
    with pytest.raises(RuntimeError, match=r"FFKERN_GEMM is 'magic'; expected 'blas' or 'own'"):
        ops.reset_cpu_path()


# -------------------------------------------------------------------------------- memory layout


def strided(a: dict[str, Any], fenced: Fenced) -> dict[str, Any]:
    """The same arguments as views into larger buffers, every one at an odd offset, matrices with a
    row pitch."""
    result: dict[str, Any] = {}
    for name, value in a.items():
        if isinstance(value, list) and isinstance(value[0], Tensor):
            result[name] = [fenced.copy(v, 5, v.shape[-1] + 7) for v in value]
        elif isinstance(value, Tensor):
            result[name] = fenced.copy(value, 5, value.shape[-1] + 7 if value.dim() == 2 else 0)
        else:
            result[name] = value
    return result


def layouts() -> list[tuple[str, Any, dict[str, Any]]]:
    step = cases.step_arguments(21, 34, 19, peer=True, keep=True)
    shared = shared_arguments((11, 34, 19, 10, 3), peer=True, keep=True)
    base = cases.base(x=shared["x"], weight=shared["weight"], classes=10)
    variants = base | {k: shared[k] for k in ("weight", "bias", "labels", "overlay", "classes")}
    variants |= {"norm": "rms", "eps": 1e-4, "goodness": "sum_sq"}
    peer = {"h": torch.rand(21, 19), "sign": step["sign"], "mean": torch.rand(19)}
    head = cases.head_step_arguments(21, [9, 6], 5, "adam")
    return [
        ("forward", cases.forward, cases.layer_arguments(21, 34, 19, x_norm=True)),
        ("base", cases.base, {"x": shared["x"], "weight": shared["weight"], "classes": 10}),
        ("variants", cases.variants, variants),
        ("peer", cases.peer, peer | {"strength": 0.2, "momentum": 0.9}),
        ("layer_grad", cases.gradient, cases.grad_arguments(step, True)),
        ("shared_grad", cases.gradient, cases.grad_arguments(shared, True)),
        ("layer_update", cases.update, cases.update_arguments(step, True)),
        ("shared_update", cases.update, cases.update_arguments(shared, True)),
        ("layer_step", cases.step, step),
        ("shared_step", cases.step, shared),
        ("predict", cases.predict, cases.predict_arguments(21, [34, 19, 7], 10)),
        (
            "head",
            cases.head,
            {k: head[k] for k in ("h", "h_norm", "weight", "bias", "norm", "eps")},
        ),
        ("head_step", cases.head_step, head),
    ]


@every_backend
def test_views_give_the_same_bits_and_nothing_else_is_touched():
    """Odd offsets and row pitches: the same bits, repeated, and the memory around is left alone."""
    for name, call, arguments in layouts():
        plain = call(**arguments)
        fenced = Fenced()
        views = strided(arguments, fenced)
        before = {k: v.clone() for k, v in views.items() if isinstance(v, Tensor)}
        for _ in range(2):
            again = call(**views)
            for key, value in plain.items():
                assert (value is None) == (again[key] is None)
                if value is not None:
                    # another alignment may send BLAS down another path: rounding only
                    assert torch.allclose(value, again[key], rtol=2e-5, atol=2e-5), (name, key)
        equal(call(**views), again)
        for key, value in before.items():
            assert torch.equal(views[key], value), (name, key)
        fenced.check()


@every_device
def test_views_obey_the_same_bound():
    a = cases.layer_arguments(37, 50, 41)
    for x, weight, units in [
        (a["x"][::2, 3:33], a["weight"][:, 3:33], 41),
        (a["x"][1:, :20], a["weight"][5:, 30:], 36),
        (a["x"][:1].expand(20, -1), a["weight"], 41),
        (a["x"][:, :1].expand(-1, 50), a["weight"], 41),
        (a["x"].t()[:, :20], a["weight"][:, :20], 41),
        (a["x"][:, :41], a["weight"][:, :41].t(), 41),
        (a["x"].flip(0)[:, 9:], a["weight"][:, 9:], 41),
    ]:
        view = a | {"x": x, "weight": weight, "bias": a["bias"][:units]}
        check_parity(cases.forward, cases.forward_reference, view)


@every_device
def test_expanded_and_transposed_inputs_of_a_step():
    a = cases.step_arguments(24, 24, 17, peer=True)
    for x in (a["x"].t(), a["x"][:1].expand(24, -1), a["x"][:, :1].expand(-1, 24)):
        check_parity(cases.step, cases.step_reference, a | {"x": x})
    a = cases.step_arguments(24, 24, 17, row_weight=False)
    a |= {"sign": torch.ones(1).expand(24), "row_weight": torch.full((1,), 0.1).expand(24)}
    check_parity(cases.step, cases.step_reference, a)
    a = shared_arguments((24, 24, 17, 5, 2))
    a |= {"x": a["x"].t(), "labels": a["labels"].t().contiguous().t()}
    check_parity(cases.step, cases.step_reference, a)
    a |= {"labels": a["labels"][:1].expand(2, -1), "sign": a["sign"].flip(0)}
    check_parity(cases.step, cases.step_reference, a)


# ------------------------------------------------------------------------------- edges of the data


@every_backend
def test_no_rows():
    def empty(arguments: dict[str, Any], call: Any, reference: Any) -> dict[str, Any]:
        got, want = call(**arguments), reference(**arguments)
        for name, value in want.items():
            assert got[name].shape == value.shape, name
            assert got[name].dtype == value.dtype, name
            assert torch.equal(got[name], value), name
        return got

    a = cases.layer_arguments(0, 9, 4)
    empty(a, cases.forward, cases.forward_reference)
    cases.forward_in_place(**a)
    s = cases.step_arguments(0, 9, 4)
    gradient = empty(cases.grad_arguments(s), cases.gradient, cases.gradient_reference)
    assert float(gradient["dweight"].abs().max()) == 0
    shared = shared_arguments((0, 9, 4, 3, 2))
    empty(cases.grad_arguments(shared), cases.gradient, cases.gradient_reference)
    base = {"x": a["x"], "weight": a["weight"], "classes": 3}
    both = empty(base, cases.base, cases.base_reference)
    variants = both | {k: shared[k] for k in ("weight", "bias", "labels", "overlay", "classes")}
    variants |= {"norm": "l2", "eps": 0.0, "goodness": "sum_sq"}
    empty(variants, cases.variants, cases.variants_reference)
    empty(cases.predict_arguments(0, [9, 4, 3], 5), cases.predict, cases.predict_reference)
    empty(cases.head_arguments(0, [9, 4], 5), cases.head, cases.head_reference)
    none = torch.zeros(0, dtype=torch.int64)
    overlay = torch.ones(2)
    assert ops.overlay_label(a["x"], none, 3, overlay).shape == (0, 9)
    assert ops.concat_label(a["x"], none, 3, overlay).shape == (0, 12)
    assert ops.wrong_labels(none, 3, torch.zeros(0)).shape == (0,)
    assert ops.hard_labels(torch.zeros(0, 3), none, torch.zeros(0)).shape == (0,)
    assert ops.all_wrong_labels(none, 3).shape == (2, 0)
    peer = cases.peer(h=torch.zeros(0, 4), sign=torch.zeros(0), mean=torch.ones(4), strength=1.0, momentum=0.5)
    assert torch.equal(peer["mean"], torch.ones(4))
    assert torch.equal(peer["p"], torch.zeros(4))


@every_backend
@pytest.mark.parametrize("norm", ref.NORMS)
def test_zero_rows(norm):
    """r = 1/eps and h = relu(bias), exactly; no part in dW, exactly; its part in db."""
    a = cases.step_arguments(9, 14, 11, optimiser="sgd", norm=norm, eps=2.0**-12)
    a["x"][2] = a["x"][5] = 0
    got = check_parity(
        cases.forward,
        cases.forward_reference,
        {k: a[k] for k in ("x", "weight", "bias", "x_norm", "norm", "eps", "goodness")},
    )
    assert float(got["scale"][2]) == (1.0 if norm == "none" else 2.0**12)
    assert torch.equal(got["h"][2], a["bias"].relu())
    check_parity(cases.step, cases.step_reference, a)

    g = cases.grad_arguments(a)
    g["coef"] = torch.zeros(9)
    g["coef"][2] = 1.5
    gradient = check_parity(cases.gradient, cases.gradient_reference, g)
    assert bool((gradient["dweight"] == 0).all())
    assert float(gradient["dbias"].abs().max()) > 0


@every_backend
def test_all_rows_zero_moves_no_weight():
    a = cases.step_arguments(6, 14, 11, optimiser="ema", fresh=True, eps=1e-8)
    a["x"] = torch.zeros_like(a["x"])
    a["hyper"] = [0.9, 0.0, 0.0, 0.0, 2.0**-24]
    got = cases.step(**a)
    assert torch.equal(got["weight"], a["weight"])
    assert bool((got["weight_state"] == 0).all())
    assert not torch.equal(got["bias"], a["bias"])


@every_backend
@pytest.mark.parametrize("norm", ref.NORMS)
@pytest.mark.parametrize("magnitude", [1e15, 1e-15, 1e30, 1e-30])
def test_huge_and_tiny_values(magnitude, norm):
    """Squares leave float32 beyond about 1e19 and below 1e-23: the norm is then infinite (r = 0) or
    0 (r = 1/eps), as it is for the reference in float32; within, the exact bound holds."""
    a = cases.layer_arguments(7, 33, 21, norm=norm, goodness="sum_abs")
    a["x"] = a["x"] / 3 * magnitude
    if magnitude in (1e15, 1e-15):
        check_parity(cases.forward, cases.forward_reference, a)
    got, plain = cases.forward(**a), cases.forward_reference(**a)
    for name, value in plain.items():
        assert torch.equal(got[name].isfinite(), value.isfinite()), name
        if value.isfinite().all():
            size = float(value.abs().max())
            assert torch.allclose(got[name], value, rtol=1e-4, atol=1e-5 * size), name
    if norm != "none" and magnitude == 1e30:
        assert bool((got["scale"] == 0).all())
        assert torch.equal(got["h"], a["bias"].relu().expand(7, -1))


@every_backend
@pytest.mark.parametrize("norm", ref.NORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_row_stays_alone(norm, value):
    a = cases.layer_arguments(37, 29, 21, norm=norm)
    clean = cases.forward(**a)
    a["x"][17, 5] = value
    got = cases.forward(**a)
    others = torch.arange(37) != 17
    for name, before in clean.items():
        assert torch.equal(got[name][others], before[others]), name
    if value != value or norm != "none":
        assert bool(got["h"][17].isnan().all())
        assert bool(got["goodness"][17].isnan())
        assert bool(got["h_norm"][17].isnan())
    else:
        want = cases.forward_reference(**a)
        assert torch.equal(got["h"][17].isinf(), want["h"][17].isinf())
        assert float(got["goodness"][17]) == float("inf")


@every_backend
def test_a_bad_image_stays_alone_in_shared_variants_and_prediction():
    a = shared_arguments((12, 29, 21, 5, 3))
    p = cases.predict_arguments(12, [29, 21, 9], 5)
    clean, clean_predict = [], cases.predict(**p)["goodness"]
    others = torch.arange(12) != 7
    for bad in (False, True):
        if bad:
            a["x"][7, 20] = float("nan")
            p["x"][7, 20] = float("nan")
        base, rest = ops.shared_base(a["x"], a["weight"], 5)
        out = ops.shared_variants(
            base, rest, a["weight"], a["bias"], a["labels"], a["overlay"], 5, "rms", 1e-4, "mean_sq"
        )
        clean.append(out)
    for before, after in zip(*clean, strict=True):
        rows = others.repeat(3)
        assert torch.equal(before[rows], after[rows])
    assert bool(clean[1][0][~others.repeat(3)].isnan().all())
    after = cases.predict(**p)["goodness"]
    assert torch.equal(after[:, others], clean_predict[:, others])
    assert bool(after[:, 7].isnan().all())


@every_backend
@pytest.mark.parametrize("variants", [0, 2])
def test_rows_with_sign_0_change_nothing(variants):
    """However large they are: the step is that of the other rows with the same weights."""
    a = cases.step_arguments(24, 30, 17, peer=True, variants=variants, classes=4 if variants else 0, row_weight=True)
    a["sign"] = a["sign"].reshape(max(variants, 1), 24)
    a["sign"][:, 20:] = 0
    a["sign"] = a["sign"].reshape(-1)
    before = cases.step(**a)
    a["x"] = a["x"].clone()
    a["x"][20:] *= -7
    after = cases.step(**a)
    for name in ("weight", "bias", "weight_state", "bias_state", "peer_mean", "stats"):
        assert torch.equal(before[name], after[name]), name


@every_backend
@pytest.mark.parametrize("goodness", ["sum_sq", "sum_abs"])
@pytest.mark.parametrize("variants", [0, 2])
def test_a_nan_row_reaches_every_weight(variants, goodness):
    """A row that is lost must not train on as if nothing were."""
    a = cases.step_arguments(
        6, 8, 5, optimiser="sgd", goodness=goodness, variants=variants, classes=3 if variants else 0, row_weight=False
    )
    a["sign"], a["x"] = torch.ones_like(a["sign"]), a["x"].clone()
    a["x"][2, 5] = float("nan")
    got, want = cases.step(**a), cases.step_reference(**to_double(a))
    for name in ("weight", "bias", "weight_state", "bias_state"):
        assert torch.equal(got[name].isnan(), want[name].isnan()), name
    assert got["bias"].isnan().all()


NETWORKS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "several negatives": {"variants": 3, "optimiser": "ema", "norm": "l2"},
    "without biases, peers": {"bias": False, "peer": True, "row_weight": False, "optimiser": "sgd"},
    "first layer frozen": {"frozen": (0,), "optimiser": "adamw"},
    "middle layer frozen": {"frozen": (1,), "peer": True},
    "last layer frozen": {"frozen": (2,)},
    "hard negatives": {"head_layers": (0, 1, 2), "hard": True, "optimiser": "ema"},
    "hard negatives, peers": {"head_layers": (1, 2), "hard": True, "peer": True, "frozen": (3,), "goodness": "sum_sq"},
    "head and several negatives": {"head_layers": (0, 2), "variants": 4, "frozen": (0,), "bias": False},
    "head and the upper layers frozen": {"head_layers": (2,), "frozen": (1, 2), "hard": True},
    "only the head learns": {"head_layers": (0,), "frozen": (0, 1, 2), "optimiser": "sgd"},
}


@parity("network_step_", "network_workspace")
@every_backend
@pytest.mark.parametrize("which", NETWORKS)
def test_network_step(which):
    a = cases.network_arguments(13, [31, 17, 9, 12], 5, **NETWORKS[which])
    check_parity(cases.network, cases.network_reference, a)


@every_backend
@pytest.mark.parametrize("sizes", [[3, 1], [40, 1, 3], [113, 65, 33, 70, 5]], ids=shape_name)
def test_network_step_of_any_depth(sizes):
    for images in (1, 37):
        check_parity(cases.network, cases.network_reference, cases.network_arguments(images, sizes, 2, optimiser="ema"))


def composed(a: dict[str, Any]) -> dict[str, Any]:
    """The step made of single operations, in the order of events that docs/design.md states."""
    written = {k: [None if t is None else t.clone() for t in a[k]] for k in cases.NETWORK_LISTS[:-1]}
    labels, depth, head = a["labels"].clone(), len(a["thresholds"]), bool(a["head_layers"])
    x, sign, weight_of_rows, overlay, classes = (a[k] for k in ("x", "sign", "row_weight", "overlay", "classes"))
    kind, n = (a["norm"], a["eps"], a["goodness"]), x.shape[0]
    lesson = labels[:-1] if head else labels
    stats: list[Tensor | None] = [None] * len(a["weights"])
    none = torch.zeros(0)

    def trained(i: int) -> list[Any]:
        values = [written[k][i] for k in cases.NETWORK_LISTS[:5]]
        return [*values[:3], none if values[3] is None else values[3], values[4], a["lrs"][i]]

    def rule(i: int) -> tuple[str, list[float]]:
        return a["optimisers"][i], a["hyper"][5 * i : 5 * i + 5]

    def forward(i: int, labels: Tensor, below: Any) -> tuple[Tensor, ...]:
        w, b = written["weights"][i], written["biases"][i]
        if i == 0:
            base, rest_norm = ops.shared_base(x, w, classes)
            rows, units = labels.numel(), w.shape[0]
            out = torch.zeros(rows, units, dtype=x.dtype), *(torch.zeros(rows) for _ in range(3))
            ops.shared_variants_(base, rest_norm, w, b, labels, overlay, *out, classes, *kind)
            return out
        return ops.layer_forward(below[0], w, b, below[3], *kind)

    def memory(i: int) -> Tensor:
        size = (n, classes, lesson.shape[0]) if i == 0 else (sign.shape[0], 0, 1)
        w = written["weights"][i]
        low = x.dtype == torch.bfloat16
        rule = a["optimisers"][i]
        return torch.zeros(
            max(ops.step_workspace(w, *size, True, rule, low), ops.update_workspace(w, *size, rule, low))
        )

    def loss(i: int) -> tuple[float, ...]:
        return a["thresholds"][i], a["temperatures"][i]

    def peer(i: int) -> tuple[float, ...]:
        return a["peer_strengths"][i], a["peer_momenta"][i]

    if not head:
        out: Any = None
        for i in range(depth):
            if written["weight_states"][i] is None:
                out = forward(i, labels, out)
                continue
            units = written["weights"][i].shape[0]
            kept = torch.zeros(sign.shape[0], units, dtype=x.dtype), torch.zeros(sign.shape[0])
            stats[i] = torch.zeros(9, dtype=torch.float64)
            rest = (sign, weight_of_rows, written["peer_means"][i], memory(i), stats[i], *kept, *kind)
            settings = (*trained(i), None, *rest, *loss(i), *peer(i), *rule(i))
            if i == 0:
                ops.shared_step_(x, labels, overlay, classes, *settings)
            else:
                ops.layer_step_(out[0], out[3], *settings)
            out = (kept[0], None, None, kept[1])
        return cases._named(written | {"stats": stats, "labels": [labels]})

    first, neutral, wrong = ([None], [None], [None])
    for i in range(depth):
        first.append(forward(i, labels[:1], first[-1]))
        neutral.append(forward(i, labels[-1:], neutral[-1]))
    chosen = [neutral[i + 1] for i in a["head_layers"]]
    states, norms = [c[0] for c in chosen], [c[3] for c in chosen]
    answer = (a["head_norm"], a["head_eps"])
    if written["weight_states"][depth] is None:
        logits = ops.head_forward(states, norms, written["weights"][depth], written["biases"][depth], *answer)
    else:
        stats[depth] = torch.zeros(3, dtype=torch.float64)
        logits = ops.head_step_(states, norms, labels[0], *trained(depth), stats[depth], *answer, *rule(depth))
    if a["u"] is not None:
        labels[1] = ops.hard_labels(logits, labels[0], a["u"])
    for i in range(depth):
        wrong.append(forward(i, lesson[1:], wrong[-1]))
    rows = [tuple(map(torch.cat, zip(one, two, strict=True))) for one, two in zip(first[1:], wrong[1:], strict=True)]
    for i, (h, goodness, scale, _) in enumerate(rows):
        if written["weight_states"][i] is None:
            continue
        _, coef, stats[i] = ops.local_loss(goodness, sign, weight_of_rows, *loss(i))
        mean = written["peer_means"][i]
        p = None if mean is None else ops.peer_update_(h, sign, mean, *peer(i))
        tail = (sign, p, *trained(i), None, memory(i), stats[i], a["goodness"], *rule(i))
        if i == 0:
            ops.shared_update_(x, h, scale, coef, lesson, overlay, classes, *tail)
        else:
            ops.layer_update_(rows[i - 1][0], h, scale, coef, *tail)
    return cases._named(written | {"stats": stats, "labels": [labels]})


@every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("which", NETWORKS)
def test_network_step_is_made_of_the_other_operations(which, dtype, device, monkeypatch):
    """The same bits as one operation after the other, on a product whose rows do not depend on their place."""
    monkeypatch.setenv("FFKERN_GEMM", "own")
    ops.reset_cpu_path()
    a = cases.network_arguments(13, [31, 17, 9, 12], 5, **NETWORKS[which])
    a["x"] = a["x"].to(dtype)
    monkeypatch.setattr(cases, "STATS_BEFORE", torch.zeros(9, dtype=torch.float64))
    with cases.expecting_bfloat16(device, dtype):
        equal(cases.network(counted=True, **a), composed(a))
    monkeypatch.undo()
    ops.reset_cpu_path()


@every_device
def test_one_class():
    a = shared_arguments((9, 14, 11, 1, 2))
    check_parity(cases.step, cases.step_reference, a)
    check_parity(cases.predict, cases.predict_reference, cases.predict_arguments(9, [14, 11, 5], 1))
    check_parity(cases.head_step, cases.head_step_reference, cases.head_step_arguments(9, [5], 1, "sgd"))


# ------------------------------------------------------------------------ dispatcher: fake, opcheck


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value or () for t in tensors(part)] if not isinstance(value, str | float | int) else []


def to_fake(mode: FakeTensorMode, value: Any) -> Any:
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if isinstance(value, list):
        return [to_fake(mode, part) for part in value]
    return value


@every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TENSOR_OPS)
def test_fake(name, dtype, device):
    """Shapes, dtypes, strides and devices that torch.compile is told are those that come."""
    arguments = sample(name, cases.low_dtype(device, dtype))
    with FakeTensorMode() as mode:
        fake = getattr(ops, name)(*(to_fake(mode, value) for value in arguments))
    real = getattr(ops, name)(*arguments)
    assert len(tensors(fake)) == len(tensors(real))
    for a, b in zip(tensors(fake), tensors(real), strict=True):
        assert (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device)


@every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TENSOR_OPS)
def test_opcheck(name, dtype, device):
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(getattr(torch.ops.ffkern, name).default, sample(name, cases.low_dtype(device, dtype)))


@every_device
@pytest.mark.parametrize("name", ["layer_forward", "local_loss"])
def test_opcheck_with_gradients(name):
    torch.use_deterministic_algorithms(False)
    arguments = [a.requires_grad_() if isinstance(a, Tensor) and i < 3 else a for i, a in enumerate(sample(name))]
    if name == "local_loss":
        arguments[1].requires_grad_(False), arguments[2].requires_grad_(False)
    torch.library.opcheck(getattr(torch.ops.ffkern, name).default, tuple(arguments))


@every_device
@pytest.mark.parametrize("name", cases.WRITING_OPS)
def test_in_place_operations_bump_versions(name):
    """Of everything they write and of nothing else: backward() on old values has to raise."""
    op = getattr(torch.ops.ffkern, name).default
    arguments = sample(name)
    versions = [[t._version for t in tensors(a)] if isinstance(a, Tensor | list) else [] for a in arguments]
    op(*arguments)
    for argument, value, before in zip(op._schema.arguments, arguments, versions, strict=True):
        written = argument.alias_info is not None and argument.alias_info.is_write
        for t, version in zip(tensors(value) if before else (), before, strict=True):
            assert (t._version > version) == written, argument.name


# ------------------------------------------------------------------------------------ determinism


def deterministic_calls() -> list[tuple[str, Any, dict[str, Any]]]:
    return [
        *layouts(),
        ("large step", cases.step, cases.step_arguments(300, 250, 333, peer=True, keep=True)),
        ("large shared", cases.step, shared_arguments((150, 250, 333, 10, 3), keep=True)),
        ("large predict", cases.predict, cases.predict_arguments(300, [250, 333, 70], 10)),
    ]


@every_backend
def test_repeats_are_bit_identical():
    for _, call, arguments in deterministic_calls():
        first = call(**arguments)
        for _ in range(3):
            equal(call(**arguments), first)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2])
def test_another_python_thread_gets_the_same_bits(count, product):
    """A thread that has never called torch before obeys set_num_threads like this one."""
    torch.set_num_threads(count)
    calls = deterministic_calls()
    here = [call(**arguments) for _, call, arguments in calls]
    there: list[Any] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            there.extend(call(**arguments) for _, call, arguments in calls)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    for a, b in zip(here, there, strict=True):
        equal(a, b)
    torch.set_num_threads(3 - count)
    torch.set_num_threads(count)
    for (_, call, arguments), before in zip(calls, here, strict=True):
        equal(call(**arguments), before)


def test_two_threads_at_once():
    """Nothing is shared between calls: two networks may learn at the same time."""
    arguments = [cases.step_arguments(200, 150, 120, peer=True) for _ in range(2)]
    alone = [cases.step(**a) for a in arguments]
    results: list[list[Any]] = [[], []]

    def work(i: int) -> None:
        results[i].extend(cases.step(**arguments[i]) for _ in range(5))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for mine, want in zip(results, alone, strict=True):
        assert len(mine) == 5
        for got in mine:
            equal(got, want)


def test_the_bound_can_fail():
    """The rule used above notices an error of a few roundings in every result of a step."""
    a = cases.step_arguments(13, 113, 65, keep=True)
    exact = cases.step_reference(**to_double(a))
    floors = conditioning(cases.step_reference, a, exact, ("sign", "lr"))
    assert floors["weight"] < 1e-5

    def worse(name: str) -> Any:
        def call(**arguments: Any) -> dict[str, Any]:
            got = cases.step(**arguments)
            got[name] = got[name] * (1 + 1e-3)
            return got

        return call

    for name in ("weight", "bias", "weight_state", "bias_state", "h", "h_norm", "stats"):
        with pytest.raises(AssertionError, match=name):
            check_parity(worse(name), cases.step_reference, a)
