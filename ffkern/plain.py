"""Variants of Forward-Forward that the kernels lack, in plain PyTorch: the questions that the paper leaves open.

A :class:`PlainNet` has the parameters, statistics and head of an :class:`~ffkern.nn.FFNet`, so that everything that
takes one takes the other. It only computes its rows in another way: by :mod:`ffkern.reference`, with the derivative of
every layer's own loss from autograd. Nothing is ever differentiated through two layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import reference
from .nn import FFLinear, FFNet, _choice, _Plan
from .optim import FusedOptimizer

__all__ = ["ACTIVATIONS", "BETWEEN", "PAIR_LOSSES", "PlainNet"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky": functional.leaky_relu,  # slope 0.01 below zero
    "gelu": functional.gelu,
    # minus the log of the density of z under Student's t with one degree of freedom, but for a constant
    "student_t": lambda z: torch.log1p(z * z),
}
# Of x = (g_neg - g_pos) / temperature; "threshold", the loss of single rows, is no function of it.
PAIR_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"symba": functional.softplus, "swish": functional.silu}
BETWEEN = ("nothing", "black-box")
STEPS = 2  # of the black box's staircase, within the root mean square of a row
OTHER_STREAM = 0x2545F491  # imperfections and boxes must not be made of the random numbers that the weights are made of


class PlainNet(FFNet):
    """An :class:`~ffkern.nn.FFNet` with more settings, computed in plain PyTorch; with their defaults the same network.

    Rows are float32, bfloat16 images too. The softmax head and the drawing of labels stay with the kernels. The layers
    hold parameters and counts; learn and ask through the network, for it alone knows its settings.

    Args:
        layers, classes, options: as for :class:`~ffkern.nn.FFNet`.
        activation: h of z = r (x W^T) + b: "relu", "leaky" (slope 0.01), "gelu", or "student_t", h = log(1 + z^2):
            minus the log of the density of z under a t-distribution with one degree of freedom, less its constant.
            Peer normalisation pulls at z as in the reference, which is of use only where h grows with z: not there.
        pair_loss: "threshold", the loss of single rows; or of an image's positive and each of its negative rows, with
            x = (g_neg - g_pos) / temperature: "symba" softplus(x), "swish" x sigmoid(x). The mean over all pairs.
        regions: the image falls into regions x regions parts, and the units of every layer into as many groups, one
            behind the other. A group of the first layer sees its own part, and the label, divided by the length of the
            whole row. Every group has a goodness and a loss, and the losses add up; where goodness is a sum, a group
            has its share of the layer's threshold. What answers and is counted is the goodness of all units.
        shape: (channels, height, width) of an image, needed for regions > 1.
        weight_noise: every weight acts as if multiplied by 1 + weight_noise N(0, 1), drawn once: a device with
            imperfections of its own, which learning does not know and does not change.
        between: "black-box": what a layer gets is not h of the one below, but an unknown fixed function of it that has
            no useful derivative: the row, divided by its root mean square, times a random matrix with elements of
            variance 1 / units, and every number of that rounded to a multiple of 1/2. The head reads h.
        seed: of weight_noise and between.

    Source: Hinton, arXiv 2212.13345: activation, regions and goodness functions: section on future work; weight_noise
    and between: sections 1 and 9. "symba": Lee and Song, arXiv 2303.08418, its alpha being 1 / temperature. "swish":
    dah33/explore_forward_forward.
    """

    def __init__(
        self,
        layers: Sequence[int] | Sequence[FFLinear],
        classes: int = 10,
        *,
        activation: str = "relu",
        pair_loss: str = "threshold",
        regions: int = 1,
        shape: Sequence[int] | None = None,
        weight_noise: float = 0.0,
        between: str = "nothing",
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(layers, classes, **options)
        self.activation = _choice("activation", activation, tuple(ACTIVATIONS))
        self.pair_loss = _choice("pair_loss", pair_loss, ("threshold", *PAIR_LOSSES))
        self.between = _choice("between", between, BETWEEN)
        if isinstance(regions, bool) or not isinstance(regions, int) or regions < 1:
            raise ValueError(f"regions is {regions}; expected an integer of at least 1")
        if not 0 <= weight_noise < math.inf:
            raise ValueError(f"weight_noise is {weight_noise}; expected a finite number of at least 0")
        self.groups = regions**2
        for i, layer in enumerate(self._all_layers()):
            if layer.out_features % self.groups:
                raise ValueError(
                    f"regions is {regions} and layers[{i}] has {layer.out_features} units; expected a multiple of "
                    f"{self.groups}, as many in each group"
                )
        seen = None if regions == 1 else self._seen(regions, shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed ^ OTHER_STREAM)
            for i, layer in enumerate(self._all_layers()):
                gain = 1 + weight_noise * torch.randn_like(layer.weight) if weight_noise else None
                if i == 0 and seen is not None:
                    gain = seen.to(layer.weight) if gain is None else gain * seen
                self.register_buffer(f"gain_{i}", gain, persistent=False)
                box = None
                if i and between == "black-box":
                    box = layer.weight.new_empty(layer.in_features, layer.in_features)
                    box = torch.randn_like(box) / layer.in_features**0.5
                self.register_buffer(f"box_{i}", box, persistent=False)

    def _seen(self, regions: int, shape: Sequence[int] | None) -> Tensor:
        """bool [M, K]: whether a unit of the first layer sees an input."""
        first = self._layer(0)
        extra = self.classes if self.label == "concat" else 0
        if shape is None or len(shape) != 3 or math.prod(shape) != first.in_features - extra:
            raise ValueError(
                f"shape is {shape}; expected (channels, height, width) of {first.in_features - extra} inputs with "
                f"regions={regions}"
            )
        channels, height, width = shape
        if min(height, width) < regions:
            raise ValueError(f"regions is {regions}; expected at most {min(height, width)}, for images of {shape}")
        row, column = torch.arange(height) * regions // height, torch.arange(width) * regions // width
        part = (row[:, None] * regions + column).flatten().repeat(channels)
        group = torch.arange(first.out_features) // (first.out_features // self.groups)
        seen = functional.pad(group[:, None] == part, (extra, 0))
        if self.label != "none":
            seen[:, : self.classes] = True
        return seen

    # ------------------------------------------------------------ one layer

    def _forward(
        self, index: int, x: Tensor, length: Tensor | None, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z and h [R, M], and the row scale [R], of rows x [R, K] with these L2 norms, for such parameters."""
        layer, box, gain = self._layer(index), getattr(self, f"box_{index}"), getattr(self, f"gain_{index}")
        if box is not None:
            unit = x * reference._row_scale(reference._row_norm(x), x.shape[1], "rms", 1e-8)[:, None]
            x, length = (STEPS * (unit @ box)).round() / STEPS, None
        weight = weight if gain is None else weight * gain
        z, scale = reference._pre_activation(x, weight, bias, length, layer.norm, layer.eps)
        return z, ACTIVATIONS[self.activation](z), scale

    def _rows_of(self, index: int, x: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What :meth:`FFLinear.activities` gives."""
        layer = self._layer(index)
        _, h, scale = self._forward(index, x, length, layer.weight, layer.bias)
        return h, reference._goodness(h, layer.goodness), scale, reference._row_norm(h)

    def _loss(self, layer: FFLinear, h: Tensor, sign: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """The layer's loss, and its statistics in the order of reference.local_loss."""
        whole = reference._goodness(h.detach(), layer.goodness)
        _, _, stats = reference.local_loss(whole, sign, weight, layer.threshold, layer.temperature)
        share = 1 if "mean" in layer.goodness else self.groups
        losses = []
        for part in h.chunk(self.groups, 1):
            goodness = reference._goodness(part, layer.goodness)
            if self.pair_loss == "threshold":
                losses.append(
                    reference.local_loss(goodness, sign, weight, layer.threshold / share, layer.temperature)[0]
                )
                continue
            positive, negative = self._pairs(goodness, sign)
            losses.append(PAIR_LOSSES[self.pair_loss]((negative - positive) / layer.temperature).mean())
        loss = torch.stack(losses).sum()
        stats[0] = loss.detach()
        if self.pair_loss != "threshold":  # right is a row that is on its side of the other of its pair
            positive, negative = self._pairs(whole, sign)
            won = (negative < positive).sum()
            stats[3], stats[4] = won / negative.shape[0], won
        return loss, stats

    @staticmethod
    def _pairs(goodness: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
        """Goodness of the positive rows [1, N], and of their negatives [V, N]."""
        rows = goodness.view(-1, int((sign > 0).sum()))
        return rows[:1], rows[1:]

    def _learn(
        self, index: int, x: Tensor, length: Tensor | None, sign: Tensor, weight: Tensor | None, opt: FusedOptimizer
    ) -> tuple[Tensor, Tensor]:
        layer = self._layer(index)
        if layer.frozen:
            h, _, _, h_norm = self._rows_of(index, x, length)
            return h, h_norm
        slot = layer._bind(opt)
        moved = [p.detach().requires_grad_() for p in (layer.weight, layer.bias) if p is not None]
        with torch.enable_grad():
            z, h, _ = self._forward(index, x, length, moved[0], moved[1] if len(moved) > 1 else None)
            loss, stats = self._loss(layer, h, sign, weight)
            h = h.detach()
            if layer.peer_mean is not None:
                pull, mean = reference.peer_update(h, sign, layer.peer_mean, layer.peer_strength, layer.peer_momentum)
                loss = loss + (pull * z[sign > 0]).sum()
                layer.peer_mean.copy_(mean)
            grads = torch.autograd.grad(loss, moved)
        layer._count(stats)
        state = (layer.weight, layer.bias, slot.weight_state, slot.bias_state, slot.step)
        new = reference._update(
            layer.weight, layer.bias, grads, slot.weight_state, slot.bias_state, slot.step, slot.lr(), slot.kind,
            slot.hyper,
        )  # fmt: skip
        for old, value in zip(state, new, strict=True):
            if old is not None and value is not None:
                old.copy_(value)
        return h, reference._row_norm(h)

    # ------------------------------------------------------------ all of them

    def _laid(self, images: Tensor, variants: Tensor, overlay: Tensor) -> Tensor:
        """Rows of the label variants [V, N], or the images alone where they carry no label."""
        return images if self.label == "none" else reference._variants(images, variants, self.classes, overlay)

    def _pass(self, images: Tensor, variants: Tensor, overlay: Tensor) -> Iterator[tuple[Tensor, ...]]:
        h, length = self._laid(images, variants, overlay), None
        for i in range(len(self.layers)):
            h, goodness, scale, length = self._rows_of(i, h, length)
            yield h, goodness, scale, length

    def _step(self, plan: _Plan, images: Tensor, labels: Tensor, u: Tensor | None, overlay: Tensor, signs: str) -> None:
        if self.pair_loss != "threshold" and signs != "both":
            raise ValueError(f"signs is {signs!r}; expected 'both' with pair_loss={self.pair_loss!r}")
        variants = labels.shape[0] - bool(plan.head_layers)
        if self.head is not None and plan.head_layers:
            kept = self._activities(images, labels[variants:], overlay)
            seen = [kept[i][0] for i in self.head_layers], [kept[i][1] for i in self.head_layers]
            if plan.head_opt is None or self.head.frozen:
                logits = self.head(*seen)
            else:
                logits = self.head.step(*seen, labels[0], plan.head_opt)
            if u is not None:
                labels[1] = torch.ops.ffkern.hard_labels(logits, labels[0], u)
        sign, weight = self._rows(images.shape[0], variants - 1, images.device, signs)
        h, length = self._laid(images, labels[:variants], overlay), None
        for i in range(len(self.layers)):
            h, length = self._learn(i, h, length, sign, weight, plan.opt)

    def _contrast(self, positives: int, negatives: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        if self.pair_loss != "threshold" and positives != negatives:
            raise ValueError(
                f"negatives has {negatives} rows; expected {positives}, one for each image, with "
                f"pair_loss={self.pair_loss!r}"
            )
        return super()._contrast(positives, negatives, device)

    @torch.no_grad()
    def lesson(self, index: int, x: Tensor, variants: Tensor) -> Callable[[FusedOptimizer], None]:
        self._labelled("a lesson")
        images, overlay = self._images(x), self._overlay(x)
        sign, weight = self._rows(images.shape[0], variants.shape[0] - 1, images.device)
        h, length = self._laid(images, variants, overlay), None
        for i in range(index):
            h, _, _, length = self._rows_of(i, h, length)

        @torch.no_grad()
        def learn(opt: FusedOptimizer) -> None:
            self._layer(index)._bind(opt)  # refuses a frozen layer
            self._learn(index, h, length, sign, weight, opt)

        return learn

    @torch.no_grad()
    def goodness(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is not None or self.label == "none":
            return super().goodness(x, labels)
        every = torch.arange(self.classes, device=x.device)[:, None].expand(-1, x.shape[0])
        found = torch.stack([rows[1] for rows in self._pass(self._images(x), every, self._overlay(x))])
        return found.view(len(self.layers), self.classes, -1).transpose(1, 2)
