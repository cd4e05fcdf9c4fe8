"""The kernels for NumPy and CuPy arrays. No torch is imported here.

Functions bear the names of the operations in :mod:`ffkern.reference`, which says what each computes, without its
trailing underscore. Letters: R rows, N images, V label variants, K inputs, M units, C classes, L layers, S state slots.

Arrays. Anything that offers ``__cuda_array_interface__`` (CuPy, Numba: the CUDA kernels run), the buffer protocol
(NumPy: the CPU kernels run) or DLPack. All arrays of a call are on one device. Results are new arrays of NumPy or of
the library that the first array belongs to, or the arrays given as ``out``.

Copies. Nothing is copied that is float32 with contiguous rows: views with a row pitch are read where they lie. Other
floating inputs are cast as NumPy casts ("same_kind"; results have the precision of float32), other layouts are made
contiguous, both at the cost of a copy; integers are not taken for numbers between 0 and 1, and masked arrays are
refused. What is written in place or given as ``out`` has to be of exactly the right dtype, C-contiguous, writable, and
no part of an input or of another output. Labels may have any integer dtype; int64 is not copied.

On a GPU float16 rows run on the tensor cores, and operations are queued on CuPy's current stream. For arrays of other
libraries it is the stream that the first one names, else the legacy default stream. Arguments on other streams are
waited for on the device, and their streams wait for the operation. Label values are not checked there: a label outside
of the classes makes its row NaN.

On the CPU the products are ffkern's own, on ``get_num_threads()`` threads. Same inputs, same number of threads: same
bits. Other Python threads run meanwhile.

Errors: TypeError for what is no array or has a dtype that cannot be cast, ValueError for everything else that is wrong
with an argument, RuntimeError when the CUDA driver fails. A refused call has changed nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ._build import build_info

try:
    _arrays: Any = importlib.import_module("._arrays", __package__)
except ImportError as error:
    raise ImportError(
        f"ffkern.arrays is not in this build: it needs Python's headers (Debian, Ubuntu: python3-dev) when ffkern is "
        f"installed; install them and ffkern again. Cause: {error}"
    ) from error

__all__ = [
    "Activities",
    "Base",
    "Gradient",
    "HybridImages",
    "Loss",
    "Trained",
    "all_wrong_labels",
    "build_info",
    "concat_label",
    "get_num_threads",
    "hard_labels",
    "head_forward",
    "head_step",
    "hybrid_images",
    "layer_forward",
    "layer_grad",
    "layer_step",
    "layer_update",
    "local_loss",
    "overlay_label",
    "peer_update",
    "predict_goodness",
    "set_num_threads",
    "shared_base",
    "shared_grad",
    "shared_step",
    "shared_update",
    "shared_variants",
    "wrong_labels",
]

Array = Any  # of NumPy, CuPy or another library
_FLOAT32 = np.dtype(np.float32)  # the one of this machine's byte order
SLOTS = {"sgd": 1, "ema": 1, "adam": 2, "adamw": 2}


class Activities(NamedTuple):
    """What a forward pass leaves behind, for R rows."""

    h: Array  # [R, M] activities, in float16 if x is, else float32
    goodness: Array  # float32 [R]
    scale: Array  # float32 [R] r, the factor that normalised the row
    h_norm: Array  # float32 [R] L2 norm of h


class Base(NamedTuple):
    """The product that all label variants of an image share."""

    base: Array  # float32 [N, M] x W^T without the label inputs
    rest_norm: Array  # float32 [N] L2 norm of x without them


class Loss(NamedTuple):
    """The local loss of R rows."""

    loss: Array  # float32 []
    coef: Array  # float32 [R] dloss / dgoodness
    stats: (
        Array  # float64 [9] loss, goodness of positives, negatives (sums); how many are right; how many; how many kept
    )


class Gradient(NamedTuple):
    """Gradient of the local loss."""

    weight: Array  # float32 [M, K]
    bias: Array  # float32 [M]


class HybridImages(NamedTuple):
    """Negatives mixed from two images each."""

    images: Array  # [N, channels * height * width], as x
    mask: Array  # bool [N, height * width], true where x shows


# ---------------------------------------------------------------- arguments


def _is_cuda(array: Array) -> bool:
    if isinstance(array, np.ndarray):
        return False
    return hasattr(array, "__cuda_array_interface__") or (
        hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] in (2, 13)
    )


def _refuse_masked(name: str, array: Array) -> None:
    if isinstance(array, np.ndarray) and hasattr(array, "mask"):
        raise TypeError(f"{name} is a masked array; expected one without a mask, which would be ignored (x.filled(0))")


def _numpy(name: str, array: Array) -> Any:
    """An array on the CPU as NumPy sees it, without a copy."""
    if array is None:
        raise TypeError(f"{name} is None; expected an array")
    _refuse_masked(name, array)
    if not hasattr(array, "__dlpack__") or hasattr(array, "__array_interface__"):
        return np.asarray(array)
    try:
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError) as error:
        raise TypeError(f"{name} is a {type(array).__name__} that NumPy cannot read: {error}") from error


def _floats(name: str, array: Array) -> Array:
    """A readable floating array."""
    if (type(array) is np.ndarray and array.dtype is _FLOAT32 and array.flags.aligned) or _is_cuda(array):
        return array
    a = _numpy(name, array)
    if a.dtype.kind != "f":
        raise TypeError(f"{name} is {a.dtype}; expected floating point, best float32 (images in [0, 1], not 0..255)")
    wanted = np.float16 if a.dtype.itemsize == 2 else np.float32
    return a if a.dtype == wanted and a.dtype.isnative and a.flags.aligned else a.astype(wanted)


def _signs(array: Array) -> Array:
    """+1, -1, 0: integers will do."""
    if not _is_cuda(array):
        a = _numpy("sign", array)
        if a.dtype.kind in "i":
            return a.astype(np.float32)
    return _floats("sign", array)


def _maybe(name: str, array: Array | None) -> Array | None:
    return None if array is None else _floats(name, array)


def _integers(name: str, array: Array) -> Array:
    """Readable labels."""
    if _is_cuda(array):
        return array
    a = _numpy(name, array)
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name} is {a.dtype}; expected integers, best int64")
    if a.dtype.kind == "u" and a.dtype.itemsize == 8 and a.size and int(a.max()) >= 2**63:
        raise ValueError(f"{name} holds {a.max()}; expected a number that fits into int64")
    exact = a.dtype == np.int64 and a.dtype.isnative and a.flags.aligned
    return a if exact else a.astype(np.int64)


def _count(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected an integer") from None


def _matrix(name: str, array: Array) -> tuple[int, int]:
    """Its sizes."""
    if len(array.shape) != 2:
        raise ValueError(f"{name} has shape {list(array.shape)}; expected a matrix, of 2 dimensions")
    return int(array.shape[0]), int(array.shape[1])


def _library(array: Array) -> Any:
    """The module that makes arrays like this one."""
    if not _is_cuda(array):
        return np
    if type(array).__module__.partition(".")[0] == "cupy":
        return importlib.import_module("cupy")
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    raise TypeError(
        f"a {type(array).__name__} has no __array_namespace__ that could make arrays on its device; use CuPy's arrays"
    )


def _at(array: Array) -> contextlib.AbstractContextManager[Any]:
    """CuPy allocates on its current device: the one of this array, for a while."""
    if _is_cuda(array) and type(array).__module__.partition(".")[0] == "cupy":
        device: contextlib.AbstractContextManager[Any] = array.device
        return device
    return contextlib.nullcontext()


def _overlay(like: Array, on_value: float, neutral_value: float) -> Array:
    xp = _library(like)
    return xp.asarray([on_value, neutral_value], dtype=xp.float32)


def _kept_overlay(trained: Trained, on_value: float, neutral_value: float) -> Array:
    """The same, copied to the device once: a step that is captured into a graph must not copy from the host."""
    values = (float(on_value), float(neutral_value))
    if values not in trained._overlays:
        with _at(trained.weight):
            trained._overlays[values] = _overlay(trained.weight, *values)
    return trained._overlays[values]


_CPU, _CUDA = "cpu", "cuda"


def _run(op: str, anchor: Array, args: Sequence[Any], results: Sequence[str] = (), out: Any = None) -> Any:
    """Calls the operation of the device that `anchor` is on. out: an array, or one (or None) for each result."""
    device = _CUDA if _is_cuda(anchor) else _CPU
    module = getattr(_arrays, device, None)
    if module is None:
        raise ValueError("an array is on a GPU, but this build has no CUDA kernels (FFKERN_CUDA=1 builds them)")
    function = getattr(module, op)
    with _at(anchor):
        if out is None:
            return function(*args)
        given = dict(zip(results, _outputs(op, results, out), strict=True))
        _check_apart(op, {f"out {name!r}": array for name, array in given.items()}, args)
        try:  # around the first line too: an interrupt behind it would leave the dictionary there
            _arrays.put_out(given)
            return function(*args)
        finally:
            _arrays.put_out(None)


def _check_written(name: str, array: Array) -> tuple[str, list[int], bool, bool]:
    """Dtype, shape, C order and writability of an array that is written in place."""
    _refuse_masked(name, array)
    try:
        layout: tuple[str, list[int], bool, bool] = _arrays.layout(array)
    except TypeError:
        raise TypeError(f"{name} is {type(array).__name__}; expected an array that can be written in place") from None
    except (BufferError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None
    return layout


def _outputs(op: str, results: Sequence[str], out: Any) -> tuple[Any, ...]:
    given = tuple(out) if isinstance(out, tuple | list) else (out,)
    if len(given) != len(results):
        wanted = f"a tuple of {len(results)}: {', '.join(results)}"
        raise ValueError(f"{op}: out has {len(given)} entries; expected {wanted}")
    for name, array in zip(results, given, strict=True):
        if array is not None and not (type(array) is np.ndarray and array.flags.aligned):
            _check_written(f"{op}: out {name!r}", array)
    return given


def _check_apart(op: str, written: dict[str, Array], read: Sequence[Any]) -> None:
    """Kernels read the one while they write the other."""
    names = [name for name, array in written.items() if array is not None]
    found = _arrays.overlapping([written[name] for name in names], _arrays_in(read))
    if found >= 0:
        raise ValueError(
            f"{op}: {names[found]} shares memory with an input or another output; expected an array of its own"
        )


def _arrays_in(args: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for a in args:
        if isinstance(a, list):
            found += _arrays_in(a)
        elif a is not None and not isinstance(a, (str, int, float)):
            found.append(a)
    return found


# ---------------------------------------------------------------- threads


def get_num_threads() -> int:
    """Threads that CPU operations use. Default: $OMP_NUM_THREADS, else the CPUs that this process may run on."""
    return int(_arrays.threads())


def set_num_threads(count: int) -> None:
    """Sets it for the whole process. ValueError unless it is 1 to 65536."""
    number = _count("count", count)
    if not 1 <= number <= _arrays.MOST_THREADS:
        raise ValueError(f"set_num_threads: count is {number}; expected 1 to {_arrays.MOST_THREADS}")
    _arrays.set_threads(number)


# ---------------------------------------------------------------- forward


def layer_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    x_norm: Array | None = None,
    norm: str = "rms",
    eps: float = 1e-8,
    goodness: str = "mean_sq",
    out: Any = None,
) -> Activities:
    """h = relu(r (x W^T) + b), its goodness, r, and ||h||.

    x [R, K], weight [M, K], bias [M]; x_norm [R]: L2 norms of the rows of x, where they are known (``h_norm`` of the
    layer before). norm: "l2" r = 1 / (||x|| + eps), "rms" r = 1 / (||x|| / sqrt(K) + eps), "none" r = 1. goodness:
    "mean_sq", "sum_sq", their negatives "neg_mean_sq" and "neg_sum_sq", or "sum_abs". out: four arrays as the result.
    Source: Hinton (2022) sections 2 and 2.1.
    """
    x = _floats("x", x)
    args = (x, _floats("weight", weight), _maybe("bias", bias), _maybe("x_norm", x_norm), norm, eps, goodness, None)
    return Activities(*_run("layer_forward", x, args, Activities._fields, out))


def shared_base(x: Array, weight: Array, *, classes: int, out: Any = None) -> Base:
    """The first layer's product without the label inputs, which are the first `classes` columns of x [N, K] and are
    not read. weight [M, K]. See :func:`shared_variants`."""
    x = _floats("x", x)
    args = (x, _floats("weight", weight), _count("classes", classes), None)
    return Base(*_run("shared_base", x, args, Base._fields, out))


def shared_variants(
    base: Array,
    rest_norm: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    labels: Array,
    classes: int,
    on_value: float = 1.0,
    neutral_value: float = 0.1,
    norm: str = "rms",
    eps: float = 1e-8,
    goodness: str = "mean_sq",
    out: Any = None,
) -> Activities:
    """Activities of the label variants of all images: row v * N + i is image i with label labels[v, i].

    base [N, M] and rest_norm [N] of :func:`shared_base`; labels [V, N], -1 for the neutral label, which puts
    neutral_value into all `classes` label inputs; a label puts on_value into its own and 0 into the others.
    """
    base = _floats("base", base)
    weight, bias, rest = _floats("weight", weight), _maybe("bias", bias), _floats("rest_norm", rest_norm)
    variants = (_integers("labels", labels), _overlay(base, on_value, neutral_value), _count("classes", classes))
    args = (base, rest, weight, bias, *variants, norm, eps, goodness)
    return Activities(*_run("shared_variants", base, args, Activities._fields, out))


# ---------------------------------------------------------------- loss and gradient


def local_loss(
    goodness: Array,
    sign: Array,
    row_weight: Array | None = None,
    *,
    threshold: float = 2.0,
    temperature: float = 1.0,
    out: Any = None,
) -> Loss:
    """loss = sum_i w_i softplus(-sign_i (g_i - threshold) / temperature), and its derivatives by the goodness.

    goodness [R]; sign [R]: +1 positive row, -1 negative, 0 no part in it; row_weight [R], default 1/R.
    Source: Hinton (2022) section 2.
    """
    goodness = _floats("goodness", goodness)
    args = (goodness, _signs(sign), _maybe("row_weight", row_weight), threshold, temperature)
    return Loss(*_run("local_loss", goodness, args, Loss._fields, out))


def peer_update(
    h: Array, sign: Array, mean: Array, *, strength: float = 0.03, momentum: float = 0.9, out: Any = None
) -> Array:
    """Peer normalisation: moves mean [M], the running mean of positive rows of h [R, M], in place; returns the term
    p [M] that it adds to dloss/dz of every positive row. Source: Hinton's ffnew.m."""
    h, sign = _floats("h", h), _signs(sign)
    _check_written("mean", mean)
    _check_apart("peer_update", {"mean": mean}, (h, sign))
    return _run("peer_update_", h, (h, sign, mean, strength, momentum), ("p",), out)


