"""Counts that the GPU model rests on: ffkern's CUDA kernels on the software driver, and eager PyTorch's operations.

Nothing here is a time. A launch is counted by executing its PTX (tests/ptxsim); an eager operation by the tensors that
it takes and returns, on the meta device, where nothing is computed.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import cases, eager
from .cases import CLASSES, PredictCase, StepCase

TESTS = Path(__file__).resolve().parents[1] / "tests"  # the software driver is test equipment
DTYPES = ("bf16", "tf32", "f32")
ELEMENT = {"bf16": 2, "tf32": 4, "f32": 4}  # bytes
HYPER = [0.9, 0.999, 1e-8, 0.0, 0.0]  # Adam


@dataclass(frozen=True)
class Device:
    """What the launch code asks a device: which emulated one, multiprocessors, bytes of shared memory for a block."""

    emulated: str
    multiprocessors: int
    shared_bytes: int


@dataclass(frozen=True)
class Launch:
    """Counts of one launch, all blocks together.

    Args:
        threads: of a block.
        shared: bytes of shared memory of a block.
        instructions: warp instructions of the PTX.
        moves: those of them that copy registers or read parameters, which machine code hardly has.
        fp32, fp64: those of them that go to these pipes.
        loads, stores, copies: sectors of 32 bytes: plain loads, stores, asynchronous copies.
        stored: bytes written, each once.
        wavefronts: passes over the banks of shared memory, 128 bytes each at most; bank conflicts are in them.
        flops: of matrix instructions, padding included.
        fit: blocks that the launch bounds of a product make the compiler leave registers for; 0: no such bound.
        tiles: of the result, which fewer blocks walk through; 0: each block has one.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    instructions: int
    moves: int
    fp32: int
    fp64: int
    loads: int
    stores: int
    copies: int
    stored: int
    wavefronts: int
    flops: int
    fit: int
    tiles: int = 0

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def pieces(self) -> int:
        """Equal pieces of the work, of which a multiprocessor does one after the other."""
        return self.tiles or self.blocks

    @property
    def wide(self) -> bool:
        """Whether the matrix instructions are wgmma."""
        return self.kernel.endswith("_tma")

    @property
    def l2_sectors(self) -> int:
        """Sectors that go to L2. What a forward product loads besides its tiles are biases and label columns of the
        block's units, again and again: a few KiB, which the first-level cache keeps."""
        return self.stores + self.copies + (0 if self.kernel.startswith("forward_") else self.loads)


@dataclass(frozen=True)
class Plan:
    """Instances of the two products, and parts of the batch in the gradient."""

    forward: str
    gradient: str
    splits: int


@dataclass(frozen=True)
class FusedCounts:
    """A step, or one of `repeats` equal blocks of images of a prediction. plan: of a step; device: of a prediction."""

    case: str
    dtype: str
    plan: Plan | None
    repeats: int
    launches: tuple[Launch, ...]
    device: str = ""


@dataclass(frozen=True)
class Product:
    """A matrix product of eager: FLOPs, and bytes of its operands and result."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class EagerCounts:
    """Launches and bytes of eager.

    Args:
        products: matrix products, one launch each.
        others: launches of everything else but the optimiser, and `bytes` read and written by them.
        adam, adam_bytes: the optimiser as torch runs it by default, one launch a _foreach_ operation.
        fused_adam, fused_adam_bytes: with fused=True: the update and the counter of steps.
    """

    case: str
    dtype: str
    products: tuple[Product, ...]
    others: int
    bytes: int
    adam: int = 0
    adam_bytes: int = 0
    fused_adam: int = 0
    fused_adam_bytes: int = 0


@dataclass(frozen=True)
class Counts:
    torch: str
    fused: tuple[FusedCounts, ...]
    eager: tuple[EagerCounts, ...]


# ------------------------------------------------------------ the launch code's choices


def _emulated() -> Any:
    """tests/emulated, which is not installed."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    import emulated

    return emulated


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _alignment(*pitches: int) -> int:
    """Widest access in bytes, up to 16, that every row of matrices of these pitches in bytes is aligned to."""
    bits = 16
    for pitch in pitches:
        bits |= pitch
    return bits & -bits


