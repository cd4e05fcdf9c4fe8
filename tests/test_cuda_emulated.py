"""The CUDA kernels and their launch code on a software driver, which checks what a GPU does not: every bound, every
shared-memory race, every byte that is read before it was written.

What every operation computes is tested in test_ops.py, on these devices too. Here: every arithmetic at every size
around a tile, every instance, what the kernels touch, streams and graphs, the launch code's choices and refusals.
"""

from __future__ import annotations

import contextlib
import copy
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import emulated
import every_operation
import op_cases as cases
import pytest
import torch
from emulated import build
from emulated.graphs import Graphs
from tolerance import STORAGE_UNIT, UNIT, check_parity
from torch import Tensor

from ffkern import nn, ops, optim
from ffkern import reference as ref

pytestmark = [pytest.mark.emulated, pytest.mark.usefixtures("poisoned")]

ROOT = emulated.toolkit.ROOT
LARGE, SMALL, PIECES_8, PIECES_2 = emulated.instances(2)
LARGE_32, SMALL_32, PIECES_4 = emulated.instances(4)
WIDE, NARROW = emulated.hopper_instances(2)
WIDE_32, NARROW_32 = emulated.hopper_instances(4)

# Arithmetic: dtype of x, what forces it, and the rounding of the products' operands.
MATHS: dict[str, tuple[torch.dtype, str, float]] = {
    "bf16": (torch.bfloat16, "", STORAGE_UNIT[torch.bfloat16]),
    "f16": (torch.float16, "", STORAGE_UNIT[torch.float16]),
    "tf32": (torch.float32, "tf32", 2.0**-11),
    "tf32x3": (torch.float32, "tf32x3", 2.0**-21),
    "f32": (torch.float32, "ffma", UNIT),
}
HOPPER_MATHS = ("bf16", "f16", "tf32")
every_math = pytest.mark.parametrize("math", MATHS)
every_instance = pytest.mark.parametrize(
    ("math", "instance"),
    [(math, name) for math, (dtype, *_) in MATHS.items() for name in emulated.instances(dtype.itemsize)],
)
HOPPER = [(math, name) for math in HOPPER_MATHS for name in emulated.hopper_instances(MATHS[math][0].itemsize)]
every_hopper_instance = pytest.mark.parametrize(("math", "instance"), HOPPER)
# Every arithmetic by the rule, and the instances that other devices do not have by name.
every_design = pytest.mark.parametrize(("math", "instance"), [*((math, "") for math in MATHS), *HOPPER])
SIZES = [1, 7, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129]
# Every size as number of rows, of inputs and of units, and the article's layer.
SHAPES = [(SIZES[i], SIZES[(i + 5) % 12], SIZES[(i + 9) % 12]) for i in range(12)] + [(200, 784, 500)]


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    return emulated.load()


@pytest.fixture(autouse=True)
def clean(driver: ModuleType) -> None:
    driver.driver_clear()


@contextlib.contextmanager
def forced(math: str, instance: str = "") -> Iterator[None]:
    with emulated.environment(**{emulated.FORCE: instance, emulated.FORCE_FLOAT32: MATHS[math][1]}):
        yield


def home(instance: str) -> str:
    """A device that has the instance."""
    return "sm_90" if instance in emulated.hopper_instances() else "sm_80"


def records(driver: ModuleType, kind: str = "") -> list[dict[str, Any]]:
    """The launches of the products, oldest first."""
    return [r for r in driver.driver_last_stats() if re.match(f"ffkern_({kind or 'forward|gradient'})_", r["kernel"])]


def names(driver: ModuleType) -> list[str]:
    return [r["kernel"].removeprefix("ffkern_") for r in records(driver)]


