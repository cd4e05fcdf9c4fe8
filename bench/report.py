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
from typing import Any

from .calibrator import SWING, Calibration

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
NARROW_HEADER = (
    "case, bfloat16",
    "ffkern ms",
    "its float32 ms",
    "eager float32 ms",
    "fused Adam float32 ms",
    "autocast ms",
    "compile ms",
    "compile float32 ms",
    "floor ms",
    "eager float32 / ffkern",
    "autocast / ffkern",
    "ffkern float32 / bfloat16",
    "ffkern / floor",
    "error",
    "GFLOP/s",
)


# What the README shows, in one table for both precisions; PAGE has everything.
README_HEADER = (
    "case",
    "ffkern ms",
    "eager ms",
    "compile ms",
    "eager / ffkern",
    "ffkern bf16 ms",
    "autocast ms",
    "eager / ffkern bf16",
    "autocast / ffkern bf16",
)
SHOWN = (
    "step/784-500/b100",
    "step/784-500/b100/shared",
    "step/784-2000/b100/shared",
    "step/784-2000/b512/shared",
    "step/2000-2000/b512",
    "step/2000-2000/b5000/keep",
    "predict/784-500-500/n10000",
    "network/784-2000x4/b100/hard",
    "network/784-1000x3/b100/hinton",
)
NETWORK_WORDS = (
    " `network`: all layers in one `FFNet.step`; `hard`: negatives drawn by the softmax head, which learns too, Adam; "
    "`hinton`: that with Hinton's goodness, optimiser and peer normalisation. Eager is the faster of autograd for each "
    "layer and gradients written out; fused Adam: torch's fused optimiser, whichever it is."
)
NARROW_WORDS = (
    " bfloat16: images and rows in bfloat16, weights and optimiser float32; autocast: eager under torch.autocast with "
    "the fused optimiser, whose error is the unit; float32 columns were timed in the same rounds. GFLOP/s: a small "
    f"product in bfloat16 beside every sample, its tenth and ninetieth percentile where they differ by {SWING}x."
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
    a round. peak_bytes: peak memory beyond the inputs. float32_ms: medians by group of the float32
    candidates that were timed in the same rounds, where dtype is another. calibration: by precision.
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
    float32_ms: dict[str, float] | None = None
    calibration: dict[str, Calibration] | None = None

    @property
    def autocast_ms(self) -> float | None:
        """Eager in 16 bits, with the fused optimiser where something is trained."""
        return self.eager_fused_adam_ms or self.eager_ms


@dataclass(frozen=True)
class Origin:
    """Where, when and how the records were made. products: what made those of ffkern's CPU operations."""

    command: str
    machine: str
    torch: str
    threads: int
    date: str
    products: str = BLAS  # as in all files that do not say


def header(dtype: str) -> Sequence[str]:
    return HEADER if dtype == "float32" else NARROW_HEADER


def row(record: Record) -> list[str]:
    """Cells under its precision's header. A case that failed shows no time at all."""
    if record.dtype != "float32":
        return _narrow_row(record)
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


def _narrow_row(record: Record) -> list[str]:
    error = number(record.error_ratio, 2)
    if record.failed:
        return [record.case, "FAILED", *["-"] * 11, error, "-"]
    ours, wide = record.ffkern_ms, record.float32_ms or {}
    times = (
        ours,
        wide.get("ffkern"),
        wide.get("eager"),
        wide.get("eager_fused_adam"),
        record.autocast_ms,
        record.compile_ms,
        wide.get("compile"),
        record.floor_ms,
    )
    return [
        record.case,
        *(number(time, 2) for time in times),
        ratio(wide.get("eager"), ours, "x"),
        ratio(record.autocast_ms, ours, "x"),
        ratio(wide.get("ffkern"), ours, "x"),
        ratio(ours, record.floor_ms, ""),
        error,
        speed(record),
    ]


def speed(record: Record) -> str:
    """Of the calibrator in the record's own precision: one number, or from where to where it swung."""
    found = (record.calibration or {}).get(record.dtype)
    if found is None:
        return "-"
    return f"{found.low:.0f} to {found.high:.0f}" if found.spread > SWING else f"{found.gflops:.0f}"


def swings(records: Sequence[Record]) -> list[str]:
    """A sentence for each case during which the machine changed its speed, with the ratio in either state."""
    sentences = []
    for record in records:
        for precision, found in (record.calibration or {}).items():
            if found.spread <= SWING or (record.dtype != "float32" and precision == "float32"):
                continue
            states = []
            for name, medians in (("fast", found.fast_ms), ("slow", found.slow_ms)):
                if "ffkern" in medians and "eager" in medians:
                    states.append(f"eager / ffkern {medians['eager'] / medians['ffkern']:.2f}x in its {name} state")
            sentences.append(
                f"The machine's {precision} products swung between {found.low:.0f} and {found.high:.0f} GFLOP/s during "
                f"{record.case}: {', '.join(states) or 'no state has samples of both ffkern and eager'}."
            )
    return sentences


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Markdown; the first ``left`` columns hold words, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows)) + "\n"


