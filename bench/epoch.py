"""The time of one epoch of a recipe: ffkern, eager PyTorch, backpropagation of the same network, other programs.

python -m bench.epoch --recipe hinton --threads 1
python -m bench.epoch --recipe hinton --threads 1 --peer ~/src/Forward-Forward

All take turns of a few steps; what a step took is multiplied by the steps of an epoch, and the table says of how many
that was measured. On MNIST where it has been fetched (`ffkern data fetch mnist`), else on random images of its shape:
the time depends on the images only where rows that teach nothing more are left out, which random ones make rarer.
Evaluation does not count. With --peer the program in that folder runs instead, beside ffkern on the same schedule.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ffkern import data
from ffkern.data import Dataset
from ffkern.recipes import RECIPES, Recipe

from . import network, peers, report
from .backprop import Backprop
from .measure import PRECISIONS
from .network import EagerNetwork, FusedNetwork
from .peers import Peer, Train
from .run import origin_of

STEPS = 200
IMAGES = 60_000  # random ones
TURN = 10  # steps that one takes before the next one's turn
HEADER = ("who", "CPU s an epoch", "wall s an epoch", "steps", "of", "CPU time / ffkern's")
AGREE = {"float32": 1e-4, "bfloat16": 2e-2}  # relative difference of the first step's losses


@dataclass(frozen=True)
class Timing:
    """What an epoch of ``of`` steps takes, from so many of them."""

    who: str
    cpu_seconds: float
    wall_seconds: float
    steps: int
    of: int


def mnist_shaped() -> Dataset:
    """MNIST, or as many random images."""
    try:
        return data.load("mnist")
    except FileNotFoundError:
        random = torch.Generator().manual_seed(1)
        x = torch.rand(IMAGES, 784, generator=random)
        x.masked_fill_(torch.rand(x.shape, generator=random) > 0.2, 0.0)
        y = torch.randint(10, (IMAGES,), generator=random)
        return Dataset("random images", x, y, x[:0], y[:0], 10, (1, 28, 28))


def contestants(recipe: Recipe, images: Dataset) -> dict[str, Train]:
    """What trains the recipe's network, from the same weights on the same batches.

    Raises:
        RuntimeError: the losses of the first step differ.
    """
    narrow = replace(images, train_x=images.train_x.bfloat16())
    made: dict[str, tuple[Dataset, FusedNetwork | EagerNetwork | Backprop]] = {
        "ffkern float32": (images, FusedNetwork(recipe, images)),
        "ffkern bfloat16": (narrow, FusedNetwork(recipe, narrow)),
    }
    for form in network.FORMS:
        made[f"eager float32, {form}"] = (images, EagerNetwork(recipe, images, form, fused=True))
    made["backprop float32"] = (images, Backprop(recipe, images))
    made["backprop bfloat16"] = (narrow, Backprop(recipe, narrow))
    trains = {name: _trained(one.step, given, recipe) for name, (given, one) in made.items()}
    ours = None
    for name, (_, one) in made.items():
        trains[name](1)
        if isinstance(one, Backprop):
            continue
        loss = float(one.last_loss.double().sum())
        ours = loss if ours is None else ours
        if not abs(loss - ours) <= AGREE[name.split()[1].rstrip(",")] * ours:
            raise RuntimeError(f"the first loss of {name} is {loss}, of ffkern float32 {ours}: no time is reported")
    return trains


def _trained(step: Callable[[Tensor, Tensor], None], images: Dataset, recipe: Recipe) -> Train:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(recipe.seed)
        while True:
            yield from data.batches(images.train_x, images.train_y, recipe.batch_size, order)

    source = batches()

    def train(steps: int) -> None:
        for _ in range(steps):
            step(*next(source))

    return train


def beside(peer: Peer, checkout: Path, images: Dataset, steps: int) -> dict[str, Train]:
    """The other program, and ffkern on the same schedule, on as many images as these steps need."""
    count = min(peer.images, len(images.train_x), peer.batch * steps)
    x, y = images.train_x[:count], images.train_y[:count]
    ours = {f"ffkern {name}": peer.ours(x.to(precision.dtype), y) for name, precision in PRECISIONS.items()}
    return {**ours, peer.name: peer.load(checkout, x.clone(), y)}


def timed(trains: Mapping[str, Train], steps: int, of: int, turn: int = TURN) -> list[Timing]:
    """Turn by turn, after one step each that does not count."""
    spent = {name: [0.0, 0.0] for name in trains}
    for train in trains.values():
        train(1)
    done = 0
    while done < steps:
        count = min(turn, steps - done)
        for name, train in trains.items():
            cpu, wall = time.process_time(), time.perf_counter()
            train(count)
            spent[name][0] += time.process_time() - cpu
            spent[name][1] += time.perf_counter() - wall
        done += count
    return [Timing(name, cpu * of / steps, wall * of / steps, steps, of) for name, (cpu, wall) in spent.items()]


def markdown(found: list[Timing]) -> str:
    rows = [
        [
            t.who,
            report.number(t.cpu_seconds, 2),
            report.number(t.wall_seconds, 2),
            str(t.steps),
            str(t.of),
            report.ratio(t.cpu_seconds, found[0].cpu_seconds, "x"),
        ]
        for t in found
    ]
    return report.table(HEADER, rows)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all right, 1 a result is wrong, 2 cannot run as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=("hinton", "supervised"), default="hinton")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"measured of each (default {STEPS}); no more than an epoch"
    )
    parser.add_argument("--peer", type=Path, metavar="PATH", help="checkout of another program")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the times")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.steps < 1:
        print(f"--steps is {options.steps}; expected at least 1", file=sys.stderr)
        return 2
    images = mnist_shaped()
    try:
        if options.peer is not None:
            what, found = _with_peer(options, images)
        else:
            what, found = _recipe(options, images)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{what}; {images.name}, {options.threads} threads\n\n{markdown(found)}")
    if options.json:
        entry = {
            "what": what,
            "images": images.name,
            "origin": asdict(origin_of("bench.epoch", argv)),
            "times": [asdict(t) for t in found],
        }
        report.write_aside(options.json, (json.dumps(entry, indent=1, allow_nan=False) + "\n").encode())
    return 0


def _recipe(options: argparse.Namespace, images: Dataset) -> tuple[str, list[Timing]]:
    recipe = RECIPES[options.recipe]
    if recipe.held_out:
        images = images.held_out(recipe.held_out)
    of = math.ceil(len(images.train_x) / recipe.batch_size)
    return f"recipe {recipe.name}", timed(contestants(recipe, images), min(options.steps, of), of)


def _with_peer(options: argparse.Namespace, images: Dataset) -> tuple[str, list[Timing]]:
    peer = peers.recognise(options.peer)
    if os.environ.get("OMP_NUM_THREADS") != str(options.threads):
        given = os.environ.get("OMP_NUM_THREADS", "not set")
        raise ValueError(
            f"OMP_NUM_THREADS is {given}; expected {options.threads}, as --threads: NumPy's products obey it"
        )
    of = math.ceil(peer.images / peer.batch)
    # As many images as the steps of a recipe would see; a program that takes all of them at once takes five steps.
    steps = max(5, options.steps * 100 // peer.batch)
    return f"{peer.name}: {peer.settings}", timed(
        beside(peer, options.peer, images, steps), steps, of, min(TURN, steps)
    )


if __name__ == "__main__":
    sys.exit(main())