def layer_grad(
    x: Array,
    h: Array,
    scale: Array,
    coef: Array,
    *,
    sign: Array | None = None,
    peer: Array | None = None,
    goodness: str = "mean_sq",
    out: Any = None,
) -> Gradient:
    """dW and db of the local loss: one product, from the activities and scale of :func:`layer_forward` and the coef of
    :func:`local_loss`. sign [R] and peer [M] of :func:`peer_update`, both or neither."""
    return Gradient(*_gradient("layer_grad", x, h, scale, coef, (), sign, peer, goodness, out))


def shared_grad(
    x: Array,
    h: Array,
    scale: Array,
    coef: Array,
    *,
    labels: Array,
    classes: int,
    on_value: float = 1.0,
    neutral_value: float = 0.1,
    sign: Array | None = None,
    peer: Array | None = None,
    goodness: str = "mean_sq",
    out: Any = None,
) -> Gradient:
    """The same from the label variants of :func:`shared_variants`: x [N, K], the others [V * N, ...]."""
    variants = (_integers("labels", labels), _overlay(x, on_value, neutral_value), _count("classes", classes))
    return Gradient(*_gradient("shared_grad", x, h, scale, coef, variants, sign, peer, goodness, out))


def _kept(x: Array, h: Array, scale: Array, coef: Array) -> tuple[Array, ...]:
    return _floats("x", x), _floats("h", h), _floats("scale", scale), _floats("coef", coef)


