"""Data sets by name or path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from . import formats, sources
from .dataset import Dataset, stratified
from .fetch import check, home
from .sources import Source

__all__ = ["NAMES", "digits", "load"]

NAMES = ("digits", *sources.SETS)


def load(name: str | Path, folder: str | Path | None = None) -> Dataset:
    """A data set, its images in 0 .. 1.

    Args:
        name: one of NAMES, or the path of an .npz file with the arrays train_x, train_y and, if
            there is a test part, test_x, test_y (see :meth:`Dataset.from_arrays`).
        folder: where data sets are kept; :func:`ffkern.data.folder` by default.

    Raises:
        ValueError: the name is not known, or a file is damaged.
        FileNotFoundError: a file is not there; the text says how to fetch it.
    """
    if name == "digits":
        return digits()
    if name in sources.SETS:
        return _known(sources.SETS[str(name)], folder)
    if str(name).lower().endswith(".npz"):
        return _npz(Path(name).expanduser())
    raise ValueError(
        f"dataset is {str(name)!r}; expected one of {', '.join(map(repr, NAMES))}, or a path to an .npz file"
    )


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
            "the digits data set comes with scikit-learn, which is not installed: run `pip install ffkern[data]`"
        ) from error
    pixels, targets = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float() / 16
    y = torch.from_numpy(targets).long()
    test = stratified(y, 450, seed)
    return Dataset("digits", x[~test], y[~test], x[test], y[test], 10, (1, 8, 8))


def _known(source: Source, folder: str | Path | None) -> Dataset:
    path = home(source.name, folder)
    command = f"`ffkern data fetch {source.name}{'' if folder is None else f' --folder {folder}'}`"
    contents = []
    for file in source.files:
        try:
            contents.append(check(file, (path / file.name).read_bytes(), path / file.name))
        except FileNotFoundError:
            raise FileNotFoundError(f"{source.name} is not in {path.parent}: run {command}") from None
        except ValueError as error:
            raise ValueError(f"{error}. Remove it, and run {command}") from None
    if source.layout == "idx":
        train_x, train_y, test_x, test_y = (
            formats.read_idx(content, file.name) for content, file in zip(contents, source.files, strict=True)
        )
    else:
        parts = [formats.read_cifar_binary(c, f.name) for c, f in zip(contents, source.files, strict=True)]
        train_x, train_y = (np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
        test_x, test_y = parts[-1]
    # CIFAR's rows are channel-planar in the file, as in a Dataset.
    x, y = (torch.from_numpy(a.reshape(len(a), -1).astype(np.float32)).div_(255) for a in (train_x, test_x))
    return Dataset(
        source.name,
        x,
        torch.from_numpy(train_y.astype(np.int64)),
        y,
        torch.from_numpy(test_y.astype(np.int64)),
        source.classes,
        source.shape,
    )


def _npz(path: Path) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; expected an .npz file with train_x and train_y")
    try:
        # NumPy leaves a damaged file open that it opened itself.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            keys = list(archive)
            arrays = {key: archive[key] for key in ("train_x", "train_y", "test_x", "test_y") if key in keys}
    except Exception as error:  # a damaged archive raises many types
        raise ValueError(f"{path} is no readable .npz file: {error}") from None
    if not {"train_x", "train_y"} <= arrays.keys():
        raise ValueError(f"{path} holds {', '.join(keys) or 'nothing'}; expected train_x, train_y, test_x, test_y")
    try:
        return Dataset.from_arrays(**arrays, name=path.stem)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
