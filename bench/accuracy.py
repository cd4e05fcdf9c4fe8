"""What bfloat16 costs in accuracy: training in float32 and in bfloat16, and answers of one network in both.

python -m bench.accuracy train hinton --epochs 20 --seeds 0,1,2 --out runs/accuracy
python -m bench.accuracy predict runs/hinton

`train`: a recipe, seed after seed, in both precisions; all else is equal, and each network is tested on images like
those it learnt from. Every run leaves a file in the folder; those that are there are not trained again.

`predict`: a network that was trained in float32 answers for the test images in both. Where another label wins, its
distance to the old winner, in float32, is held against what :func:`rounding_errors` says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffkern import checkpoint
from ffkern._files import write_whole
from ffkern.nn import FFNet
from ffkern.recipes import RECIPES, Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
UNIT = 2.0**-8  # largest relative error of rounding to bfloat16, which has 8 significant bits


# ------------------------------------------------------------ training


def run(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Test errors of one run, from its file if there is one. The file of another run ends the program."""
    path = folder / f"{recipe.name}-{recipe.seed}-{recipe.precision}.json"
    settings = {"recipe": recipe.as_dict(), "threads": torch.get_num_threads()}
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text())
        if other := [name for name, value in settings.items() if known[name] != value]:
            sys.exit(f"{path} is of a run with another {', '.join(other)}; expected another folder (--out)")
        return known["test"]
    images = recipe.load()
    net = recipe.network(images.inputs, images.classes, recipe.strength(images))
    trainer = recipe.trainer(net, images)
    seconds = trainer.fit(images.train_x, images.train_y).seconds
    tested = trainer.evaluate(images.test_x, images.test_y)
    folder.mkdir(parents=True, exist_ok=True)
    found = {**settings, "torch": torch.__version__, "seconds": seconds, "test": tested}
    write_whole(path, json.dumps(found, indent=2) + "\n")
    return tested


def train(recipe: Recipe, seeds: Sequence[int], folder: Path) -> None:
    errors: dict[str, list[dict[str, float]]] = {dtype: [] for dtype in DTYPES}
    for seed in seeds:
        for dtype in DTYPES:
            errors[dtype].append(run(recipe.override(seed=seed, precision=dtype), folder))
            shown = ", ".join(f"{name} {100 * value:.2f} %" for name, value in errors[dtype][-1].items())
            print(f"{recipe.name}, seed {seed}, {dtype}: {shown}", flush=True)
    print(f"\n| test error | {' | '.join(DTYPES)} | difference of the means, points |\n|---|---:|---:|---:|")
    for name in errors["float32"][0]:
        cells, means = [], []
        for of_dtype in errors.values():
            values = [100 * tested[name] for tested in of_dtype]
            means.append(statistics.mean(values))
            cells.append(f"{means[-1]:.2f} % ({', '.join(f'{v:.2f}' for v in values)})")
        print(f"| {name} | {' | '.join(cells)} | {means[1] - means[0]:+.2f} |")


# ------------------------------------------------------------ answers


def _chord(sine: Tensor) -> Tensor:
    """Distance of two unit vectors whose angle has at most this sine and is at most a right one."""
    return (2 - 2 * (1 - sine.clamp(max=1).square()).sqrt()).sqrt()


