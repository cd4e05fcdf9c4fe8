"""Runs the benchmark: check every case, time it, measure its memory, report.

python -m bench.run --quick
python -m bench.run --json bench/results/cpu.json --readme
python -m bench.run --device cuda
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import cases, gate, gpu, gpu_report, memory, report, timing
from .candidates import GROUPS, predict_floors, predict_judges, step_floors, step_learners
from .cases import Case, PredictCase, StepCase
from .eager import EagerPredict, EagerStep


@dataclass(frozen=True)
class Plan:
    """How one case is measured.

    Args:
        seconds: time spent on timing.
        compiled: torch.compile takes part.
        quick: fewer rounds and fewer compiled candidates.
        memory: peak memory is measured.
    """

    seconds: float
    compiled: bool = False
    quick: bool = False
    memory: bool = False


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all right, 1 a case failed its check, 2 cannot run as asked."""
    options = _parser().parse_args(argv)
    if reason := refusal(options):
        print(reason, file=sys.stderr)
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    origin = _origin(argv, options.device)
    if options.device == "cuda":
        return gpu.run(options, origin)
    chosen = [case for case in _cases(options.quick) if options.filter in case.name]
    records = run(chosen, options)
    print("\n" + report.markdown(records))
    if options.json:
        report.write_json(options.json, records, origin)
    if options.png:
        report.write_png(options.png, records, origin)
    if options.readme:
        report.write_tables(records, origin)
    return 1 if any(record.failed for record in records) else 0


def refusal(options: argparse.Namespace) -> str:
    """Why it cannot run as asked, on the CPU or on a GPU; empty: it can."""
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        return "--device cuda: torch sees no CUDA device on this machine"
    if cuda and options.png:
        return "--png: there is a chart of CPU results only"
    if options.readme and not cuda and (options.quick or options.filter):
        return "--readme: the tables have all cases; not with --quick or --filter"
    begin = gpu_report.BEGIN if cuda else report.BEGIN
    if options.readme and begin not in report.README.read_text(encoding="utf-8"):
        return f"--readme: {report.README} has no {begin}"
    every: Sequence[gpu.GpuCase] = gpu.all_cases(options.quick) if cuda else _cases(options.quick)
    if not any(options.filter in case.name for case in every):
        return f"--filter {options.filter}: no case has this in its name"
    return ""


def _cases(quick: bool) -> list[Case]:
    return cases.quick_cases() if quick else cases.full_cases()


def run(chosen: Sequence[Case], options: argparse.Namespace) -> list[report.Record]:
    seconds = options.seconds or (0.4 if options.quick else 6.0)
    records = []
    compiled_before = False
    for case in chosen:
        # In a quick run one case is compiled: it takes longer than timing all of them.
        compiled = not options.no_compile and cases.wants_compile(case)
        compiled = compiled and not (options.quick and compiled_before)
        compiled_before |= compiled
        plan = Plan(
            seconds,
            compiled,
            options.quick,
            not options.no_memory and cases.wants_memory(case),
        )
        record = measure_step(case, plan) if isinstance(case, StepCase) else measure_prediction(case, plan)
        records.append(record)
        print(report.line(record.case, record.failed, report.HEADER[1:], report.row(record)[1:]), flush=True)
    return records


def measure_step(
    case: StepCase,
    plan: Plan,
    learners: Callable[..., Mapping[str, Callable[[], gate.Learner]]] = step_learners,
) -> report.Record:
    data = cases.step_data(case)
    torch._dynamo.reset()
    built = {n: make() for n, make in learners(case, data, compiled=plan.compiled, few=plan.quick).items()}
    exact = gate.learn(EagerStep(case, data, "stacked", dtype=torch.float64))
    found = {name: gate.learn(learner) for name, learner in built.items()}
    eager = [results for name, results in found.items() if name.startswith("eager/")]
    verdicts = {name: gate.compare(results, eager, exact) for name, results in found.items()}
    del exact, found, eager
    if not verdicts["ffkern"].passes():
        return _record(case, verdicts["ffkern"], {})
    right = {name: built[name] for name in gate.credible(case.name, verdicts)}
    for learner in right.values():
        learner.set_lr(gate.LR_WHILE_TIMED)
    times = _time({**right, **step_floors(case, data)}, plan)
    peaks: list[int] = []
    if plan.memory:
        summaries = {name: timing.summarise(samples) for name, samples in times.items()}
        best = timing.fastest(summaries, "eager")
        threads = torch.get_num_threads()
        for name in ("ffkern", best[0] if best else "eager/stacked"):
            peaks.append(memory.peak_in_child(case.name, name, threads))
    return _record(case, verdicts["ffkern"], times, peaks)


