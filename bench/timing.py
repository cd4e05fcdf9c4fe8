"""Round-robin timing of alternatives in one process. Knows nothing about what it times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Candidate = TypeVar("Candidate", bound=Callable[[], object])
Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Summary:
    """Wall times of one candidate, in seconds."""

    median: float
    minimum: float
    lower_quartile: float
    upper_quartile: float
    rounds: int

    @property
    def iqr(self) -> float:
        return self.upper_quartile - self.lower_quartile


def round_robin(
    candidates: Mapping[str, Candidate],
    *,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = 1000,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    sample: Callable[[Candidate], Sample] | None = None,
) -> dict[str, list[Sample]]:
    """Samples of every candidate, one a round each, so that a disturbance hits all of them.

    Each round starts with the next candidate: none always runs behind the same neighbour's cache.

    Args:
        candidates: name -> what to time.
        seconds: stop after the first round that ends later than this, but not before min_rounds.
        clock: monotonic time in seconds.
        sample: what is noted of one call, for example its seconds; without it those of wall time.
    """

    def wall(candidate: Candidate) -> float:
        start = clock()
        candidate()
        return clock() - start

    measure = sample or wall
    names = list(candidates)
    for _ in range(warmups):
        for name in names:
            measure(candidates[name])
    times: dict[str, list[Sample]] = {name: [] for name in names}
    begin = clock()
    for done in range(max_rounds):
        if done >= min_rounds and clock() - begin >= seconds:
            break
        first = done % len(names) if names else 0
        for name in names[first:] + names[:first]:
            times[name].append(measure(candidates[name]))
    return times


def summarise(times: list[float]) -> Summary:
    if len(times) < 2:
        low = middle = high = times[0]
    else:
        low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return Summary(middle, min(times), low, high, len(times))


def fastest(summaries: Mapping[str, Summary], group: str) -> tuple[str, Summary] | None:
    """Lowest median among the candidates ``group`` and ``group/...``; None where there is none."""
    members = [(n, s) for n, s in summaries.items() if n == group or n.startswith(group + "/")]
    return min(members, key=lambda member: member[1].median) if members else None


def per_round_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over rounds of the ratio within a round: what slow drifts of the machine cancel in."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))
