"""Whole networks, one step of all layers: ffkern's, the competitor in plain PyTorch, and the specification in float64.

All of them are made from a recipe and images, start from the same weights and draw the same wrong labels, so that they
can be compared number by number. The competitor is written for speed: rows stacked, no graph from layer to layer, the
neutral and the positive rows of hard negatives used for the head and the lesson both. It comes in two forms: with
torch's autograd for the local losses ("autograd"), and with the gradient written out ("manual").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ffkern import reference
from ffkern.data import Dataset
from ffkern.nn import FFLinear, FFNet
from ffkern.recipes import Recipe

from .eager import mixed, narrow, rms_normalised, wide

FORMS = ("autograd", "manual")
IMPLEMENTED = {  # by EagerNetwork: values of a recipe's settings
    "label": ("overlay",),
    "label_value": (1.0,),
    "norm": ("rms",),
    "eps": (1e-8,),
    "goodness": ("mean_sq", "sum_sq"),
    "temperature": (1.0,),
    "schedule": ("simultaneous",),
    "negatives": ("uniform", "hard"),
    "optimiser": ("adam", "ema"),
}
Layer = tuple[Tensor, Tensor]


def start(recipe: Recipe, images: Dataset) -> FFNet:
    """The network before its first step."""
    return recipe.network(images.inputs, images.classes, recipe.strength(images))


def trained_bytes(learner: Any) -> int:
    """Of the parameters and of what their optimisers keep about them: no step can do without."""
    count = 0
    for optimiser in learner.optimisers:
        tensors = [p for group in optimiser.param_groups for p in group["params"]]
        tensors += [t for state in optimiser.state.values() for t in state.values() if isinstance(t, Tensor)]
        count += sum(t.numel() * t.element_size() for t in tensors)
    return count


# ------------------------------------------------------------ ffkern


class FusedNetwork:
    """FFNet.step with the recipe's optimisers."""

    def __init__(self, recipe: Recipe, images: Dataset) -> None:
        self.recipe, self.images = recipe, images
        self.net = start(recipe, images)
        trainer = recipe.trainer(self.net, images)
        self.opt, self.head_opt = trainer.opt, trainer.head_opt
        self.optimisers = [opt for opt in (self.opt, self.head_opt) if opt is not None]
        self.generator = torch.Generator().manual_seed(0)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.net.step(
            x,
            y,
            self.opt,
            negatives=self.recipe.negatives,
            generator=self.generator,
            head_opt=self.head_opt,
        )

    def __call__(self) -> None:
        self.step(self.images.train_x, self.images.train_y)

    @property
    def last_loss(self) -> Tensor:
        return torch.tensor([layer["loss"] for layer in self.net.metrics()], dtype=torch.float64)

    def set_lr(self, lr: float) -> None:
        for group in (group for opt in self.optimisers for group in opt.param_groups):
            group["lr"].fill_(lr)

    def results(self) -> dict[str, Tensor]:
        found = {"goodness": self.net.goodness(self.images.train_x, self.images.train_y)}
        weights = [layer.weight for layer in self.net.layers]
        found |= _learnt(self.recipe, self.images, weights, [self.opt.state[w]["slots"][0] for w in weights])
        if self.head_opt is not None and self.net.head is not None:
            found["head moment"] = self.head_opt.state[self.net.head.weight]["slots"][0]
        return found


def _learnt(recipe: Recipe, images: Dataset, weights: Sequence[Tensor], moments: Sequence[Tensor]) -> dict[str, Tensor]:
    """What is compared of the layers: weights only where they are a measure, which Adam's are not (gate.py)."""
    found = {f"moment {i}": moment for i, moment in enumerate(moments)}
    if recipe.optimiser != "adam":
        for i, layer in enumerate(start(recipe, images).layers):
            found[f"change of weight {i}"] = weights[i].detach().double() - layer.get_parameter("weight").detach()
    return found


# ------------------------------------------------------------ specification


