"""Data sets as tensors in memory: training, validation and test part, float32 rows, int64 labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["SCALINGS", "Dataset", "Scaling", "batches", "shift", "stratified"]

SCALINGS = ("none", "mean-image", "mean")
CHANNELS = (1, 3, 4)


@dataclass(frozen=True, eq=False)
class Scaling:
    """x becomes (x - mean) / scale, rounded to dtype; mean is [K] or one number, scale one number."""

    mean: Tensor
    scale: Tensor
    dtype: torch.dtype = torch.float32

    @classmethod
    def fit(cls, x: Tensor, how: str, dtype: torch.dtype = torch.float32) -> Scaling:
        """Statistics of the rows of x, [N, K].

        Args:
            how: "mean-image": the mean of each pixel and one standard deviation for all pixels, so
                that a constant pixel stays 0. "mean": one mean and one standard deviation. "none":
                no scaling.
            dtype: of the scaled rows.

        Raises:
            ValueError: x has no spread to divide by, or how is not known.
        """
        if how not in SCALINGS:
            raise ValueError(f"how is {how!r}; expected one of {', '.join(map(repr, SCALINGS))}")
        if how == "none":
            return cls(torch.tensor(0.0), torch.tensor(1.0), dtype)
        mean = x.mean(0) if how == "mean-image" else x.mean()
        scale = (x - mean).square_().mean().sqrt()
        if not (scale > 0 and scale.isfinite()):
            raise ValueError(
                f"x has a standard deviation of {scale.item():g} around its {how}; expected more than 0, and finite"
            )
        return cls(mean, scale, dtype)

    @property
    def identity(self) -> bool:
        """Whether :meth:`apply` changes no float32 rows."""
        return self.dtype == torch.float32 and self._unscaled

    @property
    def _unscaled(self) -> bool:
        return not bool(self.mean.any()) and bool((self.scale == 1).all())

    def apply(self, x: Tensor) -> Tensor:
        """Scaled rows; x itself where nothing is to be done."""
        if not self._unscaled:
            x = (x - self.mean.to(x.device)).div_(self.scale.to(x.device))
        return x.to(self.dtype)


IDENTITY = Scaling(torch.tensor(0.0), torch.tensor(1.0))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as rows, [N, K] float32 until they are scaled, and their labels, [N] int64 in 0 .. classes - 1.

    The pixels of a row are in the order of `shape`, (channels, height, width): all of the first
    channel come first. Plain vectors have the shape (1, 1, K). `scaling` is what the rows went
    through since they were in 0 .. 1.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    shape: tuple[int, int, int] = ()  # type: ignore[assignment]  # filled in below
    valid_x: Tensor | None = None
    valid_y: Tensor | None = None
    scaling: Scaling = IDENTITY

    def __post_init__(self) -> None:
        if not self.shape:
            object.__setattr__(self, "shape", (1, 1, self.inputs))
        if len(self.shape) != 3 or math.prod(self.shape) != self.inputs:
            raise ValueError(f"shape is {self.shape}; expected (channels, height, width) of {self.inputs} pixels")

    @property
    def inputs(self) -> int:
        """Inputs of one image."""
        return self.train_x.shape[1]

    @classmethod
    def from_arrays(
        cls,
        train_x: np.ndarray[Any, Any] | Tensor,
        train_y: np.ndarray[Any, Any] | Tensor,
        test_x: np.ndarray[Any, Any] | Tensor | None = None,
        test_y: np.ndarray[Any, Any] | Tensor | None = None,
        *,
        name: str = "arrays",
        classes: int | None = None,
    ) -> Dataset:
        """A data set from NumPy arrays or tensors, which are copied.

        Args:
            train_x: [N, K], [N, H, W] or [N, H, W, C] with 1, 3 or 4 channels. uint8 is divided by
                255, bool gives 0 and 1, floating-point numbers stay as they are.
            train_y: [N] integers from 0.
            test_x: the same for the test part, which may be missing.
            test_y: its labels.
            classes: how many there are; by default the largest label and one.

        Raises:
            TypeError: something is not an array, or of a dtype that has no meaning here.
            ValueError: an array is empty, of another shape, not finite, or a label out of range.
        """
        if (test_x is None) != (test_y is None):
            given, lacking = ("test_x", "test_y") if test_y is None else ("test_y", "test_x")
            raise ValueError(f"{given} is given without {lacking}; expected both or neither")
        x, shape = _rows("train_x", train_x)
        y = _labels("train_y", train_y, len(x))
        tx, ty = x.new_empty(0, x.shape[1]), y.new_empty(0)
        if test_x is not None:
            tx, test_shape = _rows("test_x", test_x)
            if test_shape != shape:
                raise ValueError(f"test_x has images of {test_shape}; expected {shape} as in train_x")
            ty = _labels("test_y", test_y, len(tx))
        largest = int(torch.cat((y, ty)).max())
        if classes is None:
            classes = largest + 1
        elif isinstance(classes, bool) or not isinstance(classes, int) or classes <= largest:
            raise ValueError(
                f"classes is {classes!r}; expected an integer of at least {largest + 1}, as the labels need"
            )
        return cls(name, x, y, tx, ty, classes, shape)

    def scaled(self, how: str, dtype: torch.dtype = torch.float32) -> Dataset:
        """All parts scaled by the statistics of the training part alone (:meth:`Scaling.fit`)."""
        return self.scaled_by(Scaling.fit(self.train_x, how, dtype))

    def scaled_by(self, scaling: Scaling) -> Dataset:
        """All parts scaled by given statistics, those of an earlier training for instance."""
        if scaling.identity:
            return self
        if not self.scaling.identity:
            raise ValueError("the images are scaled already; expected a data set as it was loaded")
        return replace(
            self,
            train_x=scaling.apply(self.train_x),
            test_x=scaling.apply(self.test_x),
            valid_x=None if self.valid_x is None else scaling.apply(self.valid_x),
            scaling=scaling,
        )

    def held_out(self, count: int, seed: int = 0) -> Dataset:
        """Moves `count` training images, each class in proportion, to the validation part.

        The others keep their order. Hold out before scaling: the statistics must not have seen
        the validation images.
        """
        total = len(self.train_y)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < total:
            raise ValueError(f"count is {count!r}; expected an integer from 1 to {total - 1}")
        if self.valid_x is not None or not self.scaling.identity:
            state = "has a validation part" if self.valid_x is not None else "is scaled"
            raise ValueError(f"the data set {state} already; expected one as it was loaded")
        chosen = stratified(self.train_y, count, seed)
        return replace(
            self,
            train_x=self.train_x[~chosen],
            train_y=self.train_y[~chosen],
            valid_x=self.train_x[chosen],
            valid_y=self.train_y[chosen],
        )


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


def shift(
    x: Tensor,
    shape: tuple[int, int, int],
    reach: int,
    generator: torch.Generator,
    fill: float = 0.0,
) -> Tensor:
    """Every image moved by its own random number of pixels, down and to the right.

    Args:
        x: [N, K].
        shape: (channels, height, width) of a row; its product is K.
        reach: both distances are drawn from -reach .. reach; 0 returns x.
        generator: on the device of x.
        fill: what uncovered pixels become.
    """
    if isinstance(reach, bool) or not isinstance(reach, int) or reach < 0:
        raise ValueError(f"reach is {reach!r}; expected an integer of at least 0")
    if len(shape) != 3 or x.dim() != 2 or math.prod(shape) != x.shape[1]:
        raise ValueError(f"shape is {tuple(shape)} and x is {list(x.shape)}; expected (C, H, W) and [N, C * H * W]")
    if reach == 0:
        return x
    channels, height, width = shape
    # One gather from images with a margin: index = row start + column.
    padded = torch.nn.functional.pad(x.view(-1, channels, height, width), (reach,) * 4, value=fill).flatten(2)
    moved = torch.randint(0, 2 * reach + 1, (x.shape[0], 2, 1), generator=generator, device=x.device)
    rows = (moved[:, 0] + torch.arange(height, device=x.device)) * (width + 2 * reach)
    columns = moved[:, 1] + torch.arange(width, device=x.device)
    index = (rows[:, :, None] + columns[:, None, :]).flatten(1)[:, None].expand(-1, channels, -1)
    return padded.gather(2, index).flatten(1)


# -------------------------------------------------------------------- arrays


def _rows(name: str, given: np.ndarray[Any, Any] | Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Rows [N, K] in float32 with their shape."""
    dims = list(given.shape) if isinstance(given, (np.ndarray, Tensor)) else []
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in "fb" and given.dtype != np.uint8:
            raise TypeError(f"{name} is {given.dtype}; expected uint8, bool or floating-point numbers")
        if given.dtype.kind == "f":
            with np.errstate(over="ignore"):  # an infinity is reported below
                x = torch.from_numpy(np.array(given, np.float32, order="C"))
        else:  # from_numpy warns of arrays that cannot be written
            x = torch.from_numpy(np.array(given, order="C")).float()
    elif isinstance(given, Tensor):
        if given.dtype not in (torch.uint8, torch.bool) and not given.is_floating_point():
            raise TypeError(f"{name} is {_short(given.dtype)}; expected uint8, bool or floating-point numbers")
        x = given.detach().to("cpu", torch.float32, copy=True)
    else:
        raise TypeError(f"{name} is a {type(given).__name__}; expected a NumPy array or a tensor")
    if len(dims) not in (2, 3, 4) or (len(dims) == 4 and dims[3] not in CHANNELS):
        raise ValueError(
            f"{name} has shape {dims}; expected [N, K], [N, H, W], or [N, H, W, C] with 1, 3 or 4 channels, which "
            "come last"
        )
    if 0 in dims:
        raise ValueError(f"{name} has shape {dims}; expected at least one image of at least one pixel")
    if given.dtype in (np.uint8, torch.uint8):
        x = x.div_(255)
    elif not bool(x.isfinite().all()):
        row = int((~x.flatten(1).isfinite().all(1)).nonzero()[0])
        raise ValueError(f"{name}[{row}] holds NaN or a number beyond float32; expected finite numbers")
    shape = (1, 1, dims[1]) if len(dims) == 2 else (dims[3] if len(dims) == 4 else 1, dims[1], dims[2])
    if len(dims) == 4:
        x = x.permute(0, 3, 1, 2)
    return x.reshape(dims[0], -1).contiguous(), shape


def _labels(name: str, given: np.ndarray[Any, Any] | Tensor | None, rows: int) -> Tensor:
    """Labels [N] in int64."""
    if isinstance(given, Tensor):
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"{name} is {_short(given.dtype)}; expected integers")
        given = given.detach().cpu().numpy()
    if not isinstance(given, np.ndarray):
        raise TypeError(f"{name} is a {type(given).__name__}; expected a NumPy array or a tensor")
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name} is {given.dtype}; expected integers")
    if list(given.shape) != [rows]:
        raise ValueError(f"{name} has shape {list(given.shape)}; expected [{rows}], one label for each image")
    low, high = int(given.min()), int(given.max())
    if low < 0 or high > torch.iinfo(torch.int64).max:
        raise ValueError(f"{name} holds {low if low < 0 else high}; expected labels from 0")
    return torch.from_numpy(given.astype(np.int64))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