def _gradient(
    op: str,
    x: Array,
    h: Array,
    scale: Array,
    coef: Array,
    variants: tuple[Any, ...],
    sign: Array | None,
    peer: Array | None,
    goodness: str,
    out: Any,
) -> Any:
    kept = _kept(x, h, scale, coef)
    args = (*kept, *variants, None if sign is None else _signs(sign), _maybe("peer", peer), goodness)
    return _run(op, kept[0], args, ("dweight", "dbias"), out)


# ---------------------------------------------------------------- weights that learn


def _check_trained(name: str, array: Array, dims: int) -> list[int]:
    """The shape of weights that can learn."""
    dtype, shape, c_order, writable = _check_written(name, array)
    if dtype != "float32" or len(shape) != dims:
        what = f"{dtype} {shape}; expected a float32 array of {dims} dimensions"
    elif not (c_order and writable):
        what = f"{'read-only' if c_order else 'not contiguous'}; expected a contiguous (C order), writable array"
    else:
        return shape
    raise ValueError(f"{name} is {what}: it is updated in place")


def _rate(lr: Any) -> float:
    if not isinstance(lr, numbers.Real) or not 0 <= float(lr) < math.inf:
        raise ValueError(f"lr is {lr!r}; expected a finite number >= 0")
    return float(lr)


