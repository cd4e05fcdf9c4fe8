"""Refusals: each names the operation and the argument, says what it was and what was expected,
and a refused call has changed nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import op_cases as cases
import pytest
import torch
from op_cases import WRITING_OPS, sample
from torch import Tensor, nn

from ffkern import FFHead, FFLinear, FFNet, ops, optim

Change = Callable[[Tensor], Any]


def to(value: Any) -> Change:
    return lambda _: value


def dtype(wanted: torch.dtype) -> Change:
    return lambda t: t.to(wanted)


def shape(*wanted: int) -> Change:
    return lambda t: torch.zeros(wanted, dtype=t.dtype)


def strided(t: Tensor) -> Tensor:
    """The same values, not contiguous."""
    return torch.stack((t, t), -1)[..., 0]


def holding(value: int) -> Change:
    def change(t: Tensor) -> Tensor:
        t = t.clone()
        t.view(-1)[-1] = value
        return t

    return change


# Argument, what becomes of it, the message. Samples: x [6, 12], 5 units, 4 classes, V = 3.
LAYER = [
    ("x", shape(6, 11), r"x has shape \[6, 11\]; expected \[\*, 12\] to match weight \[5, 12\]"),
    ("x", shape(12), r"x has shape \[12\]; expected a matrix"),
    ("x", dtype(torch.float64), "x is float64; expected float32, bfloat16 or float16"),
    ("x", dtype(torch.int64), "x is int64; expected float32, bfloat16 or float16"),
]
OPTIONS = [
    ("norm", to("L2"), r"norm is 'L2'; expected 'l2', 'rms' or 'none'"),
    ("eps", to(-1.0), r"eps is -1; expected a number >= 0"),
    ("eps", to(float("nan")), r"eps is nan; expected a number >= 0"),
]
GOODNESS = [("goodness", to("square"), r"goodness is 'square'; expected 'sum_sq', .*'sum_abs'")]
KIND = [("goodness_kind", to("square"), r"goodness is 'square'; expected 'sum_sq', .*'sum_abs'")]
WEIGHT = [
    ("weight", shape(5, 0), r"weight has shape \[5, 0\]; expected at least one unit and one input"),
    ("bias", shape(4), r"bias has shape \[4\]; expected \[5\]"),
    ("bias", dtype(torch.float64), "bias is float64; expected float32"),
]
LABELS = [
    ("labels", holding(4), r"labels holds 4; expected -1 \(neutral\) or 0 to 3"),
    ("labels", holding(-2), r"labels holds -2; expected -1 \(neutral\) or 0 to 3"),
    ("labels", dtype(torch.int32), "labels is int32; expected int64"),
    ("labels", dtype(torch.float32), "labels is float32; expected int64"),
    ("overlay", shape(3), r"overlay has shape \[3\]; expected \[2\]"),
    ("overlay", shape(), r"overlay has shape \[\]; expected \[2\]"),
    ("classes", to(0), r"classes is 0; expected 1 to 11|labels holds \d; expected"),
    (
        "classes",
        to(12),
        r"classes is 12; expected 1 to 11, fewer than the 12 inputs .*label='concat'",
    ),
]
VARIANTS = [
    ("labels", shape(3, 5), r"labels has shape \[3, 5\]; expected \[variants, 6\]"),
    ("labels", shape(0, 6), r"labels has shape \[0, 6\]; expected \[variants, 6\]"),
    ("labels", shape(6), r"labels has shape \[6\]; expected \[variants, 6\]"),
]
OUTPUTS_LOW = ("h", dtype(torch.bfloat16), "h is bfloat16; it is updated in place and has to be float32")
OUTPUTS = [
    ("h", dtype(torch.float16), "h is float16; it is updated in place and has to be float32"),
    ("h", strided, "h is not contiguous; it is updated in place"),
    ("goodness", shape(5), r"goodness has shape \[5\]; expected \[\d+\]"),
    ("scale", shape(5), r"scale has shape \[5\]; expected \[\d+\]"),
    ("h_norm", shape(5), r"h_norm has shape \[5\]; expected \[\d+\]"),
]
STATE = [
    ("weight", strided, "weight is not contiguous; it is updated in place, so pass a contiguous"),
    ("weight", dtype(torch.bfloat16), r"weight is bfloat16; .*keep float32 master weights"),
    ("weight", dtype(torch.float64), r"weight is float64"),
    (
        "bias",
        dtype(torch.float16),
        r"bias is float16; it is updated in place and has to be float32",
    ),
    (
        "weight_state",
        shape(1, 5, 12),
        r"weight_state has shape \[1, 5, 12\]; expected \[2, 5, 12\]",
    ),
    ("weight_state", strided, "weight_state is not contiguous"),
    ("weight_state", dtype(torch.float64), "weight_state is float64; .*float32"),
    ("bias_state", shape(2, 4), r"bias_state has shape \[2, 4\]; expected \[2, 5\]"),
    ("step", dtype(torch.int32), "step is int32; expected int64"),
    ("step", dtype(torch.float32), "step is float32; expected int64"),
    ("step", shape(2), r"step has shape \[2\]; expected a 0-dim tensor"),
    ("lr", dtype(torch.float32), "lr is float32; expected float64"),
    ("lr", shape(2), r"lr has shape \[2\]; expected a 0-dim tensor"),
    (
        "optimiser",
        to("rmsprop"),
        r"optimiser is 'rmsprop'; expected 'sgd', 'ema', 'adam' or 'adamw'",
    ),
    ("hyper", to([0.9]), "hyper has 1 numbers; expected 5: beta1"),
    ("hyper", to([]), "hyper has 0 numbers; expected 5"),
    ("hyper", to([2.0, 0.9, 0.0, 0.0, 0.0]), r"hyper\[0\] \(beta1 or momentum\) is 2; expected a number in \[0, 1\)"),
    ("hyper", to([0.9, float("nan"), 0.0, 0.0, 0.0]), r"hyper\[1\] \(beta2\) is -?nan; expected a number in \[0, 1\)"),
    ("hyper", to([0.9, 0.9, -1.0, 0.0, 0.0]), r"hyper\[2\] \(eps\) is -1; expected a number >= 0"),
    ("hyper", to([0.9, 0.9, 0.0, float("inf"), 0.0]), r"hyper\[3\] \(weight_decay\) is inf; expected a number >= 0"),
]
WORKSPACE = [
    (
        "workspace",
        lambda t: t[:-1].clone(),
        r"workspace has \d+ floats; expected at least \d+ \(ffkern",
    ),
    ("workspace", shape(0), r"workspace has 0 floats; expected at least \d+"),
    ("workspace", dtype(torch.float64), "workspace is float64; .*float32"),
]
LESSON = [
    ("sign", shape(5), r"sign has shape \[5\]; expected \[\d+\]"),
    ("sign", dtype(torch.int64), "sign is int64; expected float32"),
    ("row_weight", shape(7), r"row_weight has shape \[7\]; expected \[\d+\]"),
    ("peer_mean", shape(4), r"peer_mean has shape \[4\]; expected \[5\]"),
    ("peer_mean", dtype(torch.float64), "peer_mean is float64; .*float32"),
    ("peer_momentum", to(1.5), r"peer momentum is 1.5; expected 0 to 1"),
    ("peer_mean", to(None), r"peer_mean is .*None|peer_strength is 0.4 but peer_mean"),
    ("temperature", to(0.0), "temperature is 0; expected a number > 0"),
    ("temperature", to(1e-300), "temperature is 1e-300; expected a number > 0"),
    ("threshold", to(float("nan")), "threshold is -?nan; expected a finite number"),
    ("stats", shape(6), r"stats has shape \[6\]; expected \[9\]"),
    ("stats", dtype(torch.float32), "stats is float32; expected float64"),
    ("h", dtype(torch.bfloat16), "h is bfloat16; it is updated in place and has to be float32"),
    ("h", shape(5, 5), r"h has shape \[5, 5\]; expected \[\d+, 5\]"),
    ("h_norm", shape(5), r"h_norm has shape \[5\]; expected \[\d+\]"),
]
KEPT = [
    ("h", shape(6, 4), r"(h|bias|peer|weight) has shape \[.*\]; expected"),
    ("scale", shape(5), r"scale has shape \[5\]; expected \[\d+\]"),
    ("coef", shape(5), r"coef has shape \[5\]; expected \[\d+\]"),
    ("sign", to(None), "peer is given but sign is not; expected both"),
    ("sign", shape(5), r"sign has shape \[5\]; expected \[\d+\]"),
    ("peer", shape(4), r"peer has shape \[4\]; expected \[5\]"),
]
HEAD = [
    ("h", to([]), "h has 0 and h_norm 2 tensors; expected one of each per layer"),
    (
        "weight",
        shape(4, 9),
        r"weight has shape \[4, 9\]; expected \[classes, 8\], the units of all layers",
    ),
    ("bias", shape(3), r"bias has shape \[3\]; expected \[4\]"),
    ("norm", to("max"), "norm is 'max'; expected"),
]
NO_LOW = ("weight_low", to(torch.zeros(1, 6, 16, 2, dtype=torch.bfloat16)), "weight_low is given; expected none, as x")
NO_ROWS = ("x", lambda t: t[:0], "x has no rows; expected at least one row to learn from")


def nth(index: int, change: Change) -> Callable[[list[Any]], list[Any]]:
    """That change of one entry of a list."""
    return lambda entries: [change(t) if i == index else t for i, t in enumerate(entries)]


# Sample: x [6, 12], layers of 5 and 7 units, a head on both with 4 classes.
NETWORK = [
    ("x", shape(6, 11), r"weights\[0\] has shape \[5, 12\]; expected \[\*, 11\] to match x"),
    ("x", shape(12), r"x has shape \[12\]; expected a matrix"),
    ("x", lambda t: t[:0], "x has no rows; expected at least one row to learn from"),
    ("x", dtype(torch.float64), "x is float64; expected float32, bfloat16 or float16"),
    ("labels", holding(4), r"labels holds 4; expected -1 \(neutral\) or 0 to 3"),
    ("labels", lambda t: t - 1, r"labels holds -1; expected 0 to 3|labels holds -2"),
    ("labels", shape(2, 6), r"labels has shape \[2, 6\]; expected \[rows, 6\]: .*, last what the head sees \(-1\)"),
    ("labels", shape(3, 5), r"labels has shape \[3, 5\]; expected \[rows, 6\]"),
    ("labels", shape(4, 6), "labels has 2 rows of wrong labels; expected 1 to draw with u"),
    ("labels", dtype(torch.int32), "labels is int32; expected int64"),
    ("labels", strided, "labels is not contiguous"),
    ("u", to(torch.rand(5)), r"u has shape \[5\]; expected \[6\]"),
    ("overlay", shape(3), r"overlay has shape \[3\]; expected \[2\]"),
    ("classes", to(12), "classes is 12; expected 1 to 11, fewer than the 12 inputs"),
    ("classes", to(3), r"weights\[2\] has shape \[4, 12\]; expected \[3, 12\]"),
    ("weights", to([]), "weights is empty; expected one matrix per layer"),
    ("weights", nth(1, shape(7, 6)), r"weights\[1\] has shape \[7, 6\]; expected \[\*, 5\] to match the layer before"),
    ("weights", nth(1, shape(7)), r"weights\[1\] has shape \[7\]; expected a matrix"),
    ("weights", nth(1, strided), r"weights\[1\] is not contiguous; it is updated in place"),
    ("weights", nth(1, dtype(torch.float16)), r"weights\[1\] is float16; expected float32"),
    ("weights", nth(2, shape(4, 5)), r"weights\[2\] has shape \[4, 5\]; expected \[4, 12\]"),
    ("biases", nth(1, shape(6)), r"biases\[1\] has shape \[6\]; expected \[7\]"),
    ("biases", lambda b: b[:2], "biases has 2 entries; expected 3, as weights"),
    ("weight_states", nth(1, shape(1, 7, 5)), r"weight_states\[1\] has shape \[1, 7, 5\]; expected \[2, 7, 5\]"),
    ("weight_states", nth(2, strided), r"weight_states\[2\] is not contiguous"),
    ("bias_states", nth(1, shape(2, 6)), r"bias_states\[1\] has shape \[2, 6\]; expected \[2, 7\]"),
    ("bias_states", nth(1, shape(0)), r"bias_states\[1\] is empty; expected a tensor, as weight_states\[1\] is one"),
    ("steps", nth(1, dtype(torch.int32)), r"steps\[1\] is int32; expected int64"),
    ("steps", nth(1, shape(2)), r"steps\[1\] has shape \[2\]; expected a 0-dim tensor"),
    ("lrs", nth(1, dtype(torch.float32)), r"lrs\[1\] is float32; expected float64"),
    ("weights_low", nth(1, to(torch.ones(6, 5))), r"weights_low\[1\] is given; expected none, as x is not bfloat16"),
    ("peer_means", nth(1, shape(6)), r"peer_means\[1\] has shape \[6\]; expected \[7\]"),
    ("peer_means", nth(1, shape(0)), "peer_strength is 0.4 but peer_mean is None; expected both"),
    ("stats", nth(1, shape(3)), r"stats\[1\] has shape \[3\]; expected \[\d+\]"),
    ("stats", nth(2, shape(2)), r"stats\[2\] has shape \[2\]; expected \[3\]"),
    ("head_layers", to([0, 2]), "head_layers holds 2; expected 0 to 1"),
    ("sign", shape(5), r"sign has shape \[5\]; expected \[12\]"),
    ("row_weight", shape(5), r"row_weight has shape \[5\]; expected \[12\]"),
    ("activities", lambda a: a[:1], "activities has 1 entries; expected 2, one per layer"),
    ("activities", nth(1, shape(83)), r"activities\[1\] has 83 elements; expected at least 84"),
    ("activities", nth(1, dtype(torch.float64)), r"activities\[1\] is float64; expected float32, or as x"),
    ("activities", lambda a: [a[1], a[1]], r"activities\[1\] shares memory with activities\[0\]"),
    ("workspace", shape(10), r"workspace has 10 floats; expected at least \d+ \(ffkern.ops.network_workspace\)"),
    ("workspace", dtype(torch.float64), "workspace is float64; expected float32"),
    *OPTIONS,
    *GOODNESS,
    ("thresholds", to([1.0]), "thresholds has 1 entries; expected 2, one per layer"),
    ("thresholds", to([1.0, float("inf")]), "threshold is inf; expected a finite number"),
    ("temperatures", to([1.0, 0.0]), "temperature is 0; expected a number > 0"),
    ("peer_strengths", to([0.4]), "peer_strengths has 1 entries; expected 2, one per layer"),
    ("peer_momenta", to([0.5, 1.5]), "peer momentum is 1.5; expected 0 to 1"),
    ("head_norm", to("max"), "head_norm is 'max'; expected 'l2', 'rms' or 'none'"),
    ("head_eps", to(-1.0), "head_eps is -1; expected a number >= 0"),
    ("optimisers", to(["adam", "adam", "lion"]), "optimiser is 'lion'; expected 'sgd'"),
    ("optimisers", to(["adam"]), "optimisers has 1 entries; expected 3, as weights"),
    ("hyper", to([0.9]), "hyper has 1 entries; expected 15, 5 for each entry of weights"),
    ("hyper", lambda h: [*h[:5], 2.0, *h[6:]], r"hyper\[0\] \(beta1 or momentum\) is 2; expected"),
]

REFUSED: dict[str, list[tuple[str, Any, str]]] = {
    "layer_forward": [
        *LAYER,
        *WEIGHT,
        *OPTIONS,
        *GOODNESS,
        ("x_norm", to(torch.zeros(5)), r"x_norm has shape \[5\]; expected \[6\]"),
        NO_LOW,
    ],
    "layer_forward_": [*LAYER, *WEIGHT, *OPTIONS, *KIND, *OUTPUTS, OUTPUTS_LOW, NO_LOW],
    "shared_base": [*LAYER, *LABELS[-2:], WEIGHT[0], NO_LOW],
    "shared_variants": [
        *LABELS,
        *VARIANTS,
        *OPTIONS,
        *GOODNESS,
        ("base", shape(6, 4), r"base has shape \[6, 4\]; expected \[\*, 5\]"),
        ("rest_norm", shape(5), r"rest_norm has shape \[5\]; expected \[6\]"),
    ],
    "shared_variants_": [*LABELS, *VARIANTS, *OPTIONS, *KIND, *OUTPUTS],
    "local_loss": [
        ("goodness", shape(2, 3), r"goodness has shape \[2, 3\]; expected \[rows\]"),
        ("goodness", dtype(torch.float64), "goodness is float64; expected float32"),
        ("sign", shape(5), r"sign has shape \[5\]; expected \[6\]"),
        ("row_weight", shape(1), r"row_weight has shape \[1\]; expected \[6\]"),
        ("temperature", to(-1.0), "temperature is -1; expected a number > 0"),
        ("temperature", to(float("nan")), "temperature is nan; expected a number > 0"),
    ],
    "peer_update_": [
        ("h", shape(6), r"h has shape \[6\]; expected a matrix"),
        ("sign", shape(5), r"sign has shape \[5\]; expected \[6\]"),
        ("mean", shape(4), r"mean has shape \[4\]; expected \[5\]"),
        ("mean", dtype(torch.bfloat16), "mean is bfloat16; it is updated in place"),
        ("mean", strided, "mean is not contiguous"),
        ("momentum", to(-0.1), "peer momentum is -0.1; expected 0 to 1"),
    ],
    "layer_grad": [*KEPT, *GOODNESS, ("x", shape(5, 12), r"has shape .*; expected \[5")],
    "shared_grad": [*KEPT, *GOODNESS, *LABELS, *VARIANTS],
    "layer_update_": [*LAYER, *KEPT, *STATE, *WORKSPACE, *GOODNESS, NO_LOW],
    "shared_update_": [*LAYER, *KEPT, *STATE, *WORKSPACE, *GOODNESS, *LABELS, *VARIANTS, NO_LOW],
    "layer_step_": [*LAYER, *STATE, *WORKSPACE, *LESSON, *OPTIONS, *GOODNESS, NO_ROWS, NO_LOW],
    "shared_step_": [
        *LAYER,
        *STATE,
        *WORKSPACE,
        *LESSON,
        *OPTIONS,
        *GOODNESS,
        *LABELS,
        *VARIANTS,
        NO_LOW,
    ],
    "network_step_": NETWORK,
    "predict_goodness": [
        ("weights_low", to([NO_LOW[1](None)]), "weights_low has 1 tensors; expected none, as x is not bfloat16"),
        ("x", shape(5, 11), r"x has shape \[5, 11\]; expected \[\*, 12\]"),
        ("x", dtype(torch.float64), "x is float64"),
        ("weights", to([]), "weights is empty; expected one matrix per layer"),
        (
            "weights",
            lambda w: [w[0], torch.zeros(6, 8)],
            r"weights\[1\] has shape \[6, 8\]; expected \[\*, 7\]",
        ),
        ("biases", to([None]), "biases has 1 entries; expected 2, one per layer"),
        ("biases", lambda b: [b[0], torch.zeros(5)], r"biases.* has shape \[5\]; expected \[6\]"),
        ("classes", to(12), "classes is 12; expected 1 to 11, fewer than the 12 inputs"),
        ("overlay", shape(1), r"overlay has shape \[1\]; expected \[2\]"),
        *OPTIONS,
        *GOODNESS,
    ],
    "pack_weight_": [
        WEIGHT[0],
        ("weight", shape(5), r"weight has shape \[5\]; expected a matrix"),
        ("weight", dtype(torch.float64), "weight is float64; expected float32, bfloat16 or float16"),
        ("out", shape(1, 6, 16), r"out has shape \[1, 6, 16\]; expected \[1, 6, 16, 2\]"),
        ("out", shape(2, 6, 16, 2), r"out has shape \[2, 6, 16, 2\]; expected \[1, 6, 16, 2\]"),
        ("out", dtype(torch.float32), "out is float32; expected bfloat16"),
        ("out", strided, "out is not contiguous"),
    ],
    "overlay_label": [
        *LABELS[:5],
        ("labels", shape(5), r"labels has shape \[5\]; expected \[6\]"),
        ("classes", to(13), "classes is 13; expected 1 to 12, the number of inputs"),
        ("x", dtype(torch.float64), "x is float64"),
        ("x", shape(6), r"x has shape \[6\]; expected a matrix"),
    ],
    "concat_label": [*LABELS[:5], ("classes", to(0), r"classes is 0; expected (1|at least 1)")],
    "wrong_labels": [
        ("labels", holding(4), r"labels holds 4; expected 0 to 3"),
        ("labels", holding(-1), r"labels holds -1; expected 0 to 3"),
        ("labels", shape(2, 3), r"labels has shape \[2, 3\]; expected \[\*\]"),
        ("labels", dtype(torch.int32), "labels is int32; expected int64"),
        ("classes", to(1), "classes is 1; expected at least 2: with one class no label is wrong"),
        ("u", shape(5), r"u has shape \[5\]; expected \[6\]"),
        ("u", dtype(torch.float64), "u is float64; expected float32"),
    ],
    "hard_labels": [
        (
            "logits",
            shape(6, 1),
            "classes is 1; expected at least 2: with one class no label is wrong",
        ),
        ("logits", shape(6), r"logits has shape \[6\]; expected a matrix"),
        ("labels", holding(-1), r"labels holds -1; expected 0 to 3"),
        ("u", shape(5), r"u has shape \[5\]; expected \[6\]"),
    ],
    "all_wrong_labels": [
        ("labels", holding(7), r"labels holds 7; expected 0 to 3"),
        ("classes", to(1), "classes is 1; expected at least 2: with one class no label is wrong"),
    ],
    "hybrid_images_": [
        ("x", shape(12), r"x has shape \[12\]; expected a matrix"),
        ("x", shape(5, 12), r"other has shape \[6, 12\]; expected \[5, 12\]"),
        ("x", dtype(torch.float64), "x is float64; expected float32, bfloat16 or float16"),
        ("x", dtype(torch.bfloat16), "other is float32; expected bfloat16"),
        ("other", shape(6, 6), r"other has shape \[6, 6\]; expected \[6, 12\]"),
        ("other", shape(72), r"other has shape \[72\]; expected a matrix"),
        ("other", dtype(torch.int64), "other is int64; expected float32, bfloat16 or float16"),
        ("other", dtype(torch.float16), "other is float16; expected float32"),
        ("generator", dtype(torch.int32), "generator is int32; expected int64"),
        ("generator", dtype(torch.float32), "generator is float32; expected int64"),
        ("generator", shape(3), r"generator has shape \[3\]; expected \[2\]"),
        ("generator", shape(), r"generator has shape \[\]; expected \[2\]"),
        ("generator", strided, "generator is not contiguous; it is updated in place"),
        ("height", to(5), r"height is 5 and width 3; expected height \* width to divide the 12 inputs of x"),
        ("height", to(0), r"height is 0 and width 3; expected height \* width to divide"),
        ("height", to(-2), r"height is -2 and width 3; expected height \* width to divide"),
        ("height", to(2**62), r"height is 4611686018427387904 and width 3; expected"),
        ("width", to(0), r"height is 2 and width 0; expected height \* width to divide"),
        ("width", to(2**63 - 1), r"height is 2 and width 9223372036854775807; expected"),
        ("blurs", to(-1), "blurs is -1; expected a number >= 0"),
    ],
    "head_forward": [
        *HEAD,
        (
            "h",
            lambda h: [h[0], h[1][:5]],
            r"(h_norm has shape \[6\]; expected \[5\]|h\[1\] has shape \[5, 3\]; expected \[6)",
        ),
        ("h_norm", lambda n: [n[0], n[1][:5]], r"h_norm has shape \[5\]; expected \[6\]"),
    ],
    "head_step_": [
        *HEAD,
        ("labels", holding(4), r"labels holds 4; expected 0 to 3"),
        ("labels", holding(-1), r"labels holds -1; expected 0 to 3"),
        ("labels", shape(5), r"labels has shape \[5\]; expected \[6\]"),
        ("stats", shape(7), r"stats has shape \[7\]; expected \[3\]"),
        (
            "weight_state",
            shape(1, 4, 8),
            r"weight_state has shape \[1, 4, 8\]; expected \[2, 4, 8\]",
        ),
        ("lr", dtype(torch.float32), "lr is float32; expected float64"),
        ("optimiser", to("lion"), "optimiser is 'lion'; expected 'sgd'"),
        ("hyper", to([1.0, 2.0]), "hyper has 2 numbers; expected 5"),
    ],
}


def schema(name: str) -> list[str]:
    return [a.name for a in getattr(torch.ops.ffkern, name).default._schema.arguments]


def copies(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return [copies(v) for v in value] if isinstance(value, list) else value


def unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return torch.equal(before, after)
    if isinstance(before, list):
        return all(unchanged(a, b) for a, b in zip(before, after, strict=True))
    return True


REFUSALS = [(name, *case) for name, given in REFUSED.items() for case in given]
NAMES = [f"{r[0]}-{r[1]}-{i}" for i, r in enumerate(REFUSALS)]
# With x in bfloat16.
LOW = [
    ("weight_low", shape(1, 6, 16, 3), r"weight_low has shape \[1, 6, 16, 3\]; expected \[1, 6, 16, 2\]"),
    ("weight_low", shape(5, 12), r"weight_low has shape \[5, 12\]; expected \[1, 6, 16, 2\]"),
    ("weight_low", dtype(torch.float16), "weight_low is float16; expected bfloat16, as rows of bfloat16 ask for"),
    ("weight_low", dtype(torch.float32), "weight_low is float32; expected bfloat16, as rows of bfloat16 ask for"),
    ("weight_low", strided, "weight_low is not contiguous; it is updated in place"),
]
KEPT_LOW = [
    ("h", dtype(torch.float32), "h is float32; expected bfloat16, as rows of bfloat16 ask for"),
    ("h", dtype(torch.float16), "h is float16; expected bfloat16, as rows of bfloat16 ask for"),
    ("h", strided, "h is not contiguous; it is updated in place"),
    ("h", shape(5, 5), r"h has shape \[5, 5\]; expected \[\d+, 5\]"),
]
READS_LOW = [name for name in cases.TENSOR_OPS if "weight_low" in ops.SCHEMAS[name]]
REFUSALS_LOW = [(name, *case) for name in READS_LOW for case in LOW]
REFUSALS_LOW += [(name, *case) for name in ("layer_forward_", "layer_step_", "shared_step_") for case in KEPT_LOW]
REFUSALS_LOW += [(name, *WORKSPACE[0]) for name in READS_LOW if "workspace" in ops.SCHEMAS[name]]


def test_every_operation_refuses_something():
    assert set(REFUSED) == set(cases.TENSOR_OPS)


def check_refused(name, argument, change, message, arguments):
    """The call with this argument changed raises, and leaves all arguments as they were."""
    names = schema(name)
    at = names.index(argument)
    arguments[at] = change(arguments[at])
    before = copies(arguments)
    with pytest.raises(RuntimeError, match=rf"^ffkern::{name}: .*({message})"):
        getattr(ops, name)(*arguments)
    for key, a, b in zip(names, before, arguments, strict=True):
        assert unchanged(a, b), f"{key} changed"


@pytest.mark.parametrize(("name", "argument", "change", "message"), REFUSALS, ids=NAMES)
def test_refused(name, argument, change, message):
    check_refused(name, argument, change, message, list(sample(name)))


@pytest.mark.parametrize(
    ("name", "argument", "change", "message"),
    REFUSALS_LOW,
    ids=[f"{r[0]}-{r[1]}-{i}" for i, r in enumerate(REFUSALS_LOW)],
)
def test_refused_with_bfloat16(name, argument, change, message):
    arguments, names = list(sample(name, torch.bfloat16)), schema(name)
    weight = arguments[names.index("weight")]
    arguments[names.index("weight_low")] = cases.packed(weight)
    getattr(ops, name)(*copies(arguments))
    check_refused(name, argument, change, message, arguments)


def test_packed_weights_of_another_network():
    arguments = list(sample("predict_goodness", torch.bfloat16))
    good = [cases.packed(w) for w in arguments[1]]
    for low, message in [
        (good[:1], "weights_low has 1 tensors; expected none, or one for each of weights"),
        ([*good, good[0]], "weights_low has 3 tensors; expected none, or one for each of weights"),
        ([good[0], good[0]], r"weights_low has shape \[1, 6, 16, 2\]; expected \[1, 4, 16, 2\]"),
        ([good[0], good[1].float()], "weights_low is float32; expected bfloat16"),
    ]:
        with pytest.raises(RuntimeError, match=rf"^ffkern::predict_goodness: {message}"):
            ops.predict_goodness(*arguments[:-1], low)


@pytest.mark.parametrize("name", WRITING_OPS)
def test_the_sample_itself_is_accepted(name):
    """Otherwise the refusals above would prove nothing."""
    arguments = list(sample(name))
    before = copies(arguments)
    getattr(ops, name)(*arguments)
    assert not all(unchanged(a, b) for a, b in zip(before, arguments, strict=True))


@pytest.mark.parametrize("name", cases.TENSOR_OPS)
def test_a_tensor_on_another_device_is_refused(name):
    """A meta tensor among CPU ones must not send the call to the shape function, which computes
    nothing: that would be an update silently lost, or a result of uninitialised memory."""
    names = schema(name)
    accepted, messages, tried = [], [], 0
    for i, value in enumerate(sample(name)):
        arguments = list(sample(name))
        alone = sum(isinstance(a, Tensor) for a in arguments) < 2
        if isinstance(value, list) and value and isinstance(value[-1], Tensor):
            arguments[i] = [*value[:-1], value[-1].to("meta")]
        elif isinstance(value, Tensor) and not (alone and not isinstance(arguments[0], list)):
            arguments[i] = value.to("meta")
        else:
            continue
        tried += 1
        before = copies([a for j, a in enumerate(arguments) if j != i])
        try:
            getattr(ops, name)(*arguments)
        except (RuntimeError, NotImplementedError) as error:
            messages.append(str(error))
        else:
            accepted.append(names[i])
        assert unchanged(before, [a for j, a in enumerate(arguments) if j != i])
    assert not accepted
    assert all(re.search("device|meta", message) for message in messages)
    assert tried or name == "all_wrong_labels"


# ------------------------------------------------------------------------------------- modules


LINEAR = [
    ({"norm": "L2"}, r"norm is 'L2'; expected one of 'l2', 'rms', 'none'"),
    ({"goodness": "max"}, r"goodness is 'max'; expected one of 'sum_sq'"),
    ({"eps": -1.0}, r"eps is -1.0; expected a number >= 0"),
    ({"temperature": 0.0}, r"temperature is 0.0; expected a number > 0"),
    ({"threshold": "auto"}, r"threshold is 'auto'; expected one of 'width'"),
    ({"peer_momentum": 1.5}, r"peer_momentum is 1.5; expected"),
    ({"peer_strength": -1.0}, r"peer_strength is -1.0; expected"),
]


@pytest.mark.parametrize(("options", "message"), LINEAR, ids=[str(o) for o, _ in LINEAR])
def test_layer_options(options, message):
    with pytest.raises(ValueError, match=message):
        FFLinear(4, 3, **options)


NETS = [
    (([8],), {}, r"layers is \[8\]; expected sizes \[inputs, units, ...\]"),
    (([],), {}, r"layers is \[\]; expected sizes"),
    (([8, 0],), {}, r"layers is \[8, 0\]; expected sizes"),
    (([8, FFLinear(8, 3)],), {}, r"expected sizes \[inputs, units, ...\] or FFLinear layers"),
    (
        ([8, 3],),
        {"classes": 8},
        r"classes is 8; expected fewer than the 8 inputs, or label='concat'",
    ),
    (([8, 3],), {"classes": 0}, r"classes is 0; expected at least 1"),
    (
        ([8, 3],),
        {"classes": 2, "label": "front"},
        r"label is 'front'; expected one of 'overlay', 'concat'",
    ),
    (
        ([8, 3],),
        {"classes": 2, "label_value": "min"},
        r"label_value is 'min'; expected one of 'max'",
    ),
    (
        ([8, 3],),
        {"classes": 2, "head_layers": "some"},
        r"head_layers is 'some'; expected one of 'all'",
    ),
    (([8, 3],), {"classes": 2, "head_layers": [1]}, r"head_layers holds 1; expected 0 to 0"),
    (
        ([FFLinear(8, 3), FFLinear(4, 3)],),
        {"classes": 2},
        r"layers\[1\] takes 4 inputs; expected 3",
    ),
    (
        ([FFLinear(8, 3), FFLinear(3, 3, norm="l2")],),
        {"classes": 2},
        r"layers\[1\].norm is 'l2'; expected 'rms'",
    ),
    (
        ([FFLinear(8, 3)],),
        {"classes": 2, "norm": "l2"},
        r"norm: give layer options to the ready layers",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "message"), NETS, ids=[m[:30] for _, _, m in NETS])
def test_network_options(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        FFNet(*arguments, **options)


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Linear(8, 3)],
        [nn.ReLU(), nn.Linear(8, 3)],
        [nn.Linear(8, 3), nn.Sigmoid()],
        [nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2)],
        [],
    ],
    ids=lambda m: "+".join(type(part).__name__ for part in m),
)
def test_from_sequential(modules):
    with pytest.raises(ValueError, match=r"expected (Linear followed by ReLU|sizes)|layers is"):
        FFNet.from_sequential(nn.Sequential(*modules), classes=2)


def parts() -> tuple[FFLinear, optim.SGD, Tensor, Tensor]:
    layer = FFLinear(6, 4)
    return layer, optim.SGD(layer.parameters(), 0.1), torch.randn(5, 6), torch.ones(5)


def test_torch_optimisers_are_refused_by_the_fused_step():
    layer, _, x, sign = parts()
    with pytest.raises(TypeError, match=r"opt is a Adam; .*ffkern\.optim.*local_loss\(\) and backward"):
        layer.step(x, sign, torch.optim.Adam(layer.parameters()))
    head = FFHead([6], 3)
    with pytest.raises(TypeError, match=r"opt is a Adam; .*ffkern\.optim"):
        head.step(
            [x],
            [x.norm(dim=1)],
            torch.zeros(5, dtype=torch.int64),
            torch.optim.Adam(head.parameters()),
        )


def test_an_optimiser_of_other_parameters_is_refused():
    layer, _, x, sign = parts()
    other = optim.SGD(FFLinear(6, 4).parameters(), 0.1)
    with pytest.raises(ValueError, match="does not hold this layer's weight"):
        layer.step(x, sign, other)
    with pytest.raises(ValueError, match="does not hold this layer's bias"):
        layer.step(x, sign, optim.SGD([layer.weight], 0.1))


def test_empty_and_wrong_batches_change_nothing():
    layer, opt, x, sign = parts()
    layer.step(x, sign, opt)
    state = opt.state[layer.weight]
    before = copies([layer.weight.detach(), layer.bias.detach(), state["slots"], state["step"]])
    layer.metrics()
    for given, message in [
        ((x[:0], sign[:0]), "x has no rows"),
        ((x[:, :5], sign), r"x has shape \[5, 5\]; expected \[\*, 6\]"),
        ((x, sign[:4]), r"sign has shape \[4\]; expected \[5\]"),
        ((x.double(), sign), "x is float64"),
        ((x.to("meta"), sign), "device|meta"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            layer.step(*given, opt)
    after = [layer.weight.detach(), layer.bias.detach(), state["slots"], state["step"]]
    assert unchanged(before, after)
    assert layer.metrics()["rows"] == 0


def test_a_layer_on_the_meta_device_is_refused():
    layer = FFLinear(6, 4, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError), match=r"device|meta"):
        layer(torch.randn(5, 6))


def test_network_refuses_bad_labels():
    net = FFNet([8, 5, 4], classes=3)
    opt = optim.SGD(net.parameters(), 0.1)
    x = torch.rand(4, 8)
    before = [p.detach().clone() for p in net.parameters()]
    for labels, error, message in [
        (torch.tensor([0, 1, 2, 3]), RuntimeError, "labels holds 3; expected 0 to 2"),
        (torch.tensor([0, 1, 2, -1]), RuntimeError, "labels holds -1; expected 0 to 2"),
        (torch.tensor([0, 1, 2]), ValueError, r"labels has shape \[3\]; expected \[4\], one label for each image"),
        (torch.tensor([0.0, 1, 2, 1]), TypeError, "labels is float32; expected int64"),
    ]:
        with pytest.raises(error, match=message):
            net.step(x, labels, opt)
    with pytest.raises(ValueError, match=r"negatives is 'random'; expected one of 'uniform', 'hard', 'all'"):
        net.step(x, torch.tensor([0, 1, 2, 1]), opt, negatives="random")
    with pytest.raises(ValueError, match=r"negatives is 'hard'; expected one of 'uniform', 'all'"):
        net.step_layer(0, x, torch.tensor([0, 1, 2, 1]), opt, negatives="hard")
    with pytest.raises(ValueError, match=r"layers is 'last'; expected one of 'all', 'all_but_first'"):
        net.predict(x, "last")
    assert unchanged(before, [p.detach() for p in net.parameters()])


def test_one_class_has_no_wrong_label():
    net = FFNet([8, 5], classes=1)
    for negatives in ("uniform", "all"):
        with pytest.raises(RuntimeError, match="classes is 1; expected at least 2"):
            net.step(
                torch.rand(4, 8),
                torch.zeros(4, dtype=torch.int64),
                optim.SGD(net.parameters(), 0.1),
                negatives=negatives,
            )


OPTIMISERS = [
    (lambda p: optim.SGD(p, -0.1), r"lr is -0.1; expected a number >= 0"),
    (
        lambda p: optim.SGD(p, 0.1, momentum=1.0),
        r"momentum is 1.0; expected a number in \[0.0, 1.0\)",
    ),
    (lambda p: optim.EMA(p, 0.1, momentum=-0.1), r"momentum is -0.1; expected"),
    (lambda p: optim.EMA(p, 0.1, weight_decay=-1), r"weight_decay is -1; expected a number >= 0"),
    (lambda p: optim.Adam(p, 0.1, betas=(0.9, 1.0)), r"betas\[1\] is 1.0; expected"),
    (lambda p: optim.Adam(p, 0.1, betas=(-0.1, 0.9)), r"betas\[0\] is -0.1; expected"),
    (lambda p: optim.AdamW(p, 0.1, eps=-1e-8), r"eps is -1e-08; expected"),
    (lambda p: optim.Adam(p, float("nan")), r"lr is nan; expected"),
]


@pytest.mark.parametrize(("make", "message"), OPTIMISERS, ids=[m[:20] for _, m in OPTIMISERS])
def test_optimiser_options(make, message):
    with pytest.raises(ValueError, match=message):
        make(FFLinear(4, 3).parameters())


@pytest.mark.usefixtures("device")
def test_outputs_that_share_memory_with_inputs():
    """Kernels would read what they have just written."""
    x, weight = torch.randn(4, 6), torch.randn(6, 6)
    rows = [torch.empty(4) for _ in range(3)]
    kind = ("rms", 1e-4, "mean_sq")
    for h, name in ((x, "x"), (weight[1:5], "weight")):
        with pytest.raises(RuntimeError, match=f"h shares memory with {name}; expected a tensor of its own"):
            torch.ops.ffkern.layer_forward_(x, weight, None, None, h, *rows, *kind)
    both = torch.randn(8, 6)
    torch.ops.ffkern.layer_forward_(both[:4], weight, None, None, both[4:], *rows, *kind)  # beside each other
    layer = FFLinear(6, 6)
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="h shares memory with x"):
        layer.step(x, torch.ones(4), optim.SGD(layer.parameters(), lr=0.1), keep=(x, rows[0]))
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("shape", [(0, 7), (7, 0)])
@pytest.mark.parametrize("name", ["step_workspace", "update_workspace"])
def test_workspace_of_no_units_or_inputs(name, shape, device):
    sizes = (6, 0, 1, False, "sgd") if name == "step_workspace" else (6, 0, 1, "sgd")
    with pytest.raises(RuntimeError, match=r"expected at least one unit and one input"):
        getattr(ops, name)(torch.zeros(shape), *sizes)
