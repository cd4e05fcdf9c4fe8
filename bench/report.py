"""Records of measured cases, and how they are shown: Markdown, PNG, JSON, the README's table, docs/benchmarks.md.

python -m bench.report     makes both tables from bench/results/cpu.json
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README, PAGE, RESULTS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "bench" / "results"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEADER = (
    "case",
    "ffkern ms",
    "eager ms",
    "fused Adam ms",
    "compile ms",
    "floor ms",
    "eager / ffkern",
    "ffkern / floor",
    "error",
    "peak MiB",
    "eager's",
)


# What the README shows; PAGE has everything.
SHOWN = (
    "step/784-500/b100",
    "step/784-500/b100/shared",
    "step/784-2000/b100/shared",
    "step/784-2000/b512/shared",
    "step/2000-2000/b512",
    "step/2000-2000/b5000/keep",
    "predict/784-500-500/n10000",
)
BLAS, OWN = "torch's BLAS", "ffkern's own product"


@dataclass(frozen=True)
class Spread:
    """Wall milliseconds of the fastest candidate of a group."""

    candidate: str
    min_ms: float
    iqr_ms: float
    rounds: int


@dataclass(frozen=True)
class Record:
    """One case. Times are medians of wall milliseconds; None: not run, or not to be believed.

    rows: positive and negative rows of a step, images of a prediction. error_ratio: ffkern's
    largest error against float64 in units of eager's. failed: why there are no times. spread: by
    group, what the median does not tell. eager_over_ffkern_per_round: median of the ratios within
    a round. peak_bytes: peak memory beyond the inputs.
    """

    case: str
    device: str
    dtype: str
    threads: int
    rows: int
    in_features: int
    out_features: int
    error_ratio: float | None
    ffkern_ms: float | None = None
    eager_ms: float | None = None
    eager_fused_adam_ms: float | None = None
    compile_ms: float | None = None
    floor_ms: float | None = None
    peak_bytes: int | None = None
    eager_peak_bytes: int | None = None
    eager_over_ffkern_per_round: float | None = None
    error_quantity: str = ""
    failed: str = ""
    spread: dict[str, Spread] | None = None


@dataclass(frozen=True)
class Origin:
    """Where, when and how the records were made. products: what made those of ffkern's CPU operations."""

    command: str
    machine: str
    torch: str
    threads: int
    date: str
    products: str = BLAS  # as in all files that do not say


def row(record: Record) -> list[str]:
    """Cells under HEADER. A case that failed shows no time at all."""
    error = number(record.error_ratio, 2)
    if record.failed:
        return [record.case, "FAILED", *["-"] * 6, error, "-", "-"]
    ours = record.ffkern_ms
    times = (ours, record.eager_ms, record.eager_fused_adam_ms, record.compile_ms, record.floor_ms)
    return [
        record.case,
        *(number(time, 2) for time in times),
        ratio(record.eager_ms, ours, "x"),
        ratio(ours, record.floor_ms, ""),
        error,
        mebibytes(record.peak_bytes),
        mebibytes(record.eager_peak_bytes),
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Markdown; the first ``left`` columns hold words, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows)) + "\n"


def markdown(records: Sequence[Record]) -> str:
    text = table(HEADER, [row(record) for record in records])
    failures = [f"{r.case} FAILED: {r.failed}" for r in records if r.failed]
    return text + ("\n" + "\n".join(failures) + "\n" if failures else "")


def line(name: str, failed: str, header: Sequence[str], cells: Sequence[str]) -> str:
    """What is printed when a case is done."""
    if failed:
        return f"{name} FAILED: {failed}"
    shown = [f"{title} {cell}" for title, cell in zip(header, cells, strict=True) if cell != "-"]
    return f"{name}: " + ", ".join(shown)


def legend(origin: Origin) -> str:
    """What the columns are, and where the numbers come from."""
    words = (
        "Medians of wall time; ratios are ratios of these medians. `step`: one layer, float32, "
        "Adam; `b` positive and as many negative rows; `shared`: the first layer, rows that differ "
        "in the label only; `keep`: activities returned. `predict`: all ten labels for `n` images. "
        "Eager is the faster of one stacked pass and two separate ones. Floor: the bare matrix "
        "products that ffkern makes, by torch's BLAS, plus `torch._fused_adam_`. Error: ffkern's largest error "
        "against float64, in units of eager's. Peak: memory beyond the inputs."
    )
    source = (
        f"`{origin.command}`, {origin.machine}, ffkern's products by {origin.products}, {origin.threads} threads, "
        f"torch {origin.torch}, {origin.date}."
    )
    return f"{_wrapped(words)}\n\n{_wrapped(source)}\n"