def markdown(records: Sequence[Record]) -> str:
    """A table for each precision, what failed, and when the machine changed its speed."""
    tables = []
    for dtype in dict.fromkeys(record.dtype for record in records):
        tables.append(table(header(dtype), [row(record) for record in records if record.dtype == dtype]))
    failures = [f"{r.case} FAILED: {r.failed}" for r in records if r.failed]
    notes = [*failures, *map(_wrapped, swings(records))]
    return "\n".join(tables) + ("\n" + "\n".join(notes) + "\n" if notes else "")


def line(name: str, failed: str, header: Sequence[str], cells: Sequence[str]) -> str:
    """What is printed when a case is done."""
    if failed:
        return f"{name} FAILED: {failed}"
    shown = [f"{title} {cell}" for title, cell in zip(header, cells, strict=True) if cell != "-"]
    return f"{name}: " + ", ".join(shown)


def legend(records: Sequence[Record], origin: Origin) -> str:
    """What the columns are, and where the numbers come from."""
    words = (
        "Medians of wall time; ratios are ratios of these medians. `step`: one layer, float32, "
        "Adam; `b` positive and as many negative rows; `shared`: the first layer, rows that differ "
        "in the label only; `keep`: activities returned. `predict`: all ten labels for `n` images. "
        "Eager is the faster of one stacked pass and two separate ones. Floor: the bare matrix "
        "products that ffkern makes, by torch's BLAS, plus `torch._fused_adam_`. Error: ffkern's largest error "
        "against float64, in units of eager's. Peak: memory beyond the inputs."
    )
    words += NETWORK_WORDS if any(record.case.startswith("network/") for record in records) else ""
    words += NARROW_WORDS if any(record.dtype != "float32" for record in records) else ""
    return f"{_wrapped(words)}\n\n{_source(origin)}\n"


def _source(origin: Origin) -> str:
    return _wrapped(
        f"`{origin.command}`, {origin.machine}, ffkern's products by {origin.products}, {origin.threads} threads, "
        f"torch {origin.torch}, {origin.date}."
    )


def readme_row(case: str, records: Sequence[Record]) -> list[str]:
    """Cells of a case under README_HEADER, from its records."""
    found = {record.dtype: record for record in records if record.case == case}
    wide, narrow = found.get("float32"), found.get("bfloat16")
    cells = [case, *["-"] * 8]
    if wide is not None:
        times = (wide.ffkern_ms, wide.eager_ms, wide.compile_ms)
        shown = [*(number(time, 2) for time in times), ratio(wide.eager_ms, wide.ffkern_ms, "x")]
        cells[1:5] = ["FAILED", "-", "-", "-"] if wide.failed else shown
    if narrow is not None:
        ours, eager = narrow.ffkern_ms, (narrow.float32_ms or {}).get("eager")
        shown = [number(ours, 2), number(narrow.autocast_ms, 2)]
        shown += [ratio(eager, ours, "x"), ratio(narrow.autocast_ms, ours, "x")]
        cells[5:] = ["FAILED", "-", "-", "-"] if narrow.failed else shown
    return cells


def readme_section(records: Sequence[Record], origin: Origin) -> str:
    """The rows that are SHOWN, to stand between the markers."""
    present = {record.case for record in records}
    shown = table(README_HEADER, [readme_row(case, records) for case in SHOWN if case in present])
    link = PAGE.relative_to(ROOT)
    words = (
        "Medians of wall time; `b` positive and as many negative rows. `step`: one layer, Adam; `shared`: rows that "
        "differ in the label only; `predict`: ten labels for `n` images; `network`: all layers in one `FFNet.step`, "
        "hard negatives and softmax head included. Eager: the faster of two ways to write it; autocast: eager in "
        f"bfloat16 with fused Adam. All {len(present)} cases, with fused Adam, floor, errors and memory: "
        f"[{link}]({link})."
    )
    return f"{shown}\n{_wrapped(words)}\n\n{_source(origin)}\n"


def page_section(records: Sequence[Record], origin: Origin) -> str:
    """All rows, to stand between the markers."""
    return f"{markdown(records)}\n{legend(records, origin)}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)


def put_between_markers(text: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with what stands between the markers replaced. Raises ValueError without them."""
    first, last = text.find(begin), text.find(end)
    if first < 0 or last < first:
        raise ValueError(f"no {begin} ... {end} in this order")
    return f"{text[: first + len(begin)]}\n{section.strip()}\n{text[last:]}"


def write_section(path: Path, section: str) -> None:
    write_aside(path, put_between_markers(path.read_text(encoding="utf-8"), section).encode())


def write_tables(records: Sequence[Record], origin: Origin) -> None:
    """The README's and the page's."""
    write_section(README, readme_section(records, origin))
    write_section(PAGE, page_section(records, origin))


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
        calibration = entry.pop("calibration", None)  # older files have none
        if calibration is not None:
            calibration = {precision: Calibration(**values) for precision, values in calibration.items()}
        records.append(Record(**entry, spread=spread, calibration=calibration))
    return records, origin


def write_json(path: Path, records: Sequence[Record], origin: Origin) -> None:
    write_aside(path, to_json(records, origin).encode())


def write_png(path: Path, records: Sequence[Record], origin: Origin) -> None:
    """Speed of each alternative in units of eager's, one group of bars a case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [r for r in records if r.dtype == "float32" and r.ffkern_ms and r.eager_ms]
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
    save_png(figure, path)


def save_png(figure: Any, path: Path) -> None:
    """A figure of matplotlib's, which is closed."""
    from matplotlib import pyplot

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
