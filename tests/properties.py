"""Every operation on drawn sizes, layouts, dtypes, values and options, against the specification.

A case is a mapping of names to plain values, written ``op=layer_step_ backend=cpu-avx2 rows=7 ...``. It says
everything: its seed fixes the numbers, so a case fails or holds anywhere on the same instruction set.

    python tests/properties.py 'op=layer_step_ backend=cpu-avx2 rows=7 ...'

checks one. test_properties.py draws them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__":  # as the tests find their own
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import op_cases as cases
from tolerance import UNIT, check_parity, to_double

from ffkern import ops
from ffkern import reference as ref

Case = dict[str, Any]

# ---------------------------------------------------------------- what can be drawn, the simplest first

SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)  # around the widths of vectors and tiles
SMALL = (1, 2, 3, 7, 8, 9, 16, 17, 33)  # on the software driver
CHOICES: dict[str, Sequence[Any]] = {
    "dtype": ("float32", "bfloat16", "float16"),
    "rows": (*SIZES, 0),
    "inputs": (*SIZES, 129, 257),
    "units": SIZES,
    "classes": (1, 2, 3, 10),
    "variants": (1, 2, 3),
    "depth": (1, 2, 3),
    "norm": ref.NORMS,
    "goodness": ref.GOODNESS,
    "eps": (1e-4, 1.0, 0.0),
    "bias": (False, True),
    "x_norm": (False, True),
    "narrow": (False, True),  # weights in the dtype of x where they are only read
    "low": (False, True),  # weight_low is given
    "optimiser": tuple(ref.STATE_SLOTS),
    "hyper": ("usual", "plain", "all rows"),
    "fresh": (False, True),
    "sign": ("positive", "negative", "mixed", "none"),
    "weighted": ("no", "yes", "zeros"),
    "peer": ("no", "yes", "idle"),
    "keep": (False, True),
    "head": ("no", "reads", "learns", "draws"),
    "frozen": (False, True),
    "blurs": (0, 1, 6),
    "temperature": (1.0, 0.03),
    "values": ("normal", "zeros", "zero rows", "tiny", "huge", "nan row", "inf row"),
    "layout": ("plain", "offset", "pitched", "transposed", "stepped"),
    "product": ("own", "blas"),
    "seed": range(1 << 16),
}
LAYER = ("rows", "inputs", "units", "norm", "goodness", "eps", "bias")
SHARED = ("classes", "variants")
LEARN = ("optimiser", "hyper", "fresh", "sign", "weighted", "peer", "temperature")
ALWAYS = ("op", "backend", "dtype", "values", "layout", "product", "seed")
FIELDS: dict[str, tuple[str, ...]] = {
    "layer_forward": (*LAYER, "x_norm", "narrow", "low"),
    "layer_forward_": (*LAYER, "x_norm", "narrow", "low"),
    "shared_base": ("rows", "inputs", "units", "classes", "narrow", "low"),
    "shared_variants": (*LAYER, *SHARED),
    "shared_variants_": (*LAYER, *SHARED),
    "local_loss": ("rows", "sign", "weighted", "temperature"),
    "peer_update_": ("rows", "units", "sign"),
    "layer_grad": (*LAYER, *LEARN, "x_norm"),
    "shared_grad": (*LAYER, *LEARN, *SHARED),
    "layer_update_": (*LAYER, *LEARN, "x_norm", "low"),
    "shared_update_": (*LAYER, *LEARN, *SHARED, "low"),
    "layer_step_": (*LAYER, *LEARN, "x_norm", "low", "keep"),
    "shared_step_": (*LAYER, *LEARN, *SHARED, "low", "keep"),
    "network_step_": (*LAYER, *SHARED, "optimiser", "peer", "weighted", "depth", "head", "frozen"),
    "predict_goodness": (*LAYER, "classes", "depth"),
    "pack_weight_": ("inputs", "units"),
    "overlay_label": ("rows", "inputs", "classes"),
    "concat_label": ("rows", "inputs", "classes"),
    "wrong_labels": ("rows", "classes"),
    "hard_labels": ("rows", "classes"),
    "all_wrong_labels": ("rows", "classes"),
    "hybrid_images_": ("rows", "inputs", "units", "classes", "blurs"),  # height, width, channels
    "head_forward": ("rows", "inputs", "units", "classes", "norm", "eps", "bias"),
    "head_step_": ("rows", "inputs", "units", "classes", "norm", "eps", "bias", "optimiser", "hyper", "fresh"),
}
STEPS = ("layer_step_", "shared_step_", "network_step_")
NO_ROWS_REFUSED = (*STEPS, "layer_update_", "shared_update_", "head_step_")
SPECIAL = ("nan row", "inf row")


def choices(op: str, backend: str) -> dict[str, Sequence[Any]]:
    """What a case of this operation on this backend may hold."""
    options = {"op": (op,), "backend": (backend,)} | {name: CHOICES[name] for name in (*ALWAYS[2:], *FIELDS[op])}
    if not backend.startswith("cpu"):
        sizes = {"rows": (*SMALL, 0), "inputs": SMALL, "units": SMALL, "product": ("own",)}
        options |= {name: sizes[name] for name in sizes if name in options}
    if op in NO_ROWS_REFUSED:
        options["rows"] = tuple(n for n in options["rows"] if n)
    return options


def settled(case: Case) -> Case:
    """The case with what does not go together replaced: by contract, or because no bound can be given for it."""
    case = dict(case)
    op, dtype, values = case["op"], case["dtype"], case["values"]
    if case["backend"].endswith("sm_75") and dtype == "bfloat16":
        case["dtype"] = dtype = "float16"  # no bfloat16 products there
    if values == "inf row" and op not in ("layer_forward", "layer_forward_", "shared_base", "predict_goodness"):
        case["values"] = values = "nan row"  # what infinity leads to in a step is not promised
    if values == "nan row" and (op == "network_step_" or (op.startswith("shared") and "sign" in case)):
        case["values"] = values = "zero rows"  # which of the label columns it reaches is not promised
    if values == "nan row" and "optimiser" in case and "sign" in case:  # nor whether a row without a part does
        case["sign"] = "positive" if case["sign"] == "none" else "negative" if case["sign"] == "mixed" else case["sign"]
        case["weighted"] = "yes" if case["weighted"] == "zeros" else case["weighted"]
    if case.get("eps") == 0.0 and (values != "normal" or "h" in op):
        case["eps"] = 1e-4  # 1 / 0 for a row of zeros
    if "low" in case and (case["backend"][:3] != "cpu" or dtype != "bfloat16"):
        case["low"] = False
    if op in ("wrong_labels", "hard_labels", "all_wrong_labels") or case.get("head") == "draws":
        case["classes"] = max(case["classes"], 2)
    if "shared" in op or op in ("predict_goodness", "network_step_", "overlay_label"):
        case["inputs"] = max(case["inputs"], case["classes"] + (op != "overlay_label"))
    if op in STEPS:
        # The slope of sum_abs jumps at h = 0, and a draw between two classes at u: rounding to 16 bits decides.
        if case["goodness"] == "sum_abs" and (dtype != "float32" or op == "network_step_" or values == "tiny"):
            case["goodness"] = "sum_sq"
        if case.get("head") == "draws" and dtype != "float32":
            case["head"] = "learns"
    if op == "network_step_":
        case["frozen"] = case["frozen"] and (case["depth"] > 1 or case["head"] in ("learns", "draws"))
        case["variants"] = 2 if case["head"] == "draws" else max(case["variants"], 2)
        if values not in ("zeros", "zero rows"):
            case["values"] = "normal"
    if op == "pack_weight_":
        case["values"] = "normal" if values == "tiny" else values
    return case


def line(case: Case) -> str:
    """The shell command that checks this case."""
    words = " ".join(f"{name}={str(value).replace(' ', '-')}" for name, value in case.items())
    return f"OMP_NUM_THREADS={torch.get_num_threads()} python tests/properties.py '{words}'"


def parse(words: str) -> Case:
    """The case of a line's last word."""
    case: Case = dict(word.split("=", 1) for word in words.split())
    for name, text in case.items():
        if name in CHOICES:
            named = {str(value).replace(" ", "-"): value for value in CHOICES[name]}
            if text not in named:
                raise ValueError(f"{name} is {text!r}; expected one of {', '.join(list(named)[:20])}")
            case[name] = named[text]
    return case


