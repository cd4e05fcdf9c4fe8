"""What only a GPU under torch can show: graphs, streams, several devices, the caching allocator, torch.compile.

What the kernels compute is tested in test_ops.py, on a GPU too; captures and streams of the driver below torch, on the
software driver, in test_cuda_emulated.py. All of this is skipped where there is no GPU.
"""

from __future__ import annotations

import copy
import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import every_operation
import op_cases as cases
import pytest
import torch
from tolerance import STORAGE_UNIT, check_parity
from torch import Tensor

from ffkern import FFLinear, FFNet, ops, optim

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),  # is a prototype, as torch says
]
compiler = pytest.mark.filterwarnings("ignore")  # torch.compile has much to say about tf32, graphs and torch itself

LEARNERS = ("layer", "shared", "network")
every_learner = pytest.mark.parametrize("kind", LEARNERS)
every_dtype = pytest.mark.parametrize(
    "dtype", [dtype for dtype in every_operation.DTYPES if every_operation.usable(dtype)], ids=str
)
IMAGES, INPUTS, UNITS, CLASSES = 65, 129, 67, 10
BUSY = 2_000_000_000  # cycles, about a second


class Learner:
    """One of the ways to learn, on one batch: what a program would capture."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float32, device: str = "cuda", lr: float = 0.05) -> None:
        self.kind = kind
        self.x = torch.rand(IMAGES, INPUTS, device=device).to(dtype)
        self.labels = torch.randint(0, CLASSES, (IMAGES,), device=device)
        variants = 2 if kind == "shared" else 1
        self.sign = torch.ones(variants * IMAGES, device=device)
        self.sign[variants * IMAGES // 2 :] = -1
        self.variants = torch.stack((self.labels, (self.labels + 1) % CLASSES))
        self.overlay = torch.tensor([1.0, 0.1], device=device)
        if kind == "network":
            # The largest value is found on the device, without asking the host.
            net = FFNet([INPUTS, UNITS, 33], CLASSES, label_value="max", neutral_value=0.1)
            self.module: FFLinear | FFNet = net.to(device)
        else:
            self.module = FFLinear(INPUTS, UNITS, peer_strength=0.1, device=device)
        self.opt = optim.Adam(self.module.parameters(), lr=lr)

    def __call__(self) -> None:
        if isinstance(self.module, FFNet):
            self.module.step(self.x, self.labels, self.opt, negatives="all")
        elif self.kind == "shared":
            self.module.step_shared(self.x, self.variants, self.sign, self.opt, classes=CLASSES, overlay=self.overlay)
        else:
            self.module.step(self.x, self.sign, self.opt)

    def twin(self) -> Learner:
        """Another one at the same point, with memory of its own."""
        other = copy.copy(self)
        other.module = copy.deepcopy(self.module)
        other.opt = optim.Adam(other.module.parameters(), lr=float(self.rate()))
        return other

    def rate(self) -> Any:
        return self.opt.param_groups[0]["lr"]

    @property
    def weight(self) -> Tensor:
        return next(self.module.parameters()).detach()

    def state(self) -> list[Tensor]:
        """Everything that a step changes."""
        found = [p.detach() for p in self.module.parameters()]
        found += [value for p in self.module.parameters() for value in self.opt.state[p].values()]
        return [t.clone() for t in [*found, *self.module.buffers()]]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """After one call on a side stream, as torch's documentation has it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


# ------------------------------------------------------------------------------- graphs


@every_learner
@every_dtype
def test_three_replays_are_three_steps(dtype: torch.dtype, kind: str) -> None:
    """Bit by bit: one step before the capture and three replays are four steps from Python."""
    learner = Learner(kind, dtype)
    twin = learner.twin()
    graph = capture(learner)
    twin()
    assert same(learner.state(), twin.state())  # capturing ran nothing
    before = learner.state()
    repeat(graph.replay, 3)
    repeat(twin, 3)
    assert same(learner.state(), twin.state())
    assert not same(learner.state(), before)


