"""The benchmark on a GPU: every operation in every precision, checked, timed by events, beside measured ceilings."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import cases, gate, gpu_report, operations, report, timing, traffic
from .candidates import predict_judges, step_learners
from .cases import PRECISIONS, Precision, PredictCase, StepCase
from .cuda_timing import WARM, Ceilings, Kept, Replayed, Rig, captured, cuda_rig, measure_ceilings, product_precision
from .eager import FORMS, EagerPredict, EagerStep
from .floor import FloorPredict, FloorStep
from .gpu_report import Gpu, GpuRecord, Result
from .operations import EagerOperation, Operation, OperationCase

GpuCase = StepCase | PredictCase | OperationCase
STEPS_OF_A_PEAK = 3
# Compiling takes longer than timing.
COMPILED, COMPILED_IN = set(gpu_report.SHOWN), ("float32", "bfloat16")
GRAPH_DIFFERS = "a replay of the captured call gives other bits than the call"
Verdicts = Mapping[str, gate.Verdict]
Times = Mapping[str, list[float]]


def run(options: argparse.Namespace, origin: report.Origin, rig: Rig | None = None) -> int:
    """Exit status as of bench.run. Without --filter and --quick the GPU's file in bench/results is written."""
    chosen = [case for case in all_cases(options.quick) if options.filter in case.name]
    gpu = describe_gpu()
    rig = rig or cuda_rig()
    precisions = usable(gpu.capability)
    ceilings = measure_ceilings(rig, precisions)
    print(f"{gpu.name}: {gpu_report.describe(ceilings)}", flush=True)
    records = measure(chosen, precisions, ceilings, rig, options)
    result = Result(gpu, ceilings, origin, records)
    print("\n" + gpu_report.markdown(records, ceilings))
    path: Path | None = options.json
    if path is None and not (options.quick or options.filter):
        path = report.RESULTS / f"{gpu_report.slug(gpu.name)}.json"
    if path is not None:
        gpu_report.write_json(path, result)
        print(f"written: {path}")
    if options.readme:
        gpu_report.write_readme(report.README, gpu_report.stored())
    return 1 if any(record.failed for record in records) else 0


def all_cases(quick: bool) -> list[GpuCase]:
    """``quick``: one step, one prediction, every operation."""
    steps: list[GpuCase] = [*cases.gpu_cases()]
    if quick:
        steps = [case for case in steps if case.name in COMPILED and "shared" not in case.name]
    return [*steps, *operations.gpu_operations()]


def usable(capability: str) -> tuple[Precision, ...]:
    """bfloat16 and tf32 begin with 8.0."""
    if int(capability.split(".")[0]) >= 8:
        return PRECISIONS
    print(f"compute capability {capability}: bfloat16 and tf32 need 8.0 and are left out")
    return tuple(p for p in PRECISIONS if p.name in ("float32", "float16"))


def describe_gpu() -> Gpu:
    from ffkern import _info

    p = torch.cuda.get_device_properties()
    return Gpu(
        name=p.name,
        capability=f"{p.major}.{p.minor}",
        memory_bytes=p.total_memory,
        l2_bytes=p.L2_cache_size,
        multiprocessors=p.multi_processor_count,
        driver=driver_version(),
        cuda=str(torch.version.cuda),
        nvcc=str(_info.info()["build"].get("nvcc", "unknown")),
    )


