"""The competitor: Forward-Forward in plain PyTorch as one writes it for speed, and compiled.

Not the readable reference. Adam with its defaults, gradients set to None; positive and negative
rows in one pass ("stacked") or in two ("separate"), whichever is faster on the machine. Rows of 16
bits: autocast with float32 weights, and for float16 a constant loss scale, so nothing is waited for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .cases import CLASSES, LABEL_VALUE, PredictCase, PredictData, StepCase, StepData

EPS = 1e-8
THRESHOLD = 2.0
FORMS = ("stacked", "separate")
BATCH = 500  # images that a prediction in batches takes at once
LOSS_SCALE = 2.0**14  # of float16: gradients of activities are about 1e-7 at 10,000 rows of 2000 units

Loss = tuple[Tensor, tuple[Tensor, ...]]


def narrow(x: Tensor, dtype: torch.dtype) -> torch.dtype | None:
    """The dtype of x where that has 16 bits and the computation is not the exact one."""
    return x.dtype if x.dtype.itemsize == 2 and dtype != torch.float64 else None


def mixed(x: Tensor, low: torch.dtype | None) -> AbstractContextManager[Any]:
    """Products in ``low``, sums and losses in float32; None: nothing changes."""
    return nullcontext() if low is None else torch.autocast(x.device.type, dtype=low)


def activities(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(functional.linear(rms_normalised(x), weight, bias))


def wide(x: Tensor) -> torch.dtype:
    """What norms and squares are summed in: on a CPU autocast would leave them in 16 bits, on a GPU it does not."""
    return torch.float32 if x.dtype.itemsize == 2 and x.device.type == "cpu" else x.dtype


def rms_normalised(x: Tensor) -> Tensor:
    length = x.norm(2, 1, keepdim=True, dtype=wide(x)) / math.sqrt(x.shape[1])
    return x / (length + EPS)


def goodness(h: Tensor) -> Tensor:
    return h.to(wide(h)).pow(2).mean(1)


def stacked_loss(x: Tensor, sign: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> Loss:
    h = activities(x, weight, bias)
    loss = functional.softplus(sign * (THRESHOLD - goodness(h))).mean()
    return loss, (h.detach(),) if keep else ()


def separate_loss(pos: Tensor, neg: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> Loss:
    h_pos, h_neg = activities(pos, weight, bias), activities(neg, weight, bias)
    gap = torch.cat((THRESHOLD - goodness(h_pos), goodness(h_neg) - THRESHOLD))
    loss = functional.softplus(gap).mean()
    return loss, (h_pos.detach(), h_neg.detach()) if keep else ()


class EagerStep:
    """One layer that learns by autograd.

    Args:
        form: one of FORMS.
        fused: Adam(fused=True).
        compiled: "" nothing, "loss" forward and backward, "all" the optimiser's step too.
        dtype: float64 makes it the exact answer that the others are compared with.
    """

    def __init__(
        self,
        case: StepCase,
        data: StepData,
        form: str,
        *,
        fused: bool = False,
        compiled: str = "",
        dtype: torch.dtype = torch.float32,
        lr: float = 1e-3,
    ) -> None:
        self.keep = case.keep
        self.kept: tuple[Tensor, ...] = ()
        self.weight = data.weight.to(dtype, copy=True).requires_grad_()
        self.bias = data.bias.to(dtype, copy=True).requires_grad_()
        self.low = narrow(data.rows, dtype)
        self.x = data.rows if self.low else data.rows.to(dtype)
        self.scale = LOSS_SCALE if self.low == torch.float16 else 1.0
        self.last_loss = data.sign.new_zeros((), dtype=dtype)
        sign = data.sign.to(dtype)
        self.inputs: tuple[Tensor, Tensor]
        self.loss: Callable[..., Loss]
        if form == "stacked":
            self.loss, self.inputs = stacked_loss, (self.x, sign)
        else:
            self.loss = separate_loss
            self.inputs = (self.x[: case.batch], self.x[case.batch :])
        everything = compiled == "all"
        on_device = self.x.is_cuda and (fused or everything)  # count and rate: what a graph can capture
        rate: Any = lr
        if everything or on_device:  # a number would be compiled in, or captured
            rate = torch.tensor(lr, device=self.x.device)
        # None is torch's own choice, and its default.
        self.optimiser = torch.optim.Adam([self.weight, self.bias], lr=rate, fused=fused or None, capturable=on_device)
        self.update: Callable[[], Any] = self.optimiser.step
        if compiled:
            # It says that Adam's profiler scope is left out.
            logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
            self.loss = torch.compile(self.loss, dynamic=False)
        if everything:
            self.update = torch.compile(self.optimiser.step, dynamic=False)

    def __call__(self) -> None:
        with mixed(self.x, self.low):
            loss, self.kept = self.loss(*self.inputs, self.weight, self.bias, self.keep)
        self.optimiser.zero_grad()
        if self.scale == 1.0:
            loss.backward()
        else:
            (loss * self.scale).backward()
            torch._foreach_mul_([p.grad for p in (self.weight, self.bias) if p.grad is not None], 1 / self.scale)
        self.update()
        self.last_loss = loss.detach()

    def set_lr(self, lr: float) -> None:
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def results(self) -> dict[str, Tensor]:
        """What the steps so far led to, for comparison."""
        with torch.no_grad(), mixed(self.x, self.low):
            found = {"goodness": goodness(activities(self.x, self.weight, self.bias))}
        found["weight moment"] = self.optimiser.state[self.weight]["exp_avg"]
        found["bias moment"] = self.optimiser.state[self.bias]["exp_avg"]
        if self.keep:
            found["activities"] = torch.cat(self.kept)
        return found


def layer_goodness(h: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Goodness of every layer and row, [L, R]."""
    result = []
    for weight, bias in zip(weights, biases, strict=True):
        h = activities(h, weight, bias)
        result.append(goodness(h))
    return torch.stack(result)


class EagerPredict:
    """All labels one after another, as the public implementations do.

    Args:
        batch: images taken at once; None: all.
        compiled: compile the pass through the network.
    """

    def __init__(
        self,
        case: PredictCase,
        data: PredictData,
        batch: int | None,
        *,
        compiled: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.low = narrow(data.images, dtype)
        self.images = data.images if self.low else data.images.to(dtype)
        self.weights = [weight if self.low else weight.to(dtype) for weight in data.weights]
        self.biases = [bias.to(dtype) for bias in data.biases]
        self.batch = batch or case.images
        self.through: Callable[..., Tensor] = layer_goodness
        if compiled:
            self.through = torch.compile(layer_goodness, dynamic=False)

    @torch.no_grad()
    def goodness(self, images: Tensor) -> Tensor:
        """[L, N, C]"""
        labels = []
        for label in range(CLASSES):
            x = images.clone()
            x[:, :CLASSES] = 0
            x[:, label] = LABEL_VALUE
            with mixed(x, self.low):
                labels.append(self.through(x, self.weights, self.biases))
        return torch.stack(labels, 2)

    def __call__(self) -> Tensor:
        parts = [self.goodness(part).sum(0).argmax(1) for part in self.images.split(self.batch)]
        return torch.cat(parts)
