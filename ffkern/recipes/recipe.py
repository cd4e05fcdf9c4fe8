"""What a recipe is: every setting of a training run, by name, with its source and the figure to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from .. import data, negatives, optim
from ..generator import LinearGenerator, generated
from ..nn import FFNet
from ..plain import PlainNet
from ..trainer import ANSWERS, Callback, Trainer

__all__ = ["Recipe"]

OPTIMISERS: dict[str, Callable[..., optim.FusedOptimizer]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "sgd": optim.SGD,
    "ema": optim.EMA,
}
UNLABELLED = ("hybrid", "generated")  # negatives that are images
FUSED: dict[str, Any] = {  # the only values of these settings that the kernels compute
    "activation": "relu",
    "pair_loss": "threshold",
    "regions": 1,
    "weight_noise": 0.0,
    "between": "nothing",
}


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """Settings of a run. All but the first three may be overridden, from the command line too."""

    name: str
    source: str  # where the set-up comes from
    published: dict[str, float]  # error reported there in %, by the way of answering (names of trainer.evaluate)

    dataset: str = _setting("digits", "digits, mnist, fashion-mnist, cifar10, or an .npz file of arrays.")
    folder: str | None = _setting(None, "Folder of the data sets; by default where `ffkern data fetch` puts them.")
    held_out: int = _setting(0, "Training images kept apart, to choose settings on; evaluated after every epoch.")
    scaling: Literal["none", "mean-image", "mean"] = _setting(
        "none", "Subtract the mean image, or one mean of all pixels, and divide by one standard deviation."
    )
    precision: Literal["float32", "bfloat16"] = _setting(
        "float32", "Of images, activities and the operands of products; sums, weights and updates are float32."
    )
    shift: int = _setting(0, "Move every image by up to so many pixels, anew in every step.")

    layers: tuple[int, ...] = _setting((500, 500), "Units of the layers: 500,500.")
    label: Literal["overlay", "concat", "none"] = _setting(
        "overlay", "Write the label over the first pixels, or before them; none: the layers learn without."
    )
    label_value: float | Literal["max"] = _setting(1.0, "Its strength; max: the largest pixel of the training images.")
    norm: Literal["rms", "l2", "none"] = _setting("rms", "Length that a layer divides its input by.")
    eps: float = _setting(1e-8, "Added to that length.")
    goodness: Literal["mean_sq", "sum_sq", "neg_mean_sq", "neg_sum_sq", "sum_abs"] = _setting(
        "mean_sq", "Goodness of a layer's activities."
    )
    activation: Literal["relu", "leaky", "gelu", "student_t"] = _setting(
        "relu", "Of a layer; student_t: log(1 + z^2). Plain PyTorch, but for relu."
    )
    regions: int = _setting(
        1, "Cut the image into g x g parts; as many groups of units with a goodness each. Plain PyTorch above 1."
    )
    pair_loss: Literal["threshold", "symba", "swish"] = _setting(
        "threshold", "Loss of rows, or of pairs: softplus or silu of (g_neg - g_pos) / temperature, in plain PyTorch."
    )
    threshold: float | Literal["width"] = _setting(2.0, "Goodness to separate at: a number, or the layer's width.")
    temperature: float = _setting(1.0, "Divides goodness minus threshold, or of a pair.")
    peer: float = _setting(0.0, "Strength of peer normalisation.")
    init: Literal["uniform", "normal"] = _setting(
        "uniform", "First weights: as nn.Linear's, or normal with variance 1 / inputs and biases 0."
    )
    head: Literal["auto", "none", "all", "all_but_first"] = _setting(
        "auto", "Layers that feed a softmax head; auto: all if the negatives are hard or images, else none."
    )

    weight_noise: float = _setting(
        0.0, "Imperfect device: every weight acts times a fixed 1 + weight_noise N(0, 1). Plain PyTorch above 0."
    )
    between: Literal["nothing", "black-box"] = _setting(
        "nothing", "A fixed unknown function between the layers, which has no derivative. In plain PyTorch."
    )
    path: Literal["auto", "fused", "plain"] = _setting(
        "auto", "Fused kernels, or plain PyTorch; auto: the kernels where they have all settings."
    )

    schedule: Literal["simultaneous", "greedy", "greedy-batch"] = _setting(
        "simultaneous", "All layers on every batch; one after the other; or one after the other on every mini-batch."
    )
    iterations: int = _setting(1, "Updates of a layer on a mini-batch, for greedy-batch.")
    negatives: Literal["uniform", "hard", "all", "hybrid", "generated"] = _setting(
        "uniform", "Wrong labels to learn from; without labels images mixed of two, hybrid, or generated ones."
    )
    phase: int = _setting(
        0, "So many updates from positive rows alone, then as many from negative ones, in turn; 0: from both at once."
    )
    blurs: int = _setting(6, "Of the masks that mix hybrid images: more of them, larger blobs.")
    generator_lr: float = _setting(0.003, "Learning rate of the generator of images.")
    batch_size: int = _setting(50, "Images a step.")
    epochs: int = _setting(40, "Passes over the training images.")
    optimiser: Literal["adam", "adamw", "sgd", "ema"] = _setting("adam", "Update rule; ema is Hinton's.")
    lr: float = _setting(0.003, "Learning rate.")
    momentum: float = _setting(0.9, "Of sgd and ema.")
    weight_decay: float = _setting(0.0, "Of the layers' weights.")
    head_lr: float = _setting(0.01, "Learning rate of the head.")
    head_weight_decay: float = _setting(0.0, "Of the head's weights.")
    decay: Literal["none", "linear"] = _setting("linear", "Keep the rate, or let it fall to 0 in the second half.")
    patience: int = _setting(0, "Stop when the error on held-out images has not fallen for so many epochs; 0: never.")
    seed: int = _setting(0, "Of the weights, the order, the shifts and the negatives.")

    def __post_init__(self) -> None:
        kinds = get_type_hints(Recipe)
        for name in (f.name for f in fields(self)):
            if not _fits(getattr(self, name), kinds[name]):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {_words(kinds[name])}")
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"layers is {self.layers}; expected at least one, each of at least 1 unit")
        for name, least in (
            ("held_out", 0),
            ("shift", 0),
            ("blurs", 0),
            ("phase", 0),
            ("patience", 0),
            ("iterations", 1),
            ("regions", 1),
            ("batch_size", 1),
            ("epochs", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected an integer of at least {least}")
        for name in (
            "lr",
            "head_lr",
            "generator_lr",
            "weight_decay",
            "head_weight_decay",
            "peer",
            "eps",
            "weight_noise",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number >= 0")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; expected a number > 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; expected a number in [0, 1)")
        if self.shift and self.scaling == "mean-image":
            raise ValueError(f"shift is {self.shift}; expected 0 with scaling='mean-image', where no pixel is blank")
        if (self.label == "none") != (self.negatives in UNLABELLED):
            raise ValueError(
                f"label is {self.label!r} and negatives {self.negatives!r}; expected 'none' together with 'hybrid' or "
                "'generated'"
            )
        if self.negatives == "generated" and self.scaling != "none":
            raise ValueError(
                f"scaling is {self.scaling!r}; expected 'none' with negatives='generated', pixels in 0 .. 1"
            )
        if self.label == "none" and self.schedule != "simultaneous":
            raise ValueError(f"schedule is {self.schedule!r}; expected 'simultaneous' with label='none'")
        if self.schedule == "greedy-batch" and self.head_layers is not None:
            raise ValueError(
                f"head is {self.head!r} and negatives {self.negatives!r}; expected no head with "
                "schedule='greedy-batch', which trains none"
            )
        if self.label == "none" and self.head_layers is None:
            raise ValueError("head is 'none'; expected layers for a softmax head with label='none': it alone answers")
        if self.phase and self.pair_loss != "threshold":
            raise ValueError(
                f"phase is {self.phase}; expected 0 with pair_loss={self.pair_loss!r}: pairs need both rows"
            )
        if self.path == "fused" and self.unfused:
            raise ValueError(
                f"path is 'fused' with {_shown(self.unfused)}; expected 'auto' or 'plain', for the kernels have only "
                + _shown({name: FUSED[name] for name in self.unfused})
            )
        if self.decay != "none" and self.schedule == "greedy-batch":
            raise ValueError(f"decay is {self.decay!r}; expected 'none' with schedule='greedy-batch'")

    # ------------------------------------------------------------ settings

    @staticmethod
    def settings() -> list[Field[Any]]:
        """The fields that may be overridden, with their help in ``metadata``."""
        return [f for f in fields(Recipe) if "help" in f.metadata]

    def override(self, **settings: Any) -> Recipe:
        """A copy with these settings changed.

        Raises:
            ValueError: a setting is unknown or has no such value.
        """
        known = [f.name for f in self.settings()]
        for name in settings:
            if name not in known:
                raise ValueError(f"{name!r} is no setting of a recipe; expected one of {', '.join(known)}")
        return replace(self, **settings)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and checkpoints."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Recipe:
        """The recipe whose :meth:`as_dict` this is.

        Raises:
            ValueError: a setting is missing, or has no such value.
        """
        missing = {f.name for f in fields(cls)} - settings.keys()
        if missing:  # a default would stand for it in silence
            raise ValueError(f"the recipe lacks {', '.join(sorted(missing))}")
        return cls(**{**settings, "layers": tuple(settings["layers"])})

    @property
    def figures(self) -> dict[str, float]:
        """The published errors as shares, like those of :func:`ffkern.trainer.evaluate`."""
        return {answer: percent / 100 for answer, percent in self.published.items()}

    @property
    def unfused(self) -> dict[str, Any]:
        """The settings whose values the kernels lack."""
        return {name: getattr(self, name) for name, fused in FUSED.items() if getattr(self, name) != fused}

    @property
    def plain(self) -> bool:
        """Whether plain PyTorch computes the layers (:class:`~ffkern.plain.PlainNet`), or the kernels."""
        return self.path == "plain" or bool(self.unfused)

    @property
    def path_taken(self) -> str:
        """The same in words, with the reason."""
        if not self.plain:
            return "fused kernels"
        rounded = "" if self.precision == "float32" else "; rows in float32"
        return f"plain PyTorch: {_shown(self.unfused or {'path': self.path})}{rounded}"

    # ------------------------------------------------------------ what they make

    def load(self, scaled: bool = True) -> data.Dataset:
        """The data as the network gets them: scaled, unless told otherwise, and held-out images apart."""
        images = data.load(self.dataset, None if self.folder is None else Path(self.folder))
        if self.held_out:
            images = images.held_out(self.held_out)
        return images.scaled(self.scaling, self.dtype) if scaled else images

    @property
    def dtype(self) -> torch.dtype:
        """torch's dtype of this precision."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def strength(self, images: data.Dataset) -> float:
        """Value of a label's input. One number for all time: it must not depend on who shares a batch."""
        return float(images.train_x.max()) if self.label_value == "max" else self.label_value

    @property
    def head_layers(self) -> str | None:
        """:class:`~ffkern.nn.FFNet`'s head_layers."""
        if self.head == "auto":
            return "all" if self.negatives in ("hard", *UNLABELLED) else None
        return None if self.head == "none" else self.head

    def network(self, inputs: int, classes: int, label_value: float, shape: Sequence[int] | None = None) -> FFNet:
        """A fresh network, the same for the same seed.

        Args:
            inputs: pixels of an image. classes: number of classes. label_value: from :meth:`strength`.
            shape: (channels, height, width) of an image; needed for regions > 1.
        """
        make: Callable[..., FFNet] = FFNet
        if self.plain:
            make = partial(PlainNet, **{name: getattr(self, name) for name in FUSED}, shape=shape, seed=self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = make(
                [inputs, *self.layers],
                classes,
                label=self.label,
                label_value=label_value,
                head_layers=self.head_layers,
                norm=self.norm,
                eps=self.eps,
                goodness=self.goodness,
                threshold=self.threshold,
                temperature=self.temperature,
                peer_strength=self.peer,
            )
            if self.init == "normal":
                for layer in net.layers:
                    nn.init.normal_(layer.get_parameter("weight"), std=_inputs(layer) ** -0.5)
                    nn.init.zeros_(layer.get_parameter("bias"))
        if self.negatives == "generated":
            net.generator = LinearGenerator(inputs, self.layers, lr=self.generator_lr)
        return net

    def trainer(self, net: FFNet, images: data.Dataset, callbacks: Sequence[Callback] = ()) -> Trainer:
        """The trainer of such a network on such images."""
        opt = self._optimiser(net.layers, self.lr, self.weight_decay)
        opts, head_opt = [opt], None
        if net.head is not None:
            head_opt = self._optimiser(net.head, self.head_lr, self.head_weight_decay)
            opts.append(head_opt)
        augment = None
        if self.shift:
            blank = float((0 - images.scaling.mean) / images.scaling.scale)
            augment = partial(_shifted, shape=images.shape, reach=self.shift, fill=blank)
        wrong: Any = self.negatives
        if wrong == "hybrid":
            wrong = partial(_hybrid, shape=images.shape, blurs=self.blurs)
        elif wrong == "generated":
            x = images.train_x
            if len(x) and not 0 <= float(x.min()) <= float(x.max()) <= 1:
                raise ValueError(
                    f"the images are in {float(x.min()):g} .. {float(x.max()):g}; expected 0 .. 1 with "
                    "negatives='generated'"
                )
            wrong = partial(generated, net=net)
        return Trainer(
            net,
            opt,
            schedule=self.schedule,
            negatives=wrong,
            batch_size=self.batch_size,
            epochs=self.epochs,
            iterations=self.iterations,
            phase=self.phase,
            seed=self.seed,
            head_opt=head_opt,
            scheduler=[optim.linear_decay(o, self.epochs) for o in opts] if self.decay == "linear" else None,
            augment=augment,
            callbacks=callbacks,
        )

    def _optimiser(self, module: nn.Module, lr: float, weight_decay: float) -> optim.FusedOptimizer:
        kind = OPTIMISERS[self.optimiser]
        options = {"momentum": self.momentum} if self.optimiser in ("sgd", "ema") else {}
        return kind(module.parameters(), lr=lr, weight_decay=weight_decay, **options)


def _shifted(
    x: torch.Tensor, generator: torch.Generator, *, shape: Sequence[int], reach: int, fill: float
) -> torch.Tensor:
    return data.shift(x, (shape[0], shape[1], shape[2]), reach, generator, fill)


def _hybrid(x: torch.Tensor, generator: torch.Generator, *, shape: Sequence[int], blurs: int) -> torch.Tensor:
    return negatives.hybrid(x, generator, shape=shape, blurs=blurs)[0]


def _shown(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _inputs(layer: nn.Module) -> int:
    return int(layer.get_parameter("weight").shape[1])


def _fits(value: Any, kind: Any) -> bool:
    """Whether value is of the type of a setting: a plain one, Literal, union, or tuple of integers."""
    if isinstance(value, bool):
        return False
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(v, int) for v in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(name in ANSWERS and _fits(v, float) for name, v in value.items())
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    """What :func:`_fits` accepts."""
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_words, get_args(kind)))
    if get_origin(kind) is tuple:
        return "integers such as (500, 500)"
    if get_origin(kind) is dict:
        return f"errors in % by {', '.join(ANSWERS)}"
    return {float: "a finite number", int: "an integer", str: "a text"}.get(kind, "None")
