"""How a step grows: with width, batch and depth in time, with depth in memory; plotted.

python -m bench.scaling --png docs/scaling.png --json bench/results/scaling.json
python -m bench.scaling --quick

ffkern, eager Forward-Forward and backpropagation on the networks of bench.backprop, in float32 and bfloat16. One of the
networks is checked against float64 in either precision before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import backprop, measure, report
from .backprop import TITLES, Point
from .cases import IMAGE, NetworkCase
from .run import origin_of

GROUPS = ("ffkern", "eager_fused_adam", "backprop")


@dataclass(frozen=True)
class Axis:
    """Networks that differ in one number.

    Args:
        values: that number in each case.
        memory: peak memory is what is measured, not time.
    """

    title: str
    values: tuple[int, ...]
    networks: tuple[NetworkCase, ...]
    memory: bool = False


def network(units: int, depth: int, batch: int) -> NetworkCase:
    return NetworkCase((IMAGE, *[units] * depth), batch, "uniform")


def axes(quick: bool) -> list[Axis]:
    widths = (250, 500) if quick else (250, 500, 1000, 2000, 4000)
    batches = (10, 100) if quick else (10, 50, 100, 500, 1000, 5000)
    depths = (1, 4) if quick else (1, 2, 4, 8, 16)
    units, many = (250, 500) if quick else (1000, 1000)
    weighed = (4,) if quick else depths[::2]  # a process each
    return [
        Axis("units (2 layers, batch 100)", widths, tuple(network(w, 2, 100) for w in widths)),
        Axis(f"images a batch (2 layers of {units})", batches, tuple(network(units, 2, b) for b in batches)),
        Axis(f"layers of {units} (batch 100)", depths, tuple(network(units, d, 100) for d in depths)),
        Axis(
            f"layers of {units} (batch {many})", weighed, tuple(network(units, d, many) for d in weighed), memory=True
        ),
    ]


def right() -> list[report.Record]:
    """What is wrong with the candidates, if anything: nothing is timed for long."""
    plan = measure.Plan(0.0, quick=True, precisions=tuple(measure.PRECISIONS))
    return [record for record in measure.measure(network(250, 2, 100), plan) if record.failed]


def measured(axis: Axis, seconds: float) -> list[Point]:
    found: list[Point] = []
    for case in axis.networks:
        found += backprop.peaks(case, GROUPS) if axis.memory else backprop.points(case, seconds, GROUPS)
        print(report.line(case.name, "", *_cells(found[-len(GROUPS) * len(measure.PRECISIONS) :])), flush=True)
    return found


def _cells(found: Sequence[Point]) -> tuple[list[str], list[str]]:
    names = [f"{TITLES[p.group]} {p.precision}" for p in found]
    return names, [f"{p.ms:.1f} ms" if p.peak is None else f"{p.peak.working / 2**20:.0f} MiB" for p in found]


def write_png(path: Path, found: Sequence[tuple[Axis, Sequence[Point]]], origin: report.Origin) -> None:
    """A panel for each axis, a line for each group and precision."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = dict(zip(GROUPS, ("#c0392b", "#2e86c1", "#7f8c8d"), strict=True))
    figure, panels = pyplot.subplots(1, len(found), figsize=(4.2 * len(found), 4), layout="constrained")
    for panel, (axis, points) in zip(panels, found, strict=True):
        order = {case.name: value for case, value in zip(axis.networks, axis.values, strict=True)}
        for group in GROUPS:
            for precision, style in zip(measure.PRECISIONS, ("-", "--"), strict=True):
                line = [p for p in points if p.group == group and p.precision == precision]
                heights = [(p.peak.working / 2**20 if p.peak else p.ms) for p in line]
                label = f"{TITLES[group]}, {precision}"
                panel.plot([order[p.case] for p in line], heights, style, marker=".", color=colours[group], label=label)
        panel.set(xscale="log", yscale="log", xlabel=axis.title)
        panel.set_xticks(axis.values, [str(value) for value in axis.values])
        panel.minorticks_off()
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_title("MiB beside parameters and optimiser" if axis.memory else "milliseconds a step", fontsize=9)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.suptitle(f"{origin.machine}, {origin.threads} threads, {origin.date}", fontsize=9)
    report.save_png(figure, path)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all right, 1 a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and small networks, under a minute")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--png", type=Path, metavar="PATH", help="write the plot")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the points")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if wrong := right():
        print(report.markdown(wrong), file=sys.stderr)
        return 1
    found = [(axis, measured(axis, 0.3 if options.quick else 3.0)) for axis in axes(options.quick)]
    origin = origin_of("bench.scaling", argv)
    if options.png:
        write_png(options.png, found, origin)
    if options.json:
        timed = [p for axis, points in found if not axis.memory for p in points]
        weighed = [p for axis, points in found if axis.memory for p in points]
        backprop.write_json(options.json, backprop.merged(timed, weighed), origin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