def _choose(dtype: str, m: int, n: int, aligned: int, device: Device) -> tuple[str, int, int]:
    """Instance of a product of m x n results, its tiles, and the depth of its stage: csrc/cuda/instances.cpp's rule.

    No instance that operands of two or four bytes can get needs more shared memory than the devices here have.
    """
    emulated, element = _emulated(), ELEMENT[dtype]
    chosen, width, least = ("", 0, 0), 0, 0
    hopper = emulated.hopper_instances(element) if dtype != "f32" and device.emulated == "sm_90" else []
    for name in [*hopper, *emulated.instances(element)]:
        tile_m, tile_n, depth, _, *others = emulated.tile_values(name)
        if name in hopper:
            copy, passes = 16, (2 * tile_m + 3 * tile_n) // 4
        else:
            warps_m, warps_n, copy, _ = others
            passes = ((1 + warps_n) * tile_m + (1 + warps_m) * tile_n) // 4
        if copy > aligned:
            continue
        if width and copy < width:
            break
        tiles = _parts(m, tile_m) * _parts(n, tile_n)
        each = tile_m * tile_n + 8 * (tile_m + tile_n) if dtype == "f32" else passes
        work = _parts(tiles, device.multiprocessors) * each
        if not width or work < least:
            chosen, width, least = (name, tiles, depth), copy, work
    return chosen


