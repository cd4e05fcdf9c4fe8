"""Single operations, as they are called: arguments, exact answer, what they cannot do without.

Steps and predictions have cases of their own (cases.py). ``layer_forward_`` and ``shared_variants_`` are the launches
of their namesakes into given memory and are not measured twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ffkern import nn, ops, reference

from .cases import CLASSES, LABEL_VALUE, PRECISIONS
from .eager import EPS, THRESHOLD, activities, goodness, mixed, narrow

FORWARD = ("h", "goodness", "scale", "h_norm")
GRADIENT = ("dweight", "dbias")
TRAINED = ("weight", "bias", "weight_state", "bias_state", "step")
RESULTS: dict[str, tuple[str, ...]] = {
    "layer_forward": FORWARD,
    "shared_base": ("base", "rest_norm"),
    "shared_variants": FORWARD,
    "local_loss": ("loss", "coef", "stats"),
    "peer_update_": ("p", "mean"),
    "layer_grad": GRADIENT,
    "shared_grad": GRADIENT,
    "layer_update_": TRAINED,
    "shared_update_": TRAINED,
    "overlay_label": ("x",),
    "concat_label": ("x",),
    "wrong_labels": ("labels",),
    "hard_labels": ("labels",),
    "all_wrong_labels": ("labels",),
    "hybrid_images_": ("images", "mask", "generator"),
    "head_forward": ("logits",),
    "head_step_": ("logits", *TRAINED, "stats"),
}
IN_STEPS_AND_PREDICTIONS = {"layer_step_", "shared_step_", "predict_goodness"}
SAME_LAUNCHES = {"layer_forward_", "shared_variants_", "network_step_"}
PRODUCTS = {"layer_forward", "shared_base", "layer_grad", "shared_grad", "layer_update_", "shared_update_"}
OF_ONE_PRECISION = {"wrong_labels", "all_wrong_labels", "local_loss"}
BLURS = 6
LR = 1e-7  # weights stay where they are, however often an update is timed


@dataclass(frozen=True)
class OperationCase:
    """One operation. ``side``: of square pictures, of which an image's inputs are the pixels."""

    operation: str
    rows: int = 4096
    side: int = 28
    units: int = 2000
    variants: int = 2

    @property
    def name(self) -> str:
        return f"{self.operation}/{self.inputs}-{self.units}/n{self.images}"

    @property
    def shared(self) -> bool:
        return self.operation.startswith("shared")

    @property
    def images(self) -> int:
        return self.rows // self.variants if self.shared else self.rows

    @property
    def inputs(self) -> int:
        return self.side**2

    @property
    def in_features(self) -> int:
        return self.inputs

    @property
    def out_features(self) -> int:
        return self.units

    @property
    def flops(self) -> int:
        if self.operation in PRODUCTS:
            return 2 * self.images * self.inputs * self.units
        passes = {"head_forward": 1, "head_step_": 2}.get(self.operation, 0)
        return passes * 2 * self.images * CLASSES * 2 * self.units


def gpu_operations() -> list[OperationCase]:
    """Each once, at a size that does not fit into the caches; of labels alone there are a million."""
    found = []
    for name in RESULTS:
        if name in ("wrong_labels", "all_wrong_labels", "hard_labels"):
            found.append(OperationCase(name, rows=2**20, side=1, units=1))
        elif name in ("overlay_label", "concat_label", "hybrid_images_"):
            found.append(OperationCase(name, rows=2**14, units=1))
        else:
            found.append(OperationCase(name))
    return found


def precisions_of(operation: str) -> set[str]:
    """Where there is no product, torch's setting for products changes nothing; labels and goodness have one dtype."""
    if operation in OF_ONE_PRECISION:
        return {"float32"}
    return {p.name for p in PRECISIONS if operation in PRODUCTS or p.name != "tf32"}