class Trained:
    """Weights together with the state of their optimiser; functions that learn update both in place.

    Args:
        weight: float32 [M, K], contiguous, of any library. Not copied: the array given is the one that learns.
        bias: float32 [M] or None.
        lr: learning rate.
        optimiser: "sgd" and "ema" (Hinton's: m = momentum m + (1 - momentum) g) with momentum, "adam" and "adamw" with
            betas and eps. As in torch.optim.
        weight_decay, row_tolerance: see :mod:`ffkern.optim`.
        peer_mean: where peer normalisation starts; Hinton's value.

    Attributes: weight, bias, weight_state [S, M, K], bias_state [S, M], steps (int64 []), peer_mean [M], and stats:
    float64, the sums of what learning saw so far (:class:`Loss`; for a head loss, right answers, rows); set it to 0
    whenever you like.
    """

    def __init__(
        self,
        weight: Array,
        bias: Array | None = None,
        *,
        lr: float,
        optimiser: str = "adam",
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        row_tolerance: float = 0.0,
        peer_mean: float = 0.5,
    ) -> None:
        if optimiser not in SLOTS:
            raise ValueError(f"optimiser is {optimiser!r}; expected one of {', '.join(SLOTS)}")
        shape = _check_trained("weight", weight, 2)
        if bias is not None:
            length = _check_trained("bias", bias, 1)
            if length != shape[:1]:
                raise ValueError(f"bias has shape {length}; expected {shape[:1]}, one number a unit")
            _check_apart("Trained", {"bias": bias}, (weight,))
        xp = _library(weight)
        slots = SLOTS[optimiser]
        beta1, beta2 = betas if slots == 2 else (momentum, 0.0)
        self.weight, self.bias, self.optimiser = weight, bias, optimiser
        self._hyper = [float(v) for v in (beta1, beta2, eps, weight_decay, row_tolerance)]
        with _at(weight):
            self.weight_state = xp.zeros((slots, *shape), dtype=xp.float32)
            self.bias_state = xp.zeros((slots, 0 if bias is None else shape[0]), dtype=xp.float32)
            self.steps = xp.zeros((), dtype=xp.int64)
            self.stats = xp.zeros((9,), dtype=xp.float64)
            self.peer_mean = xp.full((shape[0],), peer_mean, dtype=xp.float32)
            self._lr = xp.full((), _rate(lr), dtype=xp.float64)
            self._memory = xp.zeros((0,), dtype=xp.float32)
        self._overlays: dict[tuple[float, float], Array] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": self._memory[:0]}  # scratch: large, and nobody's business

    @property
    def lr(self) -> float:
        """Learning rate; on a GPU it lies on the device, where reading it waits and setting it does not."""
        return float(self._lr)

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr[...] = _rate(value)

    def _state(self) -> tuple[Any, ...]:
        return self.weight, self.bias, self.weight_state, self.bias_state, self.steps, self._lr

    def _written(self) -> dict[str, Array]:
        """What learning writes."""
        names = ("weight", "bias", "weight_state", "bias_state", "peer_mean", "stats")
        return {name: getattr(self, name) for name in names}

    def _workspace(self, op: str, x: Array, classes: int, *sizes: Any) -> Array:
        rows, inputs = _matrix("x", x)
        classes = max(0, min(classes, inputs))  # more are refused, and by a better reason than their memory
        floats = _run(op, self.weight, (self.weight, rows, classes, *sizes, str(x.dtype) == "bfloat16"))
        if self._memory.shape[0] < floats:
            xp = _library(self.weight)
            with _at(self.weight):
                self._memory = xp.empty((floats,), dtype=xp.float32)
        return self._memory


