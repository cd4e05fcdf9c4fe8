"""What leaving rows out of the weight product costs and saves, by the share of rows that still teach.

A step of one layer with Hinton's rule (EMA), whose rows are weighted so that a share of them teaches and the others
next to nothing, or nothing at all. Three ways take turns: every row multiplied, rows left out within the bound, and,
the others being weighted 0, rows of zeros passed over without a change in any bit.

    python -m bench.lessons [seconds a line]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from ffkern import ops
from ffkern.optim import ROW_TOLERANCE

from .timing import per_round_ratio, round_robin, summarise

LAYERS = ((784, 1000), (1000, 1000), (2000, 2000))
BATCHES = (100, 512)  # positive rows, and as many negative ones
SHARES = (1.0, 7 / 8, 3 / 4, 1 / 2, 1 / 5, 1 / 10)
FADED = 1e-20  # weight of a row that teaches next to nothing


def step(inputs: int, units: int, rows: int, share: float, tolerance: float, faded: float) -> Callable[[], None]:
    """A step at rate 0, so that its rows teach the same every time. Raises unless it leaves out what it should."""
    torch.manual_seed(0)
    x, weight = torch.rand(rows, inputs), torch.randn(units, inputs) / inputs**0.5
    state, bias_state = torch.zeros(1, units, inputs), torch.zeros(1, units)
    sign = torch.tensor([1.0, -1.0]).repeat_interleave(rows // 2)
    row_weight = torch.full((rows,), faded / rows)
    kept = torch.randperm(rows)[: round(share * rows)]
    row_weight[kept] = 1 / rows
    trained = (weight, torch.zeros(units), state, bias_state, torch.tensor(0), torch.tensor(0.0).double(), None)
    workspace = torch.empty(ops.step_workspace(weight, rows, 0, 1, False, "ema"))
    stats = torch.zeros(9, dtype=torch.float64)
    rule = ("rms", 1e-8, "mean_sq", 0.5, 1.0, 0.0, 0.9, "ema", [0.9, 0.0, 0.0, 0.0, tolerance])

    def run() -> None:
        ops.layer_step_(x, None, *trained, sign, row_weight, None, workspace, stats, None, None, *rule)

    run()
    found = float(stats[7:].sum())
    if found not in (len(kept), rows) or (faded == 0 and found != len(kept)):
        raise RuntimeError(f"{found:.0f} of {rows} rows were kept; expected {len(kept)}: nothing was timed")
    return run


def measure(inputs: int, units: int, batch: int, share: float, seconds: float) -> None:
    """Prints a line of the table."""
    arguments = (inputs, units, 2 * batch, share)
    sides = {
        "every row": step(*arguments, tolerance=0.0, faded=FADED),
        "bound": step(*arguments, tolerance=ROW_TOLERANCE, faded=FADED),
        "zeros": step(*arguments, tolerance=0.0, faded=0.0),
    }
    times = round_robin(sides, seconds=seconds, min_rounds=15, warmups=2)
    full = 1e3 * summarise(times["every row"]).median
    bound, zeros = (per_round_ratio(times[name], times["every row"]) for name in ("bound", "zeros"))
    print(f"| {inputs}-{units} | {batch} | {share:.3g} | {full:.2f} | {bound:.2f} | {zeros:.2f} |", flush=True)


def main(seconds: float = 3.0) -> None:
    print(f"EMA, {torch.get_num_threads()} thread(s), {ops.cpu_path()}, torch {torch.__version__}\n")
    print("| layer | batch | rows that teach | every row, ms | within the bound | zeros passed over |")
    print("|---|---:|---:|---:|---:|---:|")
    for inputs, units in LAYERS:
        for batch in BATCHES:
            for share in SHARES:
                measure(inputs, units, batch, share, seconds)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]))
