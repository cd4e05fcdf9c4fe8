"""How fast the machine multiplies at the moment when a sample is taken: a small fixed product beside every sample.

On some machines the speed of a matrix unit swings by a factor while a benchmark runs. Two candidates that are sampled
in turn meet the swing at different moments, and a ratio of their medians then says something about the machine. With
the product's speed at hand, samples of the slow state can be compared with samples of the slow state.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

ROWS, DEPTH, COLUMNS = 128, 512, 128  # operands and result stay in a core's own cache
REPEATS = 4  # on either side of a sample
SWING = 1.5  # a spread above which samples are told apart by the state of the machine


@dataclass(frozen=True)
class Sample:
    """Wall seconds of one call, and GFLOP/s of the product before and after it."""

    seconds: float
    gflops: float


@dataclass(frozen=True)
class Calibration:
    """The product's speed over all samples of a case in one precision.

    Args:
        gflops: median. low, high: the tenth and the ninetieth percentile.
        fast_ms, slow_ms: by candidate, its median milliseconds over the samples taken above and below the geometric
            mean of low and high; empty where high / low is at most SWING, or a candidate was not seen in that state.
    """

    gflops: float
    low: float
    high: float
    fast_ms: dict[str, float] = field(default_factory=dict)
    slow_ms: dict[str, float] = field(default_factory=dict)

    @property
    def spread(self) -> float:
        return self.high / self.low


class Calibrator:
    """The product in one precision; calling it gives GFLOP/s."""

    def __init__(self, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> None:
        self.left = torch.ones(ROWS, DEPTH, dtype=dtype)
        self.right = torch.ones(DEPTH, COLUMNS, dtype=dtype)
        self.out = torch.empty(ROWS, COLUMNS, dtype=dtype)
        self.clock = clock

    def __call__(self) -> float:
        """The fastest of a few: the first brings the operands back into the cache, and another may be interrupted."""
        seconds = []
        for _ in range(REPEATS):
            start = self.clock()
            torch.mm(self.left, self.right, out=self.out)
            seconds.append(self.clock() - start)
        return 2e-9 * ROWS * DEPTH * COLUMNS / min(seconds)


@dataclass(frozen=True)
class Calibrated:
    """A candidate whose samples carry the calibrator's speed."""

    candidate: Callable[[], object]
    calibrator: Calibrator

    def __call__(self) -> object:
        return self.candidate()

    def sample(self) -> Sample:
        before, start = self.calibrator(), self.calibrator.clock()
        self.candidate()
        seconds = self.calibrator.clock() - start
        return Sample(seconds, statistics.harmonic_mean((before, self.calibrator())))


def calibration(samples: Mapping[str, Sequence[Sample]]) -> Calibration:
    """Of the samples of all candidates that share a calibrator."""
    speeds = [sample.gflops for taken in samples.values() for sample in taken]
    tenths = statistics.quantiles(speeds, n=10, method="inclusive")
    low, high = tenths[0], tenths[-1]
    if high <= SWING * low:
        return Calibration(statistics.median(speeds), low, high)
    border = (low * high) ** 0.5
    states: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for name, taken in samples.items():
        for slow, medians in enumerate(states):
            seconds = [sample.seconds for sample in taken if (sample.gflops < border) == bool(slow)]
            if seconds:
                medians[name] = 1e3 * statistics.median(seconds)
    return Calibration(statistics.median(speeds), low, high, *states)
