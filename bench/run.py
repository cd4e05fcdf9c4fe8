"""Runs the benchmark: check every case, time it, measure its memory, report.

python -m bench.run --quick
python -m bench.run --json bench/results/cpu.json --readme
python -m bench.run --device cuda
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ffkern._info import machine

from . import cases, gpu, gpu_report, measure, report
from .cases import Case
from .measure import Plan


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all right, 1 a case failed its check, 2 cannot run as asked."""
    options = _parser().parse_args(argv)
    if reason := refusal(options):
        print(reason, file=sys.stderr)
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    origin = origin_of("bench.run", argv, options.device)
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
    if cuda and options.precision != "float32":
        return f"--precision {options.precision}: on a GPU every precision is measured anyway"
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
    precisions = tuple(measure.PRECISIONS) if options.precision == "both" else (options.precision,)
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
            precisions,
        )
        for record in measure.measure(case, plan):
            records.append(record)
            header, cells = report.header(record.dtype), report.row(record)
            name = f"{record.case}, {record.dtype}"
            print(report.line(name, record.failed, header[1:], cells[1:]), flush=True)
    return records


def origin_of(module: str, argv: list[str] | None, device: str = "cpu") -> report.Origin:
    arguments = sys.argv[1:] if argv is None else argv
    return report.Origin(
        command=shlex.join(["python", "-m", module, *arguments]),
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
    capability = torch.backends.cpu.get_cpu_capability()
    text = f"{machine()} ({os.cpu_count()} CPUs, {capability})"
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
    add("--precision", choices=(*measure.PRECISIONS, "both"), default="float32", help="of the rows, on a CPU")
    add("--json", type=Path, metavar="PATH", help="write the records; cuda: default bench/results/<gpu>.json")
    add("--png", type=Path, metavar="PATH", help="write a chart of the speeds")
    add("--readme", action="store_true", help="write the README's table, and docs/benchmarks.md")
    add("--no-compile", action="store_true", help="leave out torch.compile")
    add("--no-memory", action="store_true", help="leave out peak memory")
    return parser


if __name__ == "__main__":
    sys.exit(main())
