"""What looks on while a trainer works: progress, logs, early stop, interruption."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

from ._files import write_whole
from .trainer import Callback, EpochRecord, Trainer

__all__ = ["CSVLog", "Claim", "EarlyStop", "Interruptible", "Progress", "TensorBoard", "figures"]


def figures(record: EpochRecord) -> dict[str, float]:
    """The numbers of a record by name: "layer 0/loss", "head/accuracy", "validation/error", ..., "seconds"."""
    numbers: dict[str, float] = {}
    for i, layer in enumerate(record.layers):
        if layer is not None:
            numbers |= {f"layer {i}/{name}": value for name, value in vars(layer).items()}
    if record.head is not None:
        numbers |= {f"head/{name}": value for name, value in vars(record.head).items()}
    numbers |= {f"validation/{name}": value for name, value in (record.validation or {}).items()}
    return {**numbers, "seconds": record.seconds}


class EarlyStop(Callback):
    """Stops when a figure of the held-out images has not fallen for `patience` epochs.

    It looks at ``trainer.history`` alone, so a resumed run stops where an uninterrupted one would.

    Args:
        patience: epochs to wait for a lower value.
        figure: one of ``Trainer.evaluate``: "error", "error_but_first" or "error_softmax".
    """

    def __init__(self, patience: int, figure: str = "error") -> None:
        if patience < 1:
            raise ValueError(f"patience is {patience}; expected at least 1")
        self.patience, self.figure = patience, figure

    def on_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        if record.validation is None:
            raise ValueError("there are no held-out images to stop by; expected validation data")
        if self.figure not in record.validation:
            raise ValueError(f"figure is {self.figure!r}; expected one of {', '.join(map(repr, record.validation))}")
        self._look(trainer)

    def on_start(self, trainer: Trainer) -> None:
        if trainer.history:  # a run that it had stopped is not to go on
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        stage = trainer.history[-1].stage
        seen = [r.validation[self.figure] for r in trainer.history if r.stage == stage and r.validation]
        if len(seen) - seen.index(min(seen)) > self.patience:
            trainer.stop()


class Claim(Callback):
    """Keeps a second process from training into the same folder. The system lifts the claim of a killed one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = None

    def on_start(self, trainer: Trainer) -> None:
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ValueError(f"another process is training in {self.folder}; expected a folder of its own") from None
        self._handle = handle

    def on_close(self, trainer: Trainer) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class CSVLog(Callback):
    """All records as a table, one row each, written whole after every record. Columns may be empty."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_start(self, trainer: Trainer) -> None:
        self._write(trainer)

    def on_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        try:
            self._write(trainer)
        except OSError as error:  # the next record writes all of them again
            warnings.warn(f"{self.path} was not written, the table before it stays: {error}", stacklevel=2)

    def _write(self, trainer: Trainer) -> None:
        rows: list[dict[str, Any]] = [{"stage": r.stage, "epoch": r.epoch, **figures(r)} for r in trainer.history]
        text = io.StringIO()
        columns = dict.fromkeys(["stage", "epoch", *(name for row in rows for name in row)])
        table = csv.DictWriter(text, list(columns), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_whole(self.path, text.getvalue())


class TensorBoard(Callback):
    """Scalars for TensorBoard, a step a record. A resumed run hides what was logged past its checkpoint.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "tensorboard is not installed: run `pip install ffkern[tensorboard]`, or log to a CSV file"
            ) from error
        self._open, self._folder = SummaryWriter, folder
        self._writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        self._writer = self._open(str(self._folder), purge_step=len(trainer.history) + 1)

    def on_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        for name, value in figures(record).items():
            self._writer.add_scalar(name, value, len(trainer.history))
        self._writer.flush()

    def on_close(self, trainer: Trainer) -> None:
        if self._writer is not None:
            self._writer.close()


class Interruptible(Callback):
    """Ctrl-C and SIGTERM end the run after the update in progress, so that it can be saved; a second one at once.

    Put it before a checkpointer. ``interrupted`` tells afterwards. Only the main thread can take signals; elsewhere
    this does nothing.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._before: dict[int, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            trainer.stop()
            self._restore()

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, stop)

    def on_close(self, trainer: Trainer) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


class Progress(Callback):
    """Progress on standard error: a bar with the time left on a terminal, else a line now and then.

    The bar needs `rich`; without it there are lines.

    Args:
        every: seconds between lines, at least; the last record always has one.
    """

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self._bar: Any = None

    def on_start(self, trainer: Trainer) -> None:
        self._begun = self._last = time.monotonic()
        self._already = trainer.updates
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar
        except ModuleNotFoundError:
            return
        console = Console(stderr=True)
        if not console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=console, transient=True)
        self._task = self._bar.add_task("training", total=trainer.total_updates, completed=trainer.updates)
        self._bar.start()

    def on_update(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.updates)

    def on_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=_said(record))
        elif time.monotonic() - self._last >= self.every or (trainer.finished and self.every > 0):
            self._last = time.monotonic()
            rate = (self._last - self._begun) / max(trainer.updates - self._already, 1)
            left = _clock(rate * (trainer.total_updates - trainer.updates))
            print(
                f"{_said(record)}, {100 * trainer.updates / trainer.total_updates:.0f} %, {left} left", file=sys.stderr
            )

    def on_close(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _said(record: EpochRecord) -> str:
    parts = [f"{record.stage}, epoch {record.epoch}"]
    learnt = [layer for layer in record.layers if layer is not None]
    if learnt:
        parts.append("loss " + " ".join(f"{layer.loss:.4f}" for layer in learnt))
        parts.append("separation " + " ".join(f"{100 * layer.separation:.1f}" for layer in learnt) + " %")
    if record.head is not None:
        parts.append(f"head {100 * record.head.accuracy:.2f} %")
    for name, value in (record.validation or {}).items():
        parts.append(f"held-out {name.replace('_', ' ')} {100 * value:.2f} %")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