@every_dtype
def test_a_learning_rate_set_between_replays_acts(dtype: torch.dtype) -> None:
    learner = Learner("layer", dtype)
    graph = capture(learner)
    learner.rate().fill_(0.0)
    before = learner.weight.clone()
    graph.replay()
    assert torch.equal(learner.weight, before)
    learner.rate().fill_(0.05)
    graph.replay()
    assert not torch.equal(learner.weight, before)


def test_replays_read_new_data_from_the_same_memory() -> None:
    learner = Learner("layer")
    twin = learner.twin()
    graph = capture(learner)
    twin()
    for _ in range(3):
        learner.x.copy_(torch.rand_like(learner.x))  # the twin shares the batch
        graph.replay()
        twin()
    assert same(learner.state(), twin.state())


def test_hard_negatives_and_the_head_in_one_graph() -> None:
    """Every replay draws anew, from what the network says by then."""
    net = FFNet([INPUTS, UNITS, 33], CLASSES, head_layers="all").cuda()
    opt, head_opt = optim.Adam(net.layers.parameters()), optim.Adam(net.head.parameters())
    x, labels = torch.rand(IMAGES, INPUTS, device="cuda"), torch.randint(CLASSES, (IMAGES,), device="cuda")
    graph = capture(lambda: net.step(x, labels, opt, negatives="hard", head_opt=head_opt))
    net.metrics(), net.head.metrics()
    states = []
    for _ in range(3):
        graph.replay()
        states.append([p.detach().clone() for p in net.parameters()])
    assert all(bool(t.isfinite().all()) for state in states for t in state)
    assert not any(torch.equal(a, b) for one, two in itertools.pairwise(states) for a, b in zip(one, two, strict=True))
    assert [found["rows"] for found in net.metrics()] == [3 * 2 * IMAGES] * 2
    assert net.head.metrics()["rows"] == 3 * IMAGES


def test_a_prediction_as_a_graph() -> None:
    net = FFNet([INPUTS, UNITS, 33], CLASSES).cuda()
    x = torch.rand(IMAGES, INPUTS, device="cuda")
    found: list[Tensor] = []
    graph = capture(lambda: found.append(net.predict(x)))
    x.copy_(torch.rand_like(x))
    graph.replay()
    assert torch.equal(found[-1], net.predict(x))


# ------------------------------------------------------------------------------- streams, threads, devices


@every_learner
def test_streams_side_by_side(kind: str) -> None:
    """Two learners, a step in turn on two streams that nothing orders: each ends where it ends alone."""
    learners = [Learner(kind) for _ in range(2)]
    twins = [learner.twin() for learner in learners]
    streams = [torch.cuda.Stream() for _ in learners]
    torch.cuda.synchronize()
    for _ in range(20):
        for learner, stream in zip(learners, streams, strict=True):
            with torch.cuda.stream(stream):
                learner()
    torch.cuda.synchronize()
    for twin in twins:
        repeat(twin, 20)
    for learner, twin in zip(learners, twins, strict=True):
        assert same(learner.state(), twin.state())


def test_work_is_done_on_the_current_stream() -> None:
    """A step on a stream that is kept busy waits; one on another stream, begun later, is done before it."""
    learners = [Learner("layer") for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in learners]
    torch.cuda.synchronize()
    for learner, stream in zip(learners, streams, strict=True):  # what is allocated once
        with torch.cuda.stream(stream):
            repeat(learner, 2)
    torch.cuda.synchronize()
    behind, before = torch.cuda.Event(), learners[0].weight.clone()
    with torch.cuda.stream(streams[0]):
        torch.cuda._sleep(BUSY)
        learners[0]()
        behind.record()
    with torch.cuda.stream(streams[1]):
        learners[1]()
        streams[1].synchronize()
    assert not behind.query()
    torch.cuda.synchronize()
    assert not torch.equal(learners[0].weight, before)


