"""Every operation in every dtype at a few odd sizes, once each: what compute-sanitizer looks at.

    compute-sanitizer --tool memcheck python tests/every_operation.py

On a GPU; the tests run it on the software driver. What comes out is compared elsewhere (test_ops.py,
test_cuda_emulated.py, from the same lists); here the memory around every output is checked, and that nothing was left
out.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__":  # as the tests find their own
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import op_cases as cases

from ffkern import ops
from ffkern import reference as ref

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Rows, inputs, units: below a tile, across tiles with odd pitches, and aligned for the widest copies.
SHAPES = [(7, 13, 5), (65, 129, 67), (136, 72, 136)]
Compared = tuple[str, cases.Call, cases.Call, dict[str, Any]]


def compared(rows: int, inputs: int, units: int, dtype: torch.dtype) -> Iterator[Compared]:
    """Name, operation, reference and arguments of what is not a training step, at these sizes."""
    inputs, units = max(inputs, 3), max(units, 2)
    classes = min(inputs - 1, 10)
    layer = cases.layer_arguments(rows, inputs, units, dtype=dtype)
    yield "layer_forward", cases.forward, cases.forward_reference, layer
    yield "layer_forward_", cases.forward_in_place, cases.forward_reference, cases.layer_arguments(rows, inputs, units)
    plain = {"x": layer["x"], "weight": layer["weight"], "classes": classes}
    yield "shared_base", cases.base, cases.base_reference, plain
    base, rest_norm = ref.shared_base(layer["x"], layer["weight"], classes)
    shared = {"base": base.to(dtype), "rest_norm": rest_norm, "weight": layer["weight"], "bias": layer["bias"]}
    shared |= cases.label_arguments(3, rows, classes) | {"norm": "rms", "eps": 1e-4, "goodness": "sum_sq"}
    yield "shared_variants", cases.variants, cases.variants_reference, shared
    loss = {"goodness": torch.randn(rows), "sign": cases.signs(rows), "row_weight": None}
    yield "local_loss", cases.loss, cases.loss_reference, loss | {"threshold": 0.3, "temperature": 0.7}
    h = torch.randn(rows, units).relu().to(dtype)
    peer = {"h": h, "sign": cases.signs(rows), "mean": torch.rand(units), "strength": 0.3, "momentum": 0.8}
    yield "peer_update_", cases.peer, cases.peer_reference, peer
    for variants in (0, 3):
        step = cases.step_arguments(rows, inputs, units, variants=variants, classes=classes, optimiser="ema")
        for name, op, reference, a in (
            ("grad", cases.gradient, cases.gradient_reference, cases.grad_arguments(step, peer=True)),
            ("update_", cases.update, cases.update_reference, cases.update_arguments(step, peer=True)),
        ):
            a["x"], a["h"] = a["x"].to(dtype), a["h"].to(dtype)
            yield f"{'shared' if variants else 'layer'}_{name}", op, reference, a
    predict = cases.predict_arguments(min(rows, 40), [inputs, units, 7], classes, dtype=dtype)
    yield "predict_goodness", cases.predict, cases.predict_reference, predict
    head = cases.head_arguments(rows, [units, inputs], 10)
    yield "head_forward", cases.head, cases.head_reference, head | {"h": [part.to(dtype) for part in head["h"]]}
    step = cases.head_step_arguments(rows, [units, inputs], 10, "adam")
    yield "head_step_", cases.head_step, cases.head_step_reference, step | {"h": [t.to(dtype) for t in step["h"]]}


def of_labels(rows: int, inputs: int, dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """Arguments of the operations on labels, whose results are exact."""
    classes = max(2, min(inputs, 10))
    x, labels, u = torch.randn(rows, inputs + 2).to(dtype), torch.randint(0, classes, (rows,)), torch.rand(rows)
    logits, overlay = torch.randn(rows, classes).to(dtype), torch.tensor([1.3, 0.17])
    return {
        "overlay_label": (x, labels, classes, overlay),
        "concat_label": (x, labels, classes, overlay),
        "wrong_labels": (labels, classes, u),
        "hard_labels": (logits, labels, u),
        "all_wrong_labels": (labels, classes),
    }


Call = tuple[str, Callable[..., Any], dict[str, Any]]


def calls(rows: int, inputs: int, units: int, dtype: torch.dtype) -> Iterator[Call]:
    """Name, function and arguments of a call of every operation."""
    for name, operation, _, arguments in compared(rows, inputs, units, dtype):
        yield name, operation, arguments
        if name == "shared_variants":
            yield "shared_variants_", cases.variants_in_place, arguments | {"base": arguments["base"].float()}
    for variants, name in ((0, "layer_step_"), (3, "shared_step_")):
        options: dict[str, Any] = {"variants": variants, "classes": min(inputs - 1, 10) if variants else 0}
        step = cases.step_arguments(rows, inputs, units, peer=True, keep=cases.kept_dtype(dtype), **options)
        yield name, cases.step, step | {"x": step["x"].to(dtype)}
    network = cases.network_arguments(
        rows, [inputs, units, 9], min(inputs - 1, 10), head_layers=(0, 1), hard=True, peer=True, optimiser="ema"
    )
    yield "network_step_", cases.network, network | {"x": network["x"].to(dtype)}
    for name, values in of_labels(rows, inputs, dtype).items():
        names = [argument.name for argument in getattr(torch.ops.ffkern, name).default._schema.arguments]
        yield name, getattr(ops, name), dict(zip(names, values, strict=True))
    yield "hybrid_images_", cases.hybrid, cases.hybrid_arguments(rows, inputs, 3, channels=2, dtype=dtype)


def placed(value: Any, device: torch.device) -> Any:
    """The same on a device; lists and mappings of tensors too."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: placed(part, device) for name, part in value.items()}
    return [placed(part, device) for part in value] if isinstance(value, list) else value


def usable(dtype: torch.dtype) -> bool:
    """bfloat16 products begin with compute capability 8.0."""
    return dtype != torch.bfloat16 or not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)


def run(shapes: list[tuple[int, int, int]] = SHAPES) -> int:
    """How many calls were made, on the default device. Raises if an operation is missing from them."""
    seen = set()
    made = 0
    device = torch.get_default_device()
    for dtype, shape in itertools.product(filter(usable, DTYPES), shapes):
        with torch.device("cpu"):  # so that the kernels which a tool watches are ours, not those that make arguments
            listed = list(calls(*shape, dtype))
        for name, function, arguments in listed:
            function(**placed(arguments, device))
            seen.add(name)
            made += 1
    assert seen == set(cases.CUDA_OPS), seen ^ set(cases.CUDA_OPS)
    return made


def main() -> int:
    if not torch.cuda.is_available():
        print("torch sees no CUDA device on this machine", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    with torch.device("cuda"):
        made = run()
    torch.cuda.synchronize()
    print(f"{made} calls, {len(cases.CUDA_OPS)} operations, on {torch.cuda.get_device_name()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