def in_dtype(a: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Rows in this dtype beside float32 weights: what a training step takes."""
    return a | {"x": a["x"].to(dtype)}


def step_on(device: str, **arguments: Any) -> dict[str, Any]:
    with emulated.device(device):
        return cases.step(**arguments)


# ------------------------------------------------------------------------------- every arithmetic, every size


@pytest.mark.parametrize("device", emulated.TESTED)
@every_math
@pytest.mark.parametrize("shape", SHAPES, ids=cases.shape_name)
def test_every_arithmetic_at_every_size(shape: tuple[int, int, int], math: str, device: str) -> None:
    """Forward, loss, gradient and update; the kinds and optimisers take turns."""
    dtype, _, unit = MATHS[math]
    if device == "sm_75" and math in ("bf16", "tf32", "tf32x3"):
        with forced(math), pytest.raises(RuntimeError, match="has no kernel for this device"):
            step_on(device, **in_dtype(cases.step_arguments(3, 8, 8), dtype))
        return
    turn = SHAPES.index(shape)
    norm, goodness = cases.NORM_GOODNESS[turn % 4]
    options = {"optimiser": ("sgd", "ema")[turn % 2], "norm": norm, "goodness": goodness, "keep": True}
    a = cases.step_arguments(*shape, peer=turn % 3 == 0, **options)
    a["x"] = a["x"].to(dtype).float()
    with forced(math):
        check_parity(
            lambda x, **rest: cases.smooth(step_on(device, x=x.to(dtype), **rest)),
            cases.smooth_step_reference,
            a,
            unit=unit,
        )


VARIANTS = [
    (rows, max(inputs, 3), units, min(max(inputs, 3) - 1, 10), 1 + i % 3)
    for i, (rows, inputs, units) in enumerate(SHAPES)
]


@every_math
@pytest.mark.parametrize("shape", VARIANTS, ids=cases.shape_name)
def test_label_variants_in_every_arithmetic(shape: tuple[int, ...], math: str) -> None:
    """The shared first layer: one product for all variants, forward and back."""
    images, inputs, units, classes, variants = shape
    dtype, _, unit = MATHS[math]
    a = cases.step_arguments(
        images, inputs, units, classes=classes, variants=variants, keep=True, optimiser="sgd", peer=True
    )
    a["x"] = a["x"].to(dtype).float()
    with forced(math):
        check_parity(
            lambda x, **rest: cases.smooth(step_on("sm_80", x=x.to(dtype), **rest)),
            cases.smooth_step_reference,
            a,
            unit=unit,
        )


@pytest.mark.parametrize("dtype", every_operation.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=cases.shape_name)
def test_every_operation_at_every_size(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    unit = STORAGE_UNIT[dtype]
    seen = {
        "layer_step_",
        "shared_step_",
        "network_step_",
        "shared_variants_",
    }  # the tests beside this one, and test_ops.py
    for name, operation, reference, arguments in every_operation.compared(*shape, dtype):
        with emulated.device("sm_80"):
            check_parity(operation, reference, arguments, unit=unit)
        seen.add(name)
    rows, inputs, _ = shape
    for name, arguments in every_operation.of_labels(rows, inputs, dtype).items():
        with emulated.device("sm_80"):
            got = getattr(ops, name)(*arguments)
        assert torch.equal(got, getattr(ref, name)(*arguments)), name
        seen.add(name)
    generator = torch.tensor([3, 9])
    pictures = torch.randn(2, 5, inputs * 3).to(dtype)
    want = ref.hybrid_images(*pictures, generator, 3, inputs, 4)
    with emulated.device("sm_80"):
        got = ops.hybrid_images_(*pictures, generator, 3, inputs, 4)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=False))
    assert torch.equal(generator, want[2])
    seen.add("hybrid_images_")
    assert seen == set(cases.CUDA_OPS)


by_name = pytest.mark.parametrize(
    ("math", "instance", "device"),
    [
        *((math, instance, home(instance)) for math, instance in [*every_instance.args[1], *HOPPER]),
        *(
            (math, instance, "sm_75")
            for math, instance in every_instance.args[1]
            if math in ("f16", "f32") and instance not in (LARGE, LARGE_32)
        ),
    ],
)


@by_name
def test_every_instance(math: str, instance: str, device: str, driver: ModuleType) -> None:
    """By name, aligned so that all of them fit: a step, a gradient with a mask. Also without asynchronous copies."""
    dtype, _, unit = MATHS[math]
    wanted = {f"forward_{math}_{instance}", f"gradient_{math}_{instance}"}
    for shape, goodness in [((137, 264, 168), "mean_sq"), ((1, 8, 8), "neg_sum_sq")]:
        a = cases.step_arguments(*shape, optimiser="sgd", goodness=goodness, peer=True)
        a["x"] = a["x"].to(dtype).float()
        driver.driver_clear()
        with forced(math, instance):
            check_parity(
                lambda x, **rest: cases.smooth(step_on(device, offset=16, x=x.to(dtype), **rest)),
                cases.smooth_step_reference,
                a,
                unit=unit,
            )
        assert set(names(driver)) == wanted
    for peer in (True, False):
        a = cases.grad_arguments(cases.step_arguments(70, 136, 72, goodness="sum_abs"), peer=peer)
        a["x"], a["h"] = a["x"].to(dtype), a["h"].to(dtype)
        driver.driver_clear()
        with forced(math, instance), emulated.device(device):
            check_parity(cases.gradient, cases.gradient_reference, a, unit=unit)
        assert set(names(driver)) == {f"gradient_{math}_{instance}"}


@by_name
def test_every_instance_with_labels_in_the_input(math: str, instance: str, device: str) -> None:
    """By name: variants forward and back, and the bare product."""
    dtype, _, unit = MATHS[math]
    for inputs, units in [(136, 72), (72, 8)]:
        a = cases.step_arguments(70, inputs, units, classes=10, variants=2, optimiser="sgd", peer=True, keep=True)
        a["x"] = a["x"].to(dtype).float()
        base = {"x": torch.randn(137, inputs).to(dtype), "weight": torch.randn(units, inputs).to(dtype), "classes": 3}
        with forced(math, instance):
            check_parity(
                lambda x, **rest: cases.smooth(step_on(device, offset=16, x=x.to(dtype), **rest)),
                cases.smooth_step_reference,
                a,
                unit=unit,
            )
            with emulated.device(device):
                check_parity(cases.base, cases.base_reference, base, unit=unit)


@by_name
def test_norms_and_products_of_one_row_are_exact(math: str, instance: str, device: str) -> None:
    """Bounds for 16 bits would hide a lost bit: norms are sums in float32 of what x holds, and where one row teaches dW
    is a product. The first of a pair of rows, and the second."""
    dtype, _, _ = MATHS[math]
    x, weight = torch.randn(70, 136).bfloat16().to(dtype), torch.randn(72, 136).to(dtype)
    h = torch.randn(2, 72).relu().bfloat16().to(dtype)
    with forced(math, instance), emulated.device(device):
        scale = ops.layer_forward(x, weight, None, None, "l2", 1e-4, "sum_sq")[2]
        torch.testing.assert_close(scale, 1 / (x.double().norm(dim=1) + 1e-4).float(), rtol=1e-6, atol=0)
        for row in range(2):
            coef = 0.5 * torch.nn.functional.one_hot(torch.tensor(row), 2).float()
            dweight = ops.layer_grad(x[:2], h, torch.ones(2), coef, None, None, "sum_sq")[0]
            assert torch.equal(dweight, h[row].float()[:, None] * x[row].float())


def padded(matrix: Tensor, bytes_: int = 16) -> Tensor:
    """The matrix with rows as far apart as copies of boxes want them; NaN lies between."""
    pitch = -(-matrix.shape[1] * matrix.itemsize // bytes_) * bytes_ // matrix.itemsize
    return matrix.new_full((len(matrix), pitch), float("nan"))[:, : matrix.shape[1]].copy_(matrix)


@pytest.mark.parametrize("math", HOPPER_MATHS)
@pytest.mark.parametrize("shape", SHAPES, ids=cases.shape_name)
def test_hopper_at_every_size(shape: tuple[int, int, int], math: str, driver: ModuleType) -> None:
    """Sizes that are multiples of nothing, in rows that are aligned; the instances take turns."""
    dtype, _, unit = MATHS[math]
    turn = SHAPES.index(shape)
    instance = emulated.hopper_instances(dtype.itemsize)[turn % 2]
    norm, goodness = cases.NORM_GOODNESS[turn % 4]
    a = cases.layer_arguments(*shape, dtype=dtype, norm=norm, goodness=goodness)
    a |= {name: padded(a[name]) for name in ("x", "weight")}
    g = cases.grad_arguments(cases.step_arguments(*shape, goodness=goodness), peer=turn % 3 == 0)
    g |= {name: padded(g[name].to(dtype)) for name in ("x", "h")}
    with forced(math, instance), emulated.device("sm_90"):
        check_parity(cases.forward, cases.forward_reference, a, unit=unit)
        assert set(names(driver)) == {f"forward_{math}_{instance}"}
        driver.driver_clear()
        check_parity(cases.gradient, cases.gradient_reference, g, unit=unit)
        assert set(names(driver)) == {f"gradient_{math}_{instance}"}


@pytest.mark.parametrize(("math", "instance"), [("bf16", NARROW), ("tf32", NARROW_32)])
def test_hopper_walks_through_more_tiles_than_there_are_blocks(math: str, instance: str, driver: ModuleType) -> None:
    """134 tiles for 132 multiprocessors: two blocks have a second one, for which copies start during the first."""
    m, n, *_ = emulated.tile_values(instance)
    dtype, _, unit = MATHS[math]
    a = cases.layer_arguments(66 * m + 1, 8, n + 8, dtype=dtype)
    g = cases.grad_arguments(cases.step_arguments(5, n + 8, 66 * m + 8))
    g |= {name: g[name].to(dtype) for name in ("x", "h")}
    with forced(math, instance), emulated.device("sm_90"):
        check_parity(cases.forward, cases.forward_reference, a, unit=unit)
        check_parity(cases.gradient, cases.gradient_reference, g, unit=unit)
    assert [r["grid"] for r in records(driver)] == [[132, 1, 1]] * 2


@every_hopper_instance
def test_hopper_goes_round_its_ring(math: str, instance: str, driver: ModuleType) -> None:
    """Twice and a bit: stages are waited for in both parities, and filled anew only when they were left."""
    m, _, k, stages, *_ = emulated.tile_values(instance)
    dtype, _, unit = MATHS[math]
    depth = (2 * stages + 1) * k + 8
    a = cases.layer_arguments(m + 8, depth, 40, dtype=dtype)
    g = cases.grad_arguments(cases.step_arguments(depth, 40, m + 8), peer=True)
    g |= {name: g[name].to(dtype) for name in ("x", "h")}
    for order in range(3):
        with driver.driver_options(order=order), forced(math, instance), emulated.device("sm_90"):
            check_parity(cases.forward, cases.forward_reference, a, unit=unit)
            check_parity(cases.gradient, cases.gradient_reference, g, unit=unit)


@pytest.mark.parametrize("kind", ["forward", "gradient"])
def test_hopper_goes_round_its_ring_from_tile_to_tile(kind: str, driver: ModuleType) -> None:
    """The last stage of a tile is filled anew only when that tile has left it."""
    m, _, k, stages, *_ = emulated.tile_values(NARROW)
    dtype, _, unit = MATHS["bf16"]
    depth = stages * k
    with forced("bf16", NARROW), emulated.device("sm_90"):
        if kind == "forward":
            a = cases.layer_arguments(132 * m + 1, depth, 8, dtype=dtype)
            check_parity(cases.forward, cases.forward_reference, a, unit=unit)
        else:
            g = cases.grad_arguments(cases.step_arguments(depth, 8, 132 * m + 8))
            g |= {name: g[name].to(dtype) for name in ("x", "h")}
            check_parity(cases.gradient, cases.gradient_reference, g, unit=unit)
    assert [r["grid"] for r in records(driver)] == [[132, 1, 1]]


@every_hopper_instance
def test_hopper_with_given_norms_and_without_activities(math: str, instance: str, driver: ModuleType) -> None:
    """Norms that are not those of the rows; prediction, whose last layer leaves sums only; odd bare products."""
    dtype, _, unit = MATHS[math]
    with forced(math, instance), emulated.device("sm_90"):
        for norm, goodness in cases.NORM_GOODNESS[:4]:
            a = cases.layer_arguments(70, 72, 40, norm=norm, goodness=goodness, dtype=dtype, x_norm=True)
            check_parity(cases.forward, cases.forward_reference, a, unit=unit)
        predict = cases.predict_arguments(21, [136, 72, 40], 10, dtype=dtype)
        check_parity(cases.predict, cases.predict_reference, predict, unit=unit)
        for rows, units in [(129, 31), (5, 257)]:
            base = {"x": torch.randn(rows, 72).to(dtype), "weight": torch.randn(units, 72).to(dtype), "classes": 3}
            check_parity(cases.base, cases.base_reference, base, unit=unit)
    assert {name.removeprefix(f"forward_{math}_") for name in names(driver)} == {instance}


@every_hopper_instance
@pytest.mark.parametrize("classes", [3, 10])
def test_hopper_begins_behind_the_label_inputs(classes: int, math: str, instance: str) -> None:
    """Forward and back with variants, and the bare product; what lies in the label inputs is NaN."""
    dtype, _, unit = MATHS[math]
    a = cases.step_arguments(131, 136, 136, classes=classes, variants=2, keep=True, optimiser="sgd", peer=True)
    a["x"] = a["x"].to(dtype).float()
    a["x"][:, :classes] = 0  # where the reference writes the label
    with forced(math, instance):
        check_parity(
            lambda x, **rest: cases.smooth(step_on("sm_90", x=x.to(dtype), **rest)),
            cases.smooth_step_reference,
            a,
            unit=unit,
        )
        x, weight = a["x"].to(dtype), a["weight"].to(dtype)
        with emulated.device("sm_90"):
            base, rest = ops.shared_base(x, weight, classes)
            x[:, :classes] = float("nan")
            weight[:, :classes] = float("inf")
            again, rest_again = ops.shared_base(x, weight, classes)
    assert torch.equal(base, again)
    assert torch.equal(rest, rest_again)


@every_design
def test_same_bits_under_any_schedule(math: str, instance: str, driver: ModuleType) -> None:
    """Warps in ascending, descending and random order; blocks one by one and interleaved."""
    dtype, _, _ = MATHS[math]
    a = in_dtype(cases.step_arguments(140, 104, 136, goodness="sum_abs", peer=True, keep=True), dtype)
    b = in_dtype(cases.step_arguments(40, 104, 72, variants=3, classes=10, peer=True, keep=True), dtype)
    c = in_dtype(cases.step_arguments(140, 104, 136, optimiser="ema", peer=True), dtype)
    c["row_weight"] = faded(140, 140, 30)
    device = home(instance)
    with forced(math, instance), emulated.environment(**leaving_rows_out):
        first = [step_on(device, **arguments) for arguments in (a, b, c)]
        for order in range(1, 4):
            with driver.driver_options(order=order, resident=-1 if order % 2 else 1):
                again = [step_on(device, **arguments) for arguments in (a, b, c)]
            for one, other in zip(first, again, strict=True):
                assert all(v is None or torch.equal(v, other[k]) for k, v in one.items())


# ------------------------------------------------------------------------------- rows left out

leaving_rows_out = {emulated.FORCE_LEAVE_OUT: "always"}
LESSONS = ["ffkern_masses", "ffkern_choose", "ffkern_gather", "ffkern_owed"]


def faded(rows: int, images: int, teaching: int) -> Tensor:
    """Weights of rows such that the last images teach, and the others 2^-40 as much."""
    return torch.where(torch.arange(rows) % images >= images - teaching, 1.0, 2.0**-40)


def check_update_of_some_rows(math: str, g: dict[str, Any]) -> None:
    """Rows of the arithmetic's dtype, of which those that teach nothing are left out."""
    dtype, _, unit = MATHS[math]
    g |= {name: g[name].to(dtype).float() for name in ("x", "h")}

    def update(x: Tensor, h: Tensor, **rest: Any) -> dict[str, Any]:
        with emulated.device("sm_80"):
            return cases.update(x=x.to(dtype), h=h.to(dtype), **rest)

    with forced(math), emulated.environment(**leaving_rows_out):
        check_parity(update, cases.update_reference, g, unit=unit)


@every_math
@pytest.mark.parametrize("peer", [False, True])
@pytest.mark.parametrize("variants", [0, 2])
def test_rows_left_out_in_every_arithmetic(variants: int, peer: bool, math: str, driver: ModuleType) -> None:
    """An update whose batch is split, from a fifth of its rows."""
    layout = {"variants": variants, "classes": 10} if variants else {}
    g = cases.update_arguments(cases.step_arguments(600, 104, 136, optimiser="ema", peer=peer, **layout), peer)
    g["coef"] = (g["coef"] + 0.1) * faded(len(g["coef"]), 600, 120)
    check_update_of_some_rows(math, g)
    kernels = [r["kernel"] for r in driver.driver_last_stats()]
    assert [k for k in kernels if k in LESSONS] == LESSONS[: 4 if peer else 3]
    (product,) = records(driver, "gradient")
    assert product["grid"][1] > 1


@pytest.mark.parametrize(("math", "long"), [("bf16", 2065), ("bf16", 2072), ("f32", 1034), ("f32", 1036)])
@pytest.mark.parametrize("operand", ["x", "h"])
def test_long_rows_are_gathered_whole(operand: str, math: str, long: int) -> None:
    """More than 16 bytes a thread of a block, with and without an odd end."""
    shape = (40, long, 12) if operand == "x" else (40, 12, long)
    g = cases.update_arguments(cases.step_arguments(*shape, optimiser="sgd", peer=True), True)
    g["coef"] = (g["coef"] + 0.1) * faded(40, 40, 8)
    check_update_of_some_rows(math, g)


@pytest.mark.parametrize("variants", [0, 2])
def test_too_many_rows_to_leave_any_out_are_the_bits_of_all_rows(variants: int) -> None:
    layout = {"variants": variants, "classes": 10} if variants else {}
    a = cases.step_arguments(90, 40, 33, optimiser="ema", peer=True, row_weight=False, **layout)
    a["sign"] = torch.where(a["sign"] == 0, 1.0, a["sign"])
    a["row_weight"] = faded(len(a["sign"]), 90, 50)
    whole = step_on("sm_80", **a)
    with emulated.environment(**leaving_rows_out):
        got = step_on("sm_80", **a)
        a["row_weight"] = faded(len(a["sign"]), 90, 40)
        some = step_on("sm_80", **a, counted=True)
    for name in ("weight", "bias", "weight_state", "bias_state", "peer_mean", "stats"):
        assert torch.equal(got[name], whole[name]), name
    teaching = a["sign"].view(-1, 90)[:, -40:]
    assert some["stats"][7:].tolist() == [float((teaching > 0).sum()), float((teaching < 0).sum())]


def test_rows_are_left_out_where_it_can_pay(driver: ModuleType) -> None:
    a = cases.step_arguments(20, 30, 10, optimiser="ema")
    step_on("sm_80", **a)
    assert not any(r["kernel"] in LESSONS for r in driver.driver_last_stats())
    with emulated.device("sm_80"):  # 2^31 multiply-adds in float32, which the workspace is made for
        weight = torch.empty(1024, 1024)
        few, many = (ops.update_workspace(weight, rows, 0, 1, "ema") for rows in (2047, 2048))
        assert many - few > 1024 * 2048
        assert ops.update_workspace(weight, 2048, 0, 1, "adam") < few + 1024 * 8
        refused = pytest.raises(ValueError, match="FFKERN_CUDA_LEAVE_OUT is 'sometimes'; expected 'always' or 'never'")
        with emulated.environment(**{emulated.FORCE_LEAVE_OUT: "sometimes"}), refused:
            cases.step(**a)


@every_design
def test_a_row_does_not_depend_on_its_batch(math: str, instance: str) -> None:
    a = cases.layer_arguments(131, 72, 80, dtype=MATHS[math][0])
    with forced(math, instance), emulated.device(home(instance)):
        everything = cases.forward(**a)
        for row in (0, 17, 130):
            alone = cases.forward(**(a | {"x": a["x"][row : row + 1]}))
            assert all(torch.equal(v[row : row + 1], alone[k]) for k, v in everything.items())


@pytest.mark.parametrize(("rows", "classes", "variants"), [(2500, 0, 1), (2500, 3, 2), (90, 70, 3)])
def test_sums_of_many_rows_and_labels(rows: int, classes: int, variants: int) -> None:
    """As many slices as there can be, the last one shorter; labels in several groups."""
    a = cases.step_arguments(
        rows, 80, 9, classes=classes, variants=variants if classes else 0, optimiser="sgd", peer=True
    )
    check_parity(lambda **a: step_on("sm_80", **a), cases.step_reference, a)


@pytest.mark.parametrize("images", [7, 4 * 60 + 3])
@pytest.mark.parametrize("dtype", every_operation.DTYPES, ids=str)
def test_head_of_many_layers(dtype: torch.dtype, images: int) -> None:
    """More than one launch takes: the later ones add to what is there. And a training step of it."""
    widths = [3 + i % 5 for i in range(18)]
    a = cases.head_arguments(images, widths, 11)
    a["h"] = [part.to(dtype) for part in a["h"]]
    step = cases.head_step_arguments(images, widths, 11, "sgd")
    step["h"] = [part.to(dtype) for part in step["h"]]
    with emulated.device("sm_80"):
        check_parity(cases.head, cases.head_reference, a, unit=STORAGE_UNIT[dtype])
        forward = [r for r in emulated.load().driver_last_stats() if "head_forward" in r["kernel"]]
        assert len(forward) > 1
        if images < 10:
            check_parity(cases.head_step, cases.head_step_reference, step, unit=STORAGE_UNIT[dtype])


@pytest.mark.parametrize("label", [-1, 200])
def test_head_of_many_classes_and_a_label_outside_of_them(label: int) -> None:
    """More classes than a block has threads. A label outside makes its loss NaN, and so the gradient."""
    step = cases.head_step_arguments(40, [20], 200, "sgd")
    with emulated.device("sm_80"):
        check_parity(cases.head_step, cases.head_step_reference, step)
        step["labels"][7] = label
        got = cases.head_step(**step)
    assert got["stats"][0].isnan()
    assert got["weight"].isnan().all()


@pytest.mark.parametrize("dtype", every_operation.DTYPES, ids=str)
def test_hard_labels_without_a_distribution(dtype: torch.dtype) -> None:
    """The class that follows the label, also behind the last."""
    logits = torch.full((5, 5), float("nan")).to(dtype)
    labels = torch.arange(5)
    with emulated.device("sm_80"):
        got = ops.hard_labels(logits, labels, torch.rand(5))
    assert got.tolist() == [1, 2, 3, 4, 0]


@every_design
@pytest.mark.parametrize("optimiser", ["ema", "adam"])
def test_update_where_label_inputs_end_within_four(optimiser: str, math: str, instance: str) -> None:
    """Four weights at once, of which some belong to labels; with all the state that an optimiser has."""
    dtype, _, unit = MATHS[math]
    shapes = [(70, 3, 72), (9, 3, 72), (9, 10, 40), (9, 4, 41)]
    if not instance:  # else the batch is whole
        shapes += [(600, 3, 104), (600, 6, 44), (600, 6, 41)]
    for rows, classes, inputs in shapes:
        a = cases.step_arguments(rows, inputs, 40, classes=classes, variants=2, optimiser=optimiser, peer=True)
        g = cases.update_arguments(a, peer=True)
        g["x"], g["h"] = (g[name].to(dtype).float() for name in ("x", "h"))

        def update(x: Tensor, h: Tensor, **rest: Any) -> dict[str, Any]:
            with forced(math, instance), emulated.device(home(instance)):
                return cases.update(16, x=padded(x.to(dtype)), h=padded(h.to(dtype)), **rest)

        check_parity(update, cases.update_reference, g, unit=unit)


@pytest.mark.parametrize("dtype", every_operation.DTYPES, ids=str)
def test_head_of_many_images(dtype: torch.dtype) -> None:
    """A block takes four images where there are enough of them; the last one has less, and so has the last of units."""
    for classes, widths in [(13, [33, 130]), (3, [261])]:
        a = cases.head_arguments(4 * 60 + 3, widths, classes)
        a["h"] = [part.to(dtype) for part in a["h"]]
        with emulated.device("sm_80"):
            check_parity(cases.head, cases.head_reference, a, unit=STORAGE_UNIT[dtype])
        assert [r["kernel"] for r in emulated.load().driver_last_stats()] == ["ffkern_head_forward_4"]
        emulated.load().driver_clear()


def test_hybrid_images_of_more_pixels_than_threads() -> None:
    a = cases.hybrid_arguments(2, 41, 53, 2, blurs=3)
    with emulated.device("sm_80"):
        got = cases.hybrid(**a)
    assert all(torch.equal(value, got[name]) for name, value in cases.hybrid_reference(**a).items())


@pytest.mark.parametrize("dtype", every_operation.DTYPES, ids=str)
def test_hybrid_images_beyond_shared_memory(dtype: torch.dtype, driver: ModuleType) -> None:
    """The planes of an image then lie in global memory, and blocks take several images in turn."""
    for images, shape, blurs in [(12, (67, 93), 2), (1, (1, 6145), 1)]:
        a = cases.hybrid_arguments(images, *shape, 2, blurs=blurs, dtype=dtype, drawn=2**32 - 2)
        with emulated.device("sm_80"):
            got = cases.hybrid(**a)
        want = cases.hybrid_reference(**a)
        assert all(torch.equal(value, got[name]) for name, value in want.items())
        assert driver.driver_last_stats()[0]["kernel"] == "ffkern_hybrid_global"
        driver.driver_clear()


def test_nothing_to_add_up() -> None:
    """No units, no rows."""
    with emulated.device("sm_80"):
        mean = torch.zeros(0)
        assert ops.peer_update_(torch.zeros(3, 0), torch.ones(3), mean, 0.1, 0.9).shape == (0,)
        for empty in (cases.layer_arguments(0, 16, 8), cases.layer_arguments(0, 16, 8, dtype=torch.float16)):
            check_parity(cases.forward, cases.forward_reference, empty)
        grad = cases.grad_arguments(cases.step_arguments(4, 16, 8))
        none = {k: v[:0] if isinstance(v, Tensor) and v.shape[:1] == (4,) else v for k, v in grad.items()}
        check_parity(cases.gradient, cases.gradient_reference, none)


# ------------------------------------------------------------------------------- values at the edges


@every_design
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0x7F800000], ids=["nan", "largest-nan", "inf"])
@pytest.mark.parametrize("norm", ["l2", "none"])
def test_a_bad_row_spoils_only_itself(norm: str, bits: int, math: str, instance: str) -> None:
    """The NaN with all bits is one that rounding half up would carry into the sign."""
    a = cases.layer_arguments(70, 40, 36, norm=norm, dtype=MATHS[math][0])
    bad = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    value = float(bad)
    with forced(math, instance), emulated.device(home(instance)):
        clean = cases.forward(**a)
        a["x"][33, 7] = bad
        got = cases.forward(**a)
    others = torch.arange(70) != 33
    assert all(torch.equal(v[others], got[k][others]) for k, v in clean.items())
    if norm == "none" and value == float("inf") and math != "tf32x3":  # relu of plus or minus infinity, and no NaN
        assert set(got["h"][33].tolist()) == {0.0, float("inf")}
        assert got["goodness"][33] == got["h_norm"][33] == float("inf")
    else:  # NaN, infinity / infinity, or infinity - infinity where a float is split
        assert got["h"][33].isnan().all()
        assert got["goodness"][33].isnan()


