"""Products of bfloat16 on the CPU, by every way of this machine to multiply it.

A product of two bfloat16 is exact in float32. Where operands are small integers, sums are too, whatever their order:
there the bits are those of the specification. Where x and weights are numbers that bfloat16 holds, a forward pass obeys
the bounds of float32; what remains, the rounding of r dz, is bounded element by element.
"""

from __future__ import annotations

from typing import Any

import op_cases as cases
import pytest
import torch
from op_cases import NORM_GOODNESS, Fenced, sample, shape_name
from tolerance import STORAGE_UNIT, UNIT, assert_not_worse, check_parity, conditioning, to_double
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from ffkern import ops
from ffkern import reference as ref

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.usefixtures("unit")]

# Odd and even depths, less than a panel and several, no multiple of a tile; then deeper than what adds up at once.
SHAPES = [(1, 1, 1), (1, 2, 1), (5, 7, 3), (13, 113, 65), (97, 33, 49), (40, 64, 96), (9, 2101, 17)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
# Images, inputs, units, classes, variants: labels in whole pairs and not, before an even and an odd rest.
SHARED = [(1, 2, 1, 1, 1), (9, 41, 17, 3, 2), (37, 113, 65, 10, 3), (23, 64, 33, 7, 10), (5, 4, 3, 3, 2)]
every_shared = pytest.mark.parametrize("shape", SHARED, ids=shape_name)
NAN, LOW = float("nan"), STORAGE_UNIT[torch.bfloat16]


def bits(t: Tensor) -> Tensor:
    return t.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[t.element_size()])


def same(got: dict[str, Any], want: dict[str, Any]) -> None:
    """The same bits."""
    assert got.keys() == want.keys()
    for name, value in got.items():
        assert (value is None) == (want[name] is None), name
        assert value is None or torch.equal(bits(value), bits(want[name])), name


def integers(
    rows: int, inputs: int, units: int, classes: int = 0, variants: int = 0, optimiser: str = "sgd", bias: bool = True
) -> dict[str, Any]:
    """A first step on small integers: operands that bfloat16 holds, and sums that float32 holds in any order.

    r = 1; every negative row is so far on the wrong side that its coefficient is its weight, a power of 2, and every
    positive row so far on the right side that its coefficient is 0.
    """
    a = cases.step_arguments(
        *(rows, inputs, units),
        classes=classes,
        variants=variants,
        optimiser=optimiser,
        fresh=True,
        bias=bias,
        keep=torch.bfloat16,
        norm="none",
        goodness="sum_sq",
        dtype=torch.bfloat16,
    )
    a["x"] = torch.randint(-1, 2, (rows, inputs)).bfloat16()
    a["weight"] = torch.randint(-1, 2, (units, inputs)).float()
    if bias:
        a["bias"] = torch.randint(-3, 4, (units,)).float()
    if classes:
        a["overlay"] = torch.tensor([2.0, 1.0])
    a["row_weight"] = (2.0 ** -torch.randint(0, 3, (rows,))).repeat(max(variants, 1))
    a |= {"threshold": -(2.0**30), "temperature": 1.0, "lr": torch.tensor(2.0**-4, dtype=torch.float64)}
    a["hyper"] = [0.5, 0.0, 0.0, 0.0, 0.0]
    return a


def exactly(got: dict[str, Any], want: dict[str, Any], *names: str) -> None:
    for name in names:
        assert torch.equal(got[name].double(), want[name].double()), name


# ------------------------------------------------------------------------------------ forward


@every_shape
def test_forward_on_integers(shape):
    a = integers(*shape)
    a = {k: a[k] for k in ("x", "weight", "bias")} | {"x_norm": None, "norm": "none", "eps": 0.0, "goodness": "sum_sq"}
    got = cases.forward(**a)
    assert got["h"].dtype == torch.bfloat16
    exactly(got, cases.forward_reference(**to_double(a)), "h", "goodness", "scale")
    same(cases.forward_in_place(**a), got)
    same(cases.forward_in_place(**a, weight_low=cases.packed(a["weight"])), got)


@every_shape
@pytest.mark.parametrize("kind", NORM_GOODNESS[:4], ids="-".join)
def test_forward_obeys_the_bound_of_float32(shape, kind):
    """Of x and weights that bfloat16 holds; other weights are rounded to it first."""
    norm, goodness = kind
    a = cases.layer_arguments(*shape, dtype=torch.bfloat16, norm=norm, goodness=goodness)
    got = check_parity(cases.forward, cases.forward_reference, a)
    nudge = 1 + 2.0**-10 * (2 * torch.rand(a["weight"].shape) - 1)  # less than half a step of bfloat16
    same(cases.forward(**(a | {"weight": a["weight"].float() * nudge})), got)