# ---------------------------------------------------------------- numbers


def _patched(x: Tensor, case: Case, dtype: torch.dtype) -> Tensor:
    """x with the values of the case, in dtype."""
    values = case["values"]
    if x.numel() == 0:
        return x.to(dtype)
    row = int(torch.randint(0, x.shape[0], ()))
    if values == "zeros":
        x = torch.zeros_like(x)
    elif values == "zero rows":
        x = x * (torch.rand(x.shape[0], *[1] * (x.dim() - 1)) < 0.5)
    elif values == "tiny":
        x = x * (2.0**-16 if dtype == torch.float16 else 2.0**-127)
    elif values == "huge":
        # Far from 1, and all that follows still a number of float32: squares of x, or without a norm those of
        # gradients, which are of third order in it. float16 ends at 65504, for activities too.
        plain = case.get("norm") == "none" or "norm" not in case
        x = x * (2.0 ** (4 if plain else 11) if dtype == torch.float16 else 2.0 ** (15 if plain else 55))
    elif values in SPECIAL:
        x = x.clone()
        flat = x.view(x.shape[0], -1)
        flat[row, int(torch.randint(0, flat.shape[1], ()))] = float("nan" if values == "nan row" else "inf")
    return x.to(dtype)


def _signs(case: Case, rows: int) -> Tensor:
    sign = cases.signs(rows)
    return {"mixed": sign, "positive": torch.ones(rows), "negative": -torch.ones(rows), "none": 0 * sign}[case["sign"]]