class ReferenceNetwork:
    """FFNet.step by ffkern.reference in float64: the exact answer."""

    def __init__(self, recipe: Recipe, images: Dataset) -> None:
        fused = FusedNetwork(recipe, images)  # not for its kernels: for weights and settings
        self.recipe, self.images = recipe, images
        self.net, self.opt, self.head_opt = fused.net, fused.opt, fused.head_opt
        self.x, self.y = images.train_x.double(), images.train_y
        self.generator = fused.generator
        self.layers = [layer for layer in self.net.layers if isinstance(layer, FFLinear)]
        self.state = [_blank(layer.weight, layer.bias, self.opt.slots) for layer in self.layers]
        self.peers = [None if layer.peer_mean is None else layer.peer_mean.double() for layer in self.layers]
        if self.net.head is not None:
            self.head_state = _blank(self.net.head.weight, self.net.head.bias, self.opt.slots)

    def __call__(self) -> None:
        classes, overlay = self.net.classes, self.net.overlay.double()
        u = torch.rand(len(self.y), generator=self.generator)
        if self.head_opt is None:
            wrong = reference.wrong_labels(self.y, classes, u)
        else:
            wrong = reference.hard_labels(self._head_step(overlay), self.y, u)
        sign = torch.ones(2 * len(self.y), dtype=torch.float64)
        sign[len(self.y) :] = -1
        losses = []
        group = self.opt.param_groups[0]
        h, h_norm = self.x, None
        for i, (layer, state) in enumerate(zip(self.layers, self.state, strict=True)):
            settings: dict[str, Any] = {
                "norm": layer.norm, "eps": layer.eps, "goodness": layer.goodness, "threshold": layer.threshold,
                "temperature": layer.temperature, "optimiser": self.opt.kind, "hyper": self.opt.hyper(group),
                "peer_mean": self.peers[i], "peer_strength": layer.peer_strength, "peer_momentum": layer.peer_momentum,
            }  # fmt: skip
            if i == 0:
                labels = torch.stack((self.y, wrong))
                done = reference.shared_step(
                    h, labels, sign, *state, group["lr"], classes=classes, overlay=overlay, **settings
                )
            else:
                done = reference.layer_step(h, sign, *state, group["lr"], x_norm=h_norm, **settings)
            self.state[i], self.peers[i], h, h_norm = list(done[:5]), done.peer_mean, done.h, done.h_norm
            losses.append(done.stats[0])
        self.last_loss = torch.stack(losses)

    def _forward(self, labels: Tensor, overlay: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """h, goodness and norm of every layer."""
        h, h_norm, found = reference.overlay_label(self.x, labels, self.net.classes, overlay), None, []
        for layer, (weight, bias, *_) in zip(self.layers, self.state, strict=True):
            h, goodness, _, h_norm = reference.layer_forward(
                h, weight, bias, h_norm, layer.norm, layer.eps, layer.goodness
            )
            found.append((h, goodness, h_norm))
        return found

    def _head_step(self, overlay: Tensor) -> Tensor:
        assert self.head_opt is not None
        assert self.net.head is not None
        found = [self._forward(torch.full_like(self.y, -1), overlay)[i] for i in self.net.head_layers]
        group, head = self.head_opt.param_groups[0], self.net.head
        logits, *self.head_state, _ = reference.head_step(
            [h for h, _, _ in found], [norm for _, _, norm in found], self.y, *self.head_state, group["lr"],
            norm=head.norm, eps=head.eps, optimiser=self.head_opt.kind, hyper=self.head_opt.hyper(group),
        )  # fmt: skip
        return logits

    def results(self) -> dict[str, Tensor]:
        found = {"goodness": torch.stack([g for _, g, _ in self._forward(self.y, self.net.overlay.double())])}
        found |= _learnt(self.recipe, self.images, [s[0] for s in self.state], [s[2][0] for s in self.state])
        if self.head_opt is not None:
            found["head moment"] = self.head_state[2][0]
        return found


def _blank(weight: Tensor, bias: Tensor, slots: int) -> list[Tensor]:
    """Weight, bias, their state and the count of steps, as reference.layer_step takes and returns them."""
    w, b = weight.detach().double(), bias.detach().double()
    return [w, b, w.new_zeros(slots, *w.shape), b.new_zeros(slots, *b.shape), torch.tensor(0)]


# ------------------------------------------------------------ plain PyTorch


class EagerNetwork:
    """The competitor.

    Args:
        form: one of FORMS.
        fused: torch's fused optimiser instead of its default.
        compiled: passes, and the gradient of the manual form, by torch.compile.

    Raises:
        ValueError: it does not implement a setting of the recipe.
    """

    def __init__(
        self, recipe: Recipe, images: Dataset, form: str, *, fused: bool = False, compiled: bool = False
    ) -> None:
        for name, known in IMPLEMENTED.items():
            if getattr(recipe, name) not in known:
                raise ValueError(f"{name} is {getattr(recipe, name)!r}; expected {' or '.join(map(repr, known))}")
        net = start(recipe, images)
        self.images, self.recipe, self.manual = images, recipe, form == "manual"
        self.classes, self.head_layers = net.classes, net.head_layers
        self.low = narrow(images.train_x, torch.float32)
        self.layers = [_copied(layer) for layer in net.layers]
        first = net.layers[0]
        assert isinstance(first, FFLinear)
        self.mean_of_squares = first.goodness == "mean_sq"
        self.thresholds = [float(layer.threshold) for layer in net.layers]
        self.peers = [torch.zeros(len(bias)) for _, bias in self.layers] if recipe.peer else []
        self.opt = self._optimiser([p for layer in self.layers for p in layer], recipe.lr, fused)
        self.optimisers = [self.opt]
        self.head: Layer | None = None
        if net.head is not None:
            self.head = _copied(net.head)
            self.head_opt = self._optimiser(list(self.head), recipe.head_lr, fused)
            self.optimisers.append(self.head_opt)
        self.generator = torch.Generator().manual_seed(0)
        self.last_loss = torch.zeros(len(self.layers))
        self.through: Callable[..., Any] = through
        self.loss: Callable[..., Any] = layer_loss
        self.gradient: Callable[..., Any] = gradient
        if compiled:  # one function serves all layers, in each precision: more variants than the default allows
            torch._dynamo.config.recompile_limit = 64
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            self.through = torch.compile(through, dynamic=False)
            self.loss = torch.compile(layer_loss, dynamic=False)
            self.gradient = torch.compile(gradient, dynamic=False)

    def _optimiser(self, parameters: list[Tensor], lr: float, fused: bool) -> torch.optim.Optimizer:
        """Hinton's smoothed gradient is momentum SGD at (1 - momentum) times the rate; his decay acts beside it."""
        if self.recipe.optimiser == "adam":
            return torch.optim.Adam(parameters, lr=lr, fused=fused or None)
        momentum = self.recipe.momentum
        return torch.optim.SGD(parameters, lr=lr * (1 - momentum), momentum=momentum, fused=fused or None)

    def __call__(self) -> None:
        self.step(self.images.train_x, self.images.train_y)

    def step(self, x: Tensor, y: Tensor) -> None:
        u = torch.rand(len(y), generator=self.generator)
        right = self._labelled(x, functional.one_hot(y, self.classes))
        known: list[tuple[Tensor, Tensor]] = []  # inputs and activities of the positive rows, where there are already
        if self.head is None:
            wrong = (y + 1 + (u * (self.classes - 1)).long().clamp(max=self.classes - 2)) % self.classes
        else:
            neutral = self._labelled(x, torch.full((len(x), self.classes), 1 / self.classes))
            with torch.no_grad(), mixed(x, self.low):
                passed = self.through(torch.cat((neutral, right)) if self.manual else neutral, self.layers)
            known = [(rows[len(x) :], h[len(x) :]) for rows, h in passed]
            logits = self._head_step([rms_normalised(passed[i][1][: len(x)]) for i in self.head_layers], y)
            chance = logits.scatter(1, y[:, None], -torch.inf).softmax(1).cumsum(1)
            wrong = (chance <= u[:, None] * chance[:, -1:]).sum(1)
        false = self._labelled(x, functional.one_hot(wrong, self.classes))
        if self.manual:
            self._by_hand(right, false, known)
        else:
            self._by_autograd(torch.cat((right, false)))
        self._update(self.opt, [weight for weight, _ in self.layers], self.recipe.lr, self.recipe.weight_decay)

    def _labelled(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.cat((label.to(x.dtype), x[:, self.classes :]), 1)

    def _head_step(self, features: Sequence[Tensor], y: Tensor) -> Tensor:
        assert self.head is not None
        with mixed(features[0], self.low):
            logits = functional.linear(torch.cat(list(features), 1), *self.head).float()
        self.head_opt.zero_grad()
        functional.cross_entropy(logits, y).backward()
        self._update(self.head_opt, [self.head[0]], self.recipe.head_lr, self.recipe.head_weight_decay)
        return logits.detach()

    def _update(self, opt: torch.optim.Optimizer, weights: list[Tensor], lr: float, decay: float) -> None:
        if decay:  # Hinton's only: with Adam the recipes have none
            torch._foreach_mul_([weight.data for weight in weights], 1 - lr * decay)
        opt.step()

    def _by_autograd(self, rows: Tensor) -> None:
        """Layer after layer, so that no more than one layer's graph is alive."""
        self.opt.zero_grad()
        losses = []
        for i, (weight, bias) in enumerate(self.layers):
            peer = (self.peers[i], self.recipe.peer) if self.peers else None
            with mixed(rows, self.low):
                objective, loss, rows = self.loss(rows, weight, bias, self.thresholds[i], self.mean_of_squares, peer)
            objective.backward()
            losses.append(loss)
        self.last_loss = torch.stack(losses)

    @torch.no_grad()
    def _by_hand(self, right: Tensor, false: Tensor, known: list[tuple[Tensor, Tensor]]) -> None:
        """``known``: normalised inputs and activities of the positive rows, where they have gone through already."""
        rows, losses = false if known else torch.cat((right, false)), []
        for i, layer in enumerate(self.layers):
            peer = (self.peers[i], self.recipe.peer) if self.peers else None
            with mixed(rows, self.low):
                passed = self.through(rows, [layer])
                parts = [known[i], *passed] if known else passed
                *grads, loss = self.gradient(parts, len(right), self.thresholds[i], self.mean_of_squares, peer)
            for parameter, grad in zip(layer, grads, strict=True):
                parameter.grad = grad
            losses.append(loss)
            rows = passed[0][1]
        self.last_loss = torch.stack(losses)

    def set_lr(self, lr: float) -> None:
        self.recipe = self.recipe.override(lr=lr, head_lr=lr)
        for group in (group for opt in self.optimisers for group in opt.param_groups):
            group["lr"] = lr if self.recipe.optimiser == "adam" else lr * (1 - self.recipe.momentum)

    def results(self) -> dict[str, Tensor]:
        rows = self._labelled(self.images.train_x, functional.one_hot(self.images.train_y, self.classes))
        with torch.no_grad(), mixed(rows, self.low):
            passed = through(rows, self.layers)
        found = {"goodness": torch.stack([_squares(h, self.mean_of_squares) for _, h in passed])}
        weights = [weight for weight, _ in self.layers]
        found |= _learnt(self.recipe, self.images, weights, [self._moment(self.opt, w) for w in weights])
        if self.head is not None:
            found["head moment"] = self._moment(self.head_opt, self.head[0])
        return found

    def _moment(self, opt: torch.optim.Optimizer, weight: Tensor) -> Tensor:
        state = opt.state[weight]
        return state["exp_avg"] if "exp_avg" in state else state["momentum_buffer"] * (1 - self.recipe.momentum)


def _copied(module: nn.Module) -> Layer:
    weight, bias = (module.get_parameter(name).detach().clone().requires_grad_() for name in ("weight", "bias"))
    return weight, bias


def _squares(h: Tensor, mean: bool) -> Tensor:
    total = h.to(wide(h)).square()
    return total.mean(1) if mean else total.sum(1)


def through(rows: Tensor, layers: Sequence[Layer]) -> list[tuple[Tensor, Tensor]]:
    """Normalised inputs and activities of every layer."""
    passed = []
    for weight, bias in layers:
        rows = rms_normalised(rows).to(rows.dtype)
        h = torch.relu(functional.linear(rows, weight, bias))
        passed.append((rows, h))
        rows = h
    return passed


def layer_loss(
    rows: Tensor, weight: Tensor, bias: Tensor, threshold: float, mean: bool, peer: tuple[Tensor, float] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer descends, its loss, and its activities; the first half of the rows is positive."""
    n = len(rows) // 2
    z = functional.linear(rms_normalised(rows), weight, bias)
    h = torch.relu(z)
    gap = _squares(h, mean) - threshold
    loss = functional.softplus(torch.cat((-gap[:n], gap[n:]))).mean()
    objective = loss if peer is None else loss + (z[:n] * _peer(h[:n].detach(), *peer)).sum()
    return objective, loss.detach(), h.detach()


def gradient(
    parts: Sequence[tuple[Tensor, Tensor]],
    positive: int,
    threshold: float,
    mean: bool,
    peer: tuple[Tensor, float] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a layer's weight and bias, and its loss.

    Args:
        parts: normalised inputs and activities; the first ``positive`` rows of the first part are positive.
        mean: goodness is the mean of the squares, not their sum.
        peer: mean activities, which are updated, and strength of peer normalisation.
    """
    total = sum(len(rows) for rows, _ in parts)
    weight = bias = loss = torch.zeros(())
    for part, (rows, h) in enumerate(parts):
        sign = torch.full((len(h),), -1.0)
        if part == 0:
            sign[:positive] = 1
        gap = sign * (threshold - _squares(h, mean))
        coefficient = -sign * torch.sigmoid(gap) * (2 / total / (h.shape[1] if mean else 1))
        dz = coefficient[:, None] * h
        if part == 0 and peer is not None:
            dz[:positive] += _peer(h[:positive], *peer)
        weight = weight + torch.mm(dz.t(), rows).float()
        bias = bias + dz.sum(0)
        loss = loss + functional.softplus(gap).sum() / total
    return weight, bias, loss


def _peer(h: Tensor, mean: Tensor, strength: float) -> Tensor:
    """To be added to dloss/dz of the positive rows, whose activities these are; ``mean`` is updated in place."""
    mean.mul_(0.9).add_(h.mean(0, dtype=torch.float32), alpha=0.1)
    return strength / len(h) * (mean - mean.mean())
