"""ffkern.arrays on GPU arrays: the shipped module, its CUDA kernels and its launch code on the software driver, with
arrays whose memory is the driver's.

What the kernels compute is tested through torch's operations (test_ops.py), the functions themselves on NumPy
(test_arrays.py). Here: that arrays come through unharmed, uncopied, on the right device and the right stream.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import types
from typing import Any

import emulated
import numpy as np
import op_cases as cases
import pytest
import torch
from emulated.arrays import DLPACK_EXPORTS, DeviceArray, DlpackOnly, arrays_module, namespace
from emulated.driver import driver_call, new_stream
from emulated.graphs import Graphs
from sklearn.datasets import make_blobs

from ffkern import FFClassifier, arrays, ops

pytestmark = pytest.mark.emulated

SM75, SM80, SM90 = range(3)
N, K, M, C = 21, 37, 33, 5


@pytest.fixture(autouse=True)
def software_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_arrays", arrays_module())


@pytest.fixture
def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def floats(random: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Any:
    return random.random(shape).astype(dtype)


def weights(random: np.random.Generator, units: int, inputs: int) -> Any:
    return (random.standard_normal((units, inputs)) / inputs**0.5).astype(np.float32)


def moved(value: Any, device: int, **options: Any) -> Any:
    """NumPy arrays inside of tuples, lists and keywords, as arrays of the device."""
    if isinstance(value, np.ndarray):
        return DeviceArray(value, device, **options)
    if isinstance(value, dict):
        return {k: moved(v, device, **options) for k, v in value.items()}
    return type(value)(moved(v, device, **options) for v in value) if isinstance(value, list | tuple) else value


def on_host(value: Any) -> list[Any]:
    """Arrays of a result, in order."""
    if isinstance(value, tuple | list):
        return [a for v in value for a in on_host(v)]
    return [] if value is None else [value.get() if isinstance(value, DeviceArray) else np.asarray(value)]


# ------------------------------------------------------------------------------- every function

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def calls(random: np.random.Generator, dtype: Any) -> list[Call]:
    x = floats(random, N, K, dtype=dtype)
    w, b = weights(random, M, K), floats(random, M)
    sign = random.choice(np.float32([1, -1, 0]), 2 * N)
    labels = random.integers(-1, C, (2, N))
    true, u = random.integers(0, C, N), floats(random, N)
    base = arrays.shared_base(x, w, classes=C)
    first = arrays.shared_variants(*base, w, b, labels=labels, classes=C)
    kept = (first.h.astype(dtype), first.scale, floats(random, 2 * N) - 0.5)
    plain = arrays.layer_forward(x, w, b)
    plain_kept = (plain.h.astype(dtype), plain.scale, floats(random, N) - 0.5)
    head = weights(random, C, M + 3)
    inputs = ([plain.h, floats(random, N, 3)], [plain.h_norm, floats(random, N) + 1])
    return [
        ("layer_forward", (x, w, b), {"norm": "l2", "goodness": "sum_sq"}),
        ("layer_forward", (x, w), {"x_norm": floats(random, N) + 1, "goodness": "sum_abs"}),
        ("shared_base", (x, w), {"classes": C}),
        ("shared_variants", (*base, w, b), {"labels": labels, "classes": C, "on_value": 2.0}),
        ("local_loss", (floats(random, N) * 4, sign[:N], floats(random, N)), {"threshold": 1.5}),
        ("layer_grad", (x, *plain_kept), {"sign": sign[:N], "peer": floats(random, M)}),
        ("shared_grad", (x, *kept), {"labels": labels, "classes": C}),
        ("predict_goodness", (x, [w, weights(random, 7, M)], [b, None]), {"classes": C}),
        ("overlay_label", (x, labels[0]), {"classes": C}),
        ("concat_label", (x, labels[0]), {"classes": C, "neutral_value": 0.5}),
        ("wrong_labels", (true, u), {"classes": C}),
        ("hard_labels", (floats(random, N, C) * 3, true, u), {}),
        ("all_wrong_labels", (true,), {"classes": C}),
        ("head_forward", (*inputs, head, floats(random, C)), {}),
    ]


NAMES = [call[0] for call in calls(np.random.default_rng(0), np.float32)]


def assert_close(got: Any, want: Any, what: str, dtype: Any) -> None:
    assert got.dtype == want.dtype, what
    assert got.shape == want.shape, what
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, want, err_msg=what)
        return
    # float16: the operands of products, and h on its way to the gradient, are rounded to 2^-11.
    unit = 2.0**-21 if dtype == np.float32 else 2.0**-9
    size = float(np.abs(want).max(initial=0)) or 1.0
    np.testing.assert_allclose(got, want, rtol=0, atol=unit * size * K**0.5, err_msg=what)


@pytest.mark.parametrize("index", range(len(NAMES)), ids=[f"{i}-{name}" for i, name in enumerate(NAMES)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["f32", "f16"])
def test_every_function_gives_numpys_result(index: int, dtype: Any, random: np.random.Generator) -> None:
    name, args, options = calls(random, dtype)[index]
    function = getattr(arrays, name)
    want = on_host(function(*args, **options))
    for device in (SM75, SM80, SM90):
        result = function(*moved(args, device), **moved(options, device))
        assert all(a.device == device for a in (result if isinstance(result, tuple) else [result]))
        for got, wanted in zip(on_host(result), want, strict=True):
            assert_close(got, wanted, name, dtype)


@pytest.mark.parametrize("optimiser", ["sgd", "ema", "adam", "adamw"])
def test_learning_is_numpys(optimiser: str, random: np.random.Generator) -> None:
    """Three steps of a shared first layer and the layer behind it, then head and two-pass updates."""
    x, labels = floats(random, N, K), random.integers(0, C, (2, N))
    sign = np.repeat(np.float32([1, -1]), N)
    first, second, head = weights(random, M, K), weights(random, 9, M), weights(random, C, 9)
    bias, generator = floats(random, M), np.array([7, 0])
    keep = np.zeros((2 * N, M), np.float32), np.zeros(2 * N, np.float32)

    def learn(put: Any) -> list[Any]:
        rule: dict[str, Any] = {"optimiser": optimiser, "lr": 0.01, "weight_decay": 0.01}
        one = arrays.Trained(put(first.copy()), put(bias.copy()), **rule)
        two = arrays.Trained(put(second.copy()), **rule)
        three = arrays.Trained(put(head.copy()), put(np.zeros(C, np.float32)), **rule)
        images, y, s = put(x), put(labels), put(sign)
        h, h_norm, mean = put(keep[0].copy()), put(keep[1].copy()), put(np.full(9, 0.5, np.float32))
        for _ in range(3):
            arrays.shared_step(one, images, y, s, classes=C, peer_strength=0.03, out=(h, h_norm))
            arrays.layer_step(two, h, s, x_norm=h_norm)
        two.lr = 0.005
        a = arrays.layer_forward(h, two.weight, x_norm=h_norm)
        coef = arrays.local_loss(a.goodness, s).coef
        p = arrays.peer_update(a.h, s, mean)
        arrays.layer_update(two, h, a.h, a.scale, coef, sign=s, peer=p)
        arrays.shared_update(one, images, h, put(np.ones(2 * N, np.float32)), coef, labels=y, classes=C)
        logits = arrays.head_step(three, [a.h[:N]], [a.h_norm[:N]], y[0])
        mixed = arrays.hybrid_images(
            images,
            images[::-1] if put is DeviceArray else images[::-1].copy(),
            put(generator.copy()),
            height=1,
            width=K,
        )
        states = [
            s for t in (one, two, three) for s in (t.weight, t.bias, t.weight_state, t.bias_state, t.steps, t.stats)
        ]
        return on_host([*states, one.peer_mean, mean, logits, *mixed])

    want = learn(lambda a: a)
    got = learn(DeviceArray)
    assert want[4] == 4  # steps of the first layer
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        size = max(float(np.abs(w).max(initial=0)), 1.0) if w.dtype.kind == "f" else 0
        np.testing.assert_allclose(g, w, rtol=0, atol=2e-5 * size, err_msg=str(i))


# ------------------------------------------------------------------------------- nothing is copied


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every allocation on a device from now on."""
    made: list[int] = []
    from emulated import arrays as device_arrays

    plain = device_arrays._Memory.__init__

    def counted(self: Any, bytes_: int, device: int) -> None:
        made.append(bytes_)
        plain(self, bytes_, device)

    monkeypatch.setattr(device_arrays._Memory, "__init__", counted)
    return made