def _row_weights(case: Case, rows: int) -> Tensor | None:
    weight = torch.rand(rows) / max(rows, 1)
    return {"no": None, "yes": weight, "zeros": weight * (torch.rand(rows) < 0.5)}[case["weighted"]]


def _hyper(case: Case) -> list[float]:
    hyper = list(cases.HYPER[case["optimiser"]])
    if case["hyper"] == "all rows":
        hyper[4] = 0.0
    elif case["hyper"] == "plain":
        hyper = [0.5, 0.9, 1e-3, 0.0, 0.0] if case["optimiser"].startswith("adam") else [0.0] * 5
    return hyper


def _layer(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """layer_arguments with the values of the case; sum_abs with room around the jump of its slope."""
    a = cases.layer_arguments(
        *(case[k] for k in ("rows", "inputs", "units")),
        **{k: case[k] for k in ("norm", "eps", "bias")},
    )
    a["goodness"] = case["goodness"]
    a["x"] = _patched(a["x"], case, dtype)
    if case.get("x_norm"):
        a["x_norm"] = 1.2 * a["x"].float().norm(dim=1)
    if case.get("narrow"):
        a["weight"] = a["weight"].to(dtype)
    return a


def _step(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of layer_step_, or of shared_step_ if the case has variants."""
    a = _layer(case, dtype)
    rows = case["rows"] * case.get("variants", 1)
    if "variants" in case:
        a |= cases.label_arguments(case["variants"], case["rows"], case["classes"])
        a["x"][:, : case["classes"]] = float("nan")  # not read
        del a["x_norm"]
    a |= cases.state_arguments(case["units"], case["inputs"], case["optimiser"], case["bias"], case["fresh"])
    peer = case["peer"] != "no"
    return a | {
        "hyper": _hyper(case),
        "sign": _signs(case, rows),
        "row_weight": _row_weights(case, rows),
        "peer_mean": torch.rand(case["units"]) if peer else None,
        "peer_strength": 0.4 if case["peer"] == "yes" else 0.0,
        "peer_momentum": 0.7,
        "threshold": 1.25,
        "temperature": case["temperature"],
        "keep": case.get("keep", False),
    }


def _clear_of_jumps(a: dict[str, Any]) -> bool:
    """Whether rounding decides nothing: a row is counted on its side of the threshold, a unit of sum_abs on its side of
    0, if float32 can tell."""
    wide = to_double({k: v for k, v in a.items() if k in ("x", "weight", "bias", "x_norm")})
    if "labels" in a:
        wide["x"] = ref._variants(wide["x"], a["labels"], a["classes"], a["overlay"].double())
    length = wide.get("x_norm")
    z, _ = ref._pre_activation(wide["x"], wide["weight"], wide["bias"], length, a["norm"], a["eps"])
    some = z[z.isfinite() & (z != 0)].abs()
    if a["goodness"] == "sum_abs" and some.numel() and float(some.min()) <= 4e-7 * float(some.max()):
        return False
    g = ref._goodness(z.relu(), a["goodness"])
    return not bool(((g - a["threshold"]).abs() <= 1e-5 * g.abs().clamp(min=1)).any())


# ---------------------------------------------------------------- operations: call, reference, arguments, and unit

Check = tuple[cases.Call, cases.Call, dict[str, Any], float]


def _packed_weight(**a: Any) -> dict[str, Any]:
    return {"packed": cases.packed(a["weight"])}


def _packed_reference(weight: Tensor) -> dict[str, Any]:
    return {"packed": cases.packed_reference(weight)}


def _plain(name: str) -> tuple[cases.Call, cases.Call]:
    """An operation with one result, by its own name in both."""
    return (
        lambda **a: {name: getattr(ops, name)(*a.values())},
        lambda **a: {name: getattr(ref, name)(*a.values())},
    )


def _hard(**a: Any) -> dict[str, Any]:
    """What was drawn, or the reference where u falls on a step of the cumulative sum but for rounding."""
    logits, labels, u = a["logits"].double(), a["labels"], a["u"].double()
    got, want = ops.hard_labels(**a), ref.hard_labels(logits, labels, u)
    classes = logits.shape[1]
    assert not bool((got == labels).any()), "a true label was drawn"
    assert bool(((got >= 0) & (got < classes)).all()), "a label outside of the classes"
    others = logits.masked_fill(torch.nn.functional.one_hot(labels, classes).bool(), -torch.inf)
    distance = (others.softmax(1).cumsum(1) - u[:, None]).abs().amin(1)
    return {"hard_labels": torch.where(distance <= 1e-6, want, got)}


def _with_low(call: cases.Call) -> cases.Call:
    """The call with packed weights, which have to be those of its new weights afterwards."""

    def packed(**a: Any) -> dict[str, Any]:
        got = call(**a, weight_low=cases.packed(a["weight"]))
        if "weight_low" in got:
            want = cases.packed(got["weight"])
            assert torch.equal(got.pop("weight_low").view(torch.int16), want.view(torch.int16)), "weight_low"
        return got

    return packed


def _cast(reference: cases.Call, dtype: torch.dtype) -> cases.Call:
    """The reference with h as a caller's buffer keeps it."""

    def kept(**a: Any) -> dict[str, Any]:
        got = reference(**a)
        wide = got["h"].dtype == torch.float64
        return got | {"h": got["h"] if wide else got["h"].to(dtype)}

    return kept


def _without_counts(call: cases.Call) -> cases.Call:
    """Without what 16 bits decide: rows on their side of the threshold, and rows that the head has right."""

    def smooth(**a: Any) -> dict[str, Any]:
        got = dict(call(**a))
        for name in [n for n in got if n.startswith("stats") and got[n] is not None]:
            got[name] = got[name][[0, 2]] if len(got[name]) == 3 else got[name][[0, 1, 2, 5, 6]]
        return got

    return smooth


def _counting(**a: Any) -> dict[str, Any]:
    """An update with statistics, of which it changes nothing but the numbers of rows kept."""
    sign = a["sign"]
    if sign is None:
        return cases.update(**a)
    rows = [float((sign > 0).sum()), float((sign < 0).sum())]
    stats = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, *rows, *rows], dtype=torch.float64)
    before = stats.clone()
    got = cases.update(**a, stats=stats)
    assert torch.equal(stats[:7], before[:7]), "stats"
    assert bool(((stats[7:] >= 0) & (stats[7:] <= stats[5:7])).all()), "rows kept"
    return got


