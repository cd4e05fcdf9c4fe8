"""Measures one case on the CPU: everybody's result against float64, then the times of those who are right.

What takes part in one precision is a Field. All fields of a case are timed in one process, turn by turn, so that ratios
across precisions are as good as those within one; a name in the shared rounds is ``precision:candidate``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from . import calibrator, cases, gate, memory, report, timing
from .calibrator import Calibrated, Calibration, Calibrator
from .candidates import (
    GROUPS,
    network_floors,
    network_learners,
    predict_floors,
    predict_judges,
    step_floors,
    step_learners,
)
from .cases import Case, NetworkCase, Precision, PredictCase
from .eager import EagerPredict, EagerStep
from .network import ReferenceNetwork

Candidates = Callable[..., Mapping[str, Callable[[], Any]]]
PRECISIONS = {precision.name: precision for precision in cases.PRECISIONS if precision.name in ("float32", "bfloat16")}


@dataclass(frozen=True)
class Plan:
    """How one case is measured.

    Args:
        seconds: time spent on timing in one precision.
        compiled: torch.compile takes part.
        quick: fewer rounds and fewer compiled candidates.
        memory: peak memory is measured.
        precisions: those that are reported; float32 takes part in every case.
    """

    seconds: float
    compiled: bool = False
    quick: bool = False
    memory: bool = False
    precisions: tuple[str, ...] = ("float32",)


@dataclass(frozen=True)
class Field:
    """What takes part in one precision, if ffkern is right there."""

    verdict: gate.Verdict
    candidates: Mapping[str, Callable[[], object]] = field(default_factory=dict)


def measure(case: Case, plan: Plan, candidates: Candidates | None = None) -> list[report.Record]:
    """A record for each precision of the plan.

    Args:
        candidates: constructors of what competes, instead of those of candidates.py.
    """
    torch._dynamo.reset()
    names = dict.fromkeys(("float32", *plan.precisions))
    fields = {name: _field(case, PRECISIONS[name], plan, candidates) for name in names}
    calibrators = {name: Calibrator(PRECISIONS[name].dtype) for name in fields}
    shared = {
        f"{name}:{candidate}": Calibrated(call, calibrators[name])
        for name, one in fields.items()
        for candidate, call in one.candidates.items()
    }
    taken = timing.round_robin(
        shared,
        seconds=plan.seconds * len(fields),
        min_rounds=3 if plan.quick else 5,
        sample=Calibrated.sample,
    )
    return [_record(case, plan, name, fields[name].verdict, taken) for name in plan.precisions]


def _field(case: Case, precision: Precision, plan: Plan, candidates: Candidates | None) -> Field:
    floor = gate.floor_of(precision.unit / 4)  # results are sums, in which single roundings average out
    how = {"compiled": plan.compiled, "few": plan.quick}
    if isinstance(case, PredictCase):
        images = cases.predict_data(case, dtype=precision.dtype, weights=torch.float32)
        made = (candidates or predict_judges)(case, images, compiled=plan.compiled)
        built = {name: make() for name, make in made.items()}
        judges = (EagerPredict(case, images, None), EagerPredict(case, images, None, dtype=torch.float64))
        sample = gate.some_images(images.images)
        verdicts = {n: gate.compare_prediction(judge, *judges, sample, floor) for n, judge in built.items()}
        floors: Mapping[str, Callable[[], object]] = predict_floors(case, images)
    else:
        exact: Any
        if isinstance(case, NetworkCase):
            batch = cases.network_data(case, precision.dtype)
            made = (candidates or network_learners)(case, batch, **how)
            exact, floors = ReferenceNetwork(case.recipe, batch), network_floors(case, batch)
        else:
            rows = cases.step_data(case, dtype=precision.dtype)
            made = (candidates or step_learners)(case, rows, **how)
            exact, floors = EagerStep(case, rows, "stacked", dtype=torch.float64), step_floors(case, rows)
        built = {name: make() for name, make in made.items()}
        verdicts = _judged(built, exact, floor)
    if not verdicts["ffkern"].passes():
        return Field(verdicts["ffkern"])
    limit = gate.rival_limit(floor)
    right = {name: built[name] for name in gate.credible(f"{case.name}, {precision.name}", verdicts, limit)}
    if not isinstance(case, PredictCase):
        for learner in right.values():
            learner.set_lr(gate.LR_WHILE_TIMED)
    return Field(verdicts["ffkern"], {**right, **floors})


def _judged(built: Mapping[str, gate.Learner], exact: gate.Learner, floor: float) -> dict[str, gate.Verdict]:
    truth = gate.learn(exact)
    found = {name: gate.learn(learner) for name, learner in built.items()}
    eager = [results for name, results in found.items() if name.startswith("eager/")]
    return {name: gate.compare(results, eager, truth, floor) for name, results in found.items()}


def _record(
    case: Case, plan: Plan, precision: str, verdict: gate.Verdict, taken: Mapping[str, Sequence[calibrator.Sample]]
) -> report.Record:
    times = {name: [sample.seconds for sample in samples] for name, samples in taken.items()}
    best = _best(times, precision)
    median = {group: summary.median * 1e3 for group, (_, summary) in best.items()}
    per_round = None
    if "ffkern" in best and "eager" in best:
        per_round = timing.per_round_ratio(times[best["eager"][0]], times[best["ffkern"][0]])
    fastest = dict(best)
    beside: dict[str, float] | None = None
    if precision != "float32":
        others = _best(times, "float32")
        beside = {group: summary.median * 1e3 for group, (_, summary) in others.items()}
        fastest |= {f"float32 {group}": found for group, found in others.items()}
    peaks: list[int] = []
    if plan.memory and "ffkern" in best and "eager" in best:
        threads = torch.get_num_threads()
        for name in ("ffkern", best["eager"][0].split(":")[1]):
            peaks.append(memory.peak_in_child(case.name, name, threads, precision).beyond_inputs)
    return report.Record(
        case=case.name,
        device="cpu",
        dtype=precision,
        threads=torch.get_num_threads(),
        rows=case.rows,
        in_features=case.in_features,
        out_features=case.out_features,
        error_ratio=verdict.ratio if math.isfinite(verdict.ratio) else None,
        ffkern_ms=median.get("ffkern"),
        eager_ms=median.get("eager"),
        eager_fused_adam_ms=median.get("eager_fused_adam"),
        compile_ms=median.get("compile"),
        floor_ms=median.get("floor"),
        peak_bytes=peaks[0] if peaks else None,
        eager_peak_bytes=peaks[1] if peaks else None,
        eager_over_ffkern_per_round=per_round,
        error_quantity=verdict.quantity,
        failed="" if verdict.passes() else str(verdict),
        spread={
            group: report.Spread(name.split(":")[1], s.minimum * 1e3, s.iqr * 1e3, s.rounds)
            for group, (name, s) in fastest.items()
        }
        or None,
        float32_ms=beside,
        calibration=_calibrations(taken, {group: name for group, (name, _) in fastest.items()}),
    )


def _best(times: Mapping[str, list[float]], precision: str) -> dict[str, tuple[str, timing.Summary]]:
    """The fastest of each group in one precision, under its name in the shared rounds."""
    summaries = {name: timing.summarise(samples) for name, samples in times.items()}
    found = {group: timing.fastest(summaries, f"{precision}:{group}") for group in GROUPS}
    return {group: one for group, one in found.items() if one is not None}


def _calibrations(
    taken: Mapping[str, Sequence[calibrator.Sample]], fastest: Mapping[str, str]
) -> dict[str, Calibration] | None:
    """By precision, over the samples of the fastest of each group."""
    found = {}
    for precision in PRECISIONS:
        chosen = {group: taken[name] for group, name in fastest.items() if name.startswith(f"{precision}:")}
        if chosen:
            found[precision] = calibrator.calibration(chosen)
    return found or None