def driver_version() -> str:
    """Of the kernel module, as the driver itself tells it."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


# ------------------------------------------------------------ measuring


def measure(
    chosen: Sequence[GpuCase],
    precisions: Sequence[Precision],
    ceilings: Ceilings,
    rig: Rig,
    options: argparse.Namespace,
) -> list[GpuRecord]:
    records = []
    seconds = options.seconds or (0.1 if options.quick else 0.4)
    for case in chosen:
        for precision in precisions:
            if isinstance(case, OperationCase) and precision.name not in operations.precisions_of(case.operation):
                continue
            compiled = not options.no_compile and case.name in COMPILED and precision.name in COMPILED_IN
            record = measure_case(case, precision, rig, seconds, compiled)
            records.append(record)
            cells = gpu_report.row(record, ceilings)[2:]
            name = f"{record.case}, {record.precision}"
            print(report.line(name, record.failed, gpu_report.HEADER[2:], cells), flush=True)
    return records


def measure_case(case: GpuCase, precision: Precision, rig: Rig, seconds: float, compiled: bool = False) -> GpuRecord:
    """A case that cannot be run is recorded as failed, and the next one gets its chance."""
    torch._dynamo.reset()
    method: Callable[..., GpuRecord] = _operation
    if isinstance(case, StepCase):
        method = _step
    elif isinstance(case, PredictCase):
        method = _prediction
    try:
        with product_precision(precision):
            return method(case, precision, rig, seconds, compiled)
    except (RuntimeError, ValueError) as error:
        return _record(case, precision, (0, 0), None, failed=f"{type(error).__name__}: {str(error).splitlines()[0]}")


def _step(case: StepCase, precision: Precision, rig: Rig, seconds: float, compiled: bool) -> GpuRecord:
    data = cases.step_data(case, rig.device, precision.dtype)
    make: dict[str, Callable[[], Any]] = {**step_learners(case, data, compiled=compiled, few=True)}
    make["ffkern_graph"] = partial(_replayed, make["ffkern"], rig)
    for form in FORMS:
        make[f"eager_graph/{form}"] = partial(_replayed, make[f"eager_fused_adam/{form}"], rig)
    work = (traffic.step_flops(case), traffic.step_bytes(case, precision.dtype.itemsize))
    exact = gate.learn(EagerStep(case, data, "stacked", dtype=torch.float64))
    built: dict[str, Any] = {}
    found: dict[str, gate.Results] = {}
    for name, constructor in make.items():
        with _rival(case, precision, name):
            learner = constructor()
            found[name], built[name] = gate.learn(learner), learner
    eager = [found[f"eager/{form}"] for form in FORMS]
    verdicts = {
        name: gate.compare(results, eager, exact, gate.floor_of(precision.unit)) for name, results in found.items()
    }
    del exact, found, eager
    if wrong := _wrong(verdicts):
        return _record(case, precision, work, wrong)
    right = {name: built[name] for name in _credible(case, precision, verdicts)}
    for learner in right.values():
        learner.set_lr(gate.LR_WHILE_TIMED)
    for form in ("images",) if case.shared else FORMS:
        for group, adam in (("floor", True), ("cublas", False)):
            right[f"{group}/{form}"] = captured(rig.graphs, FloorStep(case, data, form, adam))
    times = _time(right, rig, seconds)
    peaks = {group: rig.peak(partial(_first_steps, make[name])) for group, name in _rivals(times).items()}
    return _record(case, precision, work, verdicts["ffkern"], times, peaks)


@contextmanager
def _rival(case: GpuCase, precision: Precision, name: str) -> Iterator[None]:
    """A competitor that raises is left out, and this is said; ffkern and what judges it may not."""
    try:
        yield
    except RuntimeError as error:
        if name.startswith(("ffkern", "eager/")):
            raise
        print(f"{case.name}, {precision.name}: {name} left out, it raised {error!r:.300}", file=sys.stderr)


def _replayed(constructor: Callable[[], Any], rig: Rig) -> Replayed:
    return Replayed(constructor(), rig.graphs)


def _rivals(times: Times) -> dict[str, str]:
    """Whose memory is compared: ffkern, and the faster eager."""
    best = timing.fastest({name: timing.summarise(samples) for name, samples in times.items()}, "eager")
    return {"ffkern": "ffkern", "eager": best[0] if best else f"eager/{FORMS[0]}"}


def _first_steps(constructor: Callable[[], Any]) -> None:
    learner = constructor()
    for _ in range(STEPS_OF_A_PEAK):
        learner()


def _prediction(case: PredictCase, precision: Precision, rig: Rig, seconds: float, compiled: bool) -> GpuRecord:
    data = cases.predict_data(case, rig.device, precision.dtype)
    work = (traffic.predict_flops(case), traffic.predict_bytes(case, precision.dtype.itemsize))
    exact, eager = EagerPredict(case, data, None, dtype=torch.float64), EagerPredict(case, data, None)
    sample = gate.some_images(data.images)
    built: dict[str, Any] = {}
    verdicts: dict[str, gate.Verdict] = {}
    for name, make in predict_judges(case, data, compiled=compiled).items():
        with _rival(case, precision, name):
            judge = make()
            verdicts[name] = gate.compare_prediction(judge, eager, exact, sample, gate.floor_of(precision.unit))
            built[name] = judge
    if wrong := _wrong(verdicts):
        return _record(case, precision, work, wrong)
    right: dict[str, Callable[[], object]] = {n: built[n] for n in _credible(case, precision, verdicts)}
    kept = Kept(built["ffkern"])
    replay = right["ffkern_graph"] = captured(rig.graphs, kept)
    replay()
    if kept.output is None or not torch.equal(kept.output, built["ffkern"]()):
        return _record(case, precision, work, verdicts["ffkern"], failed=GRAPH_DIFFERS)
    for chunk in (64, 256):
        right[f"cublas/{chunk} images"] = captured(rig.graphs, FloorPredict(case, data, chunk))
    return _record(case, precision, work, verdicts["ffkern"], _time(right, rig, seconds))


def _operation(case: OperationCase, precision: Precision, rig: Rig, seconds: float, compiled: bool) -> GpuRecord:
    ours, twin = (Operation(case, precision.dtype, rig.device) for _ in range(2))
    exact, plain = (operations.answers(case, ours.given, exact=wide) for wide in (True, False))
    ours()
    found = {"ffkern": ours.results()}
    work = (case.flops, ours.compulsory_bytes())
    candidates: dict[str, Callable[[], object]] = {"ffkern": ours}
    if case.operation in operations.EAGER:
        eager = EagerOperation(case, ours.given)
        eager()
        found["eager"], candidates["eager"] = eager.results(), eager
    verdicts = {
        name: gate.compare(results, [plain], {key: exact[key] for key in results}, gate.floor_of(precision.unit))
        for name, results in found.items()
    }
    if wrong := _wrong(verdicts):
        return _record(case, precision, work, wrong)
    candidates = {name: candidates[name] for name in _credible(case, precision, verdicts)}
    replay = candidates["ffkern_graph"] = captured(rig.graphs, twin)
    replay()
    for _ in range(WARM):  # then both have been called as often, and what is updated in place is equal too
        ours()
    again = ours.results()
    if not all(torch.equal(value, again[name]) for name, value in twin.results().items()):
        return _record(case, precision, work, verdicts["ffkern"], failed=GRAPH_DIFFERS)
    if case.operation in operations.PRODUCTS:
        candidates["cublas"] = captured(rig.graphs, bare_product(case, precision.dtype, rig.device))
    return _record(case, precision, work, verdicts["ffkern"], _time(candidates, rig, seconds))


def bare_product(case: OperationCase, dtype: torch.dtype, device: str) -> Callable[[], object]:
    """The product that the operation makes: of images and weights, or of activities and images."""
    x = torch.randn(case.images, case.inputs, device=device).to(dtype)
    if case.operation.endswith(("grad", "update_")):
        left = torch.randn(case.images, case.units, device=device).to(dtype).t()
        right = x
    else:
        left, right = x, torch.randn(case.units, case.inputs, device=device).to(dtype).t()
    out = torch.empty(left.shape[0], right.shape[1], dtype=dtype, device=device)
    return lambda: torch.mm(left, right, out=out)


def _wrong(verdicts: Verdicts) -> gate.Verdict | None:
    """ffkern's own results are wrong from Python or as a graph: nothing is timed."""
    ours = [verdict for name, verdict in verdicts.items() if name.startswith("ffkern")]
    return next((verdict for verdict in ours if not verdict.passes()), None)


