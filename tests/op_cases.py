"""Arguments for the operations, and one function each that calls operation or reference with them.

Every function takes named tensors and returns named results.  Those around operations that write in
place copy what is written first, hand over exactly as much workspace as asked for (NaN-filled and
fenced with a pattern), and check the fence afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import emulated
import pytest
import torch
from tolerance import STORAGE_UNIT, UNIT
from torch import Tensor

from ffkern import ops
from ffkern import reference as ref

# Where an operation runs: the fixtures `backend`, `unit` and `device`.
_PATH = ops.cpu_path().split(";")
ISAS = _PATH[1].split(", ")
CPU = [f"cpu-{isa}" for isa in ISAS]  # with the multiply-adds of the instruction set for bfloat16
UNITS = [f"cpu-bf16-{name}" for name in _PATH[4].split(", ") if name != "fma"]  # what else multiplies it
CUDA = [
    *(pytest.param(f"emulated-cuda-{name}", marks=pytest.mark.emulated) for name in emulated.TESTED),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@contextlib.contextmanager
def forced(**values: str) -> Iterator[list[str]]:
    """Environment variables that choose the CPU's path, and that path."""
    try:
        with emulated.environment(**values):
            yield torch.ops.ffkern.reset_cpu_path().split(";")
    finally:
        torch.ops.ffkern.reset_cpu_path()


@contextlib.contextmanager
def running_on(where: str) -> Iterator[None]:
    """The operations run on this entry of CPU, UNITS or CUDA for a while; "cpu" is the default path."""
    kind, _, which = where.rpartition("-")
    with contextlib.ExitStack() as stack:
        if kind == "cpu":
            path = stack.enter_context(forced(FFKERN_CPU_ISA=which, FFKERN_BF16="fma"))
            assert (path[0], path[3]) == (which, "fma")
        elif kind == "cpu-bf16":
            assert stack.enter_context(forced(FFKERN_BF16=which))[3] == which
        elif kind == "emulated-cuda":
            stack.enter_context(emulated.device(which))
        elif which == "cuda":
            stack.enter_context(torch.device("cuda"))
        yield


FENCE = 12288.0  # in any dtype
NORM_GOODNESS = [
    ("l2", "mean_sq"),
    ("rms", "sum_sq"),
    ("none", "neg_sum_sq"),
    ("rms", "neg_mean_sq"),
    ("l2", "sum_abs"),
]
SHAPES = [(1, 1, 1), (1, 7, 3), (13, 113, 65), (137, 200, 33), (64, 784, 500)]
HYPER = {
    "sgd": [0.9, 0.0, 0.0, 0.01, 2.0**-24],
    "ema": [0.9, 0.0, 0.0, 0.003, 2.0**-24],
    "adam": [0.9, 0.999, 1e-8, 0.01, 0.0],
    "adamw": [0.8, 0.99, 1e-6, 0.1, 0.0],
}


def shape_name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def every_backend_of(*dtypes: torch.dtype) -> pytest.MarkDecorator:
    """Runs a test with every `dtype` on every `backend`, and with bfloat16 on every unit that multiplies it besides."""
    each = []
    for dtype in dtypes:
        for backend in [*CPU, *(UNITS if dtype == torch.bfloat16 else []), *CUDA]:
            name, marks = (backend, ()) if isinstance(backend, str) else (*backend.values, backend.marks)
            each.append(pytest.param(name, dtype, marks=marks))
    return pytest.mark.parametrize(("backend", "dtype"), each, indirect=["backend"])


def operand_unit(backend: str, dtype: torch.dtype) -> float:
    """Rounding of the operands of a product: of the dtype of x, but for float16 on the CPU, computed in float32."""
    return UNIT if backend.startswith("cpu") and dtype == torch.float16 else STORAGE_UNIT[dtype]


def low_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """float16 where a device has no bfloat16 products."""
    return torch.float16 if dtype == torch.bfloat16 and device.endswith("sm_75") else dtype


@contextlib.contextmanager
def expecting_bfloat16(backend: str, dtype: torch.dtype) -> Iterator[None]:
    """On a device without bfloat16 products they are refused, saying what they need; everywhere else they run."""
    if dtype == torch.bfloat16 and backend.endswith("sm_75"):
        with pytest.raises(
            RuntimeError, match=r"'bf16' has no kernel for this device \(sm_75\).*bfloat16 and tf32: 8.0"
        ):
            yield
    else:
        yield


# ---------------------------------------------------------------- memory with a fence around it