@every_shared
def test_base_product_on_integers(shape):
    """Neither the label columns of x nor what lies behind its rows is ever read."""
    images, inputs, _, classes, _ = shape
    a = integers(*shape)
    want = ref.shared_base(a["x"].double(), a["weight"].double(), classes)
    x = a["x"].clone()
    x[:, :classes] = NAN
    for pitch in (inputs, inputs + 1, inputs + 2):
        for offset in (0, 3):
            buffer = torch.full((offset + images * pitch,), NAN, dtype=torch.bfloat16)
            view = buffer.as_strided((images, inputs), (pitch, 1), offset)
            view.copy_(x)
            for low in (None, cases.packed(a["weight"])):
                base, rest_norm = ops.shared_base(view, a["weight"], classes, low)
                assert torch.equal(base.double(), want[0])
                assert torch.allclose(rest_norm.double(), want[1], rtol=1e-6)


@every_shared
def test_activities_of_variants_in_bfloat16(shape):
    """As the float32 ones, rounded; everything else is the same."""
    a = integers(*shape)
    base, rest_norm = ops.shared_base(a["x"], a["weight"], shape[3])
    v = {k: a[k] for k in ("weight", "bias", "labels", "overlay", "classes")}
    v = {"base": base, "rest_norm": rest_norm, **v, "norm": "rms", "eps": 1e-4, "goodness": "mean_sq"}
    wide = cases.variants_in_place(**v)
    low = [torch.full((a["labels"].numel(), shape[2]), NAN, dtype=torch.bfloat16)]
    low += [torch.full((a["labels"].numel(),), NAN) for _ in range(3)]
    tensors = [v[k] for k in ("base", "rest_norm", "weight", "bias", "labels", "overlay")]
    ops.shared_variants_(*tensors, *low, v["classes"], "rms", 1e-4, "mean_sq")
    same(dict(zip(wide, low, strict=True)), wide | {"h": wide["h"].bfloat16()})


@pytest.mark.parametrize("sizes", [[3, 2], [41, 17], [67, 33, 17, 5], [20, 130, 35]], ids=shape_name)
def test_prediction(sizes):
    for images, classes in ((1, 1), (67, 2), (23, min(10, sizes[0] - 1))):
        a = cases.predict_arguments(images, sizes, classes, dtype=torch.bfloat16)
        got = check_parity(cases.predict, cases.predict_reference, a, unit=LOW if len(sizes) > 2 else UNIT)
        low = [cases.packed(w) for w in a["weights"]]
        same(cases.predict(**a, weights_low=low), got)
        a["x"] = a["x"].clone()
        a["x"][:, :classes] = NAN
        same(cases.predict(**a), got)


# ------------------------------------------------------------------------- gradient and update


def kept(a: dict[str, Any], update: bool = False) -> dict[str, Any]:
    """Arguments of a gradient, or update, from the activities of integers(), with a coefficient for every row."""
    h, _, scale, _ = ref.layer_forward(
        ref._variants(a["x"], a["labels"], a["classes"], a["overlay"]) if "labels" in a else a["x"],
        *(a["weight"], a["bias"], None, a["norm"], a["eps"], a["goodness"]),
    )
    rows, images = h.shape[0], a["x"].shape[0]
    coef = (2.0 ** -torch.randint(0, 3, (images,))).repeat(rows // images) * (1 - 2 * torch.randint(0, 2, (rows,)))
    g = {"x": a["x"], "h": h, "scale": scale, "coef": coef}
    g |= {k: a[k] for k in ("labels", "overlay", "classes") if k in a}
    peer = torch.randint(-2, 3, (h.shape[1],)).float()
    g |= {"sign": a["sign"], "peer": peer, "goodness": a["goodness"]}
    trained = ("weight", "bias", "weight_state", "bias_state", "step", "lr", "optimiser", "hyper")
    return g | {k: a[k] for k in trained} if update else g


@every_shape
def test_gradient_on_integers(shape):
    a = kept(integers(*shape))
    got, want = cases.gradient(**a), cases.gradient_reference(**to_double(a))
    exactly(got, want, "dweight", "dbias")
    same(cases.gradient(**(a | {"h": a["h"].float()})), got)


@every_shared
def test_shared_gradient_on_integers(shape):
    a = kept(integers(*shape))
    exactly(cases.gradient(**a), cases.gradient_reference(**to_double(a)), "dweight", "dbias")


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200])
def test_gradient_over_any_number_of_rows(rows):
    a = kept(integers(rows, 37, 35))
    exactly(cases.gradient(**a), cases.gradient_reference(**to_double(a)), "dweight", "dbias")