def plan(case: StepCase, dtype: str, device: Device) -> Plan:
    """What the launch code will choose for a step with all matrices contiguous. The rule is repeated here so that
    equal choices are counted once; whoever counts compares it with the kernels that ran."""
    element, images = ELEMENT[dtype], case.batch if case.shared else case.rows
    inputs, units = element * case.inputs, element * case.units
    forward, _, _ = _choose(dtype, images, case.units, _alignment(inputs), device)
    gradient, tiles, depth = _choose(dtype, case.units, case.inputs, _alignment(inputs, units), device)
    splits = min(max(1, device.multiprocessors // tiles), max(1, images // (4 * depth)))
    return Plan(forward, gradient, 1 if gradient in _emulated().hopper_instances() else splits)


# ------------------------------------------------------------ ffkern on the software driver


def _launch(record: dict[str, Any], shapes: Iterator[tuple[int, int]]) -> Launch:
    """shapes: of the results of the products that are still to come. What wgmma reads of shared memory is the right
    operand, 32 bytes of depth a column."""
    stats = record["stats"]
    kinds = stats["warp_instructions_by_class"]
    x, y, z = record["grid"]
    shared = ("shared_load", "shared_store")
    instance, tiles, columns = _instance(record["kernel"]), 0, 0
    if instance:
        m, n = next(shapes)
        if instance in _emulated().hopper_instances():
            rows, columns, *_ = _emulated().tile_values(instance)
            tiles = _parts(m, rows) * _parts(n, columns)
    return Launch(
        kernel=record["kernel"].removeprefix("ffkern_"),
        grid=(x, y, z),
        threads=record["block"][0],
        shared=record["dynamic_smem"] + stats["static_smem"],
        instructions=stats["warp_instructions"],
        moves=kinds.get("move", 0) + kinds.get("ld_param", 0),
        fp32=kinds.get("fp32", 0),
        fp64=kinds.get("fp64", 0),
        loads=stats["global_load_sectors"],
        stores=stats["global_store_sectors"],
        copies=stats["cp_async_sectors"] + stats["tma_load_sectors"],
        stored=stats["global_store_bytes"],
        wavefronts=sum(stats[f"{name}_wavefronts"] for name in (*shared, "ldmatrix"))
        + stats["cp_async_smem_wavefronts"]
        + (stats["tma_load_bytes"] + stats["wgmma_count"] * columns * 32) // 128,
        flops=stats["mma_flops"] + stats["wgmma_flops"],
        fit=0 if not instance else 1 if tiles else _emulated().tile_values(instance)[-1],
        tiles=tiles,
    )


def _instance(kernel: str) -> str:
    """Of a product's kernel; empty of another."""
    return kernel.split("_", 3)[3] if re.match("ffkern_(forward|gradient)_", kernel) else ""


def _to_dtype(dtype: str) -> torch.dtype:
    return torch.bfloat16 if dtype == "bf16" else torch.float32


def _run(call: Any, dtype: str, device: Device, shapes: Iterable[tuple[int, int]]) -> tuple[Launch, ...]:
    """The launches of a call of ffkern's operations, whose products have results of these shapes. Checks are off: they
    cost time and count nothing."""
    emulated = _emulated()
    math = {"tf32": "tf32", "f32": "ffma", "bf16": ""}[dtype]
    unforced = {emulated.FORCE: "", emulated.FORCE_FLOAT32: math}
    driver = emulated.load()
    options = driver.driver_options(check_races=0, check_uninit=0, keep_stats=256)
    with emulated.environment(**unforced), emulated.device(device.emulated), options:
        driver.driver_clear()
        call()
        left = iter(shapes)
        return tuple(_launch(record, left) for record in driver.driver_last_stats())


def count_step(case: StepCase, dtype: str, device: Device) -> FusedCounts:
    """One layer_step_ or shared_step_ with Adam, as FFLinear calls it on a GPU: with the 16-bit copy of the weights."""
    from ffkern import ops

    data = cases.step_data(case)
    kind = _to_dtype(dtype)
    state = [torch.zeros(2, *data.weight.shape), torch.zeros(2, *data.bias.shape)]
    trained = [data.weight, data.bias, *state, torch.zeros((), dtype=torch.int64), torch.tensor(1e-3).double()]
    low = data.weight.to(kind) if dtype == "bf16" else None
    images, labels = data.images, data.labels
    variants, classes = (2, CLASSES) if case.shared else (1, 0)
    settings = ["rms", eager.EPS, "mean_sq", eager.THRESHOLD, 1.0, 0.0, 0.0, "adam", HYPER]

    def call() -> None:
        need = ops.step_workspace(
            data.weight, case.batch if case.shared else case.rows, classes, variants, False, "adam"
        )
        lesson = [data.sign, None, None, torch.zeros(need), torch.zeros(9).double(), None, None]
        if images is None:
            ops.layer_step_(data.rows.to(kind), None, *trained, low, *lesson, *settings)
        else:
            ops.shared_step_(images.to(kind), labels, data.overlay, classes, *trained, low, *lesson, *settings)

    images_of = case.batch if case.shared else case.rows
    launches = _run(call, dtype, device, [(images_of, case.units), (case.units, case.inputs)])
    found, expected = _plan_of(launches, dtype), plan(case, dtype, device)
    if found != expected:
        raise RuntimeError(f"{case.name} {dtype}: the launch code chose {found}, the rule here {expected}")
    return FusedCounts(case.name, dtype, expected, 1, launches)


def _plan_of(launches: Sequence[Launch], dtype: str) -> Plan:
    (forward,) = (launch for launch in launches if launch.kernel.startswith("forward_"))
    (gradient,) = (launch for launch in launches if launch.kernel.startswith("gradient_"))
    names = [launch.kernel.split(f"_{dtype}_")[1] for launch in (forward, gradient)]
    return Plan(names[0], names[1], gradient.grid[1])


PREDICT_FLOATS = 2 << 20  # kPredictFloats of csrc/cuda/layer.cpp: activities of one block of images


def block_images(case: PredictCase) -> int:
    """Images that a prediction takes at once."""
    return PREDICT_FLOATS // (max(case.sizes[1:-1]) * CLASSES)


def count_prediction(case: PredictCase, dtype: str, device: Device) -> FusedCounts:
    """One block of images: all blocks of a whole number of them make the same launches."""
    from ffkern import ops

    images = block_images(case)
    repeats, rest = divmod(case.images, images)
    if rest:
        raise ValueError(f"{case.name}: {case.images} images are not a multiple of {images}")
    launches = predict_launches(dataclasses.replace(case, images=images), dtype, device, ops)
    return FusedCounts(case.name, dtype, None, repeats, launches, device.emulated)


def predict_launches(case: PredictCase, dtype: str, device: Device, ops: Any) -> tuple[Launch, ...]:
    """All launches of predict_goodness. Weights lie there in the dtype of x, as after a training step."""
    data, kind = cases.predict_data(case), _to_dtype(dtype)
    x, weights = data.images.to(kind), [weight.to(kind) for weight in data.weights]
    overlay = torch.tensor([cases.LABEL_VALUE, cases.LABEL_VALUE / CLASSES])

    def call() -> None:
        ops.predict_goodness(x, weights, data.biases, CLASSES, overlay, "rms", eager.EPS, "mean_sq")

    rows = min(case.images, block_images(case))
    shapes = [(rows * (CLASSES if layer else 1), units) for layer, units in enumerate(case.sizes[1:])]
    return _run(call, dtype, device, itertools.cycle(shapes))


# ------------------------------------------------------------ eager PyTorch


@dataclass
class _Operation:
    name: str
    bytes: int
    flops: int


class _Recorder(TorchDispatchMode):
    """Operations that would launch a kernel each on a GPU: neither views nor arithmetic of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[_Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        name = schema.name.removeprefix("aten::")
        taken = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_meta]
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if view or not taken or name == "_local_scalar_dense":
            return result
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)] if _returns_new(schema) else []
        written = [
            t
            for argument, value in zip(schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write and name != "copy_"
            for t in tree_leaves(value)
        ]
        self.operations.append(_Operation(name, sum(map(_bytes, [*taken, *made, *written])), _flops(name, args)))
        return result


def _returns_new(schema: Any) -> bool:
    return any(r.alias_info is None for r in schema.returns)


def _bytes(t: Tensor) -> int:
    """Bytes of memory behind a tensor: an expanded one has fewer than elements."""
    return min(t.numel() * t.element_size(), t.untyped_storage().nbytes())


def _flops(name: str, args: Sequence[Any]) -> int:
    if name not in ("mm", "addmm"):
        return 0
    a, b = args[-2:]
    return int(2 * a.shape[0] * a.shape[1] * b.shape[1])


def _split(operations: Sequence[_Operation]) -> tuple[tuple[Product, ...], int, int]:
    """Products, and launches and bytes of the rest."""
    products = tuple(Product(o.flops, o.bytes) for o in operations if o.flops)
    rest = [o.bytes for o in operations if not o.flops]
    return products, len(rest), sum(rest)


def count_eager_step(case: StepCase, dtype: str) -> EagerCounts:
    """bench.eager's step, positive and negative rows stacked. bf16: rows in bfloat16 beside float32 weights, which are
    cast in every step; everything between them is bfloat16, which is as few bytes as eager can move."""
    step = eager.EagerStep(case, cases.step_data(case, "meta"), "stacked")
    weights = (step.weight, step.bias)
    step.optimiser = torch.optim.Adam(weights, lr=1e-3, foreach=True)  # torch's default on a GPU
    step.update = step.optimiser.step
    x, sign = step.inputs
    kind = _to_dtype(dtype)
    step.inputs = (x.to(kind), sign.to(kind))
    if dtype == "bf16":
        plain = step.loss
        step.loss = lambda a, b, w, bias, keep: plain(a, b, w.to(kind), bias.to(kind), keep)
    step()  # creates the optimiser's state
    recorder = _Recorder()
    learn, step.update = step.update, lambda: None
    with recorder:
        step()
    optimiser = _Recorder()
    with optimiser:
        learn()
    products, others, moved = _split(recorder.operations)
    parameters = sum(w.numel() for w in weights)
    return EagerCounts(
        case.name,
        dtype,
        products,
        others,
        moved,
        len(optimiser.operations),
        sum(o.bytes for o in optimiser.operations),
        2,
        7 * 4 * parameters,  # reads weight, gradient, two states; writes all but the gradient
    )


def count_eager_prediction(case: PredictCase, dtype: str) -> EagerCounts:
    """bench.eager's prediction of all images at once, label after label."""
    predict = eager.EagerPredict(case, cases.predict_data(case, "meta"), None, dtype=_to_dtype(dtype))
    recorder = _Recorder()
    with recorder:
        predict()
    return EagerCounts(case.name, dtype, *_split(recorder.operations))


# ------------------------------------------------------------ all of them


def count_all(
    steps: Sequence[StepCase], predictions: Sequence[PredictCase], dtypes: Sequence[str], devices: Sequence[Device]
) -> Counts:
    """Counts every step once for every plan that a device leads to, and every prediction on every device."""
    fused = [count for case in steps for dtype in dtypes for count in _steps_of(case, dtype, devices)]
    wide = [dtype for dtype in dtypes if dtype != "tf32"]
    fused += [count_prediction(case, dtype, device) for case in predictions for dtype in wide for device in devices]
    compared = [count_eager_step(case, dtype) for case in steps for dtype in dtypes if dtype != "tf32"]
    compared += [count_eager_prediction(case, dtype) for case in predictions for dtype in wide]
    return Counts(torch.__version__.partition("+")[0], tuple(fused), tuple(compared))


def _steps_of(case: StepCase, dtype: str, devices: Sequence[Device]) -> Iterator[FusedCounts]:
    seen: set[Plan] = set()
    for device in devices:
        key = plan(case, dtype, device)
        if key not in seen:
            seen.add(key)
            yield count_step(case, dtype, device)


def from_json(entry: dict[str, Any]) -> Counts:
    """What dataclasses.asdict made of Counts."""

    def fused(values: dict[str, Any]) -> FusedCounts:
        launches = tuple(Launch(**(v | {"grid": tuple(v["grid"])})) for v in values["launches"])
        made = Plan(**values["plan"]) if values["plan"] else None
        return FusedCounts(**(values | {"launches": launches, "plan": made}))

    def compared(values: dict[str, Any]) -> EagerCounts:
        return EagerCounts(**(values | {"products": tuple(Product(**p) for p in values["products"])}))

    return Counts(entry["torch"], tuple(map(fused, entry["fused"])), tuple(map(compared, entry["eager"])))