def _check_is_trained(trained: Any) -> None:
    if not isinstance(trained, Trained):
        raise TypeError(f"trained is {type(trained).__name__}; expected arrays.Trained(weight, bias, lr=...)")


def layer_update(
    trained: Trained,
    x: Array,
    h: Array,
    scale: Array,
    coef: Array,
    *,
    sign: Array | None = None,
    peer: Array | None = None,
    goodness: str = "mean_sq",
) -> None:
    """:func:`layer_grad` with the optimiser's update fused in: no gradient is stored."""
    _check_is_trained(trained)
    _update("layer_update_", trained, _kept(x, h, scale, coef), (), (0, 1), sign, peer, goodness)


def shared_update(
    trained: Trained,
    x: Array,
    h: Array,
    scale: Array,
    coef: Array,
    *,
    labels: Array,
    classes: int,
    on_value: float = 1.0,
    neutral_value: float = 0.1,
    sign: Array | None = None,
    peer: Array | None = None,
    goodness: str = "mean_sq",
) -> None:
    """:func:`shared_grad` with the optimiser's update fused in."""
    _check_is_trained(trained)
    kept, labels, classes = _kept(x, h, scale, coef), _integers("labels", labels), _count("classes", classes)
    variants = (labels, _kept_overlay(trained, on_value, neutral_value), classes)
    sizes = (classes, _matrix("labels", labels)[0])
    _update("shared_update_", trained, kept, variants, sizes, sign, peer, goodness)


