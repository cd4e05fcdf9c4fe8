"""What Python, dispatcher and checks take of a network's step at batch 100.

python -m bench.overhead

The overhead of a step is the time of the same call with as many layers and nothing to compute: one image, one unit a
layer, one input beside the label's. The two take turns in one process, one thread; medians.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from ffkern import FFNet, optim

from .timing import round_robin, summarise

CLASSES, BATCH = 10, 100
NETWORKS = (
    ("784-500-500", [784, 500, 500], "uniform"),
    ("784-3x1000, hard negatives and head", [784, 1000, 1000, 1000], "hard"),
    ("784-4x2000", [784, 2000, 2000, 2000, 2000], "uniform"),
)


def stepper(sizes: list[int], images: int, negatives: str) -> Callable[[], None]:
    net = FFNet(sizes, CLASSES, head_layers="all_but_first" if negatives == "hard" else None)
    opt = optim.Adam(net.layers.parameters(), lr=1e-4)
    head_opt = optim.EMA(net.head.parameters(), lr=0.1) if net.head is not None else None
    x, labels = torch.rand(images, sizes[0]), torch.randint(0, CLASSES, (images,))
    return lambda: net.step(x, labels, opt, negatives=negatives, head_opt=head_opt)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each network")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | step ms | overhead ms | overhead % |\n|---|---:|---:|---:|")
    for name, sizes, negatives in NETWORKS:
        empty = [CLASSES + 1] + [1] * (len(sizes) - 1)
        candidates = {"step": stepper(sizes, BATCH, negatives), "overhead": stepper(empty, 1, negatives)}
        times = round_robin(candidates, seconds=arguments.seconds, max_rounds=100000, warmups=5)
        step, overhead = (1e3 * summarise(times[which]).median for which in candidates)
        print(f"| {name} | {step:.2f} | {overhead:.3f} | {100 * overhead / step:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
