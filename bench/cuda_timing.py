"""Time on a GPU: events, cold caches, graphs, and what the device can do at best.

A sample begins with an idle device and an L2 cache full of other data, and ends with the last kernel; events on the
device take the time. So launches count as far as the device waits for them: a step from Python pays for all of its
launches, the same step as a graph for one. :attr:`Ceilings.launch_us` says what one costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .cases import PRECISIONS, Precision

COPY_BYTES = 2**30
SIDES = (2048, 4096, 8192)  # of square matrices: the largest rate counts
LEAST_FLUSH = 64 * 2**20  # bytes; more than any L2 cache that nobody told us about
ROUNDS = 10
WARM = 2  # calls before a capture: images load, workspaces and optimiser state come into being

Call = Callable[[], object]


class Graphs(Protocol):
    """Captures calls. They are made on one side stream first, where autograd's nodes then belong."""

    def aside(self, call: Call) -> None: ...
    def record(self, call: Call) -> Call: ...


@dataclass(frozen=True)
class Rig:
    """How candidates are run and measured on one device.

    Args:
        sample: seconds of one call.
        peak: runs a call; bytes allocated at its worst moment, beyond what was allocated before.
    """

    device: str
    sample: Callable[[Call], float]
    graphs: Graphs
    peak: Callable[[Call], int]


class EventTimer:
    """Seconds of one call between two events, from an idle device with a cold L2 cache.

    Args:
        scratch: overwritten before every sample; larger than the cache.
        cuda: torch.cuda, or what stands in for it.
    """

    def __init__(self, scratch: Tensor, cuda: Any = torch.cuda) -> None:
        self.scratch, self.cuda = scratch, cuda
        self.start, self.end = (cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Call) -> float:
        self.scratch.zero_()
        self.cuda.synchronize()
        self.start.record()
        call()
        self.end.record()
        self.cuda.synchronize()
        return float(self.start.elapsed_time(self.end)) / 1e3


class CudaGraphs:
    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def aside(self, call: Call) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            call()
        torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, call: Call) -> Call:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            call()
        return graph.replay


def captured(graphs: Graphs, call: Call) -> Call:
    """A replay of ``call``, which nothing is asked about but its time."""
    for _ in range(WARM):
        graphs.aside(call)
    return graphs.record(call)


class Kept:
    """A call whose last result can be looked at; after a replay it is the replay's."""

    def __init__(self, call: Callable[[], Tensor]) -> None:
        self.call = call
        self.output: Tensor | None = None

    def __call__(self) -> None:
        self.output = self.call()


class Replayed:
    """A learner whose first steps are taken from Python and all others by replays of one graph.

    Capturing runs nothing, so the steps that it has taken are as many as its calls, and the gate judges replays too.
    """

    def __init__(self, learner: Any, graphs: Graphs) -> None:
        self.learner, self.graphs = learner, graphs
        self.calls = 0
        self.replay: Call | None = None

    def __call__(self) -> None:
        if self.replay is not None:
            self.replay()
        elif self.calls < WARM:
            self.calls += 1
            self.graphs.aside(self.learner)
        else:
            self.replay = self.graphs.record(self.learner)
            self.replay()

    @property
    def last_loss(self) -> Tensor:
        loss: Tensor = self.learner.last_loss
        return loss

    def set_lr(self, lr: float) -> None:
        self.learner.set_lr(lr)

    def results(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.learner.results()
        return found


@contextmanager
def product_precision(precision: Precision) -> Iterator[None]:
    """torch's setting for float32 products, which ffkern's follow. Set by the one call that also sets what older code
    reads: torch.compile raises where the two disagree."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision.float32)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def flush_bytes(l2: int) -> int:
    return max(2 * l2, LEAST_FLUSH)


def _peak(call: Call) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated()) - before


def cuda_rig() -> Rig:
    l2 = torch.cuda.get_device_properties().L2_cache_size
    scratch = torch.empty(flush_bytes(l2), dtype=torch.uint8, device="cuda")
    return Rig("cuda", EventTimer(scratch), CudaGraphs(), _peak)


# ------------------------------------------------------------ ceilings


@dataclass(frozen=True)
class Ceilings:
    """The best that this device was seen to do in this run.

    Args:
        copy_gbs: 1e9 bytes a second, read and written, of a copy from the device to itself.
        launch_us: microseconds of a kernel that does nothing to speak of: the shortest sample there is.
        tflops: 1e12 operations a second of torch.mm on square matrices, by precision.
    """

    copy_gbs: float
    launch_us: float
    tflops: dict[str, float] = field(default_factory=dict)


def measure_ceilings(
    rig: Rig,
    precisions: tuple[Precision, ...] = PRECISIONS,
    *,
    copy_bytes: int = COPY_BYTES,
    sides: tuple[int, ...] = SIDES,
) -> Ceilings:
    def best(call: Call) -> float:
        rig.sample(call)  # the first one loads and chooses
        return min(rig.sample(call) for _ in range(ROUNDS))

    copy = 2 * copy_bytes / best(_copy(copy_bytes, rig.device))
    launch = best(torch.ones(1, device=rig.device).zero_)
    rates = {}
    for precision in precisions:
        with product_precision(precision):
            rates[precision.name] = max(_matmul_rate(side, precision.dtype, rig.device, best) for side in sides)
    return Ceilings(copy / 1e9, launch * 1e6, {name: rate / 1e12 for name, rate in rates.items()})


def _copy(size: int, device: str) -> Call:
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _matmul_rate(side: int, dtype: torch.dtype, device: str, best: Callable[[Call], float]) -> float:
    """FLOP a second. Random numbers: zeros would flatter a device that slows down under power."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / best(lambda: torch.mm(a, b, out=out))