@every_design
@pytest.mark.parametrize("eps", [1e-4, 1e-8, 1e-14])
def test_a_blank_row_gets_the_bias_and_teaches_nothing(eps: float, math: str, instance: str) -> None:
    """Its scale is 1 / eps, of which float16 must not take the measure of all rows."""
    dtype, _, unit = MATHS[math]
    a = cases.step_arguments(5, 24, 40, optimiser="sgd", keep=True, eps=eps)
    a["x"] = a["x"].to(dtype).float()
    a["x"][2] = 0
    a["sign"] = torch.tensor([1.0, -1, 1, -1, 1])
    with forced(math, instance):
        got = check_parity(
            lambda x, **rest: cases.smooth(step_on(home(instance), x=x.to(dtype), **rest)),
            cases.smooth_step_reference,
            a,
            unit=unit,
        )
    assert torch.equal(got["h"][2], a["bias"].relu().to(dtype).float())


@pytest.mark.parametrize("instance", ["", *emulated.instances(4), *emulated.hopper_instances(4)])
def test_tf32_operands_are_rounded_to_nearest(instance: str) -> None:
    """Each operand of both products beside ones and zeros, which leave its elements as they were rounded."""
    bits = torch.randint(0x3F800000, 0x40800000, (70, 72), dtype=torch.int32)  # 1 to 4
    bits += (bits & 0x1FFF == 0x1000).int()  # ties go their own ways
    a, rounded = bits.view(torch.float32), ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    one, sum_of = torch.eye(72)[:70], {"norm": "none", "eps": 1e-4, "goodness": "sum_sq"}
    ones, halves = torch.ones(70), torch.full((70,), 0.5)  # the factor of a row is 2 of its halves
    with forced("tf32", instance), emulated.device(home(instance)):
        assert torch.equal(ops.layer_forward(torch.eye(72), a, None, None, **sum_of)[0], rounded.t())
        assert torch.equal(ops.layer_forward(a, torch.eye(72), None, None, **sum_of)[0], rounded)
        for x, h in ((a, one), (one, a)):
            got = ops.layer_grad(x, h, ones, halves, None, None, "sum_sq")[0]
            want = rounded.new_zeros(72, 72)
            want[:70] = rounded
            assert torch.equal(got, want if x is a else want.t())


