"""Whole training schedules beside eager PyTorch: the article's thousand updates a mini-batch, an epoch of Hinton's net.

python -m bench.schedules article --threads 1
python -m bench.schedules hinton --threads 1

CPU seconds of this process, so that other work on the machine counts as little as it can; ours and eager in turn, on
MNIST (`ffkern data fetch mnist`). Each is trained by itself from the same start: eager is written as one writes it for
PyTorch, with autograd for the local losses and torch's optimiser.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ffkern import data
from ffkern.recipes import RECIPES

from .network import EagerNetwork


def clocked(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


# ------------------------------------------------------------ article


class EagerGreedy:
    """One layer on one mini-batch: two passes an update, mean of squares, Adam.

    Args:
        published: divides the inputs by their length in every update, as the article's code does; else once.
    """

    def __init__(self, weight: Tensor, bias: Tensor, pos: Tensor, neg: Tensor, published: bool) -> None:
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        self.linear.load_state_dict({"weight": weight.detach().clone(), "bias": bias.detach().clone()})
        self.opt = torch.optim.Adam(self.linear.parameters(), lr=0.03)
        self.published = published
        self.rows = (pos, neg) if published else (self._unit(pos), self._unit(neg))

    @staticmethod
    def _unit(x: Tensor) -> Tensor:
        return x / (x.norm(2, 1, keepdim=True) + 1e-4)

    def update(self) -> Tensor:
        pos, neg = (self._unit(x) if self.published else x for x in self.rows)
        g_pos = torch.relu(self.linear(pos)).pow(2).mean(1)
        g_neg = torch.relu(self.linear(neg)).pow(2).mean(1)
        loss = functional.softplus(torch.cat((3.0 - g_pos, g_neg - 3.0))).mean()
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        self.opt.step()
        return loss.detach()


def article(rounds: int) -> None:
    recipe = RECIPES["article"]
    images = recipe.load()
    net = recipe.network(images.inputs, images.classes, recipe.strength(images))
    x, y = images.train_x[: recipe.batch_size], images.train_y[: recipe.batch_size]
    wrong = net.wrong_labels(y, "uniform", torch.Generator().manual_seed(0))
    opt = recipe.trainer(net, images).opt
    total: dict[str, float] = {}
    inputs = []
    for labels in (y, wrong[0]):
        rows = x.clone()
        rows[:, : net.classes] = functional.one_hot(labels, net.classes) * recipe.strength(images)
        inputs.append(rows)
    for index in range(2):
        layer = net.layers[index]
        if index == 1:  # as the schedule has it: activities of the layer below, computed once
            below = EagerGreedy(net.layers[0].weight, net.layers[0].bias, *inputs, published=False)
            with torch.no_grad():
                inputs = [torch.relu(below.linear(rows)) for rows in below.rows]
        lesson = net.lesson(index, x, torch.cat((y[None], wrong)))
        eager = {
            name: EagerGreedy(layer.weight, layer.bias, inputs[0], inputs[1], name == "published")
            for name in ("published", "careful")
        }
        work = {"ffkern": lambda update=lesson: update(opt), **{name: one.update for name, one in eager.items()}}
        times: dict[str, list[float]] = {name: [] for name in work}
        layer.metrics()
        first = {name: float(one.update()) for name, one in eager.items()}
        lesson(opt)
        ours = layer.metrics()["loss"]
        if any(abs(loss - ours) > 1e-5 * ours for loss in first.values()):
            sys.exit(f"layer {index}: the first losses differ, ffkern {ours}, eager {first}: no time is reported")
        for _ in range(rounds):
            for name, run in work.items():
                times[name].append(clocked(run))
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, value in medians.items():
            total[name] = total.get(name, 0.0) + value
        print(f"layer {index}, CPU s an update: " + ", ".join(f"{n} {v:.3f}" for n, v in medians.items()), flush=True)
    batches = len(images.train_y) // recipe.batch_size
    for name, seconds in total.items():
        whole = seconds * recipe.iterations * batches
        ratio = seconds / total["ffkern"]
        print(f"{name:10} whole schedule {whole / 60:6.1f} CPU min (extrapolated), {ratio:.2f} x ffkern")


# ------------------------------------------------------------ hinton


def hinton(rounds: int) -> None:
    recipe = RECIPES["hinton"].override(epochs=2 * rounds)  # the rate is constant for all of them
    images = recipe.load()
    net = recipe.network(images.inputs, images.classes, recipe.strength(images))
    trainer = recipe.trainer(net, images)
    eager = EagerNetwork(recipe, images, "autograd")
    generator = torch.Generator().manual_seed(0)
    ours = trainer.run(images.train_x, images.train_y)

    def eager_epoch() -> None:
        for x, y in data.batches(images.train_x, images.train_y, recipe.batch_size, generator):
            eager.step(x, y)

    ratios = []
    for epoch in range(1, rounds + 1):
        a = clocked(lambda: next(ours))
        b = clocked(eager_epoch)
        ratios.append(b / a)
        record = trainer.history[-1]
        accuracy = record.head.accuracy if record.head is not None else float("nan")
        print(
            f"epoch {epoch}: ffkern {a:.1f}, eager {b:.1f} CPU s, {b / a:.2f}x; head {100 * accuracy:.1f} %", flush=True
        )
    print(f"median of the ratios {statistics.median(ratios):.2f}x")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schedule", choices=["article", "hinton"])
    parser.add_argument("--rounds", type=int, default=5, help="updates, or epochs, of each (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    {"article": article, "hinton": hinton}[options.schedule](options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
