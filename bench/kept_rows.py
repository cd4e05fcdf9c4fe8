"""How many rows still teach while a recipe trains: what `row_tolerance` leaves out of the weight products.

python -m bench.kept_rows hinton --epochs 20 --at 1,2,4,8,12,16,20 --threads 1

After each of these epochs the training images go through the network in mini-batches, with hard negatives of its own,
and every row's part of dW is held against the rule of csrc/cpu/lessons.h. Computed by `ffkern.reference`, in plain
torch: independent of the kernels, and nothing learns from it.

    product             share of the rows of the weight product that it keeps: images in the first layer, whose
                        variants are one row, else rows
    positive, negative  share of the rows with the right and with a wrong label whose own part is above the limit
    ..., zero           share of the same rows with a coefficient of exactly 0 in float32
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from ffkern import data, optim
from ffkern import reference as ref
from ffkern.nn import FFNet
from ffkern.recipes import RECIPES

ROWS = ("product", "positive", "negative")
COLUMNS = (*ROWS, *(f"{name}, zero" for name in ROWS))


def _pass(net: FFNet, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """h, goodness, scale, norm of h and norm of the input, of layer after layer, for one label an image."""
    rows, norm = ref.overlay_label(images, labels, net.classes, net.overlay), None
    given = images[:, net.classes :].norm(dim=1)  # label inputs are no part of the product
    for layer in net.layers:
        rows, goodness, scale, norm = ref.layer_forward(
            rows, layer.weight, layer.bias, norm, layer.norm, layer.eps, layer.goodness
        )
        yield rows, goodness, scale, norm, given
        given = norm


def _hard_labels(net: FFNet, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    seen = list(_pass(net, images, torch.full_like(labels, -1)))
    h, norms = zip(*((seen[i][0], seen[i][3]) for i in net.head_layers), strict=True)
    logits = ref.head_forward(h, norms, net.head.weight, net.head.bias, net.head.norm, net.head.eps)
    return ref.hard_labels(logits, labels, torch.rand(len(labels), generator=generator))


def _kept(value: Tensor, variants: int, tolerance: float) -> Tensor:
    """Shares of ROWS above the limit; value [2 N] of the positive and the negative rows."""
    part = value.view(2, -1)
    product = part.sum(0) if variants == 2 else value
    limit = tolerance * value.sum() / len(product)
    return torch.stack([(rows > limit).double().mean() for rows in (product, *part)])


def kept_rows(net: FFNet, images: Tensor, labels: Tensor, negatives: Tensor, tolerance: float) -> Tensor:
    """Shares of one mini-batch, float64 [layers, COLUMNS]; every layer's goodness is a sum or mean of squares.

    Args:
        images: [N, K] with room for the label. labels, negatives: int64 [N], the right labels and wrong ones.
        tolerance: that of the rule.
    """
    result = []
    sign = torch.tensor([1.0, -1.0]).repeat_interleave(len(labels))
    passes = zip(net.layers, _pass(net, images, labels), _pass(net, images, negatives), strict=True)
    for index, (layer, *both) in enumerate(passes):
        _, goodness, scale, norm, given = (torch.cat(parts) for parts in zip(*both, strict=True))
        # Like the kernels: float64 within a row, a float32 coefficient.
        coef = ref.local_loss(goodness.double(), sign, None, layer.threshold, layer.temperature)[1].float().abs()
        mass = coef.double() * norm * scale * given  # times |dg/dh / h|, the same for all rows
        variants = 2 if index == 0 else 1
        result.append(torch.cat((_kept(mass, variants, tolerance), 1 - _kept(coef, variants, 0.0))))
    return torch.stack(result)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=[r.name for r in RECIPES.values() if r.negatives == "hard"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--at", default="1,2,4,8,12,16,20", help="epochs after which to count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    recipe = RECIPES[options.recipe].override(epochs=options.epochs, seed=options.seed)
    images = recipe.load()
    net = recipe.network(images.inputs, images.classes, recipe.strength(images))
    trainer = recipe.trainer(net, images)
    at = [int(epoch) for epoch in options.at.split(",")]
    print("| epoch | layer | " + " | ".join(COLUMNS) + " |\n|---|---|" + "---:|" * len(COLUMNS), flush=True)
    for record in trainer.run(images.train_x, images.train_y):
        if record.epoch not in at:
            continue
        generator = torch.Generator().manual_seed(options.seed)
        shares = []
        for x, y in data.batches(images.train_x, images.train_y, recipe.batch_size, generator):
            with torch.no_grad():
                wrong = _hard_labels(net, x, y, generator)
                shares.append(kept_rows(net, x, y, wrong, optim.ROW_TOLERANCE))
        for index, layer in enumerate(torch.stack(shares).mean(0).tolist()):
            print(f"| {record.epoch} | {index} | " + " | ".join(f"{100 * s:.1f} %" for s in layer) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