def readme_section(records: Sequence[Record], origin: Origin) -> str:
    """The rows that are SHOWN, to stand between the markers."""
    shown = [record for record in records if record.case in SHOWN]
    link = PAGE.relative_to(ROOT)
    return f"{markdown(shown)}\nAll {len(records)} cases: [{link}]({link}).\n\n{legend(origin)}"


def page(records: Sequence[Record], origin: Origin) -> str:
    """All rows."""
    return f"""\
# Benchmark on a CPU

Every case of `python -m bench.run`, as a run with `--readme` or `python -m bench.report` writes it. Each result was
checked against float64 before it was timed. Rows were measured minutes apart: compare within a row, not between rows.

{markdown(records)}
{legend(origin)}"""


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)


def put_between_markers(text: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with what stands between the markers replaced. Raises ValueError without them."""
    first, last = text.find(begin), text.find(end)
    if first < 0 or last < first:
        raise ValueError(f"no {begin} ... {end} in this order")
    return f"{text[: first + len(begin)]}\n{section.strip()}\n{text[last:]}"


def write_readme(path: Path, records: Sequence[Record], origin: Origin) -> None:
    text = put_between_markers(path.read_text(encoding="utf-8"), readme_section(records, origin))
    write_aside(path, text.encode())


def write_tables(records: Sequence[Record], origin: Origin) -> None:
    """The README's and the page's."""
    write_readme(README, records, origin)
    write_aside(PAGE, page(records, origin).encode())


def to_json(records: Sequence[Record], origin: Origin) -> str:
    """A list of objects, one a case; each says where it comes from."""
    entries = [{**asdict(record), "origin": asdict(origin)} for record in records]
    return json.dumps(entries, indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> tuple[list[Record], Origin]:
    """What :func:`to_json` wrote. Raises ValueError for an empty list."""
    entries = json.loads(text)
    if not entries:
        raise ValueError("no records")
    origin = Origin(**entries[0]["origin"])
    records = []
    for entry in entries:
        del entry["origin"]
        spread = entry.pop("spread")
        if spread is not None:
            spread = {group: Spread(**values) for group, values in spread.items()}
        records.append(Record(**entry, spread=spread))
    return records, origin


def write_json(path: Path, records: Sequence[Record], origin: Origin) -> None:
    write_aside(path, to_json(records, origin).encode())


def write_png(path: Path, records: Sequence[Record], origin: Origin) -> None:
    """Speed of each alternative in units of eager's, one group of bars a case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [record for record in records if record.ffkern_ms and record.eager_ms]
    series = {
        "floor": [record.floor_ms for record in shown],
        "ffkern": [record.ffkern_ms for record in shown],
        "torch.compile": [record.compile_ms for record in shown],
        "eager, fused Adam": [record.eager_fused_adam_ms for record in shown],
    }
    colours = ("#cccccc", "#c0392b", "#2e86c1", "#7fb3d5")
    thickness = 0.8 / len(series)
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.5 * len(shown)), layout="constrained")
    for k, (name, times) in enumerate(series.items()):
        at = [i + (k - 1.5) * thickness for i in range(len(shown))]
        speeds = [(record.eager_ms or 0.0) / time if time else 0.0 for record, time in zip(shown, times, strict=True)]
        axes.barh(at, speeds, thickness, label=name, color=colours[k])
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [record.case for record in shown])
    axes.invert_yaxis()
    axes.set_xlabel("speed, eager PyTorch = 1")
    axes.set_title(f"{origin.machine}, {origin.threads} threads, {origin.date}", fontsize=9)
    if shown:
        axes.legend(loc="lower right", fontsize=8)
    aside = _aside(path)
    figure.savefig(aside, dpi=120, format="png")
    pyplot.close(figure)
    os.replace(aside, path)


def write_aside(path: Path, content: bytes) -> None:
    """Never leaves half a file: written beside ``path``, then renamed."""
    aside = _aside(path)
    aside.write_bytes(content)
    os.replace(aside, path)


def _aside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}")


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def ratio(numerator: float | None, denominator: float | None, unit: str) -> str:
    if numerator is None or not denominator:
        return "-"
    return f"{numerator / denominator:.2f}{unit}"


def mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f}"


def main() -> int:
    write_tables(*from_json((RESULTS / "cpu.json").read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