@pytest.mark.parametrize(("norm", "goodness"), NORM_GOODNESS)
@pytest.mark.parametrize("variants", [0, 3])
def test_gradient_errs_by_the_rounding_of_r_dz_alone(variants, norm, goodness):
    """r dz is rounded, and nothing else in the columns of a product; bias and label columns are sums of float32."""
    classes = 7 if variants else 0
    a = cases.step_arguments(
        *(53, 70, 41), variants=variants, classes=classes, norm=norm, goodness=goodness, dtype=torch.bfloat16
    )
    a["weight"] = a["weight"].float()
    g = cases.grad_arguments(a, peer=True)
    got, plain = cases.gradient(**g), cases.gradient_reference(**g)
    wide = to_double(g)
    exact = cases.gradient_reference(**wide)
    floors = conditioning(cases.gradient_reference, g, exact, ("sign",))
    assert_not_worse(got["dbias"], plain["dbias"], exact["dbias"], floors["dbias"], "dbias")
    label = [t["dweight"][:, :classes] for t in (got, plain, exact)]
    assert_not_worse(*label, floors["dweight"], "label columns")

    rdz = torch.zeros(53, 41, dtype=torch.float64)  # of an image, by the gradient of one with a single input that is 1
    one = wide | {"x": torch.cat((wide["x"][:, :classes], torch.ones(53, 1, dtype=torch.float64)), 1)}
    for i in range(53):
        alone = {k: one[k] for k in one}
        alone["x"] = one["x"] * (torch.arange(53) == i)[:, None]
        rdz[i] = cases.gradient_reference(**alone)["dweight"][:, classes]
    x, found = wide["x"][:, classes:], got["dweight"][:, classes:].double()
    size = rdz.abs().T @ x.abs()
    assert bool(((found - exact["dweight"][:, classes:]).abs() <= 1.001 * LOW * size).all())
    rounded = (found - rdz.bfloat16().double().T @ x).abs() <= 2.0**-19 * size
    assert float(rounded.float().mean()) > 0.9  # the rest: float32's own rounding has moved an r dz across a tie


@every_shape
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_update_on_integers(shape, optimiser):
    """The new weights and, beside them, what products read of them."""
    for bias in (True, False):
        a = kept(integers(*shape, optimiser=optimiser, bias=bias), update=True)
        a["hyper"] = [*cases.HYPER[optimiser][:3], 0.0, 0.0] if optimiser == "adam" else a["hyper"]
        got = check_parity(cases.update, cases.update_reference, a)
        if optimiser == "sgd":
            exactly(got, cases.update_reference(**to_double(a)), "weight", "weight_state")
        low = cases.update(**a, weight_low=cases.packed(a["weight"]))
        same({"weight_low": low.pop("weight_low")}, {"weight_low": cases.packed(got["weight"])})
        same(low, got)


def check_step(a: dict[str, Any], exact: bool = True) -> None:
    """A step against the specification, and the same with packed weights that are kept."""
    if exact:
        got, want = cases.step(**a), cases.step_reference(**to_double(a))
        exactly(got, want, "weight", "weight_state", "step", *(["h"] if a["keep"] else []))
    else:
        got = cases.step(**a)
    low = cases.step(**a, weight_low=cases.packed(a["weight"]))
    assert torch.equal(bits(low.pop("weight_low")), bits(cases.packed(got["weight"])))
    same(low, got)
    if a["keep"]:
        bare = cases.step(**(a | {"keep": False}))
        same(bare | {"h": None, "h_norm": None}, got | {"h": None, "h_norm": None})


@every_shape
def test_step_on_integers(shape):
    check_step(integers(*shape))


@every_shared
def test_shared_step_on_integers(shape):
    check_step(integers(*shape))


