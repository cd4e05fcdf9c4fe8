"""A recipe trained into a folder: what ``ffkern train`` and ``ffkern reproduce`` have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch
import typer

from .. import checkpoint, data
from .._files import write_whole
from .._info import machine
from .._version import __version__
from ..callbacks import Claim, CSVLog, EarlyStop, Interruptible, Progress, TensorBoard
from ..recipes import Recipe
from ..trainer import Callback, History, Trainer
from ._say import complain

__all__ = ["INTERRUPTED", "RESULT", "TABLE", "Outcome", "check_json", "diverged", "keep", "use_threads"]

INTERRUPTED = 130  # exit code of a run that Ctrl-C stopped, as shells know it
RESULT, TABLE, BOARD = "result.json", "metrics.csv", "tensorboard"  # in the folder of a run


@dataclass(frozen=True)
class Outcome:
    """A run that is over."""

    trainer: Trainer
    result: dict[str, Any]  # what result.json holds
    unsaved: OSError | None  # why its folder does not hold the end of it
    interrupted: bool  # during its very last update


def keep(
    chosen: Recipe,
    images: data.Dataset,
    folder: Path | None,
    saved: checkpoint.Saved | None = None,
    *,
    command: str,
    again: str,
    save_every: float = 30.0,
    csv: bool = False,
    tensorboard: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Trains a recipe, on its images, from the start or from where it was saved; evaluates it and writes its result.

    Args:
        folder: of the run, made if missing; None keeps nothing.
        command: that gives this run, for its result. again: what goes on with it, for a user who interrupts it.
        save_every, csv, tensorboard, quiet: options of ``ffkern train``. Logs that are there are written on.
        callbacks: called before the others.

    Raises:
        typer.Exit: it was interrupted, and saved.
        ValueError: the recipe does not fit the images, or the images are not those of the saved run.
        OSError: the folder cannot be written.
    """
    if chosen.patience and images.valid_x is None:
        raise ValueError(f"patience is {chosen.patience}; expected held-out images to watch (--held-out)")
    net = chosen.network(images.inputs, images.classes, chosen.strength(images), images.shape)
    interruptible = Interruptible()
    watching = list(callbacks)
    if chosen.patience:
        watching.append(EarlyStop(chosen.patience, "error_softmax" if chosen.label == "none" else "error"))
    watching += [] if quiet else [Progress()]
    if folder is not None:
        watching.insert(0, Claim(folder))
        watching += [CSVLog(folder / TABLE)] if csv or (folder / TABLE).exists() else []
        watching += [TensorBoard(folder / BOARD)] if tensorboard or (folder / BOARD).exists() else []
        watching += [interruptible, checkpoint.Checkpointer(folder / checkpoint.NAME, chosen, images, save_every)]
    trainer = chosen.trainer(net, images, watching)
    if saved is not None:
        trainer.load_state_dict(saved.trainer)
    validation = None if images.valid_x is None or images.valid_y is None else (images.valid_x, images.valid_y)
    records = trainer.run(images.train_x, images.train_y, validation)
    if folder is not None:  # only now: a mistake leaves no folder behind
        folder.mkdir(parents=True, exist_ok=True)
    unsaved = None
    try:
        for _ in records:
            pass
    except OSError as error:
        if not trainer.finished:
            raise
        unsaved = error  # what was learnt is still to be tested and shown
    if interruptible.interrupted and not trainer.finished:
        share = 100 * trainer.updates / trainer.total_updates
        raise typer.Exit(complain(f"stopped after {share:.1f} % of the updates; saved. {again}", INTERRUPTED))
    result = _result(trainer, images, chosen, command)
    if folder is not None and unsaved is None:
        try:
            write_whole(folder / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            unsaved = error
    return Outcome(trainer, result, unsaved, interruptible.interrupted)


def _result(trainer: Trainer, images: data.Dataset, chosen: Recipe, command: str) -> dict[str, Any]:
    history = History(trainer.history)
    tested = trainer.evaluate(images.test_x, images.test_y) if len(images.test_y) else None
    return {
        "recipe": chosen.as_dict(),
        "path": chosen.path_taken,
        "command": f"{command} --threads {torch.get_num_threads()}",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "ffkern": __version__,
        "torch": torch.__version__,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "train_images": len(images.train_y),
        "held_out_images": 0 if images.valid_y is None else len(images.valid_y),
        "test_images": len(images.test_y),
        "finished": trainer.finished,
        "test": tested,
        "test_accuracy": None
        if tested is None
        else 1 - next(iter(tested.values())),  # by goodness, where labels have one
        "seconds": history.seconds,
        "median_epoch_seconds": median(r.seconds for r in history.epochs) if history.epochs else None,
        "eager": None,
        "epochs": _finite(history.as_dicts()),
    }


def _finite(content: Any) -> Any:
    """The same with None for numbers that JSON does not have: figures of rows that took no part, or that diverged."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def diverged(result: dict[str, Any]) -> int:
    """Exit code of a run by its losses: 1, with a complaint, if one of them is not finite."""
    layers = [layer for record in result["epochs"] for layer in record["layers"] if layer is not None]
    if any(layer["loss"] is None for layer in layers):
        return complain("a loss is not finite: the training diverged; a lower --lr may help", 1)
    return 0


def check_json(path: str | None) -> None:
    """Refuses a --json that could not be written at the end."""
    if path not in (None, "-") and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
        raise typer.BadParameter(f"{path!r}; expected '-' or a file in a folder that exists", param_hint="--json")


def use_threads(threads: int | None, saved: checkpoint.Saved | None) -> None:
    """Sets the number of CPU threads: the one asked for, else that of the run to go on with."""
    if saved is not None and threads is not None and threads != saved.threads:
        complain(f"--threads {threads}, but the run began with {saved.threads}: its last bits will differ", 0)
    wanted = threads if threads is not None else saved.threads if saved is not None else None
    if wanted is not None:
        torch.set_num_threads(wanted)