def _update(
    op: str,
    trained: Trained,
    kept: tuple[Array, ...],
    variants: tuple[Any, ...],
    sizes: tuple[int, int],
    sign: Array | None,
    peer: Array | None,
    goodness: str,
) -> None:
    memory = trained._workspace("update_workspace", kept[0], *sizes, trained.optimiser)
    peers = (None if sign is None else _signs(sign), _maybe("peer", peer))
    _check_apart(op.rstrip("_"), trained._written(), (*kept, *peers))
    rule = (goodness, trained.optimiser, trained._hyper)
    _run(op, kept[0], (*kept, *variants, *peers, *trained._state(), None, memory, None, *rule))


def layer_step(
    trained: Trained,
    x: Array,
    sign: Array,
    *,
    x_norm: Array | None = None,
    row_weight: Array | None = None,
    norm: str = "rms",
    eps: float = 1e-8,
    goodness: str = "mean_sq",
    threshold: float = 2.0,
    temperature: float = 1.0,
    peer_strength: float = 0.0,
    peer_momentum: float = 0.9,
    out: Any = None,
) -> None:
    """One training step of a layer in one call: forward, loss, peer term, gradient, update.

    x [R, K] and sign [R]. out: arrays (h [R, M], h_norm [R]) for the next layer, float32 (on a GPU h may also be as x),
    from the weights before the update; without it nobody stores them. trained.stats grows by the statistics of this
    batch.
    """
    _check_is_trained(trained)
    x = _floats("x", x)
    first = (x, _maybe("x_norm", x_norm))
    kind = (norm, eps, goodness, threshold, temperature, peer_strength, peer_momentum)
    _step("layer_step_", trained, first, (0, 1), sign, row_weight, kind, out)


