"""Checkpoints: whole or not there, checked when read, and never code.

A checkpoint is one file of ``torch.save`` with tensors and plain data alone. It is written aside and renamed, so that a
crash, a full disk or a pulled plug leaves the one before. Reading verifies the checksums of the archive (torch's own
reader does not) and unpickles with ``weights_only=True``, which runs no code from the file.
"""

from __future__ import annotations

import io
import time
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import _files, data
from ._form import like
from ._version import __version__
from .data import Scaling
from .nn import FFNet
from .recipes import Recipe
from .trainer import Callback, EpochRecord, Trainer

__all__ = ["NAME", "Checkpointer", "Saved", "load"]

NAME = "checkpoint.pt"  # in the folder of a run
FORMAT, VERSION = "ffkern checkpoint", 4


@dataclass(frozen=True, eq=False)
class Saved:
    """A run as it was saved: its recipe, its network, and where it stood."""

    path: Path
    recipe: Recipe
    net: FFNet
    scaling: Scaling  # what the network's images go through
    shape: tuple[int, ...]  # of an image: channels, height, width
    threads: int  # CPU threads of the run: others give other roundings
    trainer: dict[str, Any]  # Trainer.state_dict

    @property
    def history(self) -> list[EpochRecord]:
        """The records so far."""
        return [EpochRecord.from_dict(fields) for fields in self.trainer["history"]]

    def data(self) -> data.Dataset:
        """The data of the recipe, scaled as the network was trained even if the files have changed since."""
        images = self.recipe.load(scaled=False)
        if tuple(images.shape) != tuple(self.shape):
            raise ValueError(f"{images.name} has images of {images.shape}; expected {self.shape}, as in training")
        return images.scaled_by(self.scaling)


def _write(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, "ffkern": __version__, **content}, buffer)
    _files.write_whole(path, buffer.getvalue())


def load(path: str | Path) -> Saved:
    """Reads a checkpoint, or that of a run's folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or no checkpoint of this version of ffkern.
    """
    path = Path(path)
    if path.is_dir():
        path = path / NAME
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; expected one that `ffkern train --out FOLDER` wrote")
    content = _read(path)
    try:
        return _saved(path, content)
    except Exception as error:  # whatever becomes of content that no trainer wrote
        raise ValueError(f"{path} is no complete checkpoint of ffkern {__version__}: {_first_line(error)}") from error


def _saved(path: Path, content: dict[str, Any]) -> Saved:
    for part in ("recipe", "network", "scaling", "trainer"):
        if not isinstance(content.get(part), dict):
            raise ValueError(f"{part} is a {type(content.get(part)).__name__}; expected a dict")
    recipe, made, scaling = Recipe.from_dict(content["recipe"]), content["network"], content["scaling"]
    like("network", made, {"inputs": 0, "classes": 0, "label_value": 0.0, "shape": (0, 0, 0)})
    like("threads", content["threads"], 0)
    sizes = made["inputs"], made["classes"], made["label_value"], made["shape"]
    with torch.device("meta"):  # no memory yet: the file may claim any size, but holds the weights only of a true one
        like("net", content["trainer"]["net"], recipe.network(*sizes).state_dict())
    net = recipe.network(*sizes)
    rows, one = torch.empty(0, made["inputs"]), torch.tensor(0.0)
    like("scaling", scaling, {"mean": rows.new_empty(made["inputs"]) if scaling["mean"].dim() else one, "scale": one})
    labels, shape = torch.empty(0, dtype=torch.int64), tuple(made["shape"])
    fitted = Scaling(scaling["mean"], scaling["scale"], recipe.dtype)
    nothing = data.Dataset("", rows, labels, rows, labels, made["classes"], shape, scaling=fitted)
    recipe.trainer(net, nothing).load_state_dict(content["trainer"])
    if content["threads"] < 1:
        raise ValueError(f"threads is {content['threads']}; expected at least 1")
    return Saved(path, recipe, net, fitted, shape, content["threads"], content["trainer"])


def _read(path: Path) -> dict[str, Any]:
    source = io.BytesIO(path.read_bytes())  # once: what is checked is what is read
    try:
        with zipfile.ZipFile(source) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        source.seek(0)
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers of zip and pickle make of hostile bytes
        raise ValueError(f"{path} is damaged or no checkpoint: {_first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of ffkern; expected one that `ffkern train --out FOLDER` wrote")
    version = content.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"{path} has version {str(version)[:20]}, written by ffkern {str(content.get('ffkern'))[:20]}; expected "
            f"version {VERSION}, which ffkern {__version__} reads"
        )
    return content


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__} {text[:200]}" if isinstance(error, KeyError) or not text else text[:200]


class Checkpointer(Callback):
    """Saves a run: at its start, every so many seconds, and when it ends or is stopped.

    A save that fails on the way is a warning: the run goes on, the checkpoint before it stays. At the start and at the
    end it is an error.

    Args:
        path: the file.
        recipe: of the run.
        images: of the run.
        every: seconds between saves.
    """

    def __init__(self, path: Path, recipe: Recipe, images: data.Dataset, every: float = 30.0) -> None:
        self.path, self.every = path, every
        self._fixed = {
            "recipe": recipe.as_dict(),
            "network": {
                "inputs": images.inputs,
                "classes": images.classes,
                "label_value": recipe.strength(images),
                "shape": images.shape,
            },
            "scaling": {"mean": images.scaling.mean, "scale": images.scaling.scale},
        }
        self._last = 0.0

    def save(self, trainer: Trainer) -> None:
        """Writes the checkpoint now."""
        _write(self.path, {**self._fixed, "threads": torch.get_num_threads(), "trainer": trainer.state_dict()})
        self._last = time.monotonic()

    def on_start(self, trainer: Trainer) -> None:
        self.save(trainer)

    def on_update(self, trainer: Trainer) -> None:
        if time.monotonic() - self._last < self.every:
            return
        try:
            self.save(trainer)
        except OSError as error:
            self._last = time.monotonic()
            warnings.warn(f"the checkpoint was not saved, the one before it stays: {error}", stacklevel=2)

    def on_end(self, trainer: Trainer) -> None:
        self.save(trainer)
