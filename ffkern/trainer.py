"""A minimal training loop: batches -> ``FFNet.step`` or ``step_layer`` -> an epoch's statistics.

Nothing inside a step waits for the device: what is counted stays there until the epoch ends. All
randomness comes from one generator that the trainer owns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from .data import batches
from .nn import FFHead, FFLinear, FFNet
from .optim import FusedOptimizer

__all__ = ["EpochRecord", "HeadRecord", "History", "LayerRecord", "Trainer"]

SCHEDULES = ("simultaneous", "greedy")
NEGATIVES = ("uniform", "hard", "all")
TRAINED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EVALUATED_ROWS = 2048  # images a call: bounds the memory of an evaluation


@dataclass(frozen=True)
class LayerRecord:
    """One layer in one epoch, over the batches as they were trained on."""

    loss: float  # mean over the steps
    goodness_pos: float  # mean over the rows with the true label
    goodness_neg: float  # mean over the rows with a wrong one
    separation: float  # share of rows on their side of the threshold


@dataclass(frozen=True)
class HeadRecord:
    """The softmax head in one epoch."""

    loss: float  # mean cross-entropy of a row
    accuracy: float


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the data."""

    epoch: int  # counts from 1; in greedy training it begins anew with every stage
    stage: str  # what learnt: "all", "layer 0", "layer 1", ..., "head"
    layers: tuple[LayerRecord | None, ...]  # None: this layer did not learn
    head: HeadRecord | None
    seconds: float  # of training, without the validation
    validation: dict[str, float] | None  # Trainer.evaluate after the epoch