def measure_prediction(
    case: PredictCase,
    plan: Plan,
    judges: Callable[..., Mapping[str, Callable[[], gate.Judge]]] = predict_judges,
) -> report.Record:
    data = cases.predict_data(case)
    torch._dynamo.reset()
    built = {name: make() for name, make in judges(case, data, compiled=plan.compiled).items()}
    exact = EagerPredict(case, data, None, dtype=torch.float64)
    sample = gate.some_images(data.images)
    eager = EagerPredict(case, data, None)
    verdicts = {n: gate.compare_prediction(j, eager, exact, sample) for n, j in built.items()}
    if not verdicts["ffkern"].passes():
        return _record(case, verdicts["ffkern"], {})
    right = {name: built[name] for name in gate.credible(case.name, verdicts)}
    times = _time({**right, **predict_floors(case, data)}, plan)
    return _record(case, verdicts["ffkern"], times)


def _time(candidates: Mapping[str, Callable[[], object]], plan: Plan) -> dict[str, list[float]]:
    return timing.round_robin(
        candidates,
        seconds=plan.seconds,
        min_rounds=3 if plan.quick else 5,
    )


def _record(
    case: Case,
    verdict: gate.Verdict,
    times: Mapping[str, list[float]],
    peaks: Sequence[int] = (),
) -> report.Record:
    summaries = {name: timing.summarise(samples) for name, samples in times.items()}
    best = {group: timing.fastest(summaries, group) for group in GROUPS}
    median: dict[str, float | None] = dict.fromkeys(GROUPS)
    spread = {}
    for group, found in best.items():
        if found is not None:
            name, summary = found
            median[group] = summary.median * 1e3
            spread[group] = report.Spread(name, summary.minimum * 1e3, summary.iqr * 1e3, summary.rounds)
    ours, eager = best["ffkern"], best["eager"]
    per_round = timing.per_round_ratio(times[eager[0]], times[ours[0]]) if ours and eager else None
    ratio = verdict.ratio if math.isfinite(verdict.ratio) else None
    return report.Record(
        case=case.name,
        device="cpu",
        dtype="float32",
        threads=torch.get_num_threads(),
        rows=case.rows,
        in_features=case.in_features,
        out_features=case.out_features,
        error_ratio=ratio,
        ffkern_ms=median["ffkern"],
        eager_ms=median["eager"],
        eager_fused_adam_ms=median["eager_fused_adam"],
        compile_ms=median["compile"],
        floor_ms=median["floor"],
        peak_bytes=peaks[0] if peaks else None,
        eager_peak_bytes=peaks[1] if peaks else None,
        eager_over_ffkern_per_round=per_round,
        error_quantity=verdict.quantity,
        failed="" if verdict.passes() else str(verdict),
        spread=spread or None,
    )


def _origin(argv: list[str] | None, device: str) -> report.Origin:
    arguments = sys.argv[1:] if argv is None else argv
    return report.Origin(
        command=shlex.join(["python", "-m", "bench.run", *arguments]),
        machine=_machine(device),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        products=_products(),
    )


def _products() -> str:
    """What makes the products of ffkern's CPU operations on this machine."""
    return {"blas": report.BLAS, "own": report.OWN}[torch.ops.ffkern.cpu_path().split(";")[2]]


def _machine(device: str) -> str:
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    capability = torch.backends.cpu.get_cpu_capability()
    text = f"{name} ({os.cpu_count()} CPUs, {capability})"
    return f"{torch.cuda.get_device_name()}, {text}" if device == "cuda" else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ffkern bench",
        description="Times ffkern against eager PyTorch, eager with fused Adam, torch.compile and "
        "the floor (bare matrix products and the optimiser's memory stream). Every result is "
        "checked against float64 first.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a few cases, under a minute")
    add("--filter", default="", metavar="TEXT", help="only cases with TEXT in their name")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads; default: torch's")
    add("--seconds", type=float, default=0.0, help="time per case; default 6, with --quick 0.4; cuda: 0.4, 0.1")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: every operation, in every precision")
    add("--json", type=Path, metavar="PATH", help="write the records; cuda: default bench/results/<gpu>.json")
    add("--png", type=Path, metavar="PATH", help="write a chart of the speeds")
    add("--readme", action="store_true", help="write the README's table, and docs/benchmarks.md")
    add("--no-compile", action="store_true", help="leave out torch.compile")
    add("--no-memory", action="store_true", help="leave out peak memory")
    return parser


if __name__ == "__main__":
    sys.exit(main())