@torch.no_grad()
def rounding_errors(net: FFNet, images: Tensor, goodness: Tensor) -> tuple[Tensor, Tensor]:
    """How much a goodness, summed over layers, changes when all operands of the products become bfloat16.

    Lengths are Euclidean, ||.|| of a matrix its largest singular value, u = 2^-8. A layer computes
    h = relu(W x' + b) from x' = r x of length k: sqrt(K) ("rms") or 1 ("l2"). With operands rounded it has x' + d and
    W + D in their place; D is known, and say ||d|| <= p k. ReLU moves no two vectors apart, so h is off by at most

        e = k (||D|| (1 + p) + ||W|| p)    and ||h||^2 by at most 2 ||h|| e + e^2.

    Vectors that differ by e, one of them ||h|| long, have an angle of sine <= e / ||h||, and as activities are not
    negative at most a right one. Divided by their lengths they differ by its chord. Rounding for the next product adds
    u of the length, so the next layer has p = chord(e / ||h||) + u; the first has chord(||x rounded - x|| / ||x||), the
    label being exact. Float32 sums are taken to be exact: their rounding is some hundred times smaller.

    This bounds all errors in their worst directions at once, and grows by ||W|| k / ||h|| a layer. Independent
    roundings have no direction: a matrix then stretches d by ||W||_F / sqrt(K) (Frobenius norm), e meets h under an
    arbitrary angle, and squares add up:

        e^2 = k^2 (||D||_F^2 + ||W||_F^2 p^2) / K    and ||h||^2 off by 2 ||h|| e / sqrt(M), root mean square.

    Trained weights do have directions: the true root mean square is 0.3 to 1.7 times this on the recipes' networks.

    Args:
        images: float32 [N, K], with room for the label. goodness: [L, N, C] in float32.

    Returns:
        The bound, and the root mean square to expect; float64 [N, C] both.

    Raises:
        ValueError: rows are not normalised, or goodness is no sum or mean of squares.
    """
    first = net.layers[0]
    if first.norm not in ("rms", "l2") or first.goodness not in ("sum_sq", "mean_sq"):
        raise ValueError(
            f"norm is {first.norm!r} and goodness {first.goodness!r}; expected 'rms' or 'l2', and 'sum_sq' or 'mean_sq'"
        )
    rest = images[:, net.classes :].double()
    length = (rest.square().sum(1) + float(net.overlay[0]) ** 2).sqrt()
    most = typical = _chord(((rest - rest.bfloat16().double()).norm(dim=1) / length)[:, None])
    bound, square = (torch.zeros(goodness.shape[1:], dtype=torch.float64) for _ in range(2))
    for layer, found in zip(net.layers, goodness.double(), strict=True):
        units, inputs = layer.weight.shape
        weight = layer.weight.double()
        rounding = weight - layer.weight.bfloat16().double()
        longest = inputs**0.5 if layer.norm == "rms" else 1.0
        share = 1.0 if layer.goodness == "sum_sq" else 1 / units
        active = (found / share).sqrt()

        error = longest * (_stretch(rounding) * (1 + most) + _stretch(weight) * most)
        bound += share * (2 * active * error + error.square())
        most = _chord(error / active) + UNIT

        error = longest * ((rounding.norm().square() + (weight.norm() * typical).square()) / inputs).sqrt()
        square += (share * 2 * active * error).square() / units
        typical = ((error / active).clamp(max=1).square() + UNIT**2 / 3).sqrt()
    return bound, square.sqrt()


def _stretch(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


def predict(path: str) -> None:
    saved = checkpoint.load(path)
    if saved.recipe.precision != "float32":
        sys.exit(f"{path} was trained in {saved.recipe.precision}; expected a run in float32")
    net, data = saved.net, saved.data()
    goodness = net.goodness(data.test_x)
    exact, rounded = (g.sum(0).double() for g in (goodness, net.goodness(data.test_x.bfloat16())))
    bound, typical = rounding_errors(net, net._images(data.test_x), goodness)
    off = (rounded - exact).abs()
    old, new = exact.argmax(1), rounded.argmax(1)
    flips = (old != new).nonzero()[:, 0]
    errors = [100 * float((winner != data.test_y).double().mean()) for winner in (old, new)]
    largest = float((off / exact.amax(1, keepdim=True)).max())
    expected = float((off.square().mean() / typical.square().mean()).sqrt())
    print(
        f"{path}: {len(flips)} of {len(old)} winners differ; test error {errors[0]:.2f} % and {errors[1]:.2f} %.\n"
        f"Error of a goodness: at most {largest:.2g} of the winner's goodness, root mean square {expected:.2g} of what "
        f"is to be expected, at most {float((off / bound).max()):.2g} of its bound."
    )
    if not len(flips):
        return
    print("\n| image | true | float32 | bfloat16 | margin in float32 | error to expect | bound |")
    print("|---|---|---|---|---:|---:|---:|")
    for i in flips.tolist():
        pair = [int(old[i]), int(new[i])]
        margin, limit = float(exact[i, pair[0]] - exact[i, pair[1]]), float(bound[i, pair].sum())
        verdict = "" if margin <= limit else ", EXCEEDED"
        labels = f"{int(data.test_y[i])} | {pair[0]} | {pair[1]}"
        print(f"| {i} | {labels} | {margin:.3g} | {float(typical[i, pair].norm()):.3g} | {limit:.3g}{verdict} |")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    one.add_argument("recipe", choices=list(RECIPES))
    one.add_argument("--epochs", type=int, help="default: those of the recipe")
    one.add_argument("--seeds", default="0,1,2")
    one.add_argument("--out", type=Path, required=True, help="folder of the results")
    one = commands.add_parser("predict")
    one.add_argument("runs", nargs="+", help="folders that `ffkern train --out` wrote")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.command == "train":
        recipe = RECIPES[options.recipe]
        recipe = recipe if options.epochs is None else recipe.override(epochs=options.epochs)
        train(recipe, [int(seed) for seed in options.seeds.split(",")], options.out)
    else:
        for path in options.runs:
            predict(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