@pytest.mark.parametrize("optimiser", ["sgd", "ema", "adam", "adamw"])
@pytest.mark.parametrize("variants", [0, 2])
@pytest.mark.parametrize("peer", [False, True])
def test_step_with_packed_weights(optimiser, variants, peer):
    """Kept or made for the step: the same bits, and the update leaves those of the new weights."""
    layout = {"variants": variants, "classes": 5} if variants else {}
    a = cases.step_arguments(
        *(29, 67, 45), **layout, optimiser=optimiser, peer=peer, keep=torch.bfloat16, row_weight=peer, bias=not peer
    )
    check_step(a | {"x": a["x"].bfloat16()}, exact=False)


MANY = (2200, 5, 2000)  # rows * units beyond 4 Mi floats: the rows come in chunks, which add up


@pytest.mark.parametrize("variants", [0, 2])
def test_step_in_several_chunks_of_rows(variants):
    assert MANY[0] * MANY[2] > 4 << 20
    a = integers(*MANY, classes=3 if variants else 0, variants=variants)
    check_step(a | {"keep": False})


def test_step_of_many_rows_with_peer_term():
    """One chunk, as any row's peer term needs the mean over all."""
    a = integers(*MANY)
    a |= {"peer_mean": torch.zeros(MANY[2]), "peer_strength": 0.5, "peer_momentum": 0.5, "keep": False}
    check_step(a, exact=False)
    got, want = cases.step(**a), cases.step_reference(**to_double(a))
    moved = want["weight_state"].abs().max()
    assert float((got["weight_state"].double() - want["weight_state"]).abs().max()) <= LOW * float(moved)
    assert torch.allclose(got["peer_mean"].double(), want["peer_mean"], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 1500, 300), (2, 60000, 13)], ids=shape_name)
def test_step_of_wide_layers(shape):
    a = integers(*shape)
    a["x"] *= torch.rand(shape[1]) < 100 / shape[1]  # so that activities stay integers of 8 bits
    check_step(a)


def test_packed_weights_are_what_is_multiplied():
    """Not packed again: those of other weights give the products of the others."""
    a, other = integers(9, 40, 33, 5, 2), integers(9, 40, 33, 5, 2)["weight"]
    low = cases.packed(other)
    assert torch.equal(ops.shared_base(a["x"], a["weight"], 5, low)[0], ops.shared_base(a["x"], other, 5)[0])
    kind = ("rms", 1e-4, "mean_sq")
    for got, want in zip(
        ops.layer_forward(a["x"], a["weight"], None, None, *kind, low),
        ops.layer_forward(a["x"], other, None, None, *kind),
        strict=True,
    ):
        assert torch.equal(got, want)
    mixed = cases.step(**a, weight_low=low)
    assert torch.equal(mixed["weight_low"], cases.packed(mixed["weight"]))
    labels = a["weight"][:, :5]  # are float32, and read from the weights themselves
    assert torch.equal(mixed["h"], cases.step(**(a | {"weight": torch.cat((labels, other[:, 5:]), 1)}))["h"])
    deep = [a["weight"], torch.randn(7, 33)]
    args = ([None, None], 5, a["overlay"], *kind)
    assert torch.equal(
        ops.predict_goodness(a["x"], deep, *args, [low, cases.packed(deep[1])])[0],
        ops.predict_goodness(a["x"], [torch.cat((labels, other[:, 5:]), 1), deep[1]], *args)[0],
    )


# ----------------------------------------------------------------------------- rows left out


@pytest.mark.parametrize("variants", [0, 2], ids=["plain", "shared"])
@pytest.mark.parametrize("optimiser", ["sgd", "ema"])
def test_rows_below_the_tolerance_are_left_out(variants, optimiser):
    """As if their coefficients were 0, but for bias, label columns and peer term, which is theirs too."""
    images, classes = 61, 5 if variants else 0
    for few in (0.2, 0.8):
        a = kept(integers(images, 53, 37, classes, variants, optimiser), update=True)
        a["x"] = torch.where(torch.rand(images, 53) < 0.9, 0, a["x"])  # sums of all rows stay integers of 8 bits
        a["x"][:, classes] = 1  # none is 0: that would have no mass
        kept_images = torch.rand(images) < few
        kept_images[3], kept_images[4] = True, False
        rows = kept_images.repeat(max(variants, 1))
        a["h"] = a["h"] + 1  # none is 0
        a["coef"] = torch.where(rows, a["coef"], 2.0**-40 * a["coef"].sign())
        a["hyper"] = [0.5, 0.0, 0.0, 0.0, 2.0**-24]
        got = cases.update(**a)
        wide = to_double(a) | {"hyper": [0.5, 0.0, 0.0, 0.0, 0.0]}
        want = cases.update_reference(**(wide | {"coef": torch.where(rows, wide["coef"], 0)}))
        state = [r["weight_state"].double()[..., classes:] for r in (got, want)]
        assert torch.equal(*state)
        whole = cases.update_reference(**wide)
        assert not torch.equal(whole["weight_state"][..., classes:], state[1])
        for name in ("bias_state", "bias"):
            torch.testing.assert_close(got[name].double(), whole[name], rtol=1e-6, atol=1e-6)
        low = cases.update(**a, weight_low=cases.packed(a["weight"]))
        assert torch.equal(bits(low["weight_low"]), bits(cases.packed(got["weight"])))


