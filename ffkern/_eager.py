"""The same training in eager PyTorch, as a careful user would write it, for ``--compare-eager``.

Positive and negative rows are stacked into one batch a layer, the layers' losses share one backward
pass, gradients are set to None, and the optimiser is ``torch.optim.Adam`` as it comes. Nothing here
calls a kernel of ffkern.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import reference
from .data import batches
from .nn import FFLinear, FFNet
from .optim import Adam

__all__ = ["Agreement", "EagerNet", "compare_losses"]


class EagerNet:
    """Copies of a network's layers and head, given the lessons of ``FFNet.step``.

    Args:
        net: the network; its parameters are copied, not shared. Negatives are "uniform" or "all".
        lr, head_lr: learning rates of the layers and of the head. No head is trained without
            head_lr.
    """

    def __init__(self, net: FFNet, lr: float, negatives: str, head_lr: float | None = None) -> None:
        self.net, self.negatives = net, negatives
        self.settings = [layer for layer in net.layers if isinstance(layer, FFLinear)]
        self.linears = [_copy(layer) for layer in self.settings]
        self.opt = torch.optim.Adam([p for linear in self.linears for p in linear.parameters()], lr=lr)
        self.head: nn.Linear | None = None
        if net.head is not None and head_lr is not None:
            self.head = _copy(net.head)
            self.head_opt = torch.optim.Adam(self.head.parameters(), lr=head_lr)

    def step(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """One step of every layer and the head. Returns the layers' losses, on the device."""
        wrong = _wrong_labels(labels, self.net.classes, self.negatives, generator)
        rows = torch.cat([self._labelled(x, variant) for variant in (labels, *wrong)])
        positive = torch.arange(rows.shape[0]) < x.shape[0]
        sign = torch.where(positive, 1.0, -1.0)
        weight = torch.where(positive, 0.5 / x.shape[0], 0.5 / (rows.shape[0] - x.shape[0]))
        losses = []
        for layer, linear in zip(self.settings, self.linears, strict=True):
            rows = functional.relu(linear(_normalised(rows, layer)))
            logit = sign * (_goodness(rows, layer.goodness) - layer.threshold) / layer.temperature
            losses.append((weight * functional.softplus(-logit)).sum())
            rows = rows.detach()
        total = torch.stack(losses)
        if self.head is not None:
            self._step_head(x, labels)
        self.opt.zero_grad(set_to_none=True)
        total.sum().backward()
        self.opt.step()
        return total.detach()

    def _step_head(self, x: Tensor, labels: Tensor) -> None:
        assert self.head is not None
        with torch.no_grad():
            features = self._features(self._labelled(x, torch.full_like(labels, -1)))
        loss = functional.cross_entropy(self.head(features), labels)
        self.head_opt.zero_grad(set_to_none=True)
        loss.backward()
        self.head_opt.step()

    def _features(self, rows: Tensor) -> Tensor:
        kept = []
        for i, (layer, linear) in enumerate(zip(self.settings, self.linears, strict=True)):
            rows = functional.relu(linear(_normalised(rows, layer)))
            if i in self.net.head_layers:
                kept.append(_normalised(rows, layer))
        return torch.cat(kept, 1)

    def train_epoch(self, x: Tensor, y: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """The batches of one epoch; the layers' losses summed over them."""
        total = torch.zeros(len(self.linears))
        for images, labels in batches(x, y, batch_size, generator):
            total += self.step(images, labels, generator)
        return total

    @torch.no_grad()
    def error(self, x: Tensor, y: Tensor) -> float:
        """Share of wrong labels, by the goodness summed over all layers."""
        scores = []
        for label in range(self.net.classes):
            rows, score = self._labelled(x, torch.full_like(y, label)), torch.zeros(x.shape[0])
            for layer, linear in zip(self.settings, self.linears, strict=True):
                rows = functional.relu(linear(_normalised(rows, layer)))
                score += _goodness(rows, layer.goodness)
            scores.append(score)
        wrong = torch.stack(scores, 1).argmax(1) != y
        return float(wrong.double().mean())

    def _labelled(self, x: Tensor, labels: Tensor) -> Tensor:
        """The images with their labels; -1 is the neutral one."""
        on, neutral = self.net.overlay.tolist()
        if int(labels[0]) < 0:
            label = torch.full((x.shape[0], self.net.classes), neutral)
        else:
            label = functional.one_hot(labels, self.net.classes) * torch.tensor(on)
        pixels = x if self.net.label == "concat" else x[:, self.net.classes :]
        return torch.cat((label, pixels), 1)


def _copy(module: nn.Module) -> nn.Linear:
    weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight.detach().clone(), "bias": bias.detach().clone()})
    return linear


def _normalised(rows: Tensor, layer: FFLinear) -> Tensor:
    if layer.norm == "none":
        return rows
    length: Tensor = rows.norm(dim=1, keepdim=True)
    if layer.norm == "rms":
        length = length / rows.shape[1] ** 0.5
    return rows / (length + layer.eps)


def _goodness(h: Tensor, kind: str) -> Tensor:
    if kind == "sum_abs":
        return h.sum(1)
    value: Tensor = h.square().mean(1) if kind.endswith("mean_sq") else h.square().sum(1)
    return -value if kind.startswith("neg") else value