def shared_step(
    trained: Trained,
    x: Array,
    labels: Array,
    sign: Array,
    *,
    classes: int,
    on_value: float = 1.0,
    neutral_value: float = 0.1,
    row_weight: Array | None = None,
    norm: str = "rms",
    eps: float = 1e-8,
    goodness: str = "mean_sq",
    threshold: float = 2.0,
    temperature: float = 1.0,
    peer_strength: float = 0.0,
    peer_momentum: float = 0.9,
    out: Any = None,
) -> None:
    """The same for the first layer, where rows differ in their label only: one product for all V variants of an image.

    x [N, K], its first `classes` columns not read; labels [V, N]; sign [V * N], and out as V * N rows, variant by
    variant. See :func:`shared_variants`.
    """
    _check_is_trained(trained)
    x, labels, classes = _floats("x", x), _integers("labels", labels), _count("classes", classes)
    first = (x, labels, _kept_overlay(trained, on_value, neutral_value), classes)
    kind = (norm, eps, goodness, threshold, temperature, peer_strength, peer_momentum)
    _step("shared_step_", trained, first, (classes, _matrix("labels", labels)[0]), sign, row_weight, kind, out)


def _step(
    op: str,
    trained: Trained,
    first: tuple[Any, ...],
    sizes: tuple[int, int],
    sign: Array,
    row_weight: Array | None,
    kind: tuple[Any, ...],
    out: Any,
) -> None:
    name = op.rstrip("_")
    h, h_norm = (None, None) if out is None else _outputs(name, ("h", "h_norm"), out)
    x, peer_strength = first[0], kind[5]
    memory = trained._workspace("step_workspace", x, *sizes, peer_strength != 0, trained.optimiser)
    lesson = (
        _signs(sign),
        _maybe("row_weight", row_weight),
        trained.peer_mean if peer_strength != 0 else None,
        memory,
        trained.stats,
        h,
        h_norm,
    )
    _check_apart(name, {**trained._written(), "out 'h'": h, "out 'h_norm'": h_norm}, (*first, *lesson[:2]))
    _run(op, x, (*first, *trained._state(), None, *lesson, *kind, trained.optimiser, trained._hyper))


# ---------------------------------------------------------------- prediction


def predict_goodness(
    x: Array,
    weights: Sequence[Array],
    biases: Sequence[Array | None],
    *,
    classes: int,
    on_value: float = 1.0,
    neutral_value: float = 0.1,
    norm: str = "rms",
    eps: float = 1e-8,
    goodness: str = "mean_sq",
    out: Any = None,
) -> Array:
    """Goodness float32 [L, N, C] of all layers for every image x [N, K] under every label; its first `classes` columns
    are not read. The answer of the network is ``goodness.sum(0).argmax(1)``. Source: Hinton (2022) section 3.3."""
    x = _floats("x", x)
    w = [_floats("weights", a) for a in weights]
    b = [_maybe("biases", a) for a in biases]
    args = (x, w, b, _count("classes", classes), _overlay(x, on_value, neutral_value), norm, eps, goodness, None)
    return _run("predict_goodness", x, args, ("goodness",), out)


# ---------------------------------------------------------------- labels and negatives


def overlay_label(
    x: Array, labels: Array, *, classes: int, on_value: float = 1.0, neutral_value: float = 0.1, out: Any = None
) -> Array:
    """A copy of x [R, K] with the label inputs of labels [R] written over its first `classes` columns."""
    return _place_label("overlay_label", x, labels, classes, on_value, neutral_value, out)