class Operation:
    """An operation bound to its arguments; a call runs it once more."""

    def __init__(self, case: OperationCase, dtype: torch.dtype, device: str) -> None:
        self.case = case
        self.op = getattr(torch.ops.ffkern, case.operation).default
        self.given = arguments(case, dtype, device)
        self.names = RESULTS[case.operation]
        self.output: Any = None

    def __call__(self) -> None:
        self.output = self.op(*(self.given[a.name] for a in self.op._schema.arguments))

    def results(self) -> dict[str, Tensor]:
        """Of all calls so far, by name; counts of rows beside a threshold are left out: rounding moves them."""
        returned = _tensors(self.output)
        found = dict(zip(self.names, returned, strict=False))
        found |= {name: self.given[name] for name in self.names[len(returned) :]}
        return _comparable(found)

    def compulsory_bytes(self) -> int:
        total = sum(_size(t) for t in _tensors(self.output))
        for argument in self.op._schema.arguments:
            if argument.name == "workspace":
                continue
            size = sum(_size(t) for t in _tensors(self.given[argument.name]))
            if self.case.operation == "shared_variants" and argument.name == "weight":
                size = size // self.case.inputs * CLASSES  # label columns
            updated = argument.alias_info is not None and argument.alias_info.is_write
            total += 2 * size if updated else size
        return total


class EagerOperation:
    """The competitor of an operation, on the arguments of the first call."""

    def __init__(self, case: OperationCase, given: Mapping[str, Any]) -> None:
        self.function, self.given = EAGER[case.operation], given
        self.names = RESULTS[case.operation]
        self.x = given["h"][0] if "head" in case.operation else given["x"]
        self.output: Any = None

    def __call__(self) -> None:
        with mixed(self.x, narrow(self.x, self.x.dtype)):
            self.output = self.function(self.given)

    def results(self) -> dict[str, Tensor]:
        """The first results of the operation by name: eager leaves out what it does not need."""
        return _comparable(dict(zip(self.names, _tensors(self.output), strict=False)))


def answers(case: OperationCase, given: Mapping[str, Any], *, exact: bool) -> dict[str, Tensor]:
    """What ffkern.reference makes of the arguments of the first call, in float64 or in their own dtypes."""
    function = getattr(reference, case.operation.rstrip("_"))
    a = {name: _double(value) if exact else value for name, value in given.items()}
    returned = function(**{name: a[name] for name in inspect.signature(function).parameters})
    return _comparable(dict(zip(RESULTS[case.operation], _tensors(returned), strict=True)))