def test_float16_gradients_far_below_its_smallest_number() -> None:
    """Coefficients of 1e-12: a power of two brings the operands into range, and dW is exact float32 again."""
    a = cases.grad_arguments(cases.step_arguments(40, 24, 32), peer=True)
    a["x"], a["h"] = a["x"].half(), a["h"].half()
    a["coef"], a["peer"] = a["coef"] * 1e-12, a["peer"] * 1e-12
    with emulated.device("sm_75"):
        check_parity(cases.gradient, cases.gradient_reference, a, unit=STORAGE_UNIT[torch.float16])


@pytest.mark.parametrize("label", [10, -2, 2**40])
def test_a_label_outside_of_the_classes_shows_in_its_rows(label: int) -> None:
    """It cannot be refused without waiting for the device. Its own rows become NaN, and no memory is touched for it."""
    a = cases.step_arguments(9, 24, 8, variants=2, classes=10, keep=True, dtype=torch.float32)
    a["labels"] = a["labels"].clamp_min(0)
    clean = step_on("sm_80", **a)
    a["labels"][1, 4] = label
    got = step_on("sm_80", **a)
    assert got["h"][9 + 4].isnan().all()
    others = torch.arange(18) != 13
    assert torch.equal(got["h"][others], clean["h"][others])
    assert got["stats"][0].isnan() or a["sign"][13] == 0
    base, rest = ref.shared_base(a["x"], a["weight"], 10)
    with emulated.device("sm_80"):
        h = ops.shared_variants(
            base, rest, a["weight"], a["bias"], a["labels"], a["overlay"], 10, "rms", 1e-4, "sum_sq"
        )[0]
    assert h[13].isnan().all()
    assert bool(h[others].isfinite().all())


@pytest.mark.parametrize("dtype", every_operation.DTYPES, ids=str)
@pytest.mark.parametrize("bad", [[-3, 7], [7, -3], [2**40, -(2**40)]], ids=str)
@pytest.mark.parametrize("device", ["sm_75", "sm_80"])
def test_labels_outside_of_the_classes_leave_a_trace(device: str, bad: list[int], dtype: torch.dtype) -> None:
    """NaN where inputs are written, -2 where labels are; -1 is the neutral label, which inputs may have."""
    classes, rows = 7, 70
    labels = torch.randint(0, classes, (rows,))
    x, u, overlay = torch.randn(rows, 12).to(dtype), torch.rand(rows), torch.tensor([1.3, 0.17])
    logits = torch.randn(rows, classes).to(dtype)
    good = {
        "overlay_label": ref.overlay_label(x, labels, classes, overlay),
        "concat_label": ref.concat_label(x, labels, classes, overlay),
        "wrong_labels": ref.wrong_labels(labels, classes, u),
        "hard_labels": ref.hard_labels(logits, labels, u),
        "all_wrong_labels": ref.all_wrong_labels(labels, classes),
    }
    places = torch.tensor([0, 65])
    labels[places] = torch.tensor(bad)
    inside = torch.ones(rows, dtype=torch.bool)
    inside[places] = False
    with emulated.device(device):
        got = {
            "overlay_label": ops.overlay_label(x, labels, classes, overlay),
            "concat_label": ops.concat_label(x, labels, classes, overlay),
            "wrong_labels": ops.wrong_labels(labels, classes, u),
            "hard_labels": ops.hard_labels(logits, labels, u),
            "all_wrong_labels": ops.all_wrong_labels(labels, classes),
        }
    for name in ("overlay_label", "concat_label"):
        assert torch.equal(got[name][inside], good[name][inside]), name
        assert got[name][places, :classes].isnan().all(), name
        assert torch.equal(got[name][:, classes:], good[name][:, classes:]), name
    for name in ("wrong_labels", "hard_labels", "all_wrong_labels"):
        assert torch.equal(got[name][..., inside], good[name][..., inside]), name
        assert (got[name][..., places] == -2).all(), name