def test_rows_are_read_where_they_lie(allocations: list[int], random: np.random.Generator) -> None:
    x, w = DeviceArray(floats(random, N, K), pitch=64), DeviceArray(weights(random, M, K), pitch=50)
    shapes = ((N, M), (N,), (N,), (N,))
    out = tuple(DeviceArray(np.zeros(s, np.float32), written=False) for s in shapes)
    allocations.clear()
    result = arrays.layer_forward(x, w, out=out)
    assert all(a is b for a, b in zip(result, out, strict=True))
    scratch = list(allocations)
    assert len(scratch) == 1  # the operation's own, sums of column tiles
    assert scratch[0] < N * K * 4
    allocations.clear()
    arrays.layer_forward(x, DeviceArray(weights(random, K, M)).T, out=out)  # no rows to read: contiguous first
    assert K * M * 4 in allocations


def test_a_step_allocates_once(allocations: list[int], random: np.random.Generator) -> None:
    x, sign = moved((floats(random, N, K), np.float32([1, -1, 1] * (N // 3))), SM80)
    trained = arrays.Trained(DeviceArray(weights(random, M, K)), lr=0.01)
    weight = trained.weight.pointer
    arrays.layer_step(trained, x, sign)
    allocations.clear()
    arrays.layer_step(trained, x, sign)
    assert allocations == []
    assert trained.weight.pointer == weight


# ------------------------------------------------------------------------------- streams


@pytest.fixture
def graphs() -> Graphs:
    return Graphs()


def captured(graphs: Graphs, stream: int, action: Any) -> int:
    """How many launches a graph of `stream` holds after the action. Ending a capture fails if a stream that joined it
    is not waited for again."""
    ptxsim = emulated.load()
    graph: list[int] = []
    ptxsim.driver_clear()
    with graphs.capture(stream, graph):
        action()
        assert not ptxsim.driver_last_stats()  # nothing ran
    graphs.replay(graph[0], stream)
    return len(ptxsim.driver_last_stats())


def ready_to_learn(random: np.random.Generator, make: Any = DeviceArray) -> tuple[Any, Any, Any]:
    """A layer, rows and signs that have taken a step before: kernels are loaded, and nothing is allocated any more."""
    x, sign = make(floats(random, N, K)), make(np.float32([1, -1, 1] * (N // 3)))
    trained = arrays.Trained(make(weights(random, M, K)), make(floats(random, M)), lr=0.01)
    arrays.layer_step(trained, x, sign)
    return trained, x, sign


@pytest.mark.parametrize("which", ["x", "sign", "weight", "stats"])
def test_waits_for_the_stream_of_every_array_and_hands_it_back(
    which: str, graphs: Graphs, random: np.random.Generator
) -> None:
    """One array alone names the stream that captures. The launches are part of its graph, so they waited for it; the
    capture ends, so that stream waits for them."""
    trained, x, sign = ready_to_learn(random)
    origin, other = graphs.stream(), graphs.stream()
    x.stream = other
    {"x": x, "sign": sign, "weight": trained.weight, "stats": trained.stats}[which].stream = origin
    steps = int(trained.steps.get())
    assert captured(graphs, origin, lambda: arrays.layer_step(trained, x, sign)) == 6
    assert int(trained.steps.get()) == steps + 1


def test_a_copy_on_a_stream_is_waited_for_as_well(
    graphs: Graphs, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later array of a stream that was waited for already is made contiguous there: that copy counts too.

    The stream begins to capture with the copy, so launches that do not wait for it run at once.
    """
    trained, x, _ = ready_to_learn(random)
    scale, coef = DeviceArray(floats(random, N)), DeviceArray(floats(random, N))
    h = DeviceArray(floats(random, M, N)).T
    made = DeviceArray(np.ascontiguousarray(h.get()))
    arrays.layer_update(trained, x, made, scale, coef)  # the kernels are loaded
    origin, x.stream = graphs.stream(), graphs.stream()
    trained.weight.stream = made.stream = origin  # the weights are waited for first
    ptxsim = emulated.load()
    graph: list[int] = []
    capture = graphs.capture(origin, graph)

    def contiguous(array: Any) -> Any:
        capture.__enter__()
        ptxsim.driver_clear()
        return made

    monkeypatch.setattr(namespace(SM80), "ascontiguousarray", staticmethod(contiguous))
    arrays.layer_update(trained, x, h, scale, coef)
    assert not ptxsim.driver_last_stats()
    capture.__exit__(None, None, None)
    graphs.replay(graph[0], origin)
    assert ptxsim.driver_last_stats()


def test_a_shared_step_can_be_captured(graphs: Graphs, random: np.random.Generator) -> None:
    """Nothing in it comes from the host."""
    x, labels = DeviceArray(floats(random, N, K)), DeviceArray(random.integers(0, C, (2, N)))
    sign = DeviceArray(np.repeat(np.float32([1, -1]), N))
    trained = arrays.Trained(DeviceArray(weights(random, M, K)), lr=0.01)
    arrays.shared_step(trained, x, labels, sign, classes=C)
    x.stream = graphs.stream()
    assert captured(graphs, x.stream, lambda: arrays.shared_step(trained, x, labels, sign, classes=C)) >= 6
    assert int(trained.steps.get()) == 2


def test_launches_on_the_stream_of_the_first_array(graphs: Graphs, random: np.random.Generator) -> None:
    trained, x, sign = ready_to_learn(random)
    capturing, running = graphs.stream(), graphs.stream()
    x.stream = capturing
    assert captured(graphs, capturing, lambda: arrays.layer_step(trained, x, sign)) == 6
    x.stream = running
    emulated.load().driver_clear()
    arrays.layer_step(trained, x, sign)
    assert len(emulated.load().driver_last_stats()) == 6


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the name, with arrays of its own and a current stream, as CuPy has them."""

    entered: list[int] = []

    class Device(int):
        def __enter__(self) -> None:
            entered.append(int(self))

        def __exit__(self, *_: Any) -> None: ...

    class ndarray(DeviceArray):  # noqa: N801
        device = property(lambda self: Device(self._memory.device))
        stream = property(lambda self: module.current, lambda self, value: None)

        @property
        def __array_namespace__(self) -> Any:  # CuPy's arrays have none
            raise AttributeError

    ndarray.__module__ = "cupy._core.core"
    module = types.ModuleType("cupy")
    made = namespace(SM80)
    module.__dict__.update({k: v for k, v in vars(made).items() if not k.startswith("__")})

    def empty(shape: Any, dtype: Any = np.float64) -> Any:
        return ndarray(np.zeros(shape, dtype), SM80, written=False)

    def asarray(values: Any, dtype: Any) -> Any:
        return ndarray(np.asarray(values, dtype), SM80)

    module.__dict__.update(empty=empty, asarray=asarray, ndarray=ndarray, current=0, entered=entered)
    stream = types.SimpleNamespace(get_current_stream=lambda: types.SimpleNamespace(ptr=module.current))
    module.cuda = stream  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_cupys_current_stream(cupy: Any, graphs: Graphs, random: np.random.Generator) -> None:
    trained, x, sign = ready_to_learn(random, cupy.ndarray)
    cupy.current = graphs.stream()
    assert captured(graphs, cupy.current, lambda: arrays.layer_step(trained, x, sign)) == 6


def test_cupy_makes_the_results(cupy: Any, random: np.random.Generator) -> None:
    x, w = floats(random, N, K), weights(random, M, K)
    result = arrays.layer_forward(cupy.ndarray(x), cupy.ndarray(w))
    assert type(result.h) is cupy.ndarray
    assert cupy.entered == [SM80]
    np.testing.assert_allclose(result.h.get(), arrays.layer_forward(x, w).h, atol=1e-5)


# ------------------------------------------------------------------------------- DLPack, lifetime


def test_dlpack(random: np.random.Generator) -> None:
    """The tensor is lent for the time of the call, ready on the legacy default stream, and its stream is joined."""
    x, w = floats(random, N, K), weights(random, M, K)
    want = arrays.layer_forward(DeviceArray(x), DeviceArray(w)).h.get()
    lent = DlpackOnly(DeviceArray(x, pitch=48))
    result = arrays.layer_forward(lent, DlpackOnly(DeviceArray(w)))
    np.testing.assert_array_equal(result.h.get(), want)
    assert lent.streams == [1]
    assert not DLPACK_EXPORTS


def test_dlpack_is_given_back_after_a_refusal(random: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="expected"):
        arrays.layer_forward(DlpackOnly(DeviceArray(floats(random, N, K))), DeviceArray(weights(random, M, K + 1)))
    assert not DLPACK_EXPORTS


def test_bfloat16_through_dlpack(random: np.random.Generator) -> None:
    """The bits of bfloat16 on the tensor cores; where a result would be bfloat16 too, NumPy has no name for it."""
    x, w = floats(random, N, K), weights(random, M, K)
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    rounded = (bits.astype(np.uint32) << 16).view(np.float32)
    lent = DlpackOnly(DeviceArray(bits))
    got = arrays.predict_goodness(lent, [DeviceArray(w)], [None], classes=C).get()
    want = arrays.predict_goodness(rounded, [w], [None], classes=C)
    np.testing.assert_allclose(got, want, rtol=2.0**-7)
    with pytest.raises(ValueError, match="bfloat16"):
        arrays.layer_forward(lent, DeviceArray(w))
    with pytest.raises(RuntimeError, match=r"no kernel for this device \(sm_75\)"):
        arrays.predict_goodness(DlpackOnly(DeviceArray(bits, SM75)), [DeviceArray(w, SM75)], [None], classes=C)
    assert not DLPACK_EXPORTS


def test_arrays_live_as_long_as_they_are_used(random: np.random.Generator) -> None:
    """Results do not hold on to inputs, nor trained weights to the rows they saw."""
    from emulated.arrays import _Memory

    alive: list[Any] = []

    class Watched(_Memory):
        def __del__(self) -> None:
            alive.append(self.address)
            super().__del__()

    x = DeviceArray(floats(random, N, K))
    x._memory.__class__ = Watched
    address = x._memory.address
    trained = arrays.Trained(DeviceArray(weights(random, M, K)), lr=0.1)
    arrays.layer_step(trained, x, DeviceArray(np.ones(N, np.float32)))
    result = arrays.layer_forward(x, trained.weight)
    assert alive == []
    del x
    assert alive == [address]
    assert np.isfinite(result.h.get()).all()


# ------------------------------------------------------------------------------- devices, refusals


def test_runs_on_the_device_of_its_arrays(random: np.random.Generator) -> None:
    """Whatever context the thread has; on a thread that has none too."""
    x, w = floats(random, N, K), weights(random, M, K)
    want = arrays.layer_forward(x, w).h
    found: dict[int, Any] = {}

    def run() -> None:
        for device in (SM90, SM75):
            result = arrays.layer_forward(DeviceArray(x, device), DeviceArray(w, device))
            found[device] = result.h.get()
            assert result.h.device == device

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for h in found.values():
        np.testing.assert_allclose(h, want, atol=1e-5)
    assert len(found) == 2


def test_arrays_of_different_devices(random: np.random.Generator) -> None:
    x, w = floats(random, N, K), weights(random, M, K)
    with pytest.raises(ValueError, match="weight is on cuda:2; expected cuda:1, as the first argument is"):
        arrays.layer_forward(DeviceArray(x, SM80), DeviceArray(w, SM90))
    with pytest.raises(ValueError, match="weight is on the CPU; expected cuda:1"):
        arrays.layer_forward(DeviceArray(x, SM80), w)
    with pytest.raises(ValueError, match="weight is on another device; expected all tensors on the CPU"):
        arrays.layer_forward(x, DeviceArray(w))
    out = (np.zeros((N, M), np.float32), None, None, None)
    with pytest.raises(ValueError, match="out 'h' is on another device"):
        arrays.layer_forward(DeviceArray(x), DeviceArray(w), out=out)


def test_refusals(random: np.random.Generator) -> None:
    x, w = DeviceArray(floats(random, N, K)), DeviceArray(weights(random, M, K))
    with pytest.raises(ValueError, match="x is float64; expected float32, bfloat16 or float16"):
        arrays.layer_forward(DeviceArray(np.zeros((N, K))), w)
    with pytest.raises(ValueError, match="labels is int32; expected int64"):
        arrays.overlay_label(x, DeviceArray(np.zeros(N, np.int32)), classes=C)
    locked, sign = DeviceArray(np.zeros((N, M), np.float32), read_only=True), DeviceArray(np.ones(N, np.float32))
    with pytest.raises(ValueError, match="h is read-only"):
        arrays.layer_step(arrays.Trained(w, lr=0.1), x, sign, out=(locked, None))
    with pytest.raises(ValueError, match="weight is read-only"):
        arrays.layer_step(arrays.Trained(DeviceArray(weights(random, M, K), read_only=True), lr=0.1), x, sign)
    with pytest.raises(ValueError, match="out 'h' is read-only"):
        arrays.layer_forward(x, w, out=(locked, None, None, None))
    square = DeviceArray(weights(random, N, N))
    with pytest.raises(ValueError, match="out 'h' shares memory with an input"):
        arrays.layer_forward(square, DeviceArray(weights(random, N, N)), out=(square, None, None, None))


class Bare:
    """An array that no library makes."""

    def __init__(self, array: DeviceArray, **changes: Any) -> None:
        self.shape, self.array = array.shape, array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


def test_arrays_without_a_library(random: np.random.Generator) -> None:
    """Scratch has to come from somewhere."""
    x, w = DeviceArray(floats(random, N, K)), DeviceArray(weights(random, M, K))
    with pytest.raises(ValueError, match=r"a Bare has no __array_namespace__.*use CuPy's arrays"):
        arrays.layer_forward(Bare(x), w)
    np.testing.assert_array_equal(arrays.layer_forward(x, Bare(w)).h.get(), arrays.layer_forward(x, w).h.get())


def test_odd_interfaces(random: np.random.Generator) -> None:
    x, w = DeviceArray(floats(random, N, K)), DeviceArray(weights(random, M, K))
    with pytest.raises(ValueError, match="masked arrays"):
        arrays.layer_forward(x, Bare(w, mask=w))
    with pytest.raises(ValueError, match="weight is another dtype"):
        arrays.layer_forward(x, Bare(w, typestr=">f4"))
    with pytest.raises(ValueError, match="2 dimensions and 1 strides"):
        arrays.layer_forward(x, Bare(w, strides=(4,)))
    with pytest.raises(ValueError, match="stride of 6 bytes"):
        arrays.layer_forward(x, Bare(w, strides=(6, 4)))
    with pytest.raises(ValueError, match="not aligned"):
        arrays.layer_forward(x, Bare(w, data=(w.pointer + 2, False)))
    with pytest.raises(RuntimeError, match="cuPointerGetAttribute failed"):
        arrays.layer_forward(x, Bare(w, data=(64, False)))


def test_no_rows(random: np.random.Generator) -> None:
    w = DeviceArray(weights(random, M, K))
    result = arrays.layer_forward(DeviceArray(np.zeros((0, K), np.float32)), w)
    assert result.h.shape == (0, M)
    goodness = arrays.predict_goodness(DeviceArray(np.zeros((0, K), np.float32)), [w], [None], classes=C)
    assert goodness.shape == (1, 0, C)


def test_a_failed_launch(random: np.random.Generator) -> None:
    """Memory that is gone: the driver's error comes out as one, and the next call works."""
    x, w = DeviceArray(floats(random, N, K)), DeviceArray(weights(random, M, K))
    short = Bare(w, shape=(M + 1, K))
    with pytest.raises(RuntimeError, match=r"cuLaunchKernel of ffkern_.* failed with CUDA_ERROR"):
        arrays.layer_forward(x, short)
    emulated.load().driver_clear()
    assert np.isfinite(arrays.layer_forward(x, w).h.get()).all()


def test_two_threads_two_streams(random: np.random.Generator) -> None:
    x, w = floats(random, N, K), weights(random, M, K)
    want = arrays.layer_forward(x, w).h
    wrong: list[int] = []

    def run(stream: int) -> None:
        mine = DeviceArray(x, stream=stream), DeviceArray(w, stream=stream)
        for _ in range(5):
            if np.abs(arrays.layer_forward(*mine).h.get() - want).max() > 1e-5:
                wrong.append(stream)

    threads = [threading.Thread(target=run, args=(new_stream(SM80),)) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_the_driver_call_helper_fails_loudly() -> None:
    with pytest.raises(AssertionError, match="cuMemFree_v2 failed with"):
        driver_call("cuMemFree_v2", ctypes.c_uint64(12345))
    emulated.load().driver_clear()


# ------------------------------------------------------------------------------- FFClassifier


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64], ids=["f32", "f16", "f64"])
def test_the_classifier_learns_on_the_device(dtype: Any) -> None:
    """The weights of NumPy's fit, on the device; answers come back there, unless the classes are texts."""
    rows, y = make_blobs(64, n_features=6, centers=3, cluster_std=2.0, random_state=0)
    rows = rows.astype(dtype).astype(np.float32)  # the same numbers for both
    x = DeviceArray(rows.astype(dtype))

    def new() -> FFClassifier:
        return FFClassifier((24, 16), learning_rate_init=0.01, max_iter=10, batch_size=16, random_state=0)

    host, device = new().fit(rows, y), new().fit(x, DeviceArray(y))
    # float16 rounds the operands of its products to 2^-11; where a gradient is nothing but that, Adam's steps differ by
    # the whole learning rate.
    close = 1e-2 if dtype == np.float16 else 1e-5
    for got, want in zip(device.coefs_ + device.intercepts_, host.coefs_ + host.intercepts_, strict=True):
        assert isinstance(got, DeviceArray)
        np.testing.assert_allclose(got.get(), want, atol=close)
    probabilities, guess = device.predict_proba(x), device.predict(x)
    assert isinstance(probabilities, DeviceArray)
    assert isinstance(guess, DeviceArray)
    np.testing.assert_array_equal(guess.get(), host.predict(rows))
    np.testing.assert_allclose(probabilities.get(), host.predict_proba(rows), atol=10 * close)
    assert device.score(x, y) == host.score(rows, y) > 0.8
    texts = new().fit(x, np.array(["one", "two", "three"])[y])
    assert texts.predict(x).tolist() == np.array(["one", "two", "three"])[guess.get()].tolist()


def test_what_the_classifier_refuses_on_the_device() -> None:
    rows, y = make_blobs(30, n_features=6, random_state=0)
    rows = rows.astype(np.float32)
    x = DeviceArray(rows)
    host, device = (FFClassifier((8,), max_iter=1, random_state=0).fit(data, y) for data in (rows, x))
    for model, data, message in [
        (device, rows, "X is in main memory; expected it on a GPU, where fit found its data"),
        (host, x, "X is on a GPU; expected it in main memory"),
        (device, x[:, :4], "X has 4 features, but FFClassifier is expecting 6"),
        (device, x[0], r"X has shape \[6\]; expected \[rows, features\]"),
        (device, x[:0], r"X has shape \[0, 6\]; expected at least one row"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.predict(data)
    rows[3, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        FFClassifier().fit(DeviceArray(rows), y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        FFClassifier().fit(x, y[:5])
    with pytest.raises(TypeError, match="X is int64"):
        FFClassifier().fit(DeviceArray(np.ones((30, 6), int)), y)


# ------------------------------------------------------------------------------- the whole network's step


def to_numpy(value: Any) -> Any:
    if isinstance(value, list):
        return [to_numpy(part) for part in value]
    return value.numpy().copy() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("hard", [False, True])
def test_a_networks_step_on_gpu_arrays(hard: bool) -> None:
    """The binding's operation, on parts of arrays that are the driver's own memory, against torch's on CPU tensors."""
    options: Any = {"head_layers": (0, 1), "hard": True} if hard else {"frozen": (0,), "peer": True}
    a = cases.network_arguments(13, [31, 17, 9], 5, optimiser="ema", **options)
    with emulated.device("sm_80"):
        arguments, _ = cases.network_call(a, cases.Fenced())
        on_device = moved([to_numpy(value) for value in arguments], SM80)
        ops.network_step_(*arguments)
    arrays._arrays.cuda.network_step_(*on_device)
    names = [argument.name for argument in ops.network_step_.default._schema.arguments]
    for name, got, want in zip(names, on_device, arguments, strict=True):
        if name in (*cases.NETWORK_LISTS, "labels"):
            for one, other in zip(on_host([got]), want if isinstance(want, list) else [want], strict=True):
                assert np.array_equal(one, other.numpy()), name
