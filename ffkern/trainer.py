"""The training loop: batches -> ``FFNet.step`` or a layer's lesson -> statistics, one update at a time.

Nothing inside an update waits for the device: what is counted stays there until a record is made. All randomness comes
from one generator that the trainer owns, so a run is a function of its data, its seed and its thread count; between
any two updates it can be saved whole and taken up again with the same bits.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ._form import like
from .nn import SIGNS, FFHead, FFLinear, FFNet
from .optim import FusedOptimizer

__all__ = ["Callback", "EpochRecord", "HeadRecord", "History", "LayerRecord", "Trainer", "evaluate"]

SCHEDULES = ("simultaneous", "greedy", "greedy-batch")
NEGATIVES = ("uniform", "hard", "all")
ANSWERS = ("error", "error_but_first", "error_softmax")  # figures of evaluate(), one for each way of answering
TRAINED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EVALUATED_ROWS = 2048  # images a call: bounds the memory of an evaluation
GENERATOR_STATES = ([5056], [16])  # bytes, on the CPU and in CUDA
RECORDED_UPDATES = 100  # of one layer on one mini-batch: a record of the schedule "greedy-batch"


@dataclass(frozen=True)
class LayerRecord:
    """One layer in one epoch, over the batches as they were trained on."""

    loss: float  # mean over the steps
    goodness_pos: float  # mean over the rows with the true label
    goodness_neg: float  # mean over the rows with a wrong one
    separation: float  # share of rows on their side of the threshold
    kept_pos: float  # share of the rows with the true label whose part of the gradient was added up
    kept_neg: float  # of those with a wrong one


@dataclass(frozen=True)
class HeadRecord:
    """The softmax head in one epoch."""

    loss: float  # mean cross-entropy of a row
    accuracy: float


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the data; with the schedule "greedy-batch" up to 100 updates of one layer on one mini-batch."""

    epoch: int  # counts from 1 within its stage
    stage: str  # what learnt: "all", "layer 0", "layer 1", ..., "head"
    layers: tuple[LayerRecord | None, ...]  # None: this layer did not learn
    head: HeadRecord | None
    seconds: float  # of training, without validation and callbacks
    validation: dict[str, float] | None  # Trainer.evaluate after the epoch

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> EpochRecord:
        """The record whose ``dataclasses.asdict`` this is."""
        if not isinstance(fields, dict):
            raise TypeError(f"a record is a {type(fields).__name__}; expected a dict")
        layers = tuple(None if layer is None else LayerRecord(**layer) for layer in fields["layers"])
        head = None if fields["head"] is None else HeadRecord(**fields["head"])
        checked = None if fields["validation"] is None else dict.fromkeys(fields["validation"], 0.0)
        known = cls(0, "", (LayerRecord(*[0.0] * 6),), HeadRecord(0.0, 0.0), 0.0, checked)
        form = asdict(known)
        form["layers"] = [None if layer is None else form["layers"][0] for layer in layers]
        form["head"] = None if head is None else form["head"]
        like("a record", fields, form)
        return cls(**{**fields, "layers": layers, "head": head})


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


class Callback:
    """Looks on while a trainer works; override what is wanted. ``trainer.stop()`` ends the run after this update.

    ``trainer.updates`` of ``trainer.total_updates`` are done, ``trainer.history`` holds the records so far.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first update, of a resumed run too."""

    def on_update(self, trainer: Trainer) -> None:
        """After every update."""

    def on_epoch(self, trainer: Trainer, record: EpochRecord) -> None:
        """After every record, which stands at the end of ``trainer.history``."""

    def on_end(self, trainer: Trainer) -> None:
        """When the run is over or was stopped; not after an error."""

    def on_close(self, trainer: Trainer) -> None:
        """Last of all, after an error too: what :meth:`on_start` took, if it came to that, is given back here."""