class Fenced:
    """Copies placed inside larger buffers; :meth:`check` tells if anything around them moved."""

    def __init__(self, offset: int = 3) -> None:
        self._offset = offset
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def copy(self, t: Tensor, offset: int | None = None, pitch: int = 0) -> Tensor:
        """t at an odd storage offset; a matrix may get a row pitch larger than its width."""
        offset = self._offset if offset is None else offset
        pitched = t.dim() == 2 and pitch > t.shape[1]
        size = t.shape[0] * pitch if pitched else t.numel()
        fill = FENCE if t.is_floating_point() else -77
        buffer = torch.full((offset + size + 19,), fill, dtype=t.dtype)
        outside = torch.ones(buffer.shape, dtype=torch.bool)
        strides = (pitch, 1) if pitched else t.contiguous().stride()
        view = buffer.as_strided(t.shape, strides, offset)
        outside.as_strided(t.shape, strides, offset).fill_(False)
        view.copy_(t)
        self._buffers.append((buffer, outside))
        return view

    def nan(self, *shape: int, dtype: torch.dtype = torch.float32, offset: int | None = None) -> Tensor:
        return self.copy(torch.full(shape, float("nan"), dtype=dtype), offset)

    def check(self) -> None:
        for buffer, outside in self._buffers:
            fill = FENCE if buffer.is_floating_point() else -77
            assert bool((buffer[outside] == fill).all()), "written outside of the tensor"


# ---------------------------------------------------------------- random arguments


def signs(rows: int) -> Tensor:
    """+1, -1 and 0 in random order, a positive row first."""
    sign = torch.randint(-1, 2, (rows,)).float()
    sign[0:1] = 1
    return sign


def layer_arguments(
    rows: int,
    inputs: int,
    units: int,
    *,
    bias: bool = True,
    x_norm: bool = False,
    dtype: torch.dtype = torch.float32,
    norm: str = "rms",
    goodness: str = "mean_sq",
    eps: float = 1e-4,
) -> dict[str, Any]:
    """x, weight, bias, x_norm, norm, eps, goodness of layer_forward."""
    while True:
        x = (0.1 + 3 * torch.rand(rows, 1)) * torch.randn(rows, inputs)
        x = x.to(dtype)
        weight = (1.5 * torch.randn(units, inputs) / inputs**0.5).to(dtype)
        b = 0.3 * torch.randn(units) if bias else None
        length = 1.2 * x.float().norm(dim=1) if x_norm else None  # used as given, not recomputed
        arguments = {
            "x": x,
            "weight": weight,
            "bias": b,
            "x_norm": length,
            "norm": norm,
            "eps": eps,
            "goodness": goodness,
        }
        if goodness != "sum_abs" or not rows:
            return arguments
        # The slope of sum_abs jumps at 0: keep the exact z further from it than float32 errs.
        wide = [None if t is None else t.double() for t in (x, weight, b, length)]
        z = ref._pre_activation(*wide, norm, eps)[0]
        if float(z.abs().min()) > 4e-7 * float(z.abs().max()):
            return arguments