def test_threads_side_by_side() -> None:
    learners = [Learner("shared") for _ in range(4)]
    twins = [learner.twin() for learner in learners]
    torch.cuda.synchronize()
    failures: list[BaseException] = []

    def work(learner: Learner) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                repeat(learner, 10)
                torch.cuda.current_stream().synchronize()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(learner,)) for learner in learners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for learner, twin in zip(learners, twins, strict=True):
        repeat(twin, 10)
        assert same(learner.state(), twin.state())


def test_gradients_from_the_autograd_thread() -> None:
    """backward() launches from a thread of its own, on the stream of the forward pass."""
    layer = FFLinear(INPUTS, UNITS, device="cuda")
    x, sign = torch.rand(IMAGES, INPUTS, device="cuda"), torch.ones(IMAGES, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        loss, _ = layer.local_loss(x, sign)
        loss.backward()
        torch.cuda.current_stream().synchronize()
    exact = copy.deepcopy(layer).cpu()
    exact.zero_grad()
    exact.local_loss(x.cpu(), sign.cpu())[0].backward()
    for ours, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.fixture
def second() -> Iterator[str]:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU on this machine; this test needs two")
    assert torch.cuda.current_device() == 0
    yield "cuda:1"
    assert torch.cuda.current_device() == 0  # as it was


@every_learner
def test_another_device_than_the_current_one(kind: str, second: str) -> None:
    """The memory of cuda:1 decides, not torch.cuda.current_device(); equal devices give equal bits."""
    there = Learner(kind, device=second)
    here = copy.copy(there)
    here.module = copy.deepcopy(there.module).to("cuda:0")
    here.opt = optim.Adam(here.module.parameters(), lr=0.05)
    for name in ("x", "labels", "sign", "variants", "overlay"):
        setattr(here, name, getattr(there, name).to("cuda:0"))
    repeat(there, 3)
    repeat(here, 3)
    torch.cuda.synchronize(second)
    equal = torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1)
    for a, b in zip(here.state(), there.state(), strict=True):
        assert str(b.device) == second
        assert torch.equal(a, b.to("cuda:0")) if equal else torch.allclose(a, b.to("cuda:0"), rtol=1e-3, atol=1e-5)


def test_two_devices_in_one_call_are_refused(second: str) -> None:
    layer = FFLinear(INPUTS, UNITS, device="cuda:0")
    with pytest.raises(RuntimeError, match="is on cuda:0; expected cuda:1"):
        layer(torch.rand(3, INPUTS, device=second))


