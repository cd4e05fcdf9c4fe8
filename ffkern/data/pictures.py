"""Pictures and arrays from a person's disk as rows that a network takes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["read_pictures"]

LIGHT = 0.5  # mean of a border from which on it counts as light
LARGEST = 100_000_000  # pixels of a picture


def read_pictures(path: Path, shape: Sequence[int], invert: bool | None = None) -> tuple[Tensor, list[str]]:
    """Rows of 0 .. 1 and, in words, what was done to make the file fit.

    Args:
        path: an image file, or an .npy array [H, W], [K] or a stack [N, H, W], [N, H, W, C], [N, K]. uint8 is divided
            by 255; other numbers stay.
        shape: (channels, height, width) of the network's images.
        invert: swap light and dark; None decides for pictures of one channel by their border, which is dark in the
            data sets of digits and clothes.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it cannot be read or made to fit.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    rows, changes = _array(path, shape) if path.suffix == ".npy" else _picture(path, shape)
    if invert is None and path.suffix != ".npy" and shape[0] == 1 and shape[1] > 2:
        image = rows[0].reshape(shape[1], shape[2])
        border = torch.cat((image[0], image[-1], image[1:-1, 0], image[1:-1, -1]))
        invert = bool(border.mean() > LIGHT)
        if invert:
            changes.append("dark on light, so light and dark were swapped (--no-invert keeps them)")
    return (1 - rows if invert else rows), changes


def _array(path: Path, shape: Sequence[int]) -> tuple[Tensor, list[str]]:
    try:
        with path.open("rb") as file:
            values = np.load(file, allow_pickle=False)
    except Exception as error:  # whatever NumPy makes of hostile bytes
        raise ValueError(f"{path} is no .npy array without objects: {_first_line(error)}") from error
    channels, height, width = shape
    pixels = channels * height * width
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif" or values.size == 0:
        raise ValueError(
            f"{path} holds {getattr(values, 'dtype', type(values).__name__)}; expected a filled array of numbers"
        )
    if values.shape in ((height, width), (height, width, channels), (pixels,)):
        values = values[None]
    if values.ndim == 4 and values.shape[1:] == (height, width, channels):
        values = values.transpose(0, 3, 1, 2)
    if values.shape[1:] not in ((pixels,), (channels, height, width), (height, width)) or values[0].size != pixels:
        raise ValueError(f"{path} has shape {list(values.shape)}; expected [N, {height}, {width}] or [N, {pixels}]")
    flat = np.ascontiguousarray(values.reshape(len(values), pixels))
    with np.errstate(over="ignore"):  # an infinity is reported below
        flat32 = flat.astype(np.float32)
    rows = torch.from_numpy(flat32) / (255 if values.dtype == np.uint8 else 1)
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{path} holds NaN or infinity; expected finite numbers")
    return rows, []


def _picture(path: Path, shape: Sequence[int]) -> tuple[Tensor, list[str]]:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "pictures need Pillow: run `pip install ffkern[data]`, or give .npy arrays"
        ) from error
    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"{path} is a picture, and the network takes {channels} channels; expected an .npy array")
    changes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                if opened.width * opened.height > LARGEST:
                    raise ValueError(f"it has {opened.width} x {opened.height} pixels")
                picture = _of_bytes(opened).convert("RGBA")
            paper = Image.new("RGBA", picture.size, "white")  # behind what is transparent
            picture = Image.alpha_composite(paper, picture).convert("L" if channels == 1 else "RGB")
            if picture.size != (width, height):
                changes.append(f"resized from {picture.width} x {picture.height} to {width} x {height}")
                picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    except Exception as error:  # whatever Pillow makes of hostile bytes
        raise ValueError(f"{path} cannot be read as a picture: {_first_line(error)}") from error
    values = np.asarray(picture, dtype=np.float32).reshape(height, width, channels) / 255
    return torch.from_numpy(values.transpose(2, 0, 1).reshape(1, -1).copy()), changes


def _of_bytes(picture: Any) -> Any:
    """The picture with 8 bits a channel; Pillow would cut larger numbers off instead of scaling them."""
    from PIL import Image

    if picture.mode == "F":
        raise ValueError("it holds floating-point numbers; expected an .npy array of them")
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("it holds numbers of more than 16 bits; expected 8 or 16")
    return Image.fromarray((values // 256).astype(np.uint8))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