def label_arguments(variants: int, images: int, classes: int, neutral: bool = True) -> dict[str, Any]:
    labels = torch.randint(-1 if neutral else 0, classes, (variants, images))
    if neutral:
        labels[-1, : (images + 1) // 2] = -1
    return {"labels": labels, "overlay": torch.tensor([1.3, 0.17]), "classes": classes}


def state_arguments(units: int, inputs: int, optimiser: str, bias: bool, fresh: bool = False) -> dict[str, Any]:
    """Optimiser state in the middle of a training run (or before its first step)."""
    slots = ref.STATE_SLOTS[optimiser]
    weight_state = 0.05 * torch.randn(slots, units, inputs)
    bias_state = 0.05 * torch.randn(slots, units) if bias else torch.zeros(0)
    if slots == 2:
        weight_state[1], bias_state[1:2] = weight_state[1].abs(), bias_state[1:2].abs()
    if fresh:
        weight_state.zero_(), bias_state.zero_()
    return {
        "weight_state": weight_state,
        "bias_state": bias_state,
        "step": torch.tensor(0 if fresh else 3),
        "lr": torch.tensor(0.3, dtype=torch.float64),
        "optimiser": optimiser,
        "hyper": HYPER[optimiser],
    }


def step_arguments(
    rows: int,
    inputs: int,
    units: int,
    *,
    optimiser: str = "adam",
    variants: int = 0,
    classes: int = 0,
    peer: bool = False,
    keep: bool | torch.dtype = False,
    row_weight: bool = True,
    fresh: bool = False,
    bias: bool = True,
    **layer: Any,
) -> dict[str, Any]:
    """Arguments of layer_step_, or with variants and classes of shared_step_ (rows: images).

    keep: whether activities are kept, and in which dtype; True is float32.
    """
    a = layer_arguments(rows, inputs, units, bias=bias, **layer)
    if variants:
        a |= label_arguments(variants, rows, classes)
        del a["x_norm"]
    total = rows * max(variants, 1)
    a |= state_arguments(units, inputs, optimiser, bias, fresh)
    a |= {
        "sign": signs(total),
        "row_weight": torch.rand(total) / total if row_weight else None,
        "peer_mean": torch.rand(units) if peer else None,
        "peer_strength": 0.4 if peer else 0.0,
        "peer_momentum": 0.7,
        "threshold": 1.25,
        "temperature": 0.7,
        "keep": keep,
    }
    return a


# ---------------------------------------------------------------- calls: (operation, reference)

Call = Callable[..., dict[str, Any]]
NAMES = ("h", "goodness", "scale", "h_norm")
STEP_NAMES = (
    "weight",
    "bias",
    "weight_state",
    "bias_state",
    "step",
    "peer_mean",
    "h",
    "h_norm",
    "stats",
)


def forward(**a: Any) -> dict[str, Any]:
    return dict(zip(NAMES, ops.layer_forward(*a.values()), strict=True))


def forward_reference(**a: Any) -> dict[str, Any]:
    return dict(zip(NAMES, ref.layer_forward(**a), strict=True))


def kept_dtype(x: torch.dtype) -> torch.dtype:
    """Of activities that an operation writes into a buffer, where the CPU and CUDA agree."""
    return torch.bfloat16 if x == torch.bfloat16 else torch.float32


def _outputs(fenced: Fenced, rows: int, units: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [fenced.nan(rows, units, dtype=kept_dtype(dtype)), *(fenced.nan(rows) for _ in range(3))]


def packed(weight: Tensor) -> Tensor:
    """weight_low of these weights on the CPU."""
    fenced = Fenced()
    units, inputs = weight.shape
    out = fenced.nan(-(-units // 16), -(-inputs // 2), 16, 2, dtype=torch.bfloat16)
    assert ops.pack_weight_(weight, out) is None
    fenced.check()
    return out


def packed_reference(weight: Tensor) -> Tensor:
    """[M / 16, K / 2, 16, 2]: element (m, k) at [m / 16, k / 2, m % 16, k % 2], 0 where there is none."""
    units, inputs = weight.shape
    whole = torch.nn.functional.pad(weight.bfloat16(), (0, inputs % 2, 0, -units % 16))
    return whole.reshape(-(-units // 16), 16, -(-inputs // 2), 2).permute(0, 2, 1, 3).contiguous()


def forward_in_place(**a: Any) -> dict[str, Any]:
    fenced = Fenced()
    out = _outputs(fenced, a["x"].shape[0], a["weight"].shape[0], a["x"].dtype)
    low = a.get("weight_low")
    ops.layer_forward_(a["x"], a["weight"], a["bias"], a["x_norm"], *out, a["norm"], a["eps"], a["goodness"], low)
    fenced.check()
    return dict(zip(NAMES, out, strict=True))


def base(**a: Any) -> dict[str, Any]:
    return dict(zip(("base", "rest_norm"), ops.shared_base(**a), strict=True))


def base_reference(**a: Any) -> dict[str, Any]:
    return dict(zip(("base", "rest_norm"), ref.shared_base(**a), strict=True))


def variants(**a: Any) -> dict[str, Any]:
    return dict(zip(NAMES, ops.shared_variants(**a), strict=True))


def variants_reference(**a: Any) -> dict[str, Any]:
    return dict(zip(NAMES, ref.shared_variants(**a), strict=True))


def variants_in_place(**a: Any) -> dict[str, Any]:
    fenced = Fenced()
    out = _outputs(fenced, a["labels"].numel(), a["weight"].shape[0])
    tensors = [a[k] for k in ("base", "rest_norm", "weight", "bias", "labels", "overlay")]
    ops.shared_variants_(*tensors, *out, a["classes"], a["norm"], a["eps"], a["goodness"])
    fenced.check()
    return dict(zip(NAMES, out, strict=True))


def loss(**a: Any) -> dict[str, Any]:
    return dict(zip(("loss", "coef", "stats"), ops.local_loss(**a), strict=True))


def loss_reference(**a: Any) -> dict[str, Any]:
    return dict(zip(("loss", "coef", "stats"), ref.local_loss(**a), strict=True))


def peer(**a: Any) -> dict[str, Any]:
    fenced = Fenced()
    mean = fenced.copy(a["mean"])
    p = ops.peer_update_(a["h"], a["sign"], mean, a["strength"], a["momentum"])
    fenced.check()
    return {"p": p, "mean": mean}


def peer_reference(**a: Any) -> dict[str, Any]:
    return dict(zip(("p", "mean"), ref.peer_update(**a), strict=True))


def gradient(**a: Any) -> dict[str, Any]:
    name = "shared_grad" if "labels" in a else "layer_grad"
    return dict(zip(("dweight", "dbias"), getattr(ops, name)(**a), strict=True))


def gradient_reference(**a: Any) -> dict[str, Any]:
    name = "shared_grad" if "labels" in a else "layer_grad"
    return dict(zip(("dweight", "dbias"), getattr(ref, name)(**a), strict=True))


def _weight_low(fenced: Fenced, a: dict[str, Any]) -> Tensor | None:
    """A fenced copy of weight_low, where a call is given one."""
    return None if a.get("weight_low") is None else fenced.copy(a["weight_low"])


def _trained(fenced: Fenced, a: dict[str, Any]) -> list[Tensor | None]:
    """Fenced copies of weight, bias, weight_state, bias_state, step."""
    names = ("weight", "bias", "weight_state", "bias_state", "step")
    return [None if a[k] is None else fenced.copy(a[k].reshape(a[k].shape)) for k in names]


def update(offset: int = 3, **a: Any) -> dict[str, Any]:
    """`offset` as in step()."""
    fenced = Fenced(offset)
    shared = "labels" in a
    trained = _trained(fenced, a)
    classes = a["classes"] if shared else 0
    count = a["labels"].shape[0] if shared else 1
    low = a["x"].dtype == torch.bfloat16
    need = ops.update_workspace(a["weight"], a["x"].shape[0], classes, count, a["optimiser"], low)
    weight_low = _weight_low(fenced, a)
    middle = [a["labels"], a["overlay"], classes] if shared else []
    name = "shared_update_" if shared else "layer_update_"
    result = getattr(ops, name)(
        *(a[k] for k in ("x", "h", "scale", "coef")),
        *middle,
        a["sign"],
        a["peer"],
        *trained,
        a["lr"],
        weight_low,
        fenced.nan(need),
        a.get("stats"),
        a["goodness"],
        a["optimiser"],
        a["hyper"],
    )
    assert result is None
    fenced.check()
    written = dict(zip(STEP_NAMES[:5], trained, strict=True))
    return written if weight_low is None else written | {"weight_low": weight_low}


def update_reference(**a: Any) -> dict[str, Any]:
    name = "shared_update" if "labels" in a else "layer_update"
    return dict(zip(STEP_NAMES[:5], getattr(ref, name)(**a), strict=True))


STATS_BEFORE = torch.arange(9, dtype=torch.float64)  # statistics are added to


def step_call(a: dict[str, Any], fenced: Fenced) -> tuple[str, list[Any], dict[str, Any]]:
    """Name and positional arguments of layer_step_ / shared_step_, and what it writes."""
    shared = "labels" in a
    trained = _trained(fenced, a)
    rows, units = a["sign"].shape[0], a["weight"].shape[0]
    kept = torch.float32 if a["keep"] is True else a["keep"]
    keep = [fenced.nan(rows, units, dtype=kept), fenced.nan(rows)] if kept else [None, None]
    mean = None if a["peer_mean"] is None else fenced.copy(a["peer_mean"])
    stats = fenced.copy(STATS_BEFORE, 1)
    count = a["labels"].shape[0] if shared else 1
    classes = a["classes"] if shared else 0
    low = a["x"].dtype == torch.bfloat16
    need = ops.step_workspace(a["weight"], a["x"].shape[0], classes, count, mean is not None, a["optimiser"], low)
    weight_low = _weight_low(fenced, a)
    head = [a["x"], a["labels"], a["overlay"], classes] if shared else [a["x"], a["x_norm"]]
    settings = (
        "norm",
        "eps",
        "goodness",
        "threshold",
        "temperature",
        "peer_strength",
        "peer_momentum",
        "optimiser",
        "hyper",
    )
    arguments = [
        *head,
        *trained,
        a["lr"],
        weight_low,
        a["sign"],
        a["row_weight"],
        mean,
        fenced.nan(need),
        stats,
        *keep,
        *(a[k] for k in settings),
    ]
    written = dict(zip(STEP_NAMES, [*trained, mean, *keep, stats], strict=True))
    if weight_low is not None:
        written["weight_low"] = weight_low
    return "shared_step_" if shared else "layer_step_", arguments, written


def step(offset: int = 3, counted: bool = False, **a: Any) -> dict[str, Any]:
    """`offset` of what is written in its buffer: 3 floats are no alignment at all, 16 are. With `counted`, stats hold
    the numbers of rows kept too, where the reference, which leaves none out, has nothing to compare."""
    fenced = Fenced(offset)
    name, arguments, written = step_call(a, fenced)
    assert getattr(ops, name)(*arguments) is None
    fenced.check()
    stats = written["stats"] - STATS_BEFORE.to(written["stats"].device)
    assert ((stats[7:] >= 0) & (stats[7:] <= stats[5:7])).all()
    return written | {"stats": stats if counted else stats[:7]}


def step_reference(**a: Any) -> dict[str, Any]:
    a = dict(a)
    keep = a.pop("keep")
    name = "shared_step" if "labels" in a else "layer_step"
    result = getattr(ref, name)(**a)._asdict()
    result["stats"] = result["stats"][:7]
    if not keep:
        result["h"] = result["h_norm"] = None
    if result["h"] is not None and result["h"].dtype != torch.float64:
        result["h"] = result["h"].to(torch.float32 if keep is True else keep)
    return result


def smooth(results: dict[str, Any]) -> dict[str, Any]:
    """Without the counts of rows on their side of the threshold: operands of 16 bits move a goodness across it."""
    return results | {"stats": results["stats"][[0, 1, 2, 5, 6]]}


def smooth_step_reference(**a: Any) -> dict[str, Any]:
    return smooth(step_reference(**a))


def predict(**a: Any) -> dict[str, Any]:
    return {"goodness": ops.predict_goodness(**a)}


def predict_reference(**a: Any) -> dict[str, Any]:
    return {"goodness": ref.predict_goodness(**a)}


HYBRID_NAMES = ("images", "mask", "generator")


def hybrid(**a: Any) -> dict[str, Any]:
    fenced = Fenced()
    generator = fenced.copy(a["generator"])
    results = ops.hybrid_images_(**(a | {"generator": generator}))
    fenced.check()
    return dict(zip(HYBRID_NAMES, (*results, generator), strict=True))


def hybrid_reference(**a: Any) -> dict[str, Any]:
    return dict(zip(HYBRID_NAMES, ref.hybrid_images(**a), strict=True))


def head(**a: Any) -> dict[str, Any]:
    return {"logits": ops.head_forward(**a)}


def head_reference(**a: Any) -> dict[str, Any]:
    return {"logits": ref.head_forward(**a)}


HEAD_NAMES = ("logits", *STEP_NAMES[:5], "stats")


def head_step(**a: Any) -> dict[str, Any]:
    fenced = Fenced()
    trained = _trained(fenced, a)
    before = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    stats = fenced.copy(before, 1)
    settings = (a[k] for k in ("norm", "eps", "optimiser", "hyper"))
    logits = ops.head_step_(a["h"], a["h_norm"], a["labels"], *trained, a["lr"], stats, *settings)
    fenced.check()
    return dict(zip(HEAD_NAMES, [logits, *trained, stats - before], strict=True))


def head_step_reference(**a: Any) -> dict[str, Any]:
    return dict(zip(HEAD_NAMES, ref.head_step(**a), strict=True))


# ---------------------------------------------------------------- arguments of later operations


def grad_arguments(a: dict[str, Any], peer: bool = False) -> dict[str, Any]:
    """Arguments of layer_grad / shared_grad for the layer of step_arguments."""
    shared = "labels" in a
    plain = {k: a[k] for k in ("weight", "bias", "norm", "eps", "goodness")}
    if shared:
        rows = ref._variants(a["x"], a["labels"], a["classes"], a["overlay"])
        h, g, scale, _ = ref.layer_forward(rows, x_norm=None, **plain)
        h = h.to(a["x"].dtype)
    else:
        h, g, scale, _ = ref.layer_forward(a["x"], x_norm=a["x_norm"], **plain)
    coef = ref.local_loss(g, a["sign"], a["row_weight"], a["threshold"], a["temperature"])[1]
    result = {"x": a["x"], "h": h, "scale": scale, "coef": coef}
    if shared:
        result |= {k: a[k] for k in ("labels", "overlay", "classes")}
    result["sign"] = a["sign"] if peer else None
    result["peer"] = 0.2 * torch.randn(h.shape[1]) if peer else None
    result["goodness"] = a["goodness"]
    return result


def update_arguments(a: dict[str, Any], peer: bool = False) -> dict[str, Any]:
    trained = ("weight", "bias", "weight_state", "bias_state", "step", "lr", "optimiser", "hyper")
    return grad_arguments(a, peer) | {k: a[k] for k in trained}


def predict_arguments(
    images: int,
    sizes: list[int],
    classes: int,
    *,
    bias: bool = True,
    norm: str = "rms",
    goodness: str = "mean_sq",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    weights = [(1.5 * torch.randn(m, k) / k**0.5).to(dtype) for k, m in itertools.pairwise(sizes)]
    return {
        "x": torch.randn(images, sizes[0]).to(dtype),
        "weights": weights,
        "biases": [0.3 * torch.randn(w.shape[0]) if bias else None for w in weights],
        "classes": classes,
        "overlay": torch.tensor([1.3, 0.17]),
        "norm": norm,
        "eps": 1e-4,
        "goodness": goodness,
    }


def head_arguments(
    images: int, widths: list[int], classes: int, *, bias: bool = True, norm: str = "rms"
) -> dict[str, Any]:
    h = [torch.randn(images, width).relu() for width in widths]
    return {
        "h": h,
        "h_norm": [part.norm(dim=1) for part in h],
        "weight": torch.randn(classes, sum(widths)) / 5,
        "bias": torch.randn(classes) if bias else None,
        "norm": norm,
        "eps": 1e-4,
    }


def head_step_arguments(images: int, widths: list[int], classes: int, optimiser: str, **options: Any) -> dict[str, Any]:
    a = head_arguments(images, widths, classes, **options)
    a |= state_arguments(classes, sum(widths), optimiser, a["bias"] is not None)
    a["labels"] = torch.randint(0, classes, (images,))
    return a


def hybrid_arguments(
    images: int,
    height: int,
    width: int,
    channels: int = 1,
    *,
    blurs: int = 6,
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    drawn: int = 0,
) -> dict[str, Any]:
    if seed is None:
        seed = int(torch.randint(-(2**63), 2**63 - 1, ()))
    x, other = torch.randn(2, images, channels * height * width).to(dtype)
    return {
        "x": x,
        "other": other,
        "generator": torch.tensor([seed, drawn]),
        "height": height,
        "width": width,
        "blurs": blurs,
    }


def network_arguments(
    images: int,
    sizes: list[int],
    classes: int,
    *,
    variants: int = 2,
    head_layers: tuple[int, ...] = (),
    hard: bool = False,
    frozen: tuple[int, ...] = (),
    bias: bool = True,
    peer: bool = False,
    row_weight: bool = True,
    optimiser: str = "adam",
    norm: str = "rms",
    goodness: str = "mean_sq",
) -> dict[str, Any]:
    """Arguments of network_step in the middle of a run; `frozen` holds layers, and their number for the head."""
    depth = len(sizes) - 1
    shapes = [(m, k) for k, m in itertools.pairwise(sizes)]
    if head_layers:
        shapes.append((classes, sum(sizes[i + 1] for i in head_layers)))
    rows = [state_arguments(*shape, optimiser, bias) for shape in shapes]
    states: dict[str, list[Any]] = {}
    for many, one in (
        ("weight_states", "weight_state"),
        ("bias_states", "bias_state"),
        ("steps", "step"),
        ("lrs", "lr"),
    ):
        states[many] = [None if i in frozen else row[one] for i, row in enumerate(rows)]
    true = torch.randint(0, classes, (images,))
    wrong = [(true + i) % classes for i in range(1, variants)]
    labels = torch.stack([true, *wrong, *([torch.full_like(true, -1)] if head_layers else [])])
    total = variants * images
    return {
        "x": torch.randn(images, sizes[0]),
        "labels": labels,
        "u": torch.rand(images) if hard else None,
        "overlay": torch.tensor([1.3, 0.17]),
        "classes": classes,
        "weights": [1.5 * torch.randn(m, k) / k**0.5 for m, k in shapes],
        "biases": [0.3 * torch.randn(m) if bias else None for m, _ in shapes],
        **states,
        "peer_means": [torch.rand(m) if peer and i < depth else None for i, (m, _) in enumerate(shapes)],
        "head_layers": list(head_layers),
        "sign": torch.cat((torch.ones(images), -torch.ones(total - images))),
        "row_weight": torch.rand(total) / total if row_weight else None,
        "norm": norm,
        "eps": 1e-4,
        "goodness": goodness,
        "thresholds": [1.25 + 0.1 * i for i in range(depth)],
        "temperatures": [0.7 + 0.1 * i for i in range(depth)],
        "peer_strengths": [0.4 if peer else 0.0] * depth,
        "peer_momenta": [0.7] * depth,
        "head_norm": "l2",
        "head_eps": 1e-3,
        "optimisers": [optimiser] * len(shapes),
        "hyper": HYPER[optimiser] * len(shapes),
    }


NETWORK_LISTS = ("weights", "biases", "weight_states", "bias_states", "steps", "peer_means", "stats")


def network_call(
    a: dict[str, Any], fenced: Fenced, dtype: torch.dtype = torch.float32
) -> tuple[list[Any], dict[str, list[Tensor | None]]]:
    """Positional arguments of network_step_, with exactly as much memory as asked for, and the lists that it writes."""
    head, depth = bool(a["head_layers"]), len(a["thresholds"])
    images, variants = a["x"].shape[0], a["labels"].shape[0] - head
    written = {k: [None if t is None else fenced.copy(t) for t in a[k]] for k in NETWORK_LISTS[:-1]}
    learns = [state is not None for state in a["weight_states"]]
    before = [STATS_BEFORE[:3] if i == depth else STATS_BEFORE for i in range(len(learns))]
    written["stats"] = [fenced.copy(t, 1) if on else None for t, on in zip(before, learns, strict=True)]
    written["labels"] = [fenced.copy(a["labels"].flatten()).view(a["labels"].shape)]

    def listed(tensors: list[Tensor | None]) -> list[Tensor]:
        return [torch.empty(0) if t is None else t for t in tensors]

    last = max((i for i in range(depth) if learns[i]), default=-1)
    units = [w.shape[0] for w in a["weights"][: depth if head else last]]
    turns = len(units) if head else min(2, len(units))
    activities = [fenced.nan(variants * images * max(units[i::turns]), dtype=dtype) for i in range(turns)]
    peer = any(mean is not None for mean in a["peer_means"])
    sizes = (images, a["classes"], variants, head, peer, a["optimisers"], dtype == torch.bfloat16)
    states = listed(written["weight_states"])
    return [
        *(a["x"], written["labels"][0], a["u"], a["overlay"], a["classes"]),
        *(listed(written[k]) for k in NETWORK_LISTS[:5]),
        listed(a["lrs"]),
        [torch.empty(0) for _ in learns],
        *(listed(written[k]) for k in NETWORK_LISTS[5:]),
        *(a["head_layers"], a["sign"], a["row_weight"], activities),
        fenced.nan(ops.network_workspace(a["weights"], states, *sizes)),
        *list(a.values())[-11:],
    ], written


def _named(lists: dict[str, list[Tensor | None]]) -> dict[str, Tensor | None]:
    return {f"{name}[{i}]": t for name, entries in lists.items() for i, t in enumerate(entries)}


def network(counted: bool = False, **a: Any) -> dict[str, Any]:
    """With `counted`, stats hold the numbers of rows kept too, as in :func:`step`."""
    fenced = Fenced()
    arguments, written = network_call(a, fenced, kept_dtype(a["x"].dtype))
    assert ops.network_step_(*arguments) is None
    fenced.check()
    stats = [None if t is None else t - STATS_BEFORE[: t.shape[0]].to(t.device) for t in written["stats"]]
    return _named(written | {"stats": stats if counted else [None if t is None else t[:7] for t in stats]})


def network_reference(**a: Any) -> dict[str, Any]:
    result = ref.network_step(**a)
    lists = {name: getattr(result, name) for name in NETWORK_LISTS}
    lists["stats"] = [None if t is None else t[:7] for t in lists["stats"]]
    return _named(lists | {"labels": [result.labels]})


# ---------------------------------------------------------------- a sample call of each operation


def _fresh(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.clone()


def sample(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Positional arguments of ffkern.ops.<name>, for checks that are not about values."""
    shared = name.startswith("shared")
    layout = {"variants": 3, "classes": 4} if shared else {}
    a = step_arguments(6, 12, 5, **layout, peer=True, keep=kept_dtype(dtype))
    kind = (a["norm"], a["eps"], a["goodness"])
    rows = 18 if shared else 6
    outputs = [torch.zeros(rows, 5, dtype=kept_dtype(dtype)), *(torch.zeros(rows) for _ in range(3))]
    low = dtype == torch.bfloat16
    x, weight, bias = a["x"].to(dtype), a["weight"], a["bias"]
    label = [a["labels"], a["overlay"], a["classes"]] if shared else []
    if name == "layer_forward":
        return (x, weight, bias, None, *kind, None)
    if name == "layer_forward_":
        return (x, weight, bias, x.float().norm(dim=1), *outputs, *kind, None)
    if name == "shared_base":
        return (x, weight, 4, None)
    if name == "pack_weight_":
        return (
            weight.to("cpu", dtype),
            torch.zeros(1, 6, 16, 2, dtype=torch.bfloat16, device="cpu"),
        )  # the CPU's alone
    if name in ("shared_variants", "shared_variants_"):
        both = ref.shared_base(a["x"], weight, 4)
        if name == "shared_variants":
            return (both[0].to(dtype), both[1], weight, bias, *label, *kind)
        return (both[0].to(dtype), both[1], weight, bias, *label[:2], *outputs, 4, *kind)
    if name == "local_loss":
        return (torch.randn(6), a["sign"], a["row_weight"], 0.5, 0.7)
    if name == "peer_update_":
        return (torch.rand(6, 5).to(dtype), a["sign"], a["peer_mean"], 0.4, 0.7)
    if name in ("layer_grad", "shared_grad"):
        g = grad_arguments(a, peer=True)
        g["x"], g["h"] = g["x"].to(dtype), g["h"].to(dtype)
        return tuple(g.values())
    if name in ("layer_update_", "shared_update_"):
        g = update_arguments(a, peer=True)
        need = ops.update_workspace(weight, 6, 4 if shared else 0, 3 if shared else 1, g["optimiser"], low)
        return (
            g["x"].to(dtype),
            g["h"].to(dtype),
            g["scale"],
            g["coef"],
            *label,
            *(g[k] for k in ("sign", "peer", "weight", "bias", "weight_state", "bias_state")),
            *(g[k] for k in ("step", "lr")),
            None,
            torch.zeros(need),
            torch.zeros(9, dtype=torch.float64),
            *(g[k] for k in ("goodness", "optimiser", "hyper")),
        )
    if name in ("layer_step_", "shared_step_"):
        _, arguments, _ = step_call(a | {"x": x}, Fenced())
        arguments = [_fresh(t) if isinstance(t, Tensor) else t for t in arguments]
        arguments = [t.nan_to_num() if isinstance(t, Tensor) else t for t in arguments]
        return (x, *arguments[1:])
    if name == "predict_goodness":
        p = predict_arguments(5, [12, 7, 6], 3)
        return (p["x"].to(dtype), *list(p.values())[1:], None)
    labels = torch.randint(0, 4, (6,))
    if name in ("overlay_label", "concat_label"):
        return (x, torch.tensor([0, 1, -1, 3, 2, -1]), 4, torch.tensor([1.0, 0.1]))
    if name == "wrong_labels":
        return (labels, 4, torch.rand(6))
    if name == "hard_labels":
        return (torch.randn(6, 4).to(dtype), labels, torch.rand(6))
    if name == "all_wrong_labels":
        return (labels, 4)
    if name == "hybrid_images_":
        return tuple(hybrid_arguments(6, 2, 3, 2, dtype=dtype, drawn=3).values())
    if name == "head_forward":
        p = head_arguments(6, [5, 3], 4)
        return ([h.to(dtype) for h in p["h"]], *list(p.values())[1:])
    if name == "head_step_":
        p = head_step_arguments(6, [5, 3], 4, "adam")
        return (
            [h.to(dtype) for h in p["h"]],
            p["h_norm"],
            p["labels"],
            *(p[k] for k in ("weight", "bias", "weight_state", "bias_state", "step", "lr")),
            torch.zeros(3, dtype=torch.float64),
            *(p[k] for k in ("norm", "eps", "optimiser", "hyper")),
        )
    if name == "network_step_":
        n = network_arguments(6, [12, 5, 7], 4, head_layers=(0, 1), hard=True, peer=True)
        arguments, _ = network_call(n, Fenced(), kept_dtype(dtype))

        def plain(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.clone().nan_to_num() if value.is_floating_point() else value.clone()
            return [plain(part) for part in value] if isinstance(value, list) else value

        return (x, *(plain(value) for value in arguments[1:]))
    raise KeyError(name)


NO_TENSORS = {"step_workspace", "update_workspace", "network_workspace"}
NO_TENSORS |= {"cpu_path", "reset_cpu_path", "float32_precision"}
TENSOR_OPS = sorted(set(ops.SCHEMAS) - NO_TENSORS)
CUDA_OPS = sorted(set(TENSOR_OPS) - {"pack_weight_"})  # tensor cores read weights as they are
WRITING_OPS = [name for name in TENSOR_OPS if "!" in ops.SCHEMAS[name]]