def arguments(case: OperationCase, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Every name that the schemas and the reference know, the same on every call."""
    random = torch.Generator().manual_seed(1)
    images, inputs, units = case.images, case.inputs, case.units
    rows = images * (case.variants if case.shared else 1)
    sign = torch.ones(rows)
    sign[rows // 2 :] = -1
    a: dict[str, Any] = {
        "x": torch.randn(images, inputs, generator=random).relu_().to(dtype),
        "weight": torch.randn(units, inputs, generator=random) / inputs**0.5,
        "bias": 0.1 * torch.randn(units, generator=random),
        "overlay": torch.tensor([LABEL_VALUE, LABEL_VALUE / CLASSES]),
        "sign": sign,
        "u": torch.rand(images, generator=random),
        "logits": torch.randn(images, CLASSES, generator=random).to(dtype),
        "mean": torch.rand(units, generator=random),
        "peer": 1e-3 * torch.randn(units, generator=random),
        "other": torch.randn(images, inputs, generator=random).relu_().to(dtype),
        "generator": torch.tensor([1, 0]),
    }
    shape = (case.variants, images) if case.shared else (images,)
    a["labels"] = torch.randint(CLASSES, shape, generator=random)
    if case.operation.startswith("head"):
        h = [torch.randn(images, units, generator=random).relu_() for _ in range(2)]
        a |= {"h": [part.to(dtype) for part in h], "h_norm": [part.to(dtype).float().norm(dim=1) for part in h]}
        a["weight"] = torch.randn(CLASSES, 2 * units, generator=random) / units**0.5
        a["bias"] = torch.zeros(CLASSES)
    else:
        a |= _after_forward(case, a, dtype)
    a["weight_state"], a["bias_state"] = (torch.zeros(2, *a[name].shape) for name in ("weight", "bias"))
    a |= {"step": torch.tensor(0), "lr": torch.tensor(LR, dtype=torch.float64)}
    a["stats"] = torch.zeros(3 if case.operation.startswith("head") else nn.STATISTICS, dtype=torch.float64)
    a = {name: _to(value, device) for name, value in a.items()}
    classes, count = (CLASSES, case.variants) if case.shared else (0, 1)
    need = ops.update_workspace(a["weight"], images, classes, count, "adam", dtype == torch.bfloat16)
    a["workspace"] = torch.empty(need, device=device)
    a["weight_low"] = None
    if case.operation.endswith("update_"):
        a["weight_low"] = _weight_low(a["weight"], dtype)
    return a | {
        "x_norm": None,
        "row_weight": None,
        "classes": CLASSES,
        "norm": "rms",
        "eps": EPS,
        "goodness": a["goodness"] if case.operation == "local_loss" else "mean_sq",
        "threshold": THRESHOLD,
        "temperature": 1.0,
        "strength": 0.03,
        "momentum": 0.9,
        "height": case.side,
        "width": case.side,
        "blurs": BLURS,
        "optimiser": "adam",
        "hyper": [0.9, 0.999, 1e-8, 0.0, 0.0],
    }


def _weight_low(weight: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The weights as products of such rows read them, for an update to write."""
    if nn._stored(weight.to(dtype)) == torch.float32:
        return None
    low = nn._new_low(weight, dtype)
    nn._write_low(weight, low)
    return low


def _after_forward(case: OperationCase, a: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """What an operation finds that comes after the forward pass of the same layer."""
    rows, base, rest_norm = a["x"].float(), None, None
    if case.shared:
        base, rest_norm = reference.shared_base(rows, a["weight"], CLASSES)
        labels = a["labels"].reshape(-1)
        rows = reference.overlay_label(rows.repeat(case.variants, 1), labels, CLASSES, a["overlay"])
    forward = reference.layer_forward(rows, a["weight"], a["bias"], None, "rms", EPS, "mean_sq")
    h, goodness_, scale, _ = forward
    coef = reference.local_loss(goodness_, a["sign"], None, THRESHOLD, 1.0)[1]
    kept = {"h": h.to(dtype), "goodness": goodness_, "scale": scale, "coef": coef}
    return kept if base is None else kept | {"base": base.to(dtype), "rest_norm": rest_norm}


# ------------------------------------------------------------ eager

# As one writes them for speed; where there is no natural way, ffkern stands alone.
Eager = Callable[[Mapping[str, Any]], Any]


def _forward(a: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    h = activities(a["x"], a["weight"], a["bias"])
    return h, goodness(h)


def _gradient(a: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    dz = a["h"] * (2 / a["h"].shape[1] * a["coef"])[:, None] + a["peer"] * (a["sign"] > 0)[:, None]
    return (dz * a["scale"][:, None]).to(a["x"].dtype).T @ a["x"], dz.sum(0)


def _overlay(a: Mapping[str, Any]) -> Tensor:
    x: Tensor = a["x"].clone()
    x[:, :CLASSES] = functional.one_hot(a["labels"], CLASSES) * a["overlay"][0]
    return x


def _concat(a: Mapping[str, Any]) -> Tensor:
    label = functional.one_hot(a["labels"], CLASSES) * a["overlay"][0]
    return torch.cat((label.to(a["x"].dtype), a["x"]), 1)


def _wrong(a: Mapping[str, Any]) -> Tensor:
    labels, u = cast(Tensor, a["labels"]), cast(Tensor, a["u"])
    return (labels + 1 + (u * (CLASSES - 1)).long().clamp_(max=CLASSES - 2)) % CLASSES


def _all_wrong(a: Mapping[str, Any]) -> Tensor:
    labels: Tensor = a["labels"]
    return (labels + torch.arange(1, CLASSES, device=labels.device)[:, None]) % CLASSES


def _head(a: Mapping[str, Any]) -> Tensor:
    unit = [h / (n / h.shape[1] ** 0.5 + EPS)[:, None] for h, n in zip(a["h"], a["h_norm"], strict=True)]
    return functional.linear(torch.cat(unit, 1), a["weight"], a["bias"])


EAGER: dict[str, Eager] = {
    "layer_forward": _forward,
    "layer_grad": _gradient,
    "overlay_label": _overlay,
    "concat_label": _concat,
    "wrong_labels": _wrong,
    "all_wrong_labels": _all_wrong,
    "head_forward": _head,
}


def _tensors(value: Any) -> list[Tensor]:
    if value is None:
        return []
    if isinstance(value, Tensor):
        return [value]
    return [part for part in value if isinstance(part, Tensor)] if isinstance(value, list | tuple) else []


def _size(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _to(value: Any, device: str) -> Any:
    return [part.to(device) for part in value] if isinstance(value, list) else value.to(device)


def _double(value: Any) -> Any:
    if isinstance(value, list) and isinstance(value[0], Tensor):
        return [part.double() for part in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _comparable(found: dict[str, Tensor]) -> dict[str, Tensor]:
    if "stats" in found:
        found = found | {"stats": found["stats"][[0, 2]] if "logits" in found else found["stats"][:3]}
    return {name: value.double() for name, value in found.items()}
