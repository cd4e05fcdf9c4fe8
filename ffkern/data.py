"""Data sets as tensors in memory: training and test part, float32 rows, int64 labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Dataset", "batches", "digits", "fold"]


@dataclass(frozen=True)
class Dataset:
    """Images as rows, [N, K] float32, and their labels, [N] int64 in 0 .. classes - 1."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    @property
    def inputs(self) -> int:
        """Inputs of one image."""
        return self.train_x.shape[1]


def digits(seed: int = 0) -> Dataset:
    """The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn (no download), scaled to 0 .. 1.

    Args:
        seed: of the split into 1,347 training and 450 test images, which keeps the shares of the classes.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits data set comes with scikit-learn, which is not installed: "
            "run `pip install ffkern[digits]`"
        ) from error
    pixels, targets = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float() / 16
    y = torch.from_numpy(targets).long()
    test = stratified(y, 450, seed)
    return Dataset("digits", x[~test], y[~test], x[test], y[test], 10)


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Marks `count` rows, chosen at random with each class in proportion: bool [N].

    Each class gives its share rounded down; what is missing comes one each from the classes with the largest
    remainders (the lower class first).
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(labels.shape[0], generator=generator)
    order = order[labels[order].argsort(stable=True)]  # by class, at random within
    sizes = labels.bincount()
    share = sizes.double() * count / labels.shape[0]
    take = share.floor().long()
    extra = (share - take).argsort(descending=True, stable=True)[: count - int(take.sum())]
    take[extra] += 1
    place = torch.arange(labels.shape[0]) - (sizes.cumsum(0) - sizes)[labels[order]]
    chosen = torch.zeros(labels.shape[0], dtype=torch.bool)
    chosen[order[place < take[labels[order]]]] = True
    return chosen


def fold(data: Dataset, index: int, folds: int = 4, seed: int = 0) -> Dataset:
    """One fold of a cross-validation inside the training part: its test part is validation data.

    The test part of ``data`` takes no part: settings chosen on folds have not seen it.
    """
    if not 0 <= index < folds:
        raise ValueError(f"index is {index}; expected 0 to {folds - 1}, one of the {folds} folds")
    count = data.train_y.shape[0]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    order = order[data.train_y[order].argsort(stable=True)]
    held = torch.zeros(count, dtype=torch.bool)
    held[order[index::folds]] = True
    return Dataset(
        f"{data.name}, fold {index + 1} of {folds}",
        data.train_x[~held],
        data.train_y[~held],
        data.train_x[held],
        data.train_y[held],
        data.classes,
    )


def batches(x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order, as views of one shuffled copy. The last batch may be smaller.

    The order is drawn on the generator's device: two runs with the same generator state see the same batches.
    """
    order = torch.randperm(x.shape[0], generator=generator, device=generator.device).to(x.device)
    yield from zip(x[order].split(size), y[order].split(size), strict=True)
