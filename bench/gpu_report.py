"""Results of a GPU: records, the file of one GPU, and the README's table of all of them.

python -m bench.gpu_report     makes the README's table from the files in bench/results
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import report
from .cuda_timing import Ceilings
from .report import Origin, Spread

BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
NOT_MEASURED = (
    "| GPU | |\n|---|---|\n| every operation on every GPU | not measured yet; `make gpu-check` does "
    "([docs/gpu.md](docs/gpu.md)) |\n"
)
# What the README shows; the files have everything.
SHOWN = ("step/784-2000/b512/shared", "step/2000-2000/b5000", "predict/784-2000-2000-2000-2000/n1000")
# Groups of candidates, and what their columns are called. A group counts by its fastest.
GROUPS = {
    "ffkern": "ffkern ms",
    "ffkern_graph": "its graph",
    "eager": "eager ms",
    "eager_fused_adam": "fused Adam ms",
    "eager_graph": "their graph",
    "compile": "compile ms",
    "floor": "floor ms",
    "cublas": "cuBLAS ms",
}
HEADER = (
    "case",
    "precision",
    *GROUPS.values(),
    "eager / ffkern",
    "TFLOP/s",
    "of best",
    "GB/s",
    "of copy",
    "error",
    "peak MiB",
    "eager's",
)


@dataclass(frozen=True)
class GpuRecord:
    """One case in one precision.

    Args:
        times: median milliseconds of the fastest candidate of each group (GROUPS); absent: not run, or not believed.
        spread: of the same candidates.
        flops, bytes: what one call cannot do without, see traffic.py.
        error_ratio: ffkern's largest error against float64 in units of eager's.
        failed: why there are no times.
        peaks: bytes beyond the inputs, of ffkern and of eager.
    """

    case: str
    precision: str
    rows: int
    in_features: int
    out_features: int
    flops: int
    bytes: int
    error_ratio: float | None
    times: dict[str, float] = field(default_factory=dict)
    spread: dict[str, Spread] = field(default_factory=dict)
    error_quantity: str = ""
    failed: str = ""
    peaks: dict[str, int] = field(default_factory=dict)

    @property
    def best_ms(self) -> float | None:
        """ffkern's kernels with the fewest launches from Python."""
        found = [self.times[group] for group in ("ffkern", "ffkern_graph") if group in self.times]
        return min(found) if found else None


@dataclass(frozen=True)
class Gpu:
    """The device and what drives it, in words."""

    name: str
    capability: str
    memory_bytes: int
    l2_bytes: int
    multiprocessors: int
    driver: str
    cuda: str
    nvcc: str


@dataclass(frozen=True)
class Result:
    """What one run on one GPU gave."""

    gpu: Gpu
    ceilings: Ceilings
    origin: Origin
    records: list[GpuRecord]


def row(record: GpuRecord, ceilings: Ceilings) -> list[str]:
    """Cells under HEADER. Rates are of the fastest way that ffkern ran, beside the ceilings of the same run."""
    error = report.number(record.error_ratio, 2)
    if record.failed:
        return [record.case, record.precision, "FAILED", *["-"] * (len(GROUPS) + 4), error, "-", "-"]
    seconds = (record.best_ms or 0.0) / 1e3
    tflops = record.flops / seconds / 1e12 if seconds and record.flops else None
    gbs = record.bytes / seconds / 1e9 if seconds else None
    return [
        record.case,
        record.precision,
        *(report.number(record.times.get(group), 3) for group in GROUPS),
        report.ratio(record.times.get("eager"), record.times.get("ffkern"), "x"),
        report.number(tflops, 1),
        _share(tflops, ceilings.tflops.get(record.precision)),
        report.number(gbs, 0),
        _share(gbs, ceilings.copy_gbs),
        error,
        report.mebibytes(record.peaks.get("ffkern")),
        report.mebibytes(record.peaks.get("eager")),
    ]


def markdown(records: Sequence[GpuRecord], ceilings: Ceilings) -> str:
    text = report.table(HEADER, [row(record, ceilings) for record in records], left=2)
    failures = [f"{r.case}, {r.precision} FAILED: {r.failed}" for r in records if r.failed]
    return text + ("\n" + "\n".join(failures) + "\n" if failures else "")


def describe(ceilings: Ceilings) -> str:
    rates = ", ".join(f"{name} {rate:.1f}" for name, rate in ceilings.tflops.items())
    return f"copy {ceilings.copy_gbs:.0f} GB/s; torch.mm TFLOP/s: {rates}; a launch {ceilings.launch_us:.1f} us"


# ------------------------------------------------------------ files


def slug(name: str) -> str:
    """The name of a GPU's file: "NVIDIA X100 80GB" -> "nvidia-x100-80gb"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "gpu"


def to_json(result: Result) -> str:
    return json.dumps(asdict(result), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Result:
    """What :func:`to_json` wrote."""
    entry = json.loads(text)
    return Result(
        Gpu(**entry["gpu"]),
        Ceilings(**entry["ceilings"]),
        Origin(**entry["origin"]),
        [_record(fields) for fields in entry["records"]],
    )


def _record(fields: dict[str, Any]) -> GpuRecord:
    spread = {group: Spread(**values) for group, values in fields.pop("spread").items()}
    return GpuRecord(**fields, spread=spread)


def write_json(path: Path, result: Result) -> None:
    report.write_aside(path, to_json(result).encode())


def stored(folder: Path = report.RESULTS) -> list[Result]:
    """The results of all GPUs in a folder, by name of the file. Those of CPUs lie there too, without ceilings."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))]
    return [from_json(text) for text in texts if "ceilings" in json.loads(text)]


# ------------------------------------------------------------ the README


def readme_section(results: Sequence[Result]) -> str:
    if not results:
        return NOT_MEASURED
    rows, notes = [], []
    for result in results:
        shown = [r for r in result.records if r.case in SHOWN]
        rows += [[result.gpu.name, *row(record, result.ceilings)] for record in shown]
        origin = result.origin
        notes.append(
            f"{result.gpu.name}, driver {result.gpu.driver}: {describe(result.ceilings)}; "
            f"`{origin.command}`, torch {origin.torch}, {origin.date}."
        )
    return (
        report.table(("GPU", *HEADER), rows, left=3)
        + "\nMedian milliseconds between device events, from an idle device with a cold L2 cache; launches count. `its "
        "graph`, `their graph`: one replay of the call before it. Eager: 16 bits by autocast, fused Adam capturable. "
        "Floor: the bare products with cuBLAS and `torch._fused_adam_`; cuBLAS: the products alone; both as graphs. "
        "TFLOP/s and GB/s: what the case cannot do without, by the faster of ffkern's two ways, and its share of the "
        "largest `torch.mm` and of a device copy in the same run. All cases: `bench/results`.\n\n" + "\n".join(notes)
    )


def write_readme(path: Path, results: Sequence[Result]) -> None:
    text = path.read_text(encoding="utf-8")
    report.write_aside(path, report.put_between_markers(text, readme_section(results), BEGIN, END).encode())


def _share(value: float | None, ceiling: float | None) -> str:
    return "-" if value is None or not ceiling else f"{100 * value / ceiling:.0f} %"


def main() -> int:
    write_readme(report.README, stored())
    return 0


if __name__ == "__main__":
    sys.exit(main())