def _wrong_labels(labels: Tensor, classes: int, negatives: str, generator: torch.Generator) -> Tensor:
    """[V, N]: the draws of FFNet.wrong_labels."""
    if negatives == "all":
        return (labels + torch.arange(1, classes)[:, None]) % classes
    u = torch.rand(labels.shape[0], generator=generator)
    return ((labels + 1 + (u * (classes - 1)).long().clamp(max=classes - 2)) % classes)[None]


# ------------------------------------------------------------ agreement of the first steps


@dataclass(frozen=True)
class Agreement:
    """Losses of the first steps: ffkern and eager in float32 against the reference in float64.

    The bound of a step and layer is twice the largest deviation of eager up to that step, plus a
    floor.
    """

    ffkern: Tensor  # float64 [steps, layers], |loss - float64 loss|
    eager: Tensor
    bound: Tensor

    @property
    def holds(self) -> bool:
        """NaN does not agree."""
        return bool((self.ffkern <= self.bound).all())


def compare_losses(
    net: FFNet,
    x: Tensor,
    y: Tensor,
    *,
    lr: float,
    negatives: str,
    batch_size: int,
    seed: int,
    steps: int = 50,
) -> Agreement:
    """Runs the first steps three times from the network's present weights, which stay as they are.

    Every run draws its batches and negatives from its own generator with the same seed; the
    learning rate is constant.

    The floor is 2^-23 times the loss (at least 1), one unit in its last place: eager may by chance
    hit the float64 value at the first steps. The errors of earlier updates are in what eager shows.
    Settings that amplify rounding, such as sum_sq at this learning rate, let any two float32 runs
    drift apart within 50 steps.
    """
    truth = _reference_losses(net, x, y, lr, negatives, batch_size, seed, steps)
    eager_net = EagerNet(net, lr, negatives)
    generator = torch.Generator().manual_seed(seed)
    stream = _stream(x, y, batch_size, steps, generator)
    eager = torch.stack([eager_net.step(*batch, generator) for batch in stream]).double()

    copy = _clone(net)
    opt = Adam(copy.layers.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    fused = []
    for images, labels in _stream(x, y, batch_size, steps, generator):
        copy.step(images, labels, opt, negatives=negatives, generator=generator)
        fused.append([seen["loss"] for seen in copy.metrics()])

    floor = 2.0**-23 * truth.abs().clamp(min=1)
    ours, theirs = (torch.tensor(fused, dtype=torch.float64) - truth).abs(), (eager - truth).abs()
    return Agreement(ours, theirs, 2 * theirs.cummax(0).values + floor)


def _stream(
    x: Tensor, y: Tensor, batch_size: int, steps: int, generator: torch.Generator
) -> Iterable[tuple[Tensor, Tensor]]:
    """The trainer's batches, epoch after epoch, up to a number of steps."""
    done = 0
    while True:
        for batch in batches(x, y, batch_size, generator):
            if done == steps:
                return
            done += 1
            yield batch


def _clone(net: FFNet) -> FFNet:
    layers = []
    for layer in net.layers:
        assert isinstance(layer, FFLinear)
        options = {name: getattr(layer, name) for name in ("norm", "eps", "goodness", "threshold", "temperature")}
        copy = FFLinear(layer.in_features, layer.out_features, **options)
        copy.load_state_dict(layer.state_dict())
        layers.append(copy)
    clone = FFNet(layers, net.classes, label=net.label, label_value=net.label_value)
    clone.overlay.copy_(net.overlay)
    return clone


def _reference_losses(
    net: FFNet,
    x: Tensor,
    y: Tensor,
    lr: float,
    negatives: str,
    batch_size: int,
    seed: int,
    steps: int,
) -> Tensor:
    """float64 [steps, layers], by ffkern.reference."""
    layers = [layer for layer in net.layers if isinstance(layer, FFLinear)]
    states = []
    for layer in layers:
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        zeros = weight.new_zeros(2, *weight.shape), bias.new_zeros(2, *bias.shape)
        states.append((weight, bias, *zeros, torch.tensor(0)))
    overlay = net.overlay.double()
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for images, labels in _stream(x, y, batch_size, steps, generator):
        if negatives == "all":
            wrong = reference.all_wrong_labels(labels, net.classes)
        else:
            u = torch.rand(labels.shape[0], generator=generator)
            wrong = reference.wrong_labels(labels, net.classes, u)[None]
        variants = [labels, *wrong]
        lay = reference.concat_label if net.label == "concat" else reference.overlay_label
        h = torch.cat([lay(images.double(), variant, net.classes, overlay) for variant in variants])
        sign = torch.ones(h.shape[0], dtype=torch.float64)
        sign[labels.shape[0] :] = -1
        weight = torch.full_like(sign, 0.5 / labels.shape[0])
        weight[labels.shape[0] :] /= len(wrong)
        row = []
        for i, layer in enumerate(layers):
            done = reference.layer_step(
                h,
                sign,
                *states[i],
                lr,
                norm=layer.norm,
                eps=layer.eps,
                goodness=layer.goodness,
                threshold=layer.threshold,
                temperature=layer.temperature,
                optimiser="adam",
                hyper=(0.9, 0.999, 1e-8, 0.0),
                row_weight=weight,
            )
            assert done.bias is not None
            states[i] = (done.weight, done.bias, done.weight_state, done.bias_state, done.step)
            h = done.h
            row.append(done.stats[0])
        losses.append(torch.stack(row))
    return torch.stack(losses)
