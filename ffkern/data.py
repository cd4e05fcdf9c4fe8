"""Data sets as tensors in memory: training and test part, float32 rows, int64 labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Dataset", "batches", "digits"]


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

    def standardised(self) -> Dataset:
        """Minus the mean training image, divided by the standard deviation of all its pixels.

        One number divides all pixels, so that a constant one stays 0. The test part gives no
        statistics.
        """
        mean = self.train_x.mean(0)
        centred = self.train_x - mean
        scale = centred.square().mean().sqrt()
        return replace(self, train_x=centred / scale, test_x=(self.test_x - mean) / scale)


def digits(seed: int = 0) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, scaled to 0 .. 1; no download.

    Args:
        seed: of the split into 1,347 training and 450 test images, which keeps the shares of the
            classes.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits data set comes with scikit-learn, which is not installed: run `pip install ffkern[digits]`"
        ) from error
    pixels, targets = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float() / 16
    y = torch.from_numpy(targets).long()
    test = stratified(y, 450, seed)
    return Dataset("digits", x[~test], y[~test], x[test], y[test], 10)


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Marks `count` rows, chosen at random with each class in proportion: bool [N].

    Each class gives its share rounded down; what is missing comes one each from the classes with
    the largest remainders (the lower class first).
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


def batches(x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order; the last batch may be smaller.

    The order is drawn on the device of the data, where the generator must live: equal generator
    states give equal batches.
    """
    order = torch.randperm(x.shape[0], generator=generator, device=x.device)
    for rows in order.split(size):
        yield x.index_select(0, rows), y.index_select(0, rows)