class Trainer:
    """Trains an :class:`~ffkern.nn.FFNet` on a data set in memory.

    Args:
        net: the network. Trained in place.
        opt: optimiser of :mod:`ffkern.optim` over its layers.
        schedule: "simultaneous": every layer learns from every batch. "greedy": the layers learn
            one after the other, `epochs` epochs each, on the frozen layers below; then the head, if
            it has an optimiser. "greedy-batch": on every mini-batch in turn the layers learn one after the other,
            `iterations` updates each, from wrong labels drawn once for that mini-batch. Layers with
            ``weight.requires_grad == False`` are passed over.
        negatives: "uniform": a wrong label drawn for each image; "hard": drawn from the head's
            class probabilities (simultaneous only); "all": every wrong label. A network with label="none" needs a
            function of images and a generator that gives negative images (simultaneous only), such as
            ``lambda x, generator: negatives.hybrid(x, generator, shape=(1, 28, 28))[0]``.
        batch_size: images a step; the last batch of an epoch may be smaller.
        epochs: passes over the data (a layer, in greedy training).
        iterations: updates of a layer on a mini-batch, for "greedy-batch" alone.
        phase: so many updates from positive rows alone, then as many from negative rows alone, and so on (simultaneous
            only, with labels); 0: every update learns from both.
        seed: of the order of the images and of the negatives. Same seed, same data, same thread
            count: same bits.
        head_opt: optimiser of the softmax head. Without one the head does not learn.
        scheduler: learning-rate scheduler(s) of torch over `opt` or `head_opt`, stepped after every
            record.
        augment: changes the images of a batch before every step, such as
            ``lambda x, generator: data.shift(x, (1, 28, 28), 2, generator)``. Random numbers must come from the
            generator given.
        callbacks: called in this order; see :mod:`ffkern.callbacks`.
    """

    def __init__(
        self,
        net: FFNet,
        opt: FusedOptimizer,
        *,
        schedule: str = "simultaneous",
        negatives: str | Callable[[Tensor, torch.Generator], Tensor] = "uniform",
        batch_size: int = 50,
        epochs: int = 40,
        iterations: int = 1,
        phase: int = 0,
        seed: int = 0,
        head_opt: FusedOptimizer | None = None,
        scheduler: LRScheduler | list[LRScheduler] | None = None,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        _one_of("schedule", schedule, SCHEDULES)
        if net.label == "none" and not callable(negatives):
            raise ValueError(
                f"negatives is {negatives!r}; expected a function that makes negative images, for a network with "
                "label='none'"
            )
        if net.label == "none" and schedule != "simultaneous":
            raise ValueError(f"schedule is {schedule!r}; expected 'simultaneous' for a network with label='none'")
        if isinstance(negatives, str):
            _one_of("negatives", negatives, NEGATIVES)
        elif net.label != "none":
            raise ValueError(
                f"negatives is a function and the network's label {net.label!r}; expected one of "
                f"{', '.join(map(repr, NEGATIVES))}: only images without labels have negative images"
            )
        _at_least("batch_size", batch_size, 1)
        _at_least("epochs", epochs, 0)
        _at_least("iterations", iterations, 1)
        if iterations > 1 and schedule != "greedy-batch":
            raise ValueError(f"iterations is {iterations}; expected 1 with schedule={schedule!r}")
        _at_least("phase", phase, 0)
        if phase and (schedule != "simultaneous" or net.label == "none"):
            raise ValueError(
                f"phase is {phase}; expected 0 with schedule={schedule!r} and label={net.label!r}: only all layers at "
                "once, from images with labels, learn in phases"
            )
        for name, given in (("opt", opt), ("head_opt", head_opt)):
            if given is not None and not isinstance(given, FusedOptimizer):
                raise TypeError(
                    f"{name} is a {type(given).__name__}; expected an optimiser of ffkern.optim, "
                    "whose update is part of the layer's step"
                )
        if head_opt is not None and net.head is None:
            raise ValueError("head_opt is given, but the network has no head; build it with head_layers")
        if head_opt is not None and schedule == "greedy-batch":
            raise ValueError("head_opt is given; expected none with schedule='greedy-batch', which trains no head")
        if negatives == "hard" and net.head is None:
            raise ValueError(
                "negatives is 'hard', which draws from the softmax head; build the network with "
                "head_layers, or use 'uniform' or 'all'"
            )
        if negatives == "hard" and schedule != "simultaneous":
            raise ValueError(
                "negatives is 'hard', which needs every layer's answer; expected 'uniform' or "
                f"'all' with schedule={schedule!r}"
            )
        if net.classes < 2 and net.label != "none":
            raise ValueError(f"net has {net.classes} class; expected at least 2, so that a label can be wrong")
        self._learning = [i for i in range(len(net.layers)) if _layer(net, i).weight.requires_grad]
        if not self._learning:
            raise ValueError("every layer of net is frozen (requires_grad is False); expected one that learns")
        self.net, self.opt, self.head_opt = net, opt, head_opt
        self.schedule = schedule
        self.negatives = negatives if isinstance(negatives, str) else "images"
        self._make_negatives = None if isinstance(negatives, str) else negatives
        self.batch_size, self.epochs, self.iterations, self.seed = batch_size, epochs, iterations, seed
        self.phase = phase
        self.schedulers = scheduler if isinstance(scheduler, list) else [scheduler] if scheduler else []
        self.augment = augment
        self.callbacks = list(callbacks)
        self._stages = ["all"]
        if schedule == "greedy":
            self._stages = [f"layer {i}" for i in self._learning] + (["head"] if head_opt is not None else [])
        self._resumed: dict[str, Any] | None = None
        self._restart(torch.device("cpu"))
        self._data: Callable[[], str] | None = None  # fingerprint of the run's data, taken once, when first asked for

    def _restart(self, device: torch.device) -> None:
        self.history: list[EpochRecord] = []
        self.updates = 0  # done since the start of the run
        self.total_updates = 0
        self._stopped = False
        self._in_record = 0  # updates since the last record
        self._seconds = 0.0  # of training since the last record
        self._generator = torch.Generator(device).manual_seed(self.seed)
        # Its states where a pass over the data and a mini-batch began: from them an interrupted one is drawn again.
        self._marks: dict[str, Tensor] = {}

    # ------------------------------------------------------------ training

    def fit(self, x: Tensor, y: Tensor, validation: tuple[Tensor, Tensor] | None = None) -> History:
        """Trains to the end, or until a callback stops it.

        A second call starts again from the seed with the weights as they are; after :meth:`load_state_dict` it goes
        on where the saved run stood.

        Args:
            x: [N, ...] images on the network's device, without NaN or infinity. y: int64 [N] in 0
                .. classes - 1.
            validation: images and labels to evaluate after every epoch.

        Raises:
            ValueError: an input is empty, of another shape, dtype or device, not finite, or a label
                out of range; or a resumed run began with other data.
        """
        for _ in self.run(x, y, validation):
            pass
        return History(self.history)

    def run(self, x: Tensor, y: Tensor, validation: tuple[Tensor, Tensor] | None = None) -> Iterator[EpochRecord]:
        """:meth:`fit` one epoch at a time: asking for the next record trains the next epoch."""
        self._check(x, y, ("x", "y"))
        if validation is not None:
            self._check(*validation, ("validation[0]", "validation[1]"))
        self._data = cache(lambda: fingerprint(x, y))
        if self._resumed is None:
            self._restart(x.device)
            self._read()  # statistics of what went before
        else:
            self._resume(self._resumed, self._data(), x.device)
            self._resumed = None
        self.total_updates = self._count_updates(x.shape[0])
        return self._records(x, y, validation)

    def stop(self) -> None:
        """Ends the run after the update in progress; :meth:`state_dict` then holds where it stands."""
        self._stopped = True

    @property
    def finished(self) -> bool:
        """True when every update of the run is done."""
        return self.updates == self.total_updates

    def _records(self, x: Tensor, y: Tensor, validation: tuple[Tensor, Tensor] | None) -> Iterator[EpochRecord]:
        try:
            yield from self._updates(x, y, validation)
        finally:
            for callback in self.callbacks:
                callback.on_close(self)

    def _updates(self, x: Tensor, y: Tensor, validation: tuple[Tensor, Tensor] | None) -> Iterator[EpochRecord]:
        for callback in self.callbacks:
            callback.on_start(self)
        work = self._batch_by_batch(x, y) if self.schedule == "greedy-batch" else self._epoch_by_epoch(x, y)
        while not self._stopped:
            start = time.perf_counter()
            done = next(work, None)
            self._seconds += time.perf_counter() - start
            if done is None:
                break
            stage, complete = done
            self.updates += 1
            self._in_record += 1
            record = self._record(stage, validation) if complete else None
            for callback in self.callbacks:
                callback.on_update(self)
            if record is not None:
                for callback in self.callbacks:
                    callback.on_epoch(self, record)
                yield record
        for callback in self.callbacks:
            callback.on_end(self)

    def _epoch_by_epoch(self, x: Tensor, y: Tensor) -> Iterator[tuple[str, bool]]:
        """Performs update after update; says of each to which stage it belongs and whether it ends an epoch."""
        steps = math.ceil(x.shape[0] / self.batch_size)
        epoch, first = divmod(self.updates, steps)
        for stage in (stage for stage in self._stages for _ in range(self.epochs)):
            if epoch > 0:
                epoch -= 1
                continue
            order = self._order(x, self._draws("pass", fresh=first == 0))
            for step, rows in enumerate(order.split(self.batch_size)):
                if step >= first:
                    self._step(stage, *self._batch(x, y, rows, self._generator))
                    yield stage, step == steps - 1
            first = 0

    def _batch_by_batch(self, x: Tensor, y: Tensor) -> Iterator[tuple[str, bool]]:
        """The same for "greedy-batch", where one mini-batch serves many updates of every layer."""
        turns = len(self._learning) * self.iterations
        batch, first = divmod(self.updates, turns)
        for _ in range(self.epochs):
            steps = math.ceil(x.shape[0] / self.batch_size)
            if batch >= steps:
                batch -= steps
                continue
            order = self._order(x, self._draws("pass", fresh=batch == 0 and first == 0))
            for rows in order.split(self.batch_size)[batch:]:
                draws = self._draws("batch", fresh=first == 0)
                images, labels = self._batch(x, y, rows, draws)
                variants = torch.cat((labels[None], self.net.wrong_labels(labels, self.negatives, draws)))
                update = None
                for turn in range(first, turns):
                    index, iteration = self._learning[turn // self.iterations], turn % self.iterations
                    if update is None or iteration == 0:
                        update = self.net.lesson(index, images, variants)
                    update(self.opt)
                    done = iteration + 1
                    yield f"layer {index}", done == self.iterations or done % RECORDED_UPDATES == 0
                first = 0
            batch = 0

    def _count_updates(self, images: int) -> int:
        steps = math.ceil(images / self.batch_size)
        if self.schedule == "greedy-batch":
            return self.epochs * steps * len(self._learning) * self.iterations
        return self.epochs * steps * len(self._stages)

    def _draws(self, mark: str, fresh: bool) -> torch.Generator:
        """The trainer's generator; or, to draw once more what an interrupted run drew, a copy of it from back then."""
        if fresh:
            self._marks[mark] = self._generator.get_state()
            return self._generator
        past = torch.Generator(self._generator.device)
        past.set_state(self._marks[mark])
        return past

    @staticmethod
    def _order(x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randperm(x.shape[0], generator=generator, device=x.device)

    def _batch(self, x: Tensor, y: Tensor, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = x.index_select(0, rows)
        return images if self.augment is None else self.augment(images, generator), y.index_select(0, rows)

    def _step(self, stage: str, images: Tensor, labels: Tensor) -> None:
        generator = self._generator
        if self._make_negatives is not None:
            self.net.step_images(
                images,
                self._checked(self._make_negatives(images, generator), images),
                self.opt,
                labels=None if self.head_opt is None else labels,
                head_opt=self.head_opt,
            )
        elif stage == "all":
            self.net.step(
                images,
                labels,
                self.opt,
                negatives=self.negatives,
                generator=generator,
                head_opt=self.head_opt,
                signs=SIGNS[1 + self.updates // self.phase % 2] if self.phase else "both",
            )
        elif stage == "head":
            assert self.head_opt is not None
            self.net.step_head(images, labels, self.head_opt)
        else:
            index = int(stage.split()[1])
            self.net.step_layer(index, images, labels, self.opt, negatives=self.negatives, generator=generator)

    @staticmethod
    def _checked(negatives: Any, images: Tensor) -> Tensor:
        """What the function made, if a layer can learn from it."""
        if not isinstance(negatives, Tensor):
            raise TypeError(f"negatives gave a {type(negatives).__name__}; expected a tensor of images")
        if negatives.dim() < 2 or negatives[:1].numel() != images[:1].numel():
            raise ValueError(
                f"negatives gave shape {list(negatives.shape)}; expected at least one image, each like those of "
                f"{list(images.shape)}"
            )
        if negatives.device.type == "cpu" and not bool(negatives.isfinite().all()):  # elsewhere it would mean waiting
            raise ValueError("negatives gave NaN or infinity; expected finite numbers")
        return negatives

    def _record(self, stage: str, validation: tuple[Tensor, Tensor] | None) -> EpochRecord:
        start = time.perf_counter()
        layers, head = self._read(self._in_record)
        for scheduler in self.schedulers:
            scheduler.step()
        seconds = self._seconds + time.perf_counter() - start
        checked = None if validation is None else self.evaluate(*validation)
        epoch = 1 + sum(record.stage == stage for record in self.history)
        record = EpochRecord(epoch, stage, layers, head, seconds, checked)
        self.history.append(record)
        self._in_record, self._seconds = 0, 0.0
        return record

    def _read(self, steps: int = 1) -> tuple[tuple[LayerRecord | None, ...], HeadRecord | None]:
        """Reads and clears what the layers counted: the one place that waits for the device."""
        layers: list[LayerRecord | None] = []
        for seen in self.net.metrics():
            rows = seen.pop("rows")
            layers.append(LayerRecord(**{**seen, "loss": seen["loss"] / steps}) if rows else None)
        head = None
        if isinstance(self.net.head, FFHead):
            seen = self.net.head.metrics()
            head = HeadRecord(seen["loss"], seen["accuracy"]) if seen["rows"] else None
        return tuple(layers), head

    # ------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on with the same bits: tensors and plain data, for :mod:`ffkern.checkpoint`.

        Network with its peer means, optimisers, schedulers, generator, position, half-counted statistics, history.
        May be called between any two updates, by a callback too; the tensors are the live ones, so write or copy them
        before the next update.
        """
        if self._data is None:
            raise RuntimeError("there is no run to save; expected fit() or run() to have begun")
        return {
            "run": self._settings(),
            "data": self._data(),
            "updates": self.updates,
            "in_record": self._in_record,
            "seconds": self._seconds,
            "history": [asdict(record) for record in self.history],
            "generator": self._generator.get_state(),
            "marks": dict(self._marks),
            "net": self.net.state_dict(),
            "opt": self.opt.state_dict(),
            "head_opt": None if self.head_opt is None else self.head_opt.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "statistics": [module.statistics() for module in self._counting()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next :meth:`fit` or :meth:`run` go on with the run that this state was taken from.

        Raises:
            ValueError: the state is that of a run with other settings, or not complete; nothing has changed then.
                (Other data are found when the run begins.)
        """
        try:
            self._check_state(state)
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"the state is not that of a trainer: {type(error).__name__} {error}") from error
        self.net.load_state_dict(state["net"])
        self.opt.load_state_dict(state["opt"])
        if self.head_opt is not None:
            self.head_opt.load_state_dict(state["head_opt"])
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self._resumed = state

    def _check_state(self, state: dict[str, Any]) -> None:
        known = self._settings()
        for name in (*known, *state["run"]):
            now, was = known.get(name), state["run"].get(name)
            if now != was:
                raise ValueError(f"{name} is {now!r}; expected {was!r}, as in the run that was saved")
        form = {
            "data": "",
            "updates": 0,
            "in_record": 0,
            "seconds": 0.0,
            "net": self.net.state_dict(),
            "opt": _saved_form(self.opt, state["opt"]),
            "head_opt": None if self.head_opt is None else _saved_form(self.head_opt, state["head_opt"]),
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "statistics": [module.statistics() for module in self._counting()],
        }
        like("state", {name: state[name] for name in form}, form)
        if not 0 <= state["in_record"] <= state["updates"]:
            raise ValueError(f"in_record is {state['in_record']}; expected 0 to {state['updates']}, the updates done")
        needed = {"pass", "batch"} if self.schedule == "greedy-batch" else {"pass"}
        if state["marks"].keys() != (needed if state["updates"] else set()):
            raise ValueError(f"marks holds {list(state['marks'])}; expected {sorted(needed)} after the first update")
        for name, drawn in {**state["marks"], "generator": state["generator"]}.items():
            if not isinstance(drawn, Tensor) or drawn.dtype != torch.uint8 or list(drawn.shape) not in GENERATOR_STATES:
                raise ValueError(f"{name} holds no state of a generator")
        for fields in state["history"]:
            EpochRecord.from_dict(fields)

    def _resume(self, state: dict[str, Any], given: str, device: torch.device) -> None:
        if given != state["data"]:
            raise ValueError("x or y holds other data than the run that was saved; expected the same images and labels")
        self._restart(device)
        self.history = [EpochRecord.from_dict(fields) for fields in state["history"]]
        self.updates, self._in_record, self._seconds = state["updates"], state["in_record"], state["seconds"]
        try:
            self._generator.set_state(state["generator"])
        except RuntimeError as error:
            raise ValueError(f"the saved run drew its random numbers elsewhere than on {device}: {error}") from error
        self._marks = dict(state["marks"])
        for module, counted in zip(self._counting(), state["statistics"], strict=True):
            module.statistics().copy_(counted)

    def _settings(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule,
            "negatives": self.negatives,
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "iterations": self.iterations,
            "phase": self.phase,
            "seed": self.seed,
            "learning": self._learning,
            "shapes": {name: list(value.shape) for name, value in self.net.state_dict().items()},
            "opt": _saved_kind(self.opt),
            "head_opt": None if self.head_opt is None else _saved_kind(self.head_opt),
            "scheduler": [type(scheduler).__name__ for scheduler in self.schedulers],
        }

    def _counting(self) -> list[FFLinear | FFHead]:
        head = [self.net.head] if isinstance(self.net.head, FFHead) else []
        return [*(_layer(self.net, i) for i in range(len(self.net.layers))), *head]

    # ------------------------------------------------------------ evaluation

    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """:func:`evaluate` of the network, with the input checked."""
        self._check(x, y, ("x", "y"))
        return evaluate(self.net, x, y)

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


@torch.no_grad()
def evaluate(net: FFNet, x: Tensor, y: Tensor) -> dict[str, float]:
    """Share of wrong answers on these images, [N, ...] with int64 labels [N].

    Returns:
        "error" and "error_but_first": the label with the highest goodness, summed over all
        layers and over all but the first (the same for one layer); not for a network whose images carry no label.
        "error_softmax": the head's answer, if there is a head.
    """
    labelled = net.label != "none"
    names = [*ANSWERS[:2]] * labelled + [ANSWERS[2]] * (net.head is not None)
    if not names:
        raise ValueError("net has neither labels nor a head; expected one of them to answer with")
    wrong = torch.zeros(len(names), dtype=torch.int64, device=x.device)
    for images, labels in zip(x.split(EVALUATED_ROWS), y.split(EVALUATED_ROWS), strict=True):
        answers = []
        if labelled:
            goodness = net.goodness(images)
            answers += [net.votes(goodness, layers).argmax(1) for layers in ("all", "all_but_first")]
        if net.head is not None:
            answers.append(net.predict_softmax(images))
        wrong += (torch.stack(answers) != labels).sum(1)
    return {name: count / x.shape[0] for name, count in zip(names, wrong.tolist(), strict=True)}


def fingerprint(x: Tensor, y: Tensor) -> str:
    """A checksum of images and labels: tells other data from the same, not a forgery from the original."""
    parts = []
    for given in (x, y):
        words = given.detach().cpu().contiguous().view(torch.uint8).numpy().data
        parts.append(f"{str(given.dtype).removeprefix('torch.')}{list(given.shape)}:{zlib.crc32(words):08x}")
    return " ".join(parts)


def _saved_kind(opt: FusedOptimizer) -> list[Any]:
    """The rule, and how many parameters each group has."""
    return [opt.kind, *(len(group["params"]) for group in opt.param_groups)]


def _saved_form(opt: FusedOptimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """What a saved state of this optimiser has to look like; a parameter that never moved has none."""
    groups = opt.state_dict()["param_groups"]
    like("optimiser", saved, {"state": saved["state"] if isinstance(saved, dict) else {}, "param_groups": groups})
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in groups]:
        raise ValueError("the saved optimiser numbers its parameters in another way")
    params = [p for group in opt.param_groups for p in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for index in saved["state"]:
        states[index] = {"slots": torch.empty((opt.slots, *params[index].shape), device="meta")}
        if params[index].dim() > 1:  # the weight counts for its bias
            states[index]["step"] = torch.zeros((), dtype=torch.int64)
    return {"param_groups": groups, "state": states}


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
