"""The floor: bare matrix products, as many as ffkern does, and the optimiser's memory stream.

Products go into buffers made beforehand (torch.mm with out=). The stream is torch._fused_adam_,
one pass that reads w, m, v, g and writes w, m, v (of networks with Hinton's rule torch._fused_sgd_, which has no v);
with learning rate 0 its numbers stay put.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ffkern.data import Dataset

from .cases import CLASSES, NetworkCase, PredictCase, PredictData, StepCase, StepData


class FloorStep:
    """Two products a layer: on all rows ("stacked"), on half of them twice ("separate"), or, for a
    shared first layer, on the images alone ("images"). ``adam``: with the optimiser's stream, which
    is float32 whatever the rows are."""

    def __init__(self, case: StepCase, data: StepData, form: str, adam: bool = True) -> None:
        x = data.rows if data.images is None else data.images
        parts = x.split(case.batch) if form == "separate" else (x,)
        self.products = [(part, part.new_empty(part.shape[0], case.units)) for part in parts]
        self.adam = adam
        self.weight = data.weight.clone()
        self.operand = self.weight.to(x.dtype)  # the same tensor for float32 rows
        self.product = torch.empty_like(self.operand)
        self.gradient = self.product if x.dtype == torch.float32 else torch.zeros_like(self.weight)
        self.moments = [torch.zeros_like(self.weight) for _ in range(2)]
        self.step = torch.zeros((), device=x.device)

    def __call__(self) -> None:
        for x, z in self.products:
            torch.mm(x, self.operand.t(), out=z)
        for i, (x, z) in enumerate(self.products):
            if i == 0:
                torch.mm(z.t(), x, out=self.product)
            else:
                self.product.addmm_(z.t(), x)
        if self.adam:
            self._update()

    def _update(self) -> None:
        torch._fused_adam_(
            [self.weight],
            [self.gradient],
            [self.moments[0]],
            [self.moments[1]],
            [],
            [self.step],
            lr=0.0,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


class FloorPredict:
    """The first layer's product once an image, the other layers' once an image and label."""

    def __init__(self, case: PredictCase, data: PredictData, chunk: int) -> None:
        self.weights = [weight.to(data.images.dtype) for weight in data.weights]
        counts = [part.shape[0] for part in data.images.split(chunk)]
        self.chunks = list(zip(data.images.split(chunk), counts, strict=True))
        rows = max(counts)
        new = data.images.new_empty
        self.base = new(rows, case.sizes[1])
        self.outputs = [data.images.new_zeros(rows * CLASSES, size) for size in case.sizes[1:]]

    def __call__(self) -> None:
        for images, count in self.chunks:
            torch.mm(images, self.weights[0].t(), out=self.base[:count])
            h: Tensor = self.outputs[0][: count * CLASSES]
            for weight, output in zip(self.weights[1:], self.outputs[1:], strict=True):
                torch.mm(h, weight.t(), out=output[: count * CLASSES])
                h = output[: count * CLASSES]


class FloorNetwork:
    """Of each layer: the rows of each pass, and the gradient; in the first, whose rows are variants of the same images,
    the images once each. With hard negatives the neutral and positive rows make a pass, then the negative ones."""

    def __init__(self, case: NetworkCase, data: Dataset) -> None:
        x, n = data.train_x, case.batch
        passes, rows = ([2 * n, n], 3 * n) if case.kind != "uniform" else ([2 * n], 2 * n)
        self.layers: list[tuple[list[tuple[Tensor, Tensor]], Tensor, tuple[Tensor, Tensor], Tensor]] = []
        for inputs, units in zip(case.sizes, case.sizes[1:], strict=False):
            z = x.new_empty(len(x), units)
            weight, gradient = torch.zeros(units, inputs, dtype=x.dtype), torch.zeros(units, inputs, dtype=x.dtype)
            first = not self.layers
            parts = [(x, z)] if first else list(zip(x.split(passes), z.split(passes), strict=True))
            lesson = (x, z) if first else (x[-2 * n :], z[-2 * n :])
            self.layers.append((parts, weight, lesson, gradient))
            x = z if len(z) == rows else z.new_zeros(rows, units)
        new = [torch.zeros(weight.shape) for _, weight, _, _ in self.layers]
        self.weights, self.gradients = new, [torch.zeros_like(w) for w in new]
        self.slots = [[torch.zeros_like(w) for w in new] for _ in range(1 if case.kind == "hinton" else 2)]
        self.steps = [torch.zeros(()) for _ in new]

    def __call__(self) -> None:
        for parts, weight, (x, z), gradient in self.layers:
            for rows, out in parts:
                torch.mm(rows, weight.t(), out=out)
            torch.mm(z.t(), x, out=gradient)
        if len(self.slots) == 2:
            torch._fused_adam_(
                self.weights, self.gradients, *self.slots, [], self.steps,
                lr=0.0, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
        else:
            torch._fused_sgd_(
                self.weights, self.gradients, *self.slots,
                weight_decay=0.0, momentum=0.9, lr=0.0, dampening=0.0, nesterov=False, maximize=False,
                is_first_step=False,
            )  # fmt: skip