def _make(case: Case) -> Check | None:
    """None where rounding would decide."""
    op, dtype = case["op"], getattr(torch, case["dtype"])
    unit = cases.operand_unit(case["backend"], dtype)
    rows, units, inputs, classes = (case.get(k, 0) for k in ("rows", "units", "inputs", "classes"))
    if op in ("layer_forward", "layer_forward_"):
        a = _layer(case, dtype)
        call, reference = cases.forward, cases.forward_reference
        if op.endswith("_"):
            call, reference = cases.forward_in_place, _cast(reference, cases.kept_dtype(dtype))
        return _with_low(call) if case["low"] else call, reference, a, UNIT if case["narrow"] else unit
    if op == "shared_base":
        a = _layer(case | {"norm": "l2", "goodness": "sum_sq", "eps": 1.0, "bias": False}, dtype)
        a = {"x": a["x"], "weight": a["weight"], "classes": classes}
        a["x"][:, :classes] = float("nan")  # not read
        call = _with_low(cases.base) if case["low"] else cases.base
        return call, cases.base_reference, a, UNIT if case["narrow"] else unit
    if op in ("shared_variants", "shared_variants_"):
        a = _layer(case, dtype)
        base, rest_norm = ref.shared_base(a["x"], a["weight"], classes)
        base = base if op.endswith("_") else base.to(dtype)
        a = {"base": base, "rest_norm": rest_norm, "weight": a["weight"], "bias": a["bias"]}
        a |= cases.label_arguments(case["variants"], rows, classes)
        a |= {k: case[k] for k in ("norm", "eps", "goodness")}
        return cases.variants_in_place if op.endswith("_") else cases.variants, cases.variants_reference, a, UNIT
    if op == "local_loss":
        goodness = _patched(5 * torch.randn(rows), case, torch.float32)
        a = {"goodness": goodness, "sign": _signs(case, rows), "row_weight": _row_weights(case, rows)}
        return cases.loss, cases.loss_reference, a | {"threshold": 1.25, "temperature": case["temperature"]}, UNIT
    if op == "peer_update_":
        h = _patched(torch.randn(rows, units).relu(), case, dtype)
        a = {"h": h, "sign": _signs(case, rows), "mean": torch.rand(units), "strength": 0.3, "momentum": 0.8}
        return cases.peer, cases.peer_reference, a, UNIT
    if op in ("layer_grad", "shared_grad", "layer_update_", "shared_update_"):
        a = _step(case, dtype)
        make = cases.grad_arguments if op.endswith("grad") else cases.update_arguments
        a = make(a | {"x": a["x"].float(), "x_norm": a.get("x_norm")}, case["peer"] == "yes")
        a["x"], a["h"] = a["x"].to(dtype), a["h"].to(dtype)
        if op.endswith("grad"):
            return cases.gradient, cases.gradient_reference, a, unit
        return _with_low(_counting) if case["low"] else _counting, cases.update_reference, a, unit
    if op in ("layer_step_", "shared_step_"):
        a = _step(case, dtype)
        if not _clear_of_jumps(a | {"x": a["x"].float()}):
            return None
        if dtype == torch.float32:
            return cases.step, cases.step_reference, a, unit
        a["x"] = a["x"].float()
        if case["keep"]:
            a["keep"] = cases.kept_dtype(dtype) if case["backend"].startswith("cpu") else True
        step = _with_low(cases.step) if case["low"] else cases.step
        call = _without_counts(lambda x, **rest: step(x=x.to(dtype), **rest))
        return call, _without_counts(cases.step_reference), a, unit
    if op == "network_step_":
        depth, head = case["depth"], case["head"]
        layers = tuple(range(depth))[-2:] if head != "no" else ()
        frozen = (0,) * case["frozen"] + (depth,) * (head == "reads")
        options = {k: case[k] for k in ("variants", "bias", "optimiser", "norm", "goodness")}
        a = cases.network_arguments(
            *(rows, [inputs, *[units, 9, 17][:depth]], classes),
            **options,
            **{"head_layers": layers, "hard": head == "draws", "frozen": frozen},
            **{"peer": case["peer"] == "yes", "row_weight": case["weighted"] != "no"},
        )
        if case["weighted"] != "no":
            a["row_weight"] = _row_weights(case, rows * case["variants"])
        a["x"], a["eps"] = _patched(a["x"], case, dtype), case["eps"]
        a["x"][:, :classes] = float("nan")  # not read
        if dtype == torch.float32:
            return cases.network, cases.network_reference, a, unit
        return _without_counts(cases.network), _without_counts(cases.network_reference), a, unit
    if op == "predict_goodness":
        sizes = [inputs, *[units, 9, 17][: case["depth"]]]
        options = {k: case[k] for k in ("bias", "norm", "goodness")}
        a = cases.predict_arguments(rows, sizes, classes, **options, dtype=dtype)
        a["x"], a["eps"] = _patched(a["x"].float(), case, dtype), case["eps"]
        a["x"][:, :classes] = float("nan")  # not read
        return cases.predict, cases.predict_reference, a, UNIT
    if op == "pack_weight_":
        return _packed_weight, _packed_reference, {"weight": _patched(torch.randn(units, inputs), case, dtype)}, UNIT
    if op in ("overlay_label", "concat_label"):
        x, labels = _patched(torch.randn(rows, inputs), case, dtype), torch.randint(-1, classes, (rows,))
        a = {"x": x, "labels": labels, "classes": classes, "overlay": torch.tensor([1.7, 0.3])}
        return *_plain(op), a, UNIT
    labels, u = torch.randint(0, max(classes, 1), (rows,)), torch.rand(rows)
    if op == "wrong_labels":
        return *_plain(op), {"labels": labels, "classes": classes, "u": u}, UNIT
    if op == "all_wrong_labels":
        return *_plain(op), {"labels": labels, "classes": classes}, UNIT
    if op == "hard_labels":
        logits = _patched(3 * torch.randn(rows, classes), case, dtype)
        return _hard, _plain(op)[1], {"logits": logits, "labels": labels, "u": u}, UNIT
    if op == "hybrid_images_":
        a = cases.hybrid_arguments(rows, min(inputs, 33), min(units, 33), min(classes, 3), blurs=case["blurs"])
        a |= {k: _patched(a[k], case, dtype) for k in ("x", "other")}
        return cases.hybrid, cases.hybrid_reference, a, UNIT
    options = {k: case[k] for k in ("bias", "norm")}
    if op == "head_forward":
        a = cases.head_arguments(rows, [units, inputs], classes, **options)
    else:
        a = cases.head_step_arguments(rows, [units, inputs], classes, case["optimiser"], **options)
        a |= cases.state_arguments(classes, units + inputs, case["optimiser"], case["bias"], case["fresh"])
        a["hyper"] = _hyper(case)
    a["h"] = [_patched(part, case, dtype) for part in a["h"]]
    a |= {"h_norm": [part.float().norm(dim=1) for part in a["h"]], "eps": case["eps"]}
    if op == "head_forward":
        return cases.head, cases.head_reference, a, unit
    call, reference = cases.head_step, cases.head_step_reference
    if dtype == torch.float32:
        return call, reference, a, unit
    return _without_counts(call), _without_counts(reference), a, unit