@dataclass(frozen=True)
class History:
    """What :meth:`Trainer.fit` returns."""

    epochs: list[EpochRecord]

    @property
    def seconds(self) -> float:
        """Training time of all epochs, without validation."""
        return sum(record.seconds for record in self.epochs)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Plain data, for JSON."""
        return [asdict(record) for record in self.epochs]


class Trainer:
    """Trains an :class:`~ffkern.nn.FFNet` on a data set in memory.

    Args:
        net: the network. Trained in place.
        opt: optimiser of :mod:`ffkern.optim` over its layers.
        schedule: "simultaneous": every layer learns from every batch. "greedy": the layers learn
            one after the other, `epochs` epochs each, on the frozen layers below; then the head, if
            it has an optimiser. Layers with ``weight.requires_grad == False`` are passed over.
        negatives: "uniform": a wrong label drawn for each image; "hard": drawn from the head's
            class probabilities (simultaneous only); "all": every wrong label.
        batch_size: images a step; the last batch of an epoch may be smaller.
        epochs: passes over the data (a layer, in greedy training).
        seed: of the order of the images and of the negatives. Same seed, same data, same thread
            count: same bits.
        head_opt: optimiser of the softmax head. Without one the head does not learn.
        scheduler: learning-rate scheduler(s) of torch over `opt` or `head_opt`, stepped after every
            epoch.
        progress: True shows a progress bar on a terminal where `rich` is installed; a callable is
            given every :class:`EpochRecord` instead.
    """

    def __init__(
        self,
        net: FFNet,
        opt: FusedOptimizer,
        *,
        schedule: str = "simultaneous",
        negatives: str = "uniform",
        batch_size: int = 50,
        epochs: int = 40,
        seed: int = 0,
        head_opt: FusedOptimizer | None = None,
        scheduler: LRScheduler | list[LRScheduler] | None = None,
        progress: bool | Callable[[EpochRecord], None] = False,
    ) -> None:
        _one_of("schedule", schedule, SCHEDULES)
        _one_of("negatives", negatives, NEGATIVES)
        _at_least("batch_size", batch_size, 1)
        _at_least("epochs", epochs, 0)
        for name, given in (("opt", opt), ("head_opt", head_opt)):
            if given is not None and not isinstance(given, FusedOptimizer):
                raise TypeError(
                    f"{name} is a {type(given).__name__}; expected an optimiser of ffkern.optim, "
                    "whose update is part of the layer's step"
                )
        if head_opt is not None and net.head is None:
            raise ValueError("head_opt is given, but the network has no head; build it with head_layers")
        if negatives == "hard" and net.head is None:
            raise ValueError(
                "negatives is 'hard', which draws from the softmax head; build the network with "
                "head_layers, or use 'uniform' or 'all'"
            )
        if negatives == "hard" and schedule == "greedy":
            raise ValueError(
                "negatives is 'hard', which needs every layer's answer; expected 'uniform' or "
                "'all' with schedule='greedy'"
            )
        frozen = [i for i in range(len(net.layers)) if not _layer(net, i).weight.requires_grad]
        if len(frozen) == len(net.layers):
            raise ValueError("every layer of net is frozen (requires_grad is False); expected one that learns")
        self.net, self.opt, self.head_opt = net, opt, head_opt
        self.schedule, self.negatives = schedule, negatives
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.schedulers = scheduler if isinstance(scheduler, list) else [scheduler] if scheduler else []
        self.progress = progress
        self._stages = ["all"]
        if schedule == "greedy":
            self._stages = [f"layer {i}" for i in range(len(net.layers)) if i not in frozen]
            self._stages += ["head"] if head_opt is not None else []

    # ------------------------------------------------------------ training

    def fit(self, x: Tensor, y: Tensor, validation: tuple[Tensor, Tensor] | None = None) -> History:
        """Trains; a second call starts again from the seed with the weights as they are.

        Args:
            x: [N, ...] images on the network's device, without NaN or infinity. y: int64 [N] in 0
                .. classes - 1.
            validation: images and labels to evaluate after every epoch.

        Raises:
            ValueError: an input is empty, of another shape, dtype or device, not finite, or a label
                out of range.
        """
        return History(list(self.run(x, y, validation)))

    def run(self, x: Tensor, y: Tensor, validation: tuple[Tensor, Tensor] | None = None) -> Iterator[EpochRecord]:
        """:meth:`fit` one epoch at a time: asking for the next record trains the next epoch."""
        self._check(x, y, ("x", "y"))
        if validation is not None:
            self._check(*validation, ("validation[0]", "validation[1]"))
        return self._epochs(x, y, validation)

    def _epochs(self, x: Tensor, y: Tensor, validation: tuple[Tensor, Tensor] | None) -> Iterator[EpochRecord]:
        generator = torch.Generator(x.device).manual_seed(self.seed)
        steps = -(-x.shape[0] // self.batch_size)
        self._read()  # statistics of what went before
        with _bar(self.progress is True, len(self._stages) * self.epochs * steps) as bar:
            for stage in self._stages:
                for epoch in range(1, self.epochs + 1):
                    start = time.perf_counter()
                    for images, labels in batches(x, y, self.batch_size, generator):
                        self._step(stage, images, labels, generator)
                        bar(1, None)
                    layers, head = self._read(steps)
                    for scheduler in self.schedulers:
                        scheduler.step()
                    seconds = time.perf_counter() - start
                    checked = None if validation is None else self.evaluate(*validation)
                    record = EpochRecord(epoch, stage, layers, head, seconds, checked)
                    bar(0, record)
                    if callable(self.progress):
                        self.progress(record)
                    yield record

    def _step(self, stage: str, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        if stage == "all":
            self.net.step(
                images,
                labels,
                self.opt,
                negatives=self.negatives,
                generator=generator,
                head_opt=self.head_opt,
            )
        elif stage == "head":
            assert self.head_opt is not None
            self.net.step_head(images, labels, self.head_opt)
        else:
            index = int(stage.split()[1])
            self.net.step_layer(index, images, labels, self.opt, negatives=self.negatives, generator=generator)

    def _read(self, steps: int = 1) -> tuple[tuple[LayerRecord | None, ...], HeadRecord | None]:
        """Reads and clears what the layers counted: the one place that waits for the device."""
        layers: list[LayerRecord | None] = []
        for seen in self.net.metrics():
            record = LayerRecord(seen["loss"] / steps, seen["goodness_pos"], seen["goodness_neg"], seen["separation"])
            layers.append(record if seen["rows"] else None)
        head = None
        if isinstance(self.net.head, FFHead):
            seen = self.net.head.metrics()
            head = HeadRecord(seen["loss"], seen["accuracy"]) if seen["rows"] else None
        return tuple(layers), head

    # ------------------------------------------------------------ evaluation

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Share of wrong answers on these images.

        Returns:
            "error" and "error_but_first": the label with the highest goodness, summed over all
            layers and over all but the first (the same for one layer). "error_softmax": the head's
            answer, if there is a head.
        """
        self._check(x, y, ("x", "y"))
        net = self.net
        skip = 1 if len(net.layers) > 1 else 0
        names = ["error", "error_but_first"] + (["error_softmax"] if net.head is not None else [])
        wrong = torch.zeros(len(names), dtype=torch.int64, device=x.device)
        for images, labels in zip(x.split(EVALUATED_ROWS), y.split(EVALUATED_ROWS), strict=True):
            goodness = net.goodness(images)
            answers = [goodness.sum(0).argmax(1), goodness[skip:].sum(0).argmax(1)]
            if net.head is not None:
                answers.append(net.predict_softmax(images))
            wrong += (torch.stack(answers) != labels).sum(1)
        return {name: count / x.shape[0] for name, count in zip(names, wrong.tolist(), strict=True)}

    # ------------------------------------------------------------ input

    def _check(self, x: Tensor, y: Tensor, names: tuple[str, str]) -> None:
        first = _layer(self.net, 0)
        inputs = first.in_features - (self.net.classes if self.net.label == "concat" else 0)
        a, b = names
        for name, given in ((a, x), (b, y)):
            if not isinstance(given, Tensor):
                raise TypeError(f"{name} is a {type(given).__name__}; expected a tensor")
        if x.dim() < 2 or x.shape[0] == 0 or x[0].numel() != inputs:
            raise ValueError(f"{a} has shape {list(x.shape)}; expected [N, {inputs}] with at least one image")
        if x.dtype not in TRAINED_DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in TRAINED_DTYPES)
            raise ValueError(f"{a} is {str(x.dtype).removeprefix('torch.')}; expected one of {allowed}")
        if list(y.shape) != [x.shape[0]]:
            raise ValueError(f"{b} has shape {list(y.shape)}; expected [{x.shape[0]}], one label for each image")
        if y.dtype != torch.int64:
            raise ValueError(f"{b} is {str(y.dtype).removeprefix('torch.')}; expected int64")
        for name, given in ((a, x), (b, y)):
            if given.device != first.weight.device:
                raise ValueError(f"{name} is on {given.device}; expected {first.weight.device}, as the network")
        if not bool(x.isfinite().all()):
            row = int((~x.flatten(1).isfinite().all(1)).nonzero()[0])
            raise ValueError(f"{a}[{row}] holds NaN or infinity; expected finite numbers")
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= self.net.classes:
            raise ValueError(f"{b} holds {low if low < 0 else high}; expected 0 to {self.net.classes - 1}")


def _layer(net: FFNet, index: int) -> FFLinear:
    layer = net.layers[index]
    assert isinstance(layer, FFLinear)
    return layer


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")


@contextmanager
def _bar(wanted: bool, steps: int) -> Iterator[Callable[[int, EpochRecord | None], None]]:
    """A progress bar on standard error, given (steps done, finished epoch).

    Silent without rich or a terminal.
    """
    try:
        if not wanted:
            raise ModuleNotFoundError
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        yield lambda count, record: None
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=steps)

        def advance(count: int, record: EpochRecord | None) -> None:
            if record is None:
                bar.advance(task, count)
                return
            learnt = [layer for layer in record.layers if layer is not None]
            losses = ", ".join(f"{layer.loss:.4f}" for layer in learnt)
            bar.update(task, description=f"{record.stage}, epoch {record.epoch}: loss {losses}")

        yield advance