def _credible(case: GpuCase, precision: Precision, verdicts: Verdicts) -> list[str]:
    limit = gate.rival_limit(gate.floor_of(precision.unit))
    return gate.credible(f"{case.name}, {precision.name}", verdicts, limit)


def _time(candidates: Mapping[str, Callable[[], object]], rig: Rig, seconds: float) -> Times:
    return timing.round_robin(candidates, seconds=seconds, min_rounds=5, warmups=2, sample=rig.sample)


def _record(
    case: GpuCase,
    precision: Precision,
    work: tuple[int, int],
    verdict: gate.Verdict | None,
    times: Times | None = None,
    peaks: Mapping[str, int] | None = None,
    failed: str = "",
) -> GpuRecord:
    summaries = {name: timing.summarise(samples) for name, samples in (times or {}).items()}
    best = {group: timing.fastest(summaries, group) for group in gpu_report.GROUPS}
    fastest = {group: found for group, found in best.items() if found is not None}
    return GpuRecord(
        case=case.name,
        precision=precision.name,
        rows=case.rows,
        in_features=case.in_features,
        out_features=case.out_features,
        flops=work[0],
        bytes=work[1],
        error_ratio=verdict.ratio if verdict and math.isfinite(verdict.ratio) else None,
        times={group: summary.median * 1e3 for group, (_, summary) in fastest.items()},
        spread={
            group: report.Spread(name, s.minimum * 1e3, s.iqr * 1e3, s.rounds) for group, (name, s) in fastest.items()
        },
        error_quantity=verdict.quantity if verdict else "",
        failed=failed or (str(verdict) if verdict and times is None else ""),
        peaks=dict(peaks or {}),
    )