def test_all_wrong_labels_of_many_classes() -> None:
    """More than a grid has blocks for."""
    labels = torch.tensor([0, 1050, 2047, 2048])
    with emulated.device("sm_80"):
        got = ops.all_wrong_labels(labels, 2049)
    assert torch.equal(got, ref.all_wrong_labels(labels, 2049))


# ------------------------------------------------------------------------------- which instance


@pytest.mark.parametrize("operand", ["x", "weight"])
@pytest.mark.parametrize(
    ("dtype", "first", "pitch", "expected"),
    [
        *[(torch.bfloat16, *case) for case in [(0, 64, SMALL), (8, 72, SMALL), (0, 68, PIECES_8), (4, 64, PIECES_8)]],
        *[(torch.bfloat16, *case) for case in [(0, 66, PIECES_2), (2, 64, PIECES_2), (1, 64, PIECES_2)]],
        *[(torch.float32, *case) for case in [(0, 64, SMALL_32), (4, 68, SMALL_32), (0, 66, PIECES_4)]],
        *[(torch.float32, *case) for case in [(2, 64, PIECES_4), (1, 64, PIECES_4), (0, 65, PIECES_4)]],
    ],
)
def test_copies_are_as_wide_as_the_alignment(
    dtype: torch.dtype, first: int, pitch: int, expected: str, operand: str, driver: ModuleType
) -> None:
    a = cases.layer_arguments(20, 40, 24, dtype=dtype)
    matrix = a[operand]
    buffer = torch.full((24 * pitch + 8,), float("nan"), dtype=dtype)
    assert buffer.data_ptr() % 16 == 0
    a[operand] = buffer.as_strided(matrix.shape, (pitch, 1), first).copy_(matrix)
    with emulated.device("sm_80"):
        check_parity(cases.forward, cases.forward_reference, a)
    assert names(driver)[-1].endswith(expected)