# ---------------------------------------------------------------- layouts, and the check


def _laid_out(value: Any, layout: str, fenced: cases.Fenced) -> Any:
    """The same numbers as views into larger buffers, whose rest must not change."""
    if isinstance(value, list):
        return [_laid_out(part, layout, fenced) for part in value]
    if not isinstance(value, Tensor) or value.dim() == 0 or layout == "plain":
        return value
    if layout == "transposed" and value.dim() == 2:
        return fenced.copy(value.t().contiguous()).t()
    if layout == "stepped":
        wide = fenced.copy(torch.full((*value.shape[:-1], 2 * value.shape[-1]), cases.FENCE).to(value.dtype))
        wide[..., ::2] = value
        return wide[..., ::2]
    return fenced.copy(value, 5, value.shape[-1] + 7 if layout == "pitched" and value.dim() == 2 else 0)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _bits(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def _repeated(call: cases.Call) -> cases.Call:
    """The call, twice: the same bits."""

    def twice(**a: Any) -> dict[str, Any]:
        first, again = call(**a), call(**a)
        for name, value in first.items():
            assert value is None or torch.equal(_bits(value), _bits(again[name])), f"{name}: other bits when repeated"
        return first

    return twice


@contextlib.contextmanager
def _surroundings(case: Case) -> Iterator[None]:
    """What the case says of the process. Memory that an operation allocates and never writes reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with cases.forced(FFKERN_GEMM=case["product"]):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def check(case: Case) -> None:
    """Raises AssertionError where the operation is further from the reference than tolerance.py allows, touches memory
    around its tensors, changes what it only reads, or gives other bits the second time. Runs where operations run now:
    cases.running_on(case["backend"])."""
    with _surroundings(case):
        for attempt in range(20):
            torch.manual_seed(case["seed"] + (attempt << 16))
            made = _make(case)
            if made is not None:
                break
        else:
            return
        call, reference, arguments, unit = made
        fenced = cases.Fenced()
        arguments = {k: _laid_out(v, case["layout"], fenced) for k, v in arguments.items()}
        before = [t.clone() for t in _tensors(arguments)]
        floor = 0.0
        if case["values"] == "tiny":  # below 2^-126 they may be taken for 0; times 1 / eps and the inputs that is this
            floor = 2.0**-100
        elif case["values"] in ("zeros", "zero rows") and "optimiser" in case and "weighted" in case:
            # Rows that are equal round alike: db then comes near its bound, 32 u of sum |c dg/dh| <= 2 / temperature,
            # where a pairwise sum and random moves of the inputs see little.
            floor = 64 * UNIT / case.get("temperature", 0.7)
        check_parity(_repeated(call), reference, arguments, unit=unit, floor=floor)
        for was, is_now in zip(before, _tensors(arguments), strict=True):
            assert torch.equal(_bits(was), _bits(is_now)), "an argument that is only read has changed"
        fenced.check()


def main(words: str) -> None:
    case = settled(parse(words))
    with cases.running_on(case["backend"]):
        check(case)
    print("holds")


if __name__ == "__main__":
    main(*sys.argv[1:])
