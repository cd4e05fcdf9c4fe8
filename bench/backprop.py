"""The same network trained by backpropagation: what a step of Forward-Forward costs and saves beside it.

python -m bench.backprop
python -m bench.backprop --quick

ReLU layers, a final linear layer to ten classes, cross-entropy, torch's fused Adam; the Forward-Forward side is the
"uniform" network: a positive and a negative row for each image, all layers in one step, Adam. Backpropagation also runs
with its batch in ten parts whose gradients add up, and with activations computed a second time instead of kept. Nothing
is said about how well either learns.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint_sequential

from ffkern.data import Dataset
from ffkern.recipes import Recipe

from . import cases, memory, report, timing
from .candidates import network_learners
from .cases import IMAGE, NetworkCase
from .eager import mixed, narrow
from .measure import PRECISIONS
from .run import origin_of

PARTS = 10
GROUPS = ("ffkern", "eager_fused_adam", "backprop", "backprop_accumulated", "backprop_checkpointed")
TITLES = dict(
    zip(
        GROUPS,
        ("ffkern", "eager Forward-Forward", "backprop", f"backprop, {PARTS} parts", "backprop, checkpoints"),
        strict=True,
    )
)
HEADER = ("network", "trainer", "precision", "ms a step", "peak MiB", "without parameters and optimiser")


class Backprop:
    """A step of backpropagation.

    Args:
        recipe: its layers and rate count, nothing else.
        parts: the batch is cut into so many, whose gradients add up.
        checkpointed: only the inputs of about sqrt(depth) runs of layers are kept; the rest is computed again.
    """

    def __init__(self, recipe: Recipe, images: Dataset, *, parts: int = 1, checkpointed: bool = False) -> None:
        self.images, self.parts, self.checkpointed = images, parts, checkpointed
        sizes = (images.inputs, *recipe.layers)
        torch.manual_seed(recipe.seed)
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(i, o), nn.ReLU()) for i, o in pairwise(sizes)),
            nn.Linear(sizes[-1], images.classes),
        )
        self.low = narrow(images.train_x, torch.float32)
        self.opt = torch.optim.Adam(self.layers.parameters(), lr=recipe.lr, fused=True)
        self.optimisers = [self.opt]

    def __call__(self) -> None:
        self.step(self.images.train_x, self.images.train_y)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.opt.zero_grad()
        size = math.ceil(len(x) / self.parts)
        for rows, labels in zip(x.split(size), y.split(size), strict=True):
            with mixed(rows, self.low):
                logits = self._through(rows).float()
            (functional.cross_entropy(logits, labels, reduction="sum") / len(x)).backward()
        self.opt.step()

    def _through(self, rows: Tensor) -> Tensor:
        if not self.checkpointed:
            return self.layers(rows)
        segments = round(len(self.layers) ** 0.5)
        return checkpoint_sequential(self.layers, segments, rows, use_reentrant=False, preserve_rng_state=False)


def trainers(case: NetworkCase, data: Dataset) -> dict[str, Callable[[], Any]]:
    """Constructors of everything that trains such a network, by group or group/form."""
    backprop = partial(Backprop, case.recipe, data)
    return {
        **network_learners(case, data),
        "backprop": backprop,
        "backprop_accumulated": partial(backprop, parts=PARTS),
        "backprop_checkpointed": partial(backprop, checkpointed=True),
    }


@dataclass(frozen=True)
class Point:
    """One trainer of one network: median milliseconds of a step, peak memory beyond the inputs; None: not measured."""

    case: str
    group: str
    precision: str
    ms: float | None = None
    peak: memory.Peak | None = None


def points(
    case: NetworkCase,
    seconds: float,
    groups: Sequence[str] = GROUPS,
    min_rounds: int = 3,
    precisions: Sequence[str] = tuple(PRECISIONS),
) -> list[Point]:
    """Times of the fastest of each group in each precision, all taken in turn."""
    turns: dict[str, Callable[[], object]] = {}
    for precision in precisions:
        made = trainers(case, cases.network_data(case, PRECISIONS[precision].dtype))
        turns |= {f"{precision}:{name}": make() for name, make in made.items() if name.split("/")[0] in groups}
    times = timing.round_robin(turns, seconds=seconds, min_rounds=min_rounds)
    summaries = {name: timing.summarise(samples) for name, samples in times.items()}
    found = []
    for precision in precisions:
        for group in groups:
            best = timing.fastest(summaries, f"{precision}:{group}")
            assert best is not None
            found.append(Point(case.name, group, precision, best[1].median * 1e3))
    return found


def peaks(
    case: NetworkCase, groups: Sequence[str] = GROUPS, precisions: Sequence[str] = tuple(PRECISIONS)
) -> list[Point]:
    """Peak memory of each group, of eager's form that needs less of it."""
    found = []
    for precision in precisions:
        for group in groups:
            names = [f"{group}/{form}" for form in ("autograd", "manual")] if group.startswith("eager") else [group]
            threads = torch.get_num_threads()
            measured = [memory.peak_in_child(case.name, name, threads, precision) for name in names]
            found.append(Point(case.name, group, precision, None, min(measured, key=lambda peak: peak.beyond_inputs)))
    return found


def merged(timed: Sequence[Point], weighed: Sequence[Point]) -> list[Point]:
    """Points that have both, where both were measured; ``timed`` first."""
    known = {(p.case, p.group, p.precision): p for p in timed}
    for p in weighed:
        key = (p.case, p.group, p.precision)
        known[key] = Point(*key, known[key].ms if key in known else None, p.peak)
    return list(known.values())


def markdown(found: Sequence[Point]) -> str:
    rows = [
        [
            p.case,
            TITLES[p.group],
            p.precision,
            report.number(p.ms, 1),
            report.mebibytes(p.peak.beyond_inputs if p.peak else None),
            report.mebibytes(p.peak.working if p.peak else None),
        ]
        for p in found
    ]
    return report.table(HEADER, rows, left=3)


def write_json(path: Path, found: Sequence[Point], origin: report.Origin) -> None:
    entry = {"origin": asdict(origin), "points": [asdict(p) for p in found]}
    report.write_aside(path, (json.dumps(entry, indent=1, allow_nan=False) + "\n").encode())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks, under a minute")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing for each network (default 10)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the points")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    units, batches, depths = (300, (100, 1000), (2, 4)) if options.quick else (2000, (100, 5000), (2, 4, 8, 16))
    seconds = min(options.seconds, 1.0) if options.quick else options.seconds
    timed, weighed = [], []
    for batch in batches:
        timed += points(NetworkCase((IMAGE, *[units] * 4), batch, "uniform"), seconds)
        print(markdown(timed[-len(GROUPS) * len(PRECISIONS) :]), flush=True)
    for depth in depths:
        weighed += peaks(NetworkCase((IMAGE, *[units] * depth), batches[-1], "uniform"))
        print(markdown(weighed[-len(GROUPS) * len(PRECISIONS) :]), flush=True)
    if options.json:
        write_json(options.json, merged(timed, weighed), origin_of("bench.backprop", argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