# ------------------------------------------------------------------------------- the host waits for nothing


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    """A call of torch that waits for the device raises."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@every_learner
@every_dtype
@pytest.mark.usefixtures("no_synchronisation")
def test_a_step_waits_for_nothing(dtype: torch.dtype, kind: str) -> None:
    """Neither through torch, nor by itself: the step returns while the device is still busy with something else."""
    learner = Learner(kind, dtype)
    repeat(learner, 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError):
        float(learner.x[0, 0])  # this does
    torch.cuda._sleep(BUSY)
    learner()
    done = torch.cuda.Event()
    done.record()
    assert not done.query()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


# ------------------------------------------------------------------------------- memory


@every_learner
@every_dtype
def test_a_step_keeps_no_memory(dtype: torch.dtype, kind: str) -> None:
    learner = Learner(kind, dtype)
    repeat(learner, 2)
    torch.cuda.synchronize()
    level, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    repeat(learner, 50)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == level
    assert torch.cuda.memory_reserved() == reserved


def test_memory_of_every_operation_comes_back() -> None:
    """Outputs and scratch of all operations go back to the allocator."""
    with torch.device("cuda"):
        every_operation.run(every_operation.SHAPES[:1])
        torch.cuda.synchronize()
        gc.collect()
        level = torch.cuda.memory_allocated()
        every_operation.run(every_operation.SHAPES[:1])
    torch.cuda.synchronize()
    gc.collect()
    assert torch.cuda.memory_allocated() <= level


def test_a_layer_step_allocates_nothing() -> None:
    learner = Learner("layer")
    repeat(learner, 2)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    repeat(learner, 3)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@every_dtype
def test_offsets_have_64_bits(dtype: torch.dtype) -> None:
    """Rows 2^30 elements apart: the third lies 4 GiB after the first, or further."""
    pitch = 2**30 + 8
    need = (2 * pitch + 16) * dtype.itemsize
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < need + 2**29:
        pytest.skip(f"needs {need / 2**30:.0f} GiB of free memory")
    a = cases.step_arguments(3, 16, 24, optimiser="sgd")
    a["x"] = a["x"].to(dtype).float()
    a = every_operation.placed(a, torch.device("cuda"))
    view = torch.empty(2 * pitch + 16, dtype=dtype, device="cuda").as_strided((3, 16), (pitch, 1))
    with torch.device("cuda"):
        check_parity(
            lambda x, **rest: cases.smooth(cases.step(x=view.copy_(x), **rest)),
            cases.smooth_step_reference,
            a,
            unit=STORAGE_UNIT[dtype],
        )


# ------------------------------------------------------------------------------- bits


@every_learner
@every_dtype
def test_the_same_bits_every_time(dtype: torch.dtype, kind: str) -> None:
    learner = Learner(kind, dtype)
    twins = [learner.twin() for _ in range(3)]
    repeat(learner, 10)
    for twin in twins:
        repeat(twin, 10)
        assert same(learner.state(), twin.state())


def test_the_same_bits_where_the_batch_is_split() -> None:
    """Few tiles and many rows: the gradient's parts come from many blocks and are added in order."""
    x, h = torch.randn(20_000, 64, device="cuda"), torch.randn(20_000, 64, device="cuda").relu_()
    scale, coef = torch.rand(2, 20_000, device="cuda")
    first = ops.layer_grad(x, h, scale, coef, None, None, "mean_sq")
    for _ in range(20):
        again = ops.layer_grad(x, h, scale, coef, None, None, "mean_sq")
        assert same(list(first), list(again))


# ------------------------------------------------------------------------------- torch.compile


@every_learner
@compiler
def test_a_compiled_step_is_the_step(kind: str) -> None:
    learner = Learner(kind)
    twin = learner.twin()
    repeat(learner, 2)
    repeat(twin, 2)
    torch._dynamo.reset()
    step = torch.compile(learner.__call__, fullgraph=True)
    repeat(step, 3)
    repeat(twin, 3)
    assert same(learner.state(), twin.state())


@compiler
def test_compiled_activities_and_their_gradient() -> None:
    layer = FFLinear(INPUTS, UNITS, device="cuda")
    twin = copy.deepcopy(layer)
    x, sign = torch.rand(IMAGES, INPUTS, device="cuda"), torch.ones(IMAGES, device="cuda")
    torch._dynamo.reset()
    compiled = torch.compile(lambda rows: layer.local_loss(2 * rows, sign)[0], fullgraph=True)
    a, b = compiled(x), twin.local_loss(2 * x, sign)[0]
    torch.testing.assert_close(a, b)
    a.backward()
    b.backward()
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)


@compiler
def test_a_step_compiled_for_little_overhead() -> None:
    """torch.compile captures it, or declines because its inputs change; either way these are the steps."""
    learner = Learner("layer")
    twin = learner.twin()
    repeat(learner, 2)
    repeat(twin, 2)
    torch._dynamo.reset()
    step = torch.compile(learner.__call__, fullgraph=True, mode="reduce-overhead")
    repeat(step, 5)
    repeat(twin, 5)
    torch.cuda.synchronize()
    assert same(learner.state(), twin.state())