def concat_label(
    x: Array, labels: Array, *, classes: int, on_value: float = 1.0, neutral_value: float = 0.1, out: Any = None
) -> Array:
    """The label inputs of labels [R], followed by x [R, K]: [R, classes + K]. Label -1 writes the neutral label."""
    return _place_label("concat_label", x, labels, classes, on_value, neutral_value, out)


def _place_label(
    op: str, x: Array, labels: Array, classes: int, on_value: float, neutral_value: float, out: Any
) -> Array:
    x = _floats("x", x)
    args = (x, _integers("labels", labels), _count("classes", classes), _overlay(x, on_value, neutral_value))
    return _run(op, x, args, ("out",), out)


def wrong_labels(labels: Array, u: Array, *, classes: int, out: Any = None) -> Array:
    """A wrong label for each of labels [R], uniform for u [R] uniform in [0, 1)."""
    labels = _integers("labels", labels)
    return _run("wrong_labels", labels, (labels, _count("classes", classes), _floats("u", u)), ("out",), out)


def hard_labels(logits: Array, labels: Array, u: Array, *, out: Any = None) -> Array:
    """A wrong label for each row, drawn in proportion to softmax(logits [R, C]) without the true one, by u [R].
    Source: Hinton (2022) section 3.3."""
    logits = _floats("logits", logits)
    args = (logits, _integers("labels", labels), _floats("u", u))
    return _run("hard_labels", logits, args, ("out",), out)


def all_wrong_labels(labels: Array, *, classes: int, out: Any = None) -> Array:
    """Every wrong label of labels [R]: [C - 1, R]."""
    labels = _integers("labels", labels)
    return _run("all_wrong_labels", labels, (labels, _count("classes", classes)), ("out",), out)


def hybrid_images(
    x: Array, other: Array, generator: Array, *, height: int, width: int, blurs: int = 6, out: Any = None
) -> HybridImages:
    """Negatives without labels: each image of x [N, K] where a random mask with large regions is true, that of other
    elsewhere. generator: int64 [2], a seed and the number of images drawn so far, which is moved on in place.
    Source: Hinton (2022) section 3.2."""
    x = _floats("x", x)
    _check_written("generator", generator)
    sizes = (_count("height", height), _count("width", width), _count("blurs", blurs))
    args = (x, _floats("other", other), generator, *sizes)
    return HybridImages(*_run("hybrid_images_", x, args, HybridImages._fields, out))


# ---------------------------------------------------------------- softmax head


def head_forward(
    h: Sequence[Array],
    h_norm: Sequence[Array],
    weight: Array,
    bias: Array | None = None,
    *,
    norm: str = "rms",
    eps: float = 1e-4,
    out: Any = None,
) -> Array:
    """Logits [N, C] of a linear classifier on the normalised activities h[l] [N, M_l] of the chosen layers, whose norms
    are h_norm[l] [N]. weight [C, sum of M_l]. Source: Hinton (2022) section 3.3."""
    weight = _floats("weight", weight)
    lists = ([_floats("h", a) for a in h], [_floats("h_norm", a) for a in h_norm])
    return _run("head_forward", weight, (*lists, weight, _maybe("bias", bias), norm, eps), ("logits",), out)


def head_step(
    trained: Trained,
    h: Sequence[Array],
    h_norm: Sequence[Array],
    labels: Array,
    *,
    norm: str = "rms",
    eps: float = 1e-4,
    out: Any = None,
) -> Array:
    """One step of the head on softmax cross-entropy; returns the logits [N, C] from before the update. trained.stats
    begins with the sums of losses, right answers and rows."""
    _check_is_trained(trained)
    lists = ([_floats("h", a) for a in h], [_floats("h_norm", a) for a in h_norm])
    _check_apart("head_step", trained._written(), lists[0] + lists[1])
    args = (*lists, _integers("labels", labels), *trained._state(), trained.stats[:3], norm, eps)
    return _run("head_step_", trained.weight, (*args, trained.optimiser, trained._hyper), ("logits",), out)
