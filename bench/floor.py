"""The floor: bare matrix products, as many as ffkern does, and the optimiser's memory stream.

Products go into buffers made beforehand (torch.mm with out=). The stream is torch._fused_adam_,
one pass that reads w, m, v, g and writes w, m, v; with learning rate 0 its numbers stay put.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import CLASSES, PredictCase, PredictData, StepCase, StepData


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
        self.weights = data.weights
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