@pytest.mark.parametrize("variants", [0, 2], ids=["plain", "shared"])
@pytest.mark.parametrize("peer", [False, True])
def test_a_step_leaves_out_what_teaches_nothing(variants, peer):
    """Positive rows of integers() have coefficient 0: with and without a tolerance, the same but for rounding."""
    a = integers(61, 53, 37, 5 if variants else 0, variants)
    a["sign"] = torch.where(torch.rand(61) < 0.7, 1.0, -1.0).repeat(max(variants, 1))
    if peer:
        a |= {"peer_mean": torch.zeros(37), "peer_strength": 0.5, "peer_momentum": 0.5}
    some = cases.step(**(a | {"hyper": [0.5, 0.0, 0.0, 0.0, 2.0**-24]}))
    everything = cases.step(**a)
    if not peer:
        same(some, everything)
    wanted = cases.step_reference(**to_double(a))["weight_state"]
    for found in (some, everything):
        assert float((found["weight_state"] - wanted).norm()) <= LOW * float(wanted.norm())


# -------------------------------------------------------------------------- edges and determinism


def test_no_rows():
    a = cases.layer_arguments(0, 9, 4, dtype=torch.bfloat16)
    for call in (cases.forward, cases.forward_in_place):
        got = call(**a)
        assert (got["h"].shape, got["h"].dtype, got["goodness"].shape) == ((0, 4), torch.bfloat16, (0,))
    base, rest_norm = ops.shared_base(a["x"], a["weight"], 3)
    assert (base.shape, rest_norm.shape) == ((0, 4), (0,))
    assert cases.predict(**cases.predict_arguments(0, [9, 4, 3], 5, dtype=torch.bfloat16))["goodness"].shape == (
        2,
        0,
        5,
    )
    for shape in ((0, 9, 4), (0, 9, 4, 3, 2)):
        s = kept_nothing(shape)
        gradient = cases.gradient(**s)
        assert torch.equal(gradient["dweight"], torch.zeros(4, 9))
        assert torch.equal(gradient["dbias"], torch.zeros(4))


def kept_nothing(shape: tuple[int, ...]) -> dict[str, Any]:
    rows, inputs, units, *layout = shape
    classes, variants = layout or (0, 0)
    a = cases.step_arguments(rows, inputs, units, classes=classes, variants=variants, dtype=torch.bfloat16)
    return cases.grad_arguments(a)


@pytest.mark.parametrize("norm", ref.NORMS)
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_bad_row_stays_alone(norm, value):
    a = cases.layer_arguments(37, 29, 21, norm=norm, dtype=torch.bfloat16)
    p = cases.predict_arguments(37, [29, 21, 9], 5, norm=norm, dtype=torch.bfloat16)
    others = torch.arange(37) != 17
    clean = cases.forward(**a) | {"base": ops.shared_base(a["x"], a["weight"], 5)[0]}
    clean_predict = cases.predict(**p)["goodness"]
    a["x"][17, 5] = p["x"][17, 6] = value
    got = cases.forward(**a) | {"base": ops.shared_base(a["x"], a["weight"], 5)[0]}
    for name, before in clean.items():
        assert torch.equal(got[name][others], before[others]), name
    assert not bool(got["base"][17].isfinite().any())
    assert not bool(got["goodness"][17].isfinite())
    after = cases.predict(**p)["goodness"]
    assert torch.equal(after[:, others], clean_predict[:, others])
    assert not bool(after[0, 17].isfinite().any())


@pytest.mark.parametrize("variants", [0, 2])
def test_a_nan_row_reaches_every_weight(variants):
    a = integers(6, 8, 5, 3 if variants else 0, variants)
    a["x"][2, 5] = NAN
    a["sign"] = -torch.ones_like(a["sign"])
    for tolerance in (0.0, 2.0**-24):
        got = cases.step(**(a | {"hyper": [0.5, 0.0, 0.0, 0.0, tolerance]}))
        assert got["weight"].isnan().all()