def work(math: str, instance: str, m: int, n: int, multiprocessors: int) -> int:
    """Of the busiest multiprocessor, in passes over the banks for 32 bytes of depth. A pass copies 128 bytes in, or
    hands them to a warp or (Hopper's right operand) a warpgroup. Products in float32 are arithmetic."""
    tile_m, tile_n, _, _, *others = emulated.tile_values(instance)
    if math in ("f32", "tf32x3"):
        each = tile_m * tile_n + 8 * (tile_m + tile_n)
    else:
        warps_m, warps_n = others[:2] or (2, 1)
        each = (tile_m + tile_n + warps_n * tile_m + warps_m * tile_n) * 32 // 128
    return -(-(-(-m // tile_m) * -(-n // tile_n)) // multiprocessors) * each


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
def test_the_tile_with_which_the_busiest_multiprocessor_does_least(device: str, math: str, driver: ModuleType) -> None:
    """Aligned to 16 bytes: sizes around the numbers of tiles that fill a round."""
    dtype, multiprocessors = MATHS[math][0], {"sm_80": 108, "sm_90": 132}[device]
    few = [name for name in emulated.instances(dtype.itemsize) if name.endswith("a16")]
    wanted = set(few)
    if device == "sm_90" and math in HOPPER_MATHS:  # whose narrow tile costs less than the other design's of that size
        wanted = {*emulated.hopper_instances(dtype.itemsize), few[-1]}
        few = [*emulated.hopper_instances(dtype.itemsize), *few]
    seen = set()
    for m, n in [(64, 64), (640, 640), (768, 896), (1024, 2048), (1152, 1536), (2048, 2048), (1408, 3072)]:
        a = cases.layer_arguments(m, 8, n, dtype=dtype)
        with forced(math), emulated.device(device):
            cases.forward(**a)
        least = min(few, key=lambda name: work(math, name, m, n, multiprocessors))
        assert names(driver)[-1] == f"forward_{math}_{least}", (m, n)
        seen.add(least)
    assert seen == wanted


def test_hopper_has_rows_aligned_to_16_bytes(driver: ModuleType) -> None:
    for inputs, instance in [(24, NARROW), (20, PIECES_8)]:
        with emulated.device("sm_90"):
            cases.forward(**cases.layer_arguments(1408, inputs, 1408, dtype=torch.bfloat16))
        assert names(driver)[-1] == f"forward_bf16_{instance}"


def test_hopper_leaves_to_the_rule_what_it_has_not(driver: ModuleType) -> None:
    """By name, too: rows that lie on each other, or whose number only the device knows."""
    h, row = torch.rand(16, 40).half(), torch.rand(1, 48).half()
    with forced("f16", NARROW), emulated.device("sm_90"):
        for x, instance in [(row.repeat(16, 1), NARROW), (row.expand(16, -1), SMALL)]:
            ops.layer_grad(x, h, torch.rand(16), torch.rand(16), None, None, "mean_sq")
            assert names(driver)[-1] == f"gradient_f16_{instance}"
        with emulated.environment(**leaving_rows_out):
            cases.step(**in_dtype(cases.step_arguments(40, 48, 40, optimiser="ema"), torch.float16))
    assert names(driver)[-2:] == [f"forward_f16_{NARROW}", f"gradient_f16_{SMALL}"]


def test_large_tiles_do_not_fit_everywhere(driver: ModuleType) -> None:
    """sm_75 grants a block 64 KiB, which the large tiles of the gradient exceed."""
    a = cases.layer_arguments(128 * 8, 16, 128 * 8, dtype=torch.float16)
    with emulated.device("sm_75"):
        h, _, scale, _ = ops.layer_forward(*a.values())
        ops.layer_grad(a["x"], h, scale, torch.randn(128 * 8), None, None, "sum_sq")
    assert [name.rpartition("_f16_")[2] for name in names(driver)][-1] == SMALL


def test_forcing_what_does_not_fit() -> None:
    a = cases.layer_arguments(4, 17, 8, dtype=torch.bfloat16)
    with emulated.device("sm_80"):
        with (
            forced("bf16", SMALL),
            pytest.raises(ValueError, match=f"{SMALL} needs operands and their rows aligned to 16"),
        ):
            cases.forward(**a)
        for name in ("fastest", WIDE):  # and what this device does not have
            with forced("bf16", name), pytest.raises(ValueError, match=f"={name} is not one of {LARGE}, {SMALL}"):
                cases.forward(**a)
        with (
            emulated.device("sm_90"),
            forced("bf16", "fastest"),
            pytest.raises(ValueError, match=f"=fastest is not one of {WIDE}, {NARROW}, {LARGE}, {SMALL}"),
        ):
            cases.forward(**a)
        a = cases.layer_arguments(4, 17, 8)
        with (
            emulated.environment(**{emulated.FORCE_FLOAT32: "fast"}),
            pytest.raises(RuntimeError, match="FFKERN_CUDA_FLOAT32 is 'fast'; expected 'ffma', 'tf32' or 'tf32x3'"),
        ):
            cases.forward(**a)


def test_torch_decides_about_tf32(driver: ModuleType) -> None:
    """float32 products follow torch.backends.cuda.matmul.fp32_precision, where the device has tf32."""
    a = cases.layer_arguments(4, 16, 8)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for setting, device, expected in [
            ("ieee", "sm_80", "f32"),
            ("tf32", "sm_80", "tf32"),
            ("tf32", "sm_75", "f32"),
            ("ieee", "sm_90", "f32"),
        ]:
            torch.backends.cuda.matmul.fp32_precision = setting
            with emulated.device(device):
                cases.forward(**a)
            assert names(driver)[-1] == f"forward_{expected}_{SMALL_32}"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


# ------------------------------------------------------------------------------- what it touches


def products(math: str, rows: int, inputs: int, units: int, instance: str, driver: ModuleType) -> dict[str, Any]:
    """Statistics of one forward and one gradient product."""
    dtype = MATHS[math][0]
    a = cases.layer_arguments(rows, inputs, units, dtype=dtype)
    with forced(math, instance), emulated.device(home(instance)):
        h, _, scale, _ = ops.layer_forward(*a.values())
        ops.layer_grad(a["x"], h, scale, torch.randn(rows), None, None, "sum_sq")
    return {kind: records(driver, kind)[-1] for kind in ("forward", "gradient")}


@every_instance
def test_no_bank_conflicts(math: str, instance: str, driver: ModuleType) -> None:
    """No request of shared memory takes more wavefronts of 128 bytes than the bytes of its lanes need."""
    m, n, k, _, warps_m, warps_n, width, _ = emulated.tile_values(instance)
    element = MATHS[math][0].itemsize
    for kind, record in products(math, 2 * m, 4 * k, 2 * n, instance, driver).items():
        stats = record["stats"]
        assert stats.get("ldmatrix_wavefronts", 0) == 4 * stats.get("ldmatrix_requests", 0)
        if width >= 4:
            assert stats["cp_async_smem_wavefronts"] * 128 <= stats["cp_async_requests"] * 32 * width
        # The main loop's reads. Words, pairs and quadruples of floats take 1, 2 and 4 wavefronts at most.
        warps, steps = warps_m * warps_n * record["grid"][0] * record["grid"][1], k // (32 // element)
        fragments_m, fragments_n = m // warps_m // 16, n // warps_n // 8
        if kind == "gradient":
            depth = 2 * m // record["grid"][1]  # rows of a split
            steps *= depth // k
            factors = 2 if element == 2 else 8 if math == "f32" else 2
            if element == 2:
                words, pairs = 0, factors
            elif math == "f32":
                words, pairs = factors + 8 * 2 * fragments_m, 8 * fragments_n
            else:
                words, pairs = factors + 2 * (2 * fragments_m + fragments_n), 0
            loop = warps * steps * (words + 2 * pairs)
            # and the tile of dW on its way out: 16 bytes a lane where inputs are a multiple of four
            tile_out = record["grid"][0] * record["grid"][1] * m * n * 4 // 128
            assert stats["shared_load_wavefronts"] <= loop + tile_out
            assert stats["shared_store_wavefronts"] * 128 == stats["shared_store_bytes"] or width == 2
        elif math == "f32":
            loop = warps * 4 * steps * 2 * (2 * fragments_m + 2 * fragments_n) * 4
            tile_out = record["grid"][0] * m * n * element // 128
            rows = record["grid"][0] * m * 16  # row values and sums
            assert stats["shared_load_wavefronts"] <= loop + tile_out + rows


@every_hopper_instance
def test_no_bank_conflicts_on_hopper(math: str, instance: str, driver: ModuleType) -> None:
    """Fragments of a stage take four wavefronts for each 16 x 32 bytes, whatever else is read; of floats that lie
    across, word by word."""
    m, n, k, *_ = emulated.tile_values(instance)
    for kind, record in products(math, 2 * m, 4 * k, 2 * n, instance, driver).items():
        turned = math == "tf32" and kind == "gradient"
        stats = record["stats"]
        depth = 4 * k if kind == "forward" else 2 * m
        tiles = 4 if kind == "forward" else -(-2 * n // m) * -(-4 * k // n)
        stages = tiles * depth // k
        assert stats["wgmma_count"] == stages * 2 * 4
        assert stats.get("ldmatrix_requests", 0) == (0 if turned else stages * 8 * 4)
        assert stats.get("ldmatrix_wavefronts", 0) == 4 * stats.get("ldmatrix_requests", 0)
        # Factors of two neighbouring rows, a broadcast to eight lanes: k / 8 reads a stage and warp, of two half warps.
        factors = 2 * stages * 8 * k // 8 if kind == "gradient" else 0
        out = tiles * m * n * (4 if kind == "gradient" else MATHS[math][0].itemsize) // 128
        left, right = (stages * m, stages * n) if turned else (0, 0)  # 128 bytes each: read, and the right one written
        assert stats["shared_load_wavefronts"] <= factors + out + left + right
        assert stats["shared_store_wavefronts"] == out + right


@pytest.mark.parametrize("shape", [(64, 64, 64), (130, 144, 208), (256, 128, 256)], ids=cases.shape_name)
@every_hopper_instance
def test_hopper_moves_the_bytes_that_it_says(
    math: str, instance: str, shape: tuple[int, int, int], driver: ModuleType
) -> None:
    rows, inputs, units = shape
    m, n, k, *_ = emulated.tile_values(instance)
    element = MATHS[math][0].itemsize
    both = products(math, rows, inputs, units, instance, driver)
    stats = both["forward"]["stats"]
    tiles_m, tiles_n, depth = -(-rows // m), -(-units // n), -(-inputs // k)
    assert stats["tma_load_bytes"] == tiles_m * tiles_n * depth * (m + n) * 128  # of boxes, whatever lies in them
    assert stats["tma_load_sectors"] * 32 == element * inputs * (rows * tiles_n + units * tiles_m)
    assert stats["global_store_bytes"] == element * rows * units + 4 * rows * (1 + tiles_n)
    assert stats["wgmma_flops"] == 2 * (tiles_m * m) * (tiles_n * n) * (depth * k)
    if rows % 8 == 0 and units % 16 == 0:  # every row of h starts a sector: only whole ones leave
        assert stats["global_store_sectors"] * 32 == stats["global_store_bytes"]
    assert stats["atomics_global"] == stats["atomics_shared"] == 0
    stats = both["gradient"]["stats"]
    tiles_m, tiles_n = -(-units // m), -(-inputs // n)
    factors = -(-4 * rows // 32) * tiles_m * tiles_n
    assert stats["tma_load_sectors"] == element * rows * (units * tiles_n + inputs * tiles_m) // 32 + factors
    assert stats["global_store_bytes"] == 4 * units * inputs
    assert stats["global_store_sectors"] * 32 == stats["global_store_bytes"]
    assert stats["atomics_global"] == stats["atomics_shared"] == 0


@pytest.mark.parametrize("instance", [WIDE, NARROW])
@pytest.mark.parametrize("kind", ["forward", "gradient"])
def test_operand_traffic_of_hopper_at_4096_2000_2000(kind: str, instance: str, driver: ModuleType) -> None:
    """As below, of boxes; a row of one begins with a sector."""
    m, n, *_ = emulated.tile_values(instance)

    def formula(rows: int, inputs: int, units: int) -> int:
        big, wide, depth = (rows, units, inputs) if kind == "forward" else (units, inputs, rows)
        tiles = -(-big // m), -(-wide // n)
        extra = 0 if kind == "forward" else -(-depth // 8) * tiles[0] * tiles[1]  # a factor a row
        return 2 * depth * (big * tiles[1] + wide * tiles[0]) // 32 + extra

    for shape in [(128, 128, 128), (256, 64, 384), (208, 272, 144)]:
        record = products("bf16", *shape, instance, driver)[kind]
        assert record["stats"]["tma_load_sectors"] == formula(*shape)
    rows, inputs, units = 4096, 2000, 2000
    big, wide, depth = (rows, units, inputs) if kind == "forward" else (units, inputs, rows)
    assert formula(rows, inputs, units) <= 1.15 * 2 * big * wide * depth * (1 / m + 1 / n) / 32


@pytest.mark.parametrize("shape", [(64, 64, 64), (130, 136, 200), (256, 128, 256)], ids=cases.shape_name)
@pytest.mark.parametrize(
    ("math", "instance"), [("bf16", LARGE), ("bf16", SMALL), ("f32", LARGE_32), ("tf32", SMALL_32)]
)
def test_moves_the_bytes_that_it_says(
    math: str, instance: str, shape: tuple[int, int, int], driver: ModuleType
) -> None:
    rows, inputs, units = shape
    m, n, k, *_ = emulated.tile_values(instance)
    element = MATHS[math][0].itemsize
    both = products(math, rows, inputs, units, instance, driver)
    stats = both["forward"]["stats"]
    tiles_m, tiles_n = -(-rows // m), -(-units // n)
    assert stats["cp_async_bytes"] == element * inputs * (rows * tiles_n + units * tiles_m)
    assert stats["global_store_bytes"] == element * rows * units + 4 * rows * (1 + tiles_n)
    if math != "f32":
        assert stats["mma_flops"] == 2 * (tiles_m * m) * (tiles_n * n) * (-(-inputs // k) * k)
    if rows % 8 == 0 and units % 16 == 0:  # every row of h starts a sector: only whole ones leave
        assert stats["global_store_sectors"] * 32 == stats["global_store_bytes"]
    stats, grid = both["gradient"]["stats"], both["gradient"]["grid"]
    tiles_m, tiles_n = -(-units // m), -(-inputs // n)
    operands = element * rows * (units * tiles_n + inputs * tiles_m)
    assert stats["cp_async_bytes"] == operands + 4 * rows * tiles_m * tiles_n  # and a factor a row
    assert stats["global_store_bytes"] == 4 * units * inputs * grid[1]
    for stats in (both["forward"]["stats"], both["gradient"]["stats"]):
        assert stats["atomics_global"] == stats["atomics_shared"] == 0


@pytest.mark.parametrize("kind", ["forward", "gradient"])
def test_operand_traffic_at_4096_2000_2000(kind: str, driver: ModuleType) -> None:
    """Sectors of a bfloat16 product against 2 M N K (1 / BM + 1 / BN) / 32, at most 1.15 of it.

    A block reads whole tiles of both operands, rows and inputs beyond the matrix excepted, so sectors are linear in
    the depth and in the tiles: they are counted on one and on several tiles, and multiplied.
    """
    m, n, _, stages, *_ = emulated.tile_values(LARGE)
    assert min(m, n) >= 128
    assert stages >= 3

    def sectors(rows: int, inputs: int, units: int) -> int:
        record = products("bf16", rows, inputs, units, LARGE, driver)[kind]
        return record["stats"]["cp_async_sectors"]

    def formula(rows: int, inputs: int, units: int) -> int:
        """Tiles of M x N results of this depth, each reading its rows of both operands."""
        big, wide, depth = (rows, units, inputs) if kind == "forward" else (units, inputs, rows)
        tiles = -(-big // m), -(-wide // n)
        extra = 0 if kind == "forward" else -(-depth // 8) * tiles[0] * tiles[1]  # a factor a row
        return 2 * depth * (big * tiles[1] + wide * tiles[0]) // 32 + extra

    for shape in [(128, 128, 128), (256, 64, 384), (384, 256, 256), (208, 272, 144)]:
        assert sectors(*shape) == formula(*shape)
    rows, inputs, units = 4096, 2000, 2000
    big, wide, depth = (rows, units, inputs) if kind == "forward" else (units, inputs, rows)
    ideal = 2 * big * wide * depth * (1 / m + 1 / n) / 32
    assert formula(rows, inputs, units) <= 1.15 * ideal


@pytest.mark.parametrize(("math", "instance"), [("bf16", ""), ("f32", ""), ("bf16", WIDE), ("tf32", NARROW_32)])
@pytest.mark.parametrize("first", range(9))
@pytest.mark.parametrize("pitch", [40, 44, 46, 47])
def test_writes_nothing_around_its_outputs(first: int, pitch: int, math: str, instance: str) -> None:
    """h as a view at any offset and pitch; the elements between and around its rows stay. Rows end with 1 to 7 elements
    of a vector."""
    dtype = MATHS[math][0]
    units = 33 + (first + pitch // 2) % 7
    a = cases.layer_arguments(35, 24, units, dtype=dtype)
    sentinel = 1234.0
    buffer = torch.full((first + 36 * pitch,), sentinel, dtype=dtype)
    h = buffer.as_strided((35, units), (pitch, 1), first)
    vectors = [torch.full((35 + 6,), sentinel) for _ in range(3)]
    goodness, scale, h_norm = (v[3:-3] for v in vectors)

    def in_place(**a: Any) -> dict[str, Any]:
        tensors = [a[name] for name in ("x", "weight", "bias", "x_norm")]
        with forced(math, instance), emulated.device(home(instance)):
            ops.layer_forward_(*tensors, h, goodness, scale, h_norm, a["norm"], a["eps"], a["goodness"])
        return dict(zip(cases.NAMES, (h, goodness, scale, h_norm), strict=True))

    check_parity(in_place, cases.forward_reference, a, unit=MATHS[math][2])
    outside = torch.ones_like(buffer, dtype=torch.bool)
    outside.as_strided((35, units), (pitch, 1), first).fill_(False)
    assert bool((buffer[outside] == sentinel).all())
    for vector in vectors:
        assert bool((vector[:3] == sentinel).all())
        assert bool((vector[-3:] == sentinel).all())


def test_activities_in_another_storage() -> None:
    """float32 activities of 16-bit rows are the rounded ones."""
    a = cases.layer_arguments(9, 24, 13, dtype=torch.bfloat16)
    with emulated.device("sm_80"):
        narrow = cases.forward(**a)
        outputs = [torch.empty(9, 13), *(torch.empty(9) for _ in range(3))]
        tensors = [a[name] for name in ("x", "weight", "bias", "x_norm")]
        ops.layer_forward_(*tensors, *outputs, a["norm"], a["eps"], a["goodness"])
        with pytest.raises(RuntimeError, match="h is float16; expected float32, or bfloat16 as x"):
            ops.layer_forward_(*tensors, outputs[0].half(), *outputs[1:], a["norm"], a["eps"], a["goodness"])
    assert torch.equal(outputs[0], narrow["h"].float())


@every_design
def test_offsets_have_64_bits(math: str, instance: str) -> None:
    """Rows 2^30 elements apart: the third lies 4 GiB after the first, or further. The pages between stay untouched, so
    that this takes address space, not memory."""
    dtype, _, unit = MATHS[math]
    pitch = 2**30 + 8
    a = cases.step_arguments(3, 16, 24, optimiser="sgd")
    a["x"] = a["x"].to(dtype).float()
    far = torch.empty(1, dtype=dtype)
    with contextlib.ExitStack() as stack:
        torch.use_deterministic_algorithms(False)  # which would fill the pages
        stack.callback(torch.use_deterministic_algorithms, True)
        far = torch.empty(2 * pitch + 16, dtype=dtype)
    view = far.as_strided((3, 16), (pitch, 1))
    with forced(math, instance):
        check_parity(
            lambda x, **rest: cases.smooth(step_on(home(instance), x=view.copy_(x), **rest)),
            cases.smooth_step_reference,
            a,
            unit=unit,
        )


# ------------------------------------------------------------------------------- weights in two precisions


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("variants", [0, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "device"),
    [
        *((shape, "sm_80") for shape in [(20, 33, 17), (70, 64, 80), (600, 104, 80), (600, 41, 30)]),
        ((70, 64, 80), NARROW),
    ],
)
def test_the_low_copy_is_written_with_the_weights(
    shape: tuple[int, int, int], device: str, dtype: torch.dtype, variants: int, optimiser: str, driver: ModuleType
) -> None:
    """A step on a copy gives the bits of one that converts the weights itself, and leaves the copy of the new ones. One
    weight at a time, or four; at the end of the product, or after it where the batch is split."""
    instance, device = (device, "sm_90") if device == NARROW else ("", device)
    a = cases.step_arguments(*shape, optimiser=optimiser, variants=variants, classes=3 if variants else 0)
    a = in_dtype(a, dtype)
    fenced = cases.Fenced(3 if shape[1] % 4 else 16)
    low = fenced.copy(a["weight"].to(dtype))

    def step(copy: Tensor | None) -> dict[str, Any]:
        with emulated.environment(**{emulated.FORCE: instance}), emulated.device(device):
            name, arguments, written = cases.step_call(a, fenced)
            position = [x.name for x in getattr(torch.ops.ffkern, name).default._schema.arguments].index("weight_low")
            arguments[position] = copy
            getattr(ops, name)(*arguments)
        return written

    without, got = step(None), step(low)
    fenced.check()
    for name in ("weight", "weight_state", "bias", "stats"):
        assert torch.equal(without[name], got[name]), name
    assert torch.equal(low, got["weight"].to(dtype))
    kernels = [r["kernel"] for r in driver.driver_last_stats()]
    assert kernels.count("ffkern_convert") == 1  # the step without the copy


# ------------------------------------------------------------------------------- streams and graphs


@pytest.mark.parametrize("optimiser", ["adam", "ema"])
@pytest.mark.parametrize("variants", [0, 2])
@pytest.mark.parametrize(("math", "instance"), [("bf16", ""), ("f16", ""), ("f32", ""), ("bf16", NARROW)])
def test_three_replays_are_three_steps(
    math: str, instance: str, variants: int, optimiser: str, driver: ModuleType
) -> None:
    """Capturing runs nothing; every replay is a step of its own: count and learning rate are on the device."""
    a = cases.step_arguments(
        33, 40, 24, optimiser=optimiser, variants=variants, classes=5 if variants else 0, peer=True, keep=True
    )
    a = in_dtype(a, MATHS[math][0])
    a["row_weight"] = faded(len(a["sign"]), 33, 10)
    graphs = Graphs(home(instance))
    stream = graphs.stream()
    with forced(math, instance), emulated.environment(**leaving_rows_out):
        with emulated.device(home(instance)):
            name, arguments, eager = cases.step_call(a, cases.Fenced())
            for _ in range(3):
                getattr(ops, name)(*arguments)
        graph: list[int] = []
        with emulated.device(home(instance), stream=stream, hold=True):
            name, arguments, replayed = cases.step_call(a, cases.Fenced())
            with graphs.capture(stream, graph):
                getattr(ops, name)(*arguments)
            assert torch.equal(replayed["weight"], a["weight"])
            for _ in range(3):
                graphs.replay(graph[0], stream)
    for key, value in eager.items():
        assert value is None or torch.equal(value, replayed[key]), key


def test_a_networks_step_is_one_graph(driver: ModuleType) -> None:
    """Hard negatives, head, peer term and a frozen layer: three replays are three steps, with answers of their own."""
    start = nn.FFNet([40, 24, 16, 8], 5, head_layers="all", peer_strength=0.1)
    start.layers[1].requires_grad_(False)
    x, labels = torch.rand(11, 40), torch.randint(0, 5, (11,))
    graphs = Graphs()
    stream = graphs.stream()
    nets = [copy.deepcopy(start) for _ in range(2)]
    opts = [(optim.EMA(net.layers.parameters(), 0.2), optim.EMA(net.head.parameters(), 0.2)) for net in nets]

    def step(which: int) -> None:
        opt, head_opt = opts[which]
        generator = torch.Generator().manual_seed(3)  # a replay reads the numbers of the capture
        nets[which].step(x, labels, opt, negatives="hard", generator=generator, head_opt=head_opt)

    with emulated.device("sm_80"):
        for _ in range(4):
            step(0)
    graph: list[int] = []
    with emulated.device("sm_80", stream=stream, hold=True):
        step(1)  # memory and state come into being
        with graphs.capture(stream, graph):
            step(1)
        for _ in range(3):
            graphs.replay(graph[0], stream)
    for name, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[name]), name
    for one, other in zip([*nets[0].layers, nets[0].head], [*nets[1].layers, nets[1].head], strict=True):
        assert torch.equal(one.statistics(), other.statistics())
    assert not torch.equal(nets[0].layers[2].weight, start.layers[2].weight)


def test_a_learning_rate_set_by_hand_reaches_a_captured_step(driver: ModuleType) -> None:
    """A number put into param_groups goes into the memory that the graph reads."""
    graphs = Graphs()
    stream = graphs.stream()
    layer = nn.FFLinear(12, 8)
    opt = optim.SGD(layer.parameters(), lr=0.5)
    x, sign = torch.randn(6, 12), torch.tensor([1.0, -1] * 3)
    graph: list[int] = []
    with emulated.device("sm_80", stream=stream, hold=True):
        layer.reserve(6)
        with graphs.capture(stream, graph):
            layer.step(x, sign, opt)
        before = layer.weight.detach().clone()
        opt.param_groups[0]["lr"] = 0.0
        layer._bind(opt).lr()  # what the next eager step does first
        graphs.replay(graph[0], stream)
        assert torch.equal(layer.weight, before)
        opt.param_groups[0]["lr"] = 0.25
        layer._bind(opt).lr()
        graphs.replay(graph[0], stream)
    assert not torch.equal(layer.weight, before)
    assert float(opt.param_groups[0]["lr"]) == 0.25


def test_replays_draw_new_hybrid_images(driver: ModuleType) -> None:
    """The generator's counter is on the device."""
    graphs = Graphs()
    stream = graphs.stream()
    x, other = torch.ones(4, 30), torch.zeros(4, 30)
    generator = torch.tensor([5, 0])
    graph: list[int] = []
    with emulated.device("sm_80", stream=stream, hold=True):
        with graphs.capture(stream, graph):
            images, mask = ops.hybrid_images_(x, other, generator, 6, 5, 2)
        seen = []
        for _ in range(3):
            graphs.replay(graph[0], stream)
            seen.append(mask.clone())
    assert generator.tolist() == [5, 12]
    want = ref.hybrid_images(x.repeat(3, 1), other.repeat(3, 1), torch.tensor([5, 0]), 6, 5, 2)[1]
    assert torch.equal(torch.cat(seen), want)
    assert torch.equal(images, seen[-1].float())


def test_launches_go_to_the_current_stream(driver: ModuleType) -> None:
    """A step on a stream that captures would end up in the graph; one on another stream runs."""
    graphs = Graphs()
    capturing, running = graphs.stream(), graphs.stream()
    a = cases.layer_arguments(9, 16, 8)
    graph: list[int] = []
    with emulated.device("sm_80", stream=capturing, hold=True), graphs.capture(capturing, graph):
        cases.forward(**a)
        assert not records(driver)
        with emulated.device("sm_80", stream=running, hold=True):
            cases.forward(**a)
        assert len(records(driver)) == 1


@pytest.mark.parametrize("variants", [0, 2])
def test_a_step_allocates_nothing(variants: int) -> None:
    a = cases.step_arguments(9, 16, 8, variants=variants, classes=3 if variants else 0, peer=True, keep=True)
    with emulated.device("sm_80"):
        name, arguments, _ = cases.step_call(a, cases.Fenced())
        with torch.profiler.profile(profile_memory=True) as profile:
            getattr(ops, name)(*arguments)
    events = {event.key: event for event in profile.key_averages()}
    assert f"ffkern::{name}" in events
    assert {key for key in events if key.startswith("aten::")} <= {"aten::contiguous"}  # of what already is


# ------------------------------------------------------------------------------- refusals


def test_refuses_what_does_not_fit() -> None:
    a = cases.layer_arguments(4, 8, 16)

    def forward(**changes: Any) -> None:
        with emulated.device("sm_80"):
            cases.forward(**(a | changes))

    with pytest.raises(RuntimeError, match=r"x is float64; expected float32, bfloat16 or float16"):
        forward(x=a["x"].double())
    with pytest.raises(RuntimeError, match=r"weight is bfloat16 and x float32; expected weight in float32, or as x"):
        forward(weight=a["weight"].bfloat16())
    with pytest.raises(RuntimeError, match=r"x has shape \[4, 8\]; expected \[\*, 7\] to match weight \[16, 7\]"):
        forward(weight=a["weight"][:, :7])
    with pytest.raises(RuntimeError, match=r"bias has shape \[15\]; expected \[16\]"):
        forward(bias=a["bias"][:15])
    with pytest.raises(RuntimeError, match=r"x_norm has shape \[5\]; expected \[4\]"):
        forward(x_norm=torch.ones(5))
    with pytest.raises(RuntimeError, match=r"norm is 'l1'"):
        forward(norm="l1")


def test_refuses_outputs_that_it_cannot_write_in_place() -> None:
    a = cases.layer_arguments(4, 8, 6)

    def run(h: Tensor) -> None:
        values = [torch.empty(4) for _ in range(3)]
        tensors = [a[name] for name in ("x", "weight", "bias", "x_norm")]
        with emulated.device("sm_80"):
            ops.layer_forward_(*tensors, h, *values, a["norm"], a["eps"], a["goodness"])

    with pytest.raises(RuntimeError, match="h has strides that the kernel cannot write in place"):
        run(torch.empty(6, 4).t())
    with pytest.raises(RuntimeError, match="h has strides"):
        run(torch.empty(1, 6).expand(4, 6))
    with pytest.raises(RuntimeError, match="h is bfloat16; expected float32, or float32 as x"):
        run(torch.empty(4, 6, dtype=torch.bfloat16))


def test_refuses_a_workspace_that_is_too_small() -> None:
    a = cases.step_arguments(9, 16, 8)
    with emulated.device("sm_80"):
        name, arguments, written = cases.step_call(a, cases.Fenced())
    position = [x.name for x in torch.ops.ffkern.layer_step_.default._schema.arguments].index("workspace")
    arguments[position] = arguments[position][:100]
    with (
        emulated.device("sm_80"),
        pytest.raises(RuntimeError, match=r"workspace has 100 floats; expected at least \d+"),
    ):
        getattr(ops, name)(*arguments)
    assert torch.equal(written["weight"], a["weight"])  # nothing has happened
    assert int(written["step"]) == int(a["step"])


# ------------------------------------------------------------------------------- the launch code


def test_a_failed_launch_says_where(driver: ModuleType) -> None:
    a = cases.layer_arguments(8, 8, 8)
    with (
        emulated.device("sm_80"),
        driver.driver_options(max_instructions=100),
        pytest.raises(RuntimeError, match="cuLaunchKernel of ffkern_forward_f32_") as raised,
    ):
        cases.forward(**a)
    assert "CUDA_ERROR_LAUNCH_TIMEOUT (702)" in str(raised.value)
    assert re.search(r"PTX line \d+", str(raised.value))  # added by the test library
    driver.driver_clear()
    with emulated.device("sm_80"):
        check_parity(cases.forward, cases.forward_reference, a)


def test_threads_launch_side_by_side() -> None:
    a = cases.layer_arguments(40, 24, 32, dtype=torch.bfloat16)
    wrong = []
    with emulated.device("sm_80"):
        want = cases.forward(**a)

        def work() -> None:
            for _ in range(3):
                got = cases.forward(**a)
                wrong.extend(not torch.equal(want[k], got[k]) for k in want)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(wrong) == 4 * 3 * 4
    assert not any(wrong)


LAUNCH = """
import sys, torch
from ffkern import ops
library = torch.library.Library("ffkern_emulated", "DEF")
for name, schema in ops.SCHEMAS.items():
    library.define(name + schema)
torch.ops.load_library(sys.argv[1])
import ctypes
ctypes.CDLL(sys.argv[1]).ffkern_emulated_select(0, None, 0)
x = torch.ones(4, 8, dtype=getattr(torch, sys.argv[2]))
try:
    torch.ops.ffkern_emulated.layer_forward(x, x, None, None, "l2", 1e-4, "mean_sq")
    print("ran")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("device", "path", "dtype", "message"),
    [
        ("sm_80", "libmissing.so.1", "float32", "cannot load the CUDA driver 'libmissing.so.1'"),
        ("none", "", "float32", "cuInit failed with CUDA_ERROR_NO_DEVICE (100)"),
        ("sm_75", "", "bfloat16", "the image 'bf16' has no kernel for this device (sm_75)"),
        ("sm_75", "", "float16", "ran"),
        ("sm_86", "", "bfloat16", "ran"),
        ("sm_120", "", "float32", "ran"),
    ],
)
def test_devices(device: str, path: str, dtype: str, message: str, driver: ModuleType) -> None:
    command = [sys.executable, "-c", LAUNCH, build.FOLDER / "ffkern_emulated.so", dtype]
    variables = {"FFKERN_CUDA_DRIVER": path or driver.driver_library(), "PTXSIM_DEVICE": device}
    with emulated.environment(**variables):
        done = subprocess.run(command, capture_output=True, text=True)
    assert message in done.stdout, done.stderr


def test_every_tensor_operation_has_a_cuda_kernel() -> None:
    sizes = {"step_workspace", "update_workspace", "network_workspace"}
    assert set(emulated.operations()) == set(cases.CUDA_OPS) | sizes


def test_the_package_knows_nothing_of_the_emulator() -> None:
    sources = [p for folder in ("csrc", "ffkern") for p in (ROOT / folder).rglob("*") if p.is_file()]
    for path in sources:
        if path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh", ".S"}:
            assert not re.search(r"ptxsim|(?<!amx_)emulat", path.read_text(), re.I), path