def test_views():
    """Odd offsets and row pitches, rows that are columns, and one row for all: the bits of a copy."""
    a = integers(21, 35, 19)
    for x in (
        Fenced().copy(a["x"], 5, 42),
        a["x"].t().contiguous().t(),
        a["x"].repeat_interleave(2, 1)[:, ::2],
        a["x"][:1].expand(21, -1),
        a["x"][:, :1].expand(-1, 35),
    ):
        plain = x.contiguous().clone()
        same(cases.step(**(a | {"x": x})), cases.step(**(a | {"x": plain})))
        same({"base": ops.shared_base(x, a["weight"], 4)[0]}, {"base": ops.shared_base(plain, a["weight"], 4)[0]})
    g = kept(a)
    want = cases.gradient(**g)
    for h in (Fenced().copy(g["h"], 5, 26), g["h"].t().contiguous().t()):
        same(cases.gradient(**(g | {"h": h})), want)


def test_subnormal_numbers_are_small():
    """The units for bfloat16 may take them for 0; either is right within what they are."""
    a = cases.layer_arguments(5, 40, 19, dtype=torch.bfloat16, norm="none")
    a["x"][:, 3::2] = 2.0**-130
    a["weight"][:, ::5] = 2.0**-131
    check_parity(cases.forward, cases.forward_reference, a)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_repeats_are_bit_identical(count):
    """On any number of threads; and where sums are exact, whatever the number."""
    torch.set_num_threads(count)
    large = cases.step_arguments(300, 251, 333, peer=True, keep=torch.bfloat16)
    shared = cases.step_arguments(150, 251, 333, classes=9, variants=3, keep=torch.bfloat16, optimiser="sgd")
    predict = cases.predict_arguments(300, [251, 333, 70], 10, dtype=torch.bfloat16)
    for call, a in ((cases.step, large), (cases.step, shared), (cases.predict, predict)):
        a["x"] = a["x"].bfloat16()
        first = call(**a)
        for _ in range(2):
            same(call(**a), first)
    check_step(integers(300, 151, 333))
    check_step(integers(150, 101, 333, 9, 2))


# ------------------------------------------------------------------------ dispatcher: fake, opcheck

READS_LOW = [
    name for name in cases.TENSOR_OPS if "weight_low" in ops.SCHEMAS[name] or "weights_low" in ops.SCHEMAS[name]
]


def with_low(name: str) -> tuple[list[Any], list[str]]:
    arguments = list(sample(name, torch.bfloat16))
    names = [a.name for a in getattr(torch.ops.ffkern, name).default._schema.arguments]
    if "weight_low" in names:
        arguments[names.index("weight_low")] = cases.packed(arguments[names.index("weight")])
    else:
        arguments[names.index("weights_low")] = [cases.packed(w) for w in arguments[names.index("weights")]]
    return arguments, names


@pytest.mark.parametrize("name", READS_LOW)
def test_operations_with_packed_weights(name):
    """Fake kernels, schemas, and version counters of what is written, and of nothing else."""
    op = getattr(torch.ops.ffkern, name).default
    arguments, names = with_low(name)
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(op, tuple(arguments))
    versions = [a._version if isinstance(a, Tensor) else None for a in arguments]
    op(*arguments)
    written = [a.alias_info is not None and a.alias_info.is_write for a in op._schema.arguments]
    for key, value, before, writes in zip(names, arguments, versions, written, strict=True):
        assert not isinstance(value, Tensor) or (value._version > before) == writes, key
    with FakeTensorMode() as mode:
        fake = op(*tree_map_only(Tensor, mode.from_tensor, arguments))
    real = op(*arguments)
    for a, b in zip(flat(fake), flat(real), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value or ())


def test_gradient_through_packed_weights():
    """autograd's forward reads them, and its backward the weights."""
    a = cases.layer_arguments(13, 33, 21, dtype=torch.bfloat16)
    weight = a["weight"].float().requires_grad_()
    args = (a["bias"], None, "rms", 1e-4, "mean_sq")
    grads = []
    for low in (None, cases.packed(weight.detach())):
        goodness = ops.layer_forward(a["x"], weight, *args, low)[1]
        grads.append(torch.autograd.grad(goodness.sum(), weight)[0])
    assert torch.equal(*grads)
    assert float(grads[0].abs().max()) > 0
